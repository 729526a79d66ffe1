# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pin between Open WebUI and Ollama: the role's own nginx configuration, in front of servers that keep what they get."""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import socket

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import runner_options

INFERENCE = "/api/chat /api/generate /api/embed /api/embeddings /v1/chat/completions /v1/completions /v1/embeddings /v1/responses /v1/messages".split()
LOOKING = "/api/tags /api/ps /api/version".split()
CHANGING = "/api/create /api/pull /api/push /api/copy /api/delete /api/blobs/sha256:00 /api/me /api/signout /api/experimental/x /v1/models / /x".split()


@pytest.fixture
def pin(open_webui_pin, ollama):
    return open_webui_pin(ollama.port)


def ask(port, method, path, body=None, headers=None):
    """(status, body) of one request."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    line.request(method, path, body, headers or {})
    answer = line.getresponse()
    content = answer.read()
    line.close()
    return answer.status, content


@pytest.mark.parametrize("path", INFERENCE)
def test_no_option_of_the_runner_arrives(pin, ollama, path):
    members = {"model": "qwen3", "prompt": "1.0", **dict.fromkeys(runner_options.MEMBERS, 0)}
    body = {**members, "options": {**dict.fromkeys(runner_options.OPTIONS, 1), "top_k": 3}}
    status, _body = ask(pin.port, "POST", f"/0{path}", json.dumps(body), {"Authorization": "Bearer key-of-a-connection"})
    assert status == 200
    seen = ollama.seen[0]
    assert (seen["method"], seen["path"], seen["headers"]["Authorization"]) == ("POST", path, "Bearer key-of-a-connection")
    assert json.loads(seen["body"]) == {"model": "qwen3", "prompt": "1.0", "options": {"top_k": 3}}
    assert seen["headers"]["Content-Length"] == str(len(seen["body"]))


def test_what_has_no_option_arrives_byte_for_byte(pin, ollama):
    body = b'{"model": "qwen3:latest", "temperature": 1.0, "seed": 12345678901234567890, "text": "\\u00e9"}'
    assert ask(pin.port, "POST", "/0/api/chat", body)[0] == 200 and ollama.seen[0]["body"] == body


@pytest.mark.parametrize("path", LOOKING)
def test_what_the_server_has_is_shown_and_no_body_goes_with_it(pin, ollama, path):
    assert ask(pin.port, "GET", f"/0{path}", "abcde")[0] == 200
    seen = ollama.seen[0]
    assert seen["path"] == path and seen["body"] == b"" and "Content-Length" not in seen["headers"] and "Transfer-Encoding" not in seen["headers"]
    assert ask(pin.port, "POST", f"/0{path}", "{}")[0] == 403 and len(ollama.seen) == 1


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_what_changes_the_server_is_closed(pin, ollama, path, method):
    for where in (f"/0{path}", path):
        status, body = ask(pin.port, method, where, json.dumps({"model": "qwen3"}))
        assert status == 403 and b"closed here" in body
    assert not ollama.seen


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"model": "qwen3", "text": "a\x01"}', 400),
        (b'{"model": "qwen3", "text": "\\x"}', 400),
        (b'{"model": "qwen3", "Model": "x"}', 400),
        (b'{"prompt": "x"}', 400),
        (b'{"model": "other"}', 404),
        (b'{"name": "OTHER"}', 404),
    ],
)
def test_what_is_not_understood_or_not_declared_does_not_pass(pin, ollama, body, status):
    assert ask(pin.port, "POST", "/0/api/chat", body)[0] == status and not ollama.seen


def test_other_methods_servers_and_spellings_do_not_pass(pin, ollama):
    body = json.dumps({"model": "qwen3", "keep_alive": 0})
    assert ask(pin.port, "DELETE", "/0/api/chat", body)[0] == 405
    assert ask(pin.port, "POST", "/0/api/chat", body, {"Content-Encoding": "gzip"})[0] == 415
    assert ask(pin.port, "POST", "/7/api/chat", body)[0] in (500, 502)
    for path in ("/0/api/chat/", "/0//api/chat/x", "/0/api/chat%0a", "/0/API/chat", "/0/x/../api/create", "/0/api/chat/../create"):
        assert ask(pin.port, "POST", path, body)[0] in (400, 403), path
    assert not ollama.seen


def test_a_chunked_body_is_pinned_too(pin, ollama):
    with socket.create_connection(("127.0.0.1", pin.port), timeout=30) as line:
        part = b'{"model": "qwen3", "keep_alive": 0, "options": {"num_ctx": 1}}'
        line.sendall(b"POST /0/api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        line.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(part), part))
        assert line.makefile("rb").readline().split()[1] == b"200"
    assert json.loads(ollama.seen[0]["body"]) == {"model": "qwen3", "options": {}}


def test_an_answer_does_not_steer_the_pin(pin, ollama):
    def steer(handler):
        if handler.path != "/api/version":
            return False
        handler.send_response(200)
        handler.send_header("X-Accel-Redirect", "/0/api/tags")
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")
        return True

    ollama.answer = steer
    assert ask(pin.port, "GET", "/0/api/version") == (200, b"{}") and [seen["path"] for seen in ollama.seen] == ["/api/version"]


def test_each_server_has_its_own_way(open_webui_pin, ollama, page):
    made = open_webui_pin(ollama.port, page.port)
    body = json.dumps({"model": "qwen3"})
    assert ask(made.port, "POST", "/1/api/chat", body)[0] == 200 and page.seen and not ollama.seen
    assert ask(made.port, "GET", "/0/api/tags")[0] == 200 and len(ollama.seen) == 1 and len(page.seen) == 1
    assert ollama.seen[0]["headers"]["Host"] == "localhost"


def test_pin_and_pattern_are_the_gateways():
    role = pathlib.Path(__file__).resolve().parents[2] / "roles"
    variables = (role / "open_webui/vars/main.yml").read_text(encoding="utf-8")
    assert "gateway/files/pin.js" in variables and not list((role / "open_webui").rglob("pin.js"))
    checks = [
        re.findall(r"if \(\$request_body !~ .*", (role / path).read_text(encoding="utf-8"))
        for path in ("gateway/templates/nginx.conf.j2", "open_webui/templates/pin.conf.j2")
    ]
    assert checks[0] and checks[0] == checks[1]
