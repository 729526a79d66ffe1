# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every route by every kind of caller, pinning, limits, drain, health, and what is thrown at a port that faces a network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
from conftest import ROLE, Gateway, environment

BODY = json.dumps({"model": "qwen3", "messages": [], "options": {"num_ctx": 1234, "top_k": 3}, "keep_alive": 0}).encode()

NATIVE = ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"]
OPENAI = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
MANAGEMENT = [
    ("POST", "/api/create"),
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:" + "0" * 64),
    ("HEAD", "/api/blobs/sha256:" + "0" * 64),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("GET", "/api/status"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/API/PULL"),
    ("POST", "//api//pull"),
    ("POST", "/api/%70ull"),
]
OTHER = [("POST", "/v1/audio/transcriptions"), ("GET", "/v1/anything"), ("POST", "/v1/")]


@pytest.mark.parametrize("path", NATIVE + OPENAI)
def test_inference_needs_a_known_token(gateway, ollama, page, path):
    for token in (None, "wrong-token-0123456789-0123456789abc", ""):
        status, headers, _body = gateway.ask("POST", path, BODY, token)
        if path == "/api/embeddings":
            # Open WebUI has this path as well, and its own door.
            assert status == 200 and page.seen.pop()["path"] == path
        else:
            assert status == 401 and headers["www-authenticate"].startswith("Bearer")
    assert not ollama.seen and not page.seen
    status, headers, _body = gateway.ask("POST", path, BODY, "alice")
    assert (status, headers["x-gateway-removed"]) == (200, "keep_alive,options.num_ctx")
    assert ollama.seen[0]["path"] == path
    assert ollama.seen[0]["body"] == b'{"model": "qwen3", "messages": [], "options": {"top_k": 3}}'


def test_a_token_in_the_header_of_anthropic(gateway, ollama):
    status, _headers, _body = gateway.ask("POST", "/v1/messages", BODY, headers={"X-Api-Key": "test-token-of-alice-0123456789abcdef"})
    assert status == 200 and ollama.seen


def test_the_server_sees_no_secret_and_its_own_name(gateway, ollama):
    gateway.ask("POST", "/api/chat", BODY, "alice", {"Origin": "https://evil.example", "Cookie": "a=b", "Content-Type": "text/x"})
    headers = {name.lower(): value for name, value in ollama.seen[0]["headers"].items()}
    assert headers["host"] == "localhost"
    assert headers["content-type"] == "text/x"
    assert not {"authorization", "cookie", "origin", "x-api-key"} & set(headers)


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
def test_management_is_closed_to_everybody(gateway, ollama, page, method, path):
    for token in (None, "wrong-token-0123456789-0123456789abc", "alice"):
        assert gateway.ask(method, path, BODY, token)[0] == 403
    assert not ollama.seen and not page.seen


@pytest.mark.parametrize(("method", "path"), OTHER)
def test_the_rest_of_v1_is_nothing(gateway, ollama, page, method, path):
    assert gateway.ask(method, path, BODY)[0] == 401
    assert gateway.ask(method, path, BODY, "alice")[0] == 404
    assert not ollama.seen and not page.seen


def test_lists_show_what_a_token_may_use(gateway, ollama):
    for path, key in (("/api/tags", "models"), ("/api/ps", "models"), ("/v1/models", "data")):
        assert gateway.ask("GET", path)[0] == 401
        status, _headers, body = gateway.ask("GET", path, token="alice" if path.startswith("/v1") else "bob")
        assert status == 200 and [model["name"] for model in json.loads(body)[key]] == ["qwen3:latest"]
    assert gateway.ask("GET", "/v1/models/qwen3", token="alice")[0] == 200
    assert ollama.seen[-1]["path"] == "/v1/models/qwen3"
    assert gateway.ask("GET", "/v1/models/secret", token="alice")[0] == 404
    assert gateway.ask("GET", "/v1/models", token="carol")[0] == 403
    assert json.loads(gateway.ask("GET", "/v1/models", token="dave")[2])["data"] == []


def test_version_is_the_servers_with_a_token_and_the_pages_without(gateway, ollama, page):
    assert json.loads(gateway.ask("GET", "/api/version", token="alice")[2])["from"] == "ollama"
    assert json.loads(gateway.ask("GET", "/api/version")[2])["from"] == "page"
    assert gateway.ask("POST", "/api/version", token="alice")[0] == 405


def test_rights(gateway, ollama):
    assert gateway.ask("POST", "/v1/chat/completions", BODY, "carol")[0] == 403
    assert gateway.ask("POST", "/api/chat", BODY, "dave")[0] == 403
    assert gateway.ask("POST", "/v1/chat/completions", BODY, "dave")[0] == 404
    assert gateway.ask("GET", "/api/chat", token="alice")[0] == 405
    assert not ollama.seen


@pytest.mark.parametrize("name", ["other", "qwen3:8b", "QWEN3:cloud", "x/qwen3", "", "library/../qwen3", "__proto__", "constructor", "toString"])
def test_only_declared_models_answer(gateway, ollama, name):
    assert gateway.ask("POST", "/api/chat", json.dumps({"model": name}).encode(), "alice")[0] == 404
    assert gateway.ask("POST", "/api/show", json.dumps({"model": "qwen3", "name": name}).encode(), "alice")[0] == 404
    assert not ollama.seen


@pytest.mark.parametrize("name", ["qwen3", "qwen3:latest", "QWEN3:Latest", "small:1b"])
def test_declared_models_answer_by_each_of_their_names(gateway, ollama, name):
    assert gateway.ask("POST", "/api/chat", json.dumps({"model": name}).encode(), "alice")[0] == 200


def test_pin_refuse_and_off(gateway, ollama):
    def ask(token, context):
        return gateway.ask("POST", "/api/chat", f'{{"model":"qwen3","options":{{"num_ctx":{context},"num_gpu":1}}}}'.encode(), token)

    for context in ("40961", "1e9", '"40960"', "[1]", "{}"):
        status, _headers, body = ask("bob", context)
        assert status == 400 and b"40960" in body, context
    assert not ollama.seen
    assert ask("bob", "40960")[0] == 200
    assert ollama.seen[-1]["body"] == b'{"model":"qwen3","options":{}}'
    assert ask("erin", "99999")[0] == 200
    assert ollama.seen[-1]["body"] == b'{"model":"qwen3","options":{"num_ctx":99999,"num_gpu":1}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b'{"model":"qwen3"} x',
        b'{"model":"qwen3"}{"model":"other"}',
        b'{"model":"qwen3","Model":"other"}',
        b'{"model":"qwen3","options":{"num_ctx":1},"OPTIONS":{"num_ctx":2}}',
        b'{"model":"qwen3","options":[{"num_ctx":1}]}',
        b'{"model":"qwen3","options":"x"}',
        b'{"model":["qwen3"]}',
        b'{"messages":[]}',
        b'{"model":"qwen3","a\xff":1}',
        b'{"model":"qwen3","options":{"num_ctx\xff":1}}',
        b'{"model":"qwen3\xff"}',
        b'{"model":"qwen3",\xc2\xa0"a":1}',
        b'{"model":"qwen3","a":"\x00"}',
        b'{"model":"qwen3","a":"\n"}',
        b'{"model":"qwen3","a":"\\x"}',
        b'{"model":"qwen3","a":"\\u00g0"}',
        b'{"model":"qwen3","a":{"b\t":1}}',
        b'{"model":"qwen3","a":"b"}\x00',
        b'\xef\xbb\xbf{"model":"qwen3"}',
        b'{"model":"qwen3","a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"model":"qwen3","a":NaN}',
        b"{'model':'qwen3'}",
        b'{"model":"qwen3",}',
        b'{"model":"qwen3" /* c */}',
    ],
)
def test_what_is_not_understood_is_refused(gateway, ollama, body):
    status, _headers, answer = gateway.ask("POST", "/api/chat", body, "alice")
    assert status == 400 and json.loads(answer)["error"]
    assert not ollama.seen


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"model":"qwen3",' + b",".join(b'"k%d":1' % number for number in range(500)) + b"}", b"more than 500 members"),
        (b'{"model":"qwen3","options":{' + b",".join(b'"k%d":1' % number for number in range(500)) + b"}}", b"more than 500 members"),
        (b'{"model":"qwen3","a":[' + b"1," * 10000 + b"1]}", b"more values"),
        (b'{"model":"qwen3","a":"' + b"\\n" * 70000 + b'"}', b"more values"),
        (b'{"model":"qwen3","a":[' + b" " * 300000 + b"1]}", b"more values"),
        (b'{"model":"qwen3","a":' + b"1" * 101 + b"}", b"more than 100 characters"),
        (b'{"model":"qwen3","' + b"k" * 300 + b'":1}', b"more than 256 bytes"),
    ],
    ids=range(7),
)
def test_work_is_bounded(gateway, ollama, body, says):
    status, _headers, answer = gateway.ask("POST", "/api/chat", body, "alice")
    assert status == 400 and says in answer and not ollama.seen


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"qwen3","a":{"num_ctx":1,"keep_alive":2}}',
        b'{"model":"qwen3","options":{"top_k":1},"a":{"num_ctx":1,"num_gpu":[2]},"b":{"num_ctx":1,"num_ctx":2}}',
        b'{"options":{"a":{"num_ctx":1}},"model":"qwen3","b":[{"options":{"num_ctx":3}}],"c":{"options":{"num_ctx":1}}}',
        b'{"model":"qwen3","options":{},"messages":[{"content":"num_ctx","keep_alive":1}]}',
        b'{"model":"qwen3","options":null,"num_ctx":5}',
        b'{"options":{"a":[]},"z":{"num_ctx":1},"model":"qwen3"}',
    ],
)
def test_only_options_of_the_body_itself_are_cut(gateway, ollama, body):
    status, headers, _answer = gateway.ask("POST", "/api/chat", body, "alice")
    assert status == 200 and ollama.seen[0]["body"] == body and "x-gateway-removed" not in headers


@pytest.mark.parametrize("value", ["[]", '[{"num_ctx":1}]', '[[{"num_ctx":1}]]', '"{}"', "0", "true"])
def test_options_that_are_no_object(gateway, ollama, value):
    status, _headers, answer = gateway.ask("POST", "/api/chat", f'{{"model":"qwen3","options":{value}}}'.encode(), "alice")
    assert status == 400 and b'\\"options\\" is no object' in answer and not ollama.seen


def test_a_long_conversation_with_tools_is_within_the_bounds(gateway, ollama):
    """More than fits the planned 40,960 tokens: 120 messages of code (168 kB), 32 tools."""
    code = 'def f(x):\n    """Say \\"hello\\"."""\n    return {"a": x, "b": [1, 2]}\n' * 20
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"p": {"type": "string", "enum": ["a", "b"]}}}}}
    body = {"model": "qwen3", "messages": [{"role": "user", "content": code}] * 120, "tools": [tool] * 32, "keep_alive": 1}
    for text in (json.dumps(body), json.dumps(body, indent=2)):
        assert gateway.ask("POST", "/api/chat", text.encode(), "alice")[0] == 200
        assert json.loads(ollama.seen[-1]["body"]) == {key: value for key, value in body.items() if key != "keep_alive"}


def test_compressed_and_too_large_bodies(gateway, ollama):
    assert gateway.ask("POST", "/v1/responses", BODY, "alice", {"Content-Encoding": "zstd"})[0] == 415
    image = b'{"model":"qwen3","images":["' + b"A" * (7 << 20) + b'"],"keep_alive":5}'
    assert gateway.ask("POST", "/api/chat", image, "alice")[0] == 200
    assert ollama.seen[-1]["body"] == image.replace(b',"keep_alive":5', b"")
    line = gateway.connect()
    line.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-token-of-alice-0123456789abcdef\r\nContent-Length: 1073741824\r\n\r\n")
    assert b" 413 " in line.recv(200)
    assert len(ollama.seen) == 1
    # Nothing of a body has touched the disk.
    assert not [one for _folder, _folders, files in os.walk(gateway.folder / "client_body") for one in files]


def test_a_body_says_its_length(gateway, ollama, page):
    """A million chunks of one byte would take a hundred times their bytes of memory."""
    for path in ("/api/chat", "/healthz", "/api/tags", "/", "/api/v1/files/"):
        with gateway.connect() as line:
            line.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-token-of-alice-0123456789abcdef\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" % path.encode()
            )
            assert b" 411 " in line.recv(200)
    assert not ollama.seen and not page.seen


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/ollama/api/tags"),
        ("POST", "/ollama/api/chat"),
        ("POST", "/ollama/v1/chat/completions"),
        ("GET", "/ollama"),
        ("GET", "//ollama/api/tags"),
        ("GET", "/%6fllama/api/tags"),
        ("GET", "/ollama%2fapi/tags"),
        ("GET", "/OLLAMA/api/tags"),
        ("GET", "/api/v1/utils/db/download"),
        ("POST", "/api/v1/auths/signup"),
        ("POST", "/api/v1/auths/signup/"),
        ("POST", "/api/v1/auths/%73ignup"),
    ],
)
def test_closed_paths_of_the_page(gateway, page, method, path):
    for token in (None, "alice"):
        assert gateway.ask(method, path, b"{}" if method == "POST" else None, token)[0] == 403
    assert not page.seen


@pytest.mark.parametrize(
    "path",
    ["/x/../ollama/api/tags", "/ollama/../x", "/ollama/%2e%2e/x", "/x/%2e%2e%2follama/", "/./ollama/api", "/x\\..\\ollama", "/..", "/static/..%5c..%5col"],
)
def test_paths_that_climb_are_refused(gateway, ollama, page, path):
    assert gateway.ask("GET", path, token="alice")[0] == 400
    assert not page.seen and not ollama.seen


BEYOND = "GET%20/z%20HTTP/1.1%0d%0aHost:%20localhost%0d%0a%0d%0aPOST%20/api/delete%20HTTP/1.1%0d%0aHost:%20localhost%0d%0a%0d%0a"


@pytest.mark.parametrize("path", ["/v1/models/qwen3", "/v1/models/", "/v1/models/x", "/api/version", "/api/tags", "/v1/models", "/healthz"])
@pytest.mark.parametrize("tail", ["%20HTTP/1.1%0d%0aHost:%20x%0d%0a%0d%0a" + BEYOND, "%0a", "%0d", "%00", "%20x", "%09", "%7f", "%20HTTP/1.1%0a%0a"])
def test_no_path_becomes_a_second_request(gateway, ollama, page, path, tail):
    """nginx decodes a path before it hands it on; a line's end in it would end the request's first line."""
    for token in (None, "alice", "dave"):
        status, _headers, _body = gateway.ask("GET", path + tail, token=token)
        assert 400 <= status < 500 or (status == 200 and not ollama.seen), status
    assert not ollama.seen
    assert all(seen["path"] == path + tail for seen in page.seen)


def test_a_full_disk_refuses_what_writes_to_the_page_and_nothing_else(tree, ollama, page, tmp_path):
    flag = tmp_path / "full"
    made = Gateway(tmp_path, tree, __gateway_ollama=f"127.0.0.1:{ollama.port}", __gateway_open_webui=f"127.0.0.1:{page.port}",
                   __gateway_page_full=str(flag)).start()  # fmt: skip
    try:
        asked = [("POST", "/api/v1/files/"), ("POST", "/api/chat/completions"), ("PUT", "/x"), ("POST", "/api/v1/chats/new"), ("POST", "/api/embeddings")]
        goes_on = [("GET", "/"), ("DELETE", "/api/v1/chats/x"), ("POST", "/api/v1/auths/signin"), ("GET", "/ws/socket.io/")]
        for is_full in (False, True):
            flag.touch() if is_full else None
            page.seen.clear()
            for method, path in asked:
                status, _headers, body = made.ask(method, path, b"{}")
                assert status == (507 if is_full else 200), (method, path)
                assert b"nearly full" in body or not is_full or path == "/api/embeddings"  # an error page of an error page is nginx's own
            assert len(page.seen) == (0 if is_full else len(asked))
            for method, path in goes_on:
                assert made.ask(method, path, b"{}" if method == "POST" else None)[0] == 200
        assert made.ask("POST", "/api/chat", BODY, "alice")[0] == 200
    finally:
        made.stop()


def test_the_page_is_passed_on(gateway, page):
    status, headers, body = gateway.ask(
        "GET", "/api/v1/chats/?page=1", headers={"Authorization": "Bearer a.jwt.token", "Cookie": "token=x", "X-Forwarded-For": "8.8.8.8"}
    )
    seen = page.seen[0]
    assert status == 200 and json.loads(body)["from"] == "page" and "strict-transport-security" in headers
    assert seen["path"] == "/api/v1/chats/?page=1"
    assert seen["headers"]["Authorization"] == "Bearer a.jwt.token" and seen["headers"]["Cookie"] == "token=x"
    assert seen["headers"]["X-Forwarded-For"] == "127.0.0.1" and seen["headers"]["X-Forwarded-Proto"] == "https"
    assert gateway.ask("POST", "/api/v1/files/", b"x" * (22 << 20))[0] == 413


def test_a_websocket_of_the_page(gateway, page):
    def upgrade(handler):
        if handler.headers.get("Upgrade") != "websocket":
            return False
        handler.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        handler.wfile.flush()
        for _echo in range(2):
            handler.wfile.write(handler.connection.recv(100))
            handler.wfile.flush()
        handler.close_connection = True
        return True

    page.answer = upgrade
    line = gateway.connect()
    line.sendall(b"GET /ws/socket.io/?transport=websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert b" 101 " in line.recv(500)
    for word in (b"ping", b"pong"):
        line.sendall(word)
        assert line.recv(100) == word


def stream_of(parts, pause):
    def stream(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number in range(parts):
            line = b'{"n":%d}\n' % number
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            handler.wfile.flush()
            time.sleep(pause)
        handler.wfile.write(b"0\r\n\r\n")
        return True

    return stream


def open_stream(gateway, path="/api/chat", token="alice"):
    line = gateway.connect()
    line.sendall(
        b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer test-token-of-%s-0123456789abcdef\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), token.encode(), len(BODY), BODY)
    )
    return line


def read_all(line):
    got = b""
    while True:
        part = line.recv(65536)
        if not part:
            return got
        got += part


def test_a_stream_stays_one(gateway, ollama):
    ollama.answer = stream_of(5, 0.3)
    line = open_stream(gateway)
    arrived = []
    while True:
        part = line.recv(4096)
        if not part:
            break
        arrived.append((time.monotonic(), part))
    times = [when for when, part in arrived if b'"n"' in part]
    assert len(times) >= 5 and times[-1] - times[0] > 0.9


def test_a_reload_loses_no_stream(gateway, ollama):
    ollama.answer = stream_of(20, 0.1)
    lines = [open_stream(gateway) for _one in range(20)]
    time.sleep(0.5)
    assert gateway.command("-s", "reload").returncode == 0
    time.sleep(0.3)
    ollama.answer = None
    assert gateway.ask("POST", "/api/chat", BODY, "alice")[0] == 200
    for line in lines:
        assert b'{"n":19}' in read_all(line)


def test_who_goes_away_is_told_to_the_server(gateway, ollama):
    gone = threading.Event()

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            for _beat in range(300):
                handler.wfile.write(b"data: x\n\n")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            gone.set()
        return True

    ollama.answer = endless
    line = open_stream(gateway, "/v1/chat/completions")
    line.recv(1000)
    line.close()
    assert gone.wait(10)


def test_rate_and_streams_of_a_token(gateway, ollama):
    began = time.monotonic()
    ollama.answer = stream_of(1, 5)
    lines = [open_stream(gateway, token="frank") for _one in range(3)]
    assert b" 429 " in lines[2].recv(20)  # two of them run
    ollama.answer = None
    for line in lines:
        line.close()
    # Six at once by the rate and its burst, of which three are spent; one more for each ten seconds that this takes.
    said = [gateway.ask("POST", "/api/chat", BODY, "frank") for _one in range(8)]
    refused = [one for one in said if one[0] == 429]
    assert 4 - (time.monotonic() - began) // 10 - 1 <= len(refused) <= 6
    assert refused and refused[0][1]["retry-after"] == "5"
    # Another token's requests are not counted with them.
    assert gateway.ask("POST", "/api/chat", BODY, "alice")[0] == 200


def test_drain(gateway, ollama, page):
    ollama.answer = stream_of(10, 0.1)
    running = open_stream(gateway)
    running.recv(10)
    flag = gateway.folder / "run" / "drain"
    flag.write_text("driver upgrade\n")
    try:
        for path in ("/api/chat", "/v1/chat/completions"):
            status, headers, _body = gateway.ask("POST", path, BODY, "alice")
            assert status == 503 and headers["retry-after"] == "30"
        assert gateway.ask("POST", "/api/chat/completions", b"{}")[0] == 503
        assert gateway.ask("GET", "/")[0] == 200
        status, _headers, body = gateway.ask("GET", "/healthz")
        assert (status, json.loads(body)["status"]) == (503, "drained")
        assert b'{"n":9}' in read_all(running)
    finally:
        flag.unlink()
    ollama.answer = None
    assert gateway.ask("POST", "/api/chat", BODY, "alice")[0] == 200
    assert gateway.ask("GET", "/healthz")[0] == 200


def test_health_is_red_when_the_guard_is_fenced_or_the_server_gone(gateway, ollama):
    said = gateway.ask("GET", "/healthz")
    assert (said[0], json.loads(said[2])) == (200, {"status": "ok", "config": "0123456789abcdef"})
    fence = gateway.folder / "run" / "fenced"
    fence.write_text("trapped: what was tried did not help\n")
    said = gateway.ask("GET", "/healthz")
    assert (said[0], json.loads(said[2])["status"]) == (503, "fenced")
    fence.unlink()
    assert gateway.ask("GET", "/healthz")[0] == 200

    def broken(handler):
        handler.send_response(500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    ollama.answer = broken
    assert gateway.ask("GET", "/healthz")[0] == 503


def test_log_has_names_and_no_content(gateway, ollama):
    secret = "a very private question"
    body = json.dumps({"model": "qwen3:latest", "messages": [{"content": secret}], "options": {"num_ctx": 5}}).encode()
    known = len(gateway.log())
    gateway.ask("POST", "/api/chat?q=private", body, "alice")
    gateway.ask("POST", "/api/chat", body, "wrong-token-0123456789-0123456789abc")
    # A line is written when its request is over, also that of an earlier test's stream: each of two workers writes its own.
    right = {"token": "alice", "path": "/api/chat", "status": 200, "model": "qwen3", "pinned": "options.num_ctx"}
    deadline = time.monotonic() + 10
    while not all(any(wanted.items() <= line.items() for line in gateway.log()[known:]) for wanted in (right, {"token": "", "status": 401})):
        assert time.monotonic() < deadline, gateway.log()[known:]
        time.sleep(0.05)
    for name in ("access.log", "error.log"):
        text = (gateway.folder / name).read_text()
        assert secret not in text and "private" not in text and "token-of" not in text and "wrong-token" not in text


def test_http_is_redirected(gateway):
    import http.client

    line = http.client.HTTPConnection("127.0.0.1", gateway.http_port, timeout=10)
    line.request("GET", "/some?thing=1", headers={"Host": "evil.example"})
    answer = line.getresponse()
    assert answer.status == 308 and answer.getheader("Location") == f"https://localhost:{gateway.port}/some?thing=1"


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/tags HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\nabcd",
        b"GET /api/tags HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\n\r\n",
        b"GET /api/ta\x00gs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/tags%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (10 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(20000)) + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01 garbage\r\n\r\n",
    ],
    ids=range(16),
)
def test_shapes_of_smuggling_and_oversize_are_refused(gateway, ollama, page, raw):
    line = gateway.connect()
    try:
        line.sendall(raw)
        said = line.recv(100)
    except OSError:
        said = b""
    assert not said or said.split()[1][:1] == b"4" or said.split()[1] == b"501", said
    line.close()
    assert not ollama.seen and not page.seen
    assert gateway.ask("POST", "/api/chat", BODY, "alice")[0] == 200


def test_slow_clients_do_not_keep_others_out(gateway, ollama):
    slow = [gateway.connect() for _one in range(200)]
    for line in slow:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert gateway.ask("POST", "/api/chat", BODY, "alice")[0] == 200
    started = time.monotonic()
    slow[0].settimeout(20)
    assert slow[0].recv(10) in (b"", b"HTTP/1.1 4"[:10])  # after 10 s nginx lets go
    assert time.monotonic() - started < 15
    for line in slow:
        line.close()


def test_old_tls_is_refused(gateway):
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        input="",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "Cipher is (NONE)" in done.stdout or done.returncode != 0


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """Function that signs a certificate with the gateway's CA, as a thief of its key would, and has openssl verify it."""
    made = {}

    def sign(names, extensions, *words, subject="/CN=x"):
        if names not in made:
            made[names] = tmp_path_factory.mktemp("signer")
            renew_with(made[names], "h", names)
        folder = made[names]
        (folder / "ext").write_text(extensions)
        commands = f"""
          openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out csr -subj '{subject}'
          openssl x509 -req -in csr -CA tls/ca.crt -CAkey tls/ca.key -set_serial 7 -days 1 -extfile ext -out crt
          openssl verify -CAfile tls/ca.crt {" ".join(words)} crt"""
        done = subprocess.run(["sh", "-ec", commands], cwd=folder, capture_output=True, text=True, check=False)
        assert (folder / "crt").exists(), done.stderr
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return sign


LEAF = "basicConstraints=critical,CA:FALSE\nextendedKeyUsage={}\nsubjectAltName={}\n"


@pytest.mark.parametrize("names", ["a.example gateway.gpufleet.internal", "a.example 192.0.2.7", "a.example 2001:db8::7", "192.0.2.7 2001:db8::7 a.example"])
def test_the_ca_signs_only_its_own_names(signer, names):
    def refused(name, **more):
        return signer(names, LEAF.format("serverAuth", name), "-purpose sslserver", **more)

    mine = ["IP:" + one if one[0].isdigit() else "DNS:" + one for one in names.split()]
    assert [refused(one) for one in mine] == [""] * len(mine)
    for other in ("DNS:bank.example", "DNS:xa.example", "IP:192.0.2.8", "IP:10.0.0.1", "IP:2001:db8::8", "IP:::1", "email:root@bank.example"):
        assert "subtree violation" in refused(other), other
    for both in ("DNS:a.example,DNS:bank.example", "DNS:a.example,email:root@a.example"):
        assert "subtree violation" in refused(both), both
    assert "subtree violation" in refused("DNS:a.example", subject="/CN=x/emailAddress=root@bank.example")


def test_the_ca_signs_servers_only(signer):
    names = "a.example gateway.gpufleet.internal"
    for usage, purpose in (("clientAuth", "sslclient"), ("emailProtection", "smimesign")):
        assert "certificate purpose" in signer(names, LEAF.format(usage, "DNS:a.example"), f"-purpose {purpose}"), usage
    # openssl does not ask a CA that signs code or time stamps for its usage; such a certificate is no server's, at least.
    assert "certificate purpose" in signer(names, LEAF.format("codeSigning", "DNS:a.example"), "-purpose sslserver")


def test_the_ca_makes_no_other_ca(tmp_path):
    """One more level below it verifies nowhere."""
    renew_with(tmp_path, "h", "a.example")
    commands = """
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout sub.key -out sub.csr -subj /CN=sub
      printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n' > sub.ext
      openssl x509 -req -in sub.csr -CA tls/ca.crt -CAkey tls/ca.key -set_serial 7 -days 1 -extfile sub.ext -out sub.crt
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out csr -subj /CN=x
      printf 'subjectAltName=DNS:a.example' > ext
      openssl x509 -req -in csr -CA sub.crt -CAkey sub.key -set_serial 8 -days 1 -extfile ext -out crt
      openssl verify -CAfile tls/ca.crt -untrusted sub.crt crt"""
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "crt").exists() and "path length constraint exceeded" in done.stdout + done.stderr


def test_renewal(gateway, tmp_path):
    """Makes what is missing, leaves what is fresh, renews in the last third, and again when the names change."""
    script, conf, tls = gateway.folder / "program" / "renew", tmp_path / "renew.conf", tmp_path / "tls"

    def renew(*words, names="a.example 192.0.2.7", days=90):
        conf.write_text(f"dir={tls}\nhost=h\nnames='{names}'\ndays={days}\nca_days=3650\n")
        done = subprocess.run(
            ["sh", script, "--no-reload", *words], env={**os.environ, "GPUFLEET_RENEW_CONF": str(conf)}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert renew("--check") and not tls.exists()
    assert "authority" in renew()
    assert renew() == renew("--check") == ""
    first = (tls / "server.pem").read_bytes()
    assert oct((tls / "ca.key").stat().st_mode & 0o777) == oct((tls / "server.pem").stat().st_mode & 0o777) == "0o600"
    said = renew(days=400)  # what is left of 90 days is less than a third of 400
    assert "certificate for" in said and "authority" not in said and (tls / "server.pem").read_bytes() != first
    assert "authority" in renew(names="b.example")
    shown = subprocess.run(
        ["openssl", "x509", "-in", tls / "server.pem", "-noout", "-ext", "subjectAltName"], capture_output=True, text=True, check=True
    ).stdout
    assert "DNS:b.example" in shown
    subprocess.run(["openssl", "verify", "-CAfile", tls / "ca.crt", tls / "server.pem"], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["gpu01.rack-07.datacenter-frankfurt.example.org", "gpu 01", "o'brien", "$(touch owned)"])
def test_an_authority_for_a_host_of_any_name(tmp_path, name):
    """A common name has 64 characters at most, and a name is no program."""
    said = renew_with(tmp_path, host=name, names="a" * 60 + ".example.org")
    assert "a new certificate authority" in said and not (tmp_path / "owned").exists()


def render(name, folder, **values):
    """A template of the role as Ansible would lay it down: quoted by the same function."""
    world = {
        "__gateway_tls_dir": str(folder / "tls"),
        "__gateway_config_dir": str(folder),
        "__gateway_webroot": str(folder / "webroot"),
        "__gateway_acme": str(folder / "acme"),
        "__gateway_common_name": "gateway.gpufleet.internal",
        "gateway_certificate_days": 90,
        "gateway_ca_days": 3650,
        "gateway_tls": "own_ca",
        "gateway_names": ["a.example"],
        "inventory_hostname": "h",
    }
    return environment().from_string((ROLE / "templates" / f"{name}.j2").read_text()).render({**world, **values})


def renew_with(folder, host, names):
    (folder / "renew.conf").write_text(render("renew.conf", folder, inventory_hostname=host, gateway_names=names.split()))
    done = subprocess.run(
        ["sh", ROLE / "files" / "renew", "--no-reload"],
        env={**os.environ, "GPUFLEET_RENEW_CONF": str(folder / "renew.conf")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CERTBOT = """#!/bin/sh
# Stands in for certbot: keeps its words, and makes a certificate of the names that it is asked for.
printf '%s\n' "$*" >> "$HOME/asked"
[ ! -e "$HOME/refuse" ] || { echo 'Some challenges have failed.'; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    --domain) names="${names:+$names,}DNS:$(echo "$2" | tr A-Z a-z)"; shift ;;
    --deploy-hook) hook=$2; shift ;;
    --config-dir) live=$2/live/gpufleet-gateway; shift ;;
  esac
  shift
done
mkdir -p "$live"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$(cat "$HOME/days" 2>/dev/null || echo 90)" -keyout "$live/privkey.pem" \
  -out "$live/cert.pem" -subj /CN=x -addext "subjectAltName=$names" 2>/dev/null
cp "$live/cert.pem" "$live/fullchain.pem"
sh -c "$hook"
"""


def test_a_certificate_over_acme(tmp_path):
    """Asked for once, again when names, authority or time say so; laid down by the hook; an authority that refuses changes nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "certbot").write_text(CERTBOT)
    (tmp_path / "bin" / "certbot").chmod(0o755)
    shutil.copy(ROLE / "files" / "acme", tmp_path / "acme")
    (tmp_path / "acme").chmod(0o755)
    pem, conf, asked = tmp_path / "tls" / "server.pem", tmp_path / "acme.conf", tmp_path / "asked"

    def acme(*words, code=0, **wishes):
        wanted = {"gateway_names": ["LLM.example.org", "b.example.org"], "gateway_acme_email": "o'brien@example.org", "gateway_tls": "acme"}
        given = {**wanted, "gateway_acme_directory": None, "gateway_acme_ca": None, **wishes}
        conf.write_text(render("acme.conf", tmp_path, **given).replace("/etc/letsencrypt", str(tmp_path / "letsencrypt")))
        (tmp_path / "renew.conf").write_text(render("renew.conf", tmp_path, **given))
        environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "GPUFLEET_ACME_CONF": str(conf)}
        environment["GPUFLEET_RENEW_CONF"] = str(tmp_path / "renew.conf")
        # As on a host: the gateway serves with a certificate of its own first.
        subprocess.run(["sh", ROLE / "files" / "renew", "--no-reload"], env=environment, check=True, capture_output=True)
        done = subprocess.run([tmp_path / "acme", *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout.strip() if code == 0 else done.stderr

    assert "a new certificate" in acme("--check") and not asked.exists()
    own = pem.read_bytes()
    (tmp_path / "refuse").touch()
    assert "challenges have failed" in acme(code=1) and pem.read_bytes() == own
    (tmp_path / "refuse").unlink()
    assert "a new certificate" in acme()
    first = pem.read_bytes()
    assert first != own and b"PRIVATE KEY" in first and oct(pem.stat().st_mode & 0o777) == "0o600"
    assert "--email o'brien@example.org" in asked.read_text()
    # A capital in a name is no other name; and our own program leaves alone what is not its own.
    assert acme() == acme("--check") == "" and pem.read_bytes() == first
    pem.unlink()
    # A certificate that is gone is no reason not to start: our own comes first.
    assert "laid down" in acme("--check") and pem.exists()
    assert "laid down" in acme() and pem.read_bytes() == first
    assert "new certificate" in acme(gateway_acme_directory="https://acme.example/dir") and "--server https://acme.example/dir" in asked.read_text()
    assert "new certificate" in acme(gateway_names=["b.example.org"]) and "--renew-with-new-domains" in asked.read_text().splitlines()[-1]
    (tmp_path / "days").write_text("2")
    acme()
    assert "within three days" in acme("--check")
    # Left for another kind: the hook that certbot still knows changes nothing.
    conf.unlink()
    before = pem.read_bytes()
    subprocess.run([tmp_path / "acme", "--deploy"], env={"PATH": os.environ["PATH"], "GPUFLEET_ACME_CONF": str(conf)}, check=True)
    assert pem.read_bytes() == before


def test_free_of_connections_afterwards(gateway):
    """The server still answers after all that, and its log has no crash."""
    assert gateway.ask("GET", "/healthz")[0] == 200
    errors = (gateway.folder / "error.log").read_text()
    assert "exited on signal" not in errors and "[alert]" not in errors and "[emerg]" not in errors
    socket.create_connection(("127.0.0.1", gateway.port)).close()
