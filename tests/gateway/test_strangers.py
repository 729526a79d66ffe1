# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody without a token can take of a host, what a program behind nginx can make it do, and what is reached from where."""

from __future__ import annotations

import socket
import subprocess
import threading
import time

import pytest
from conftest import TOKENS, Gateway, Server

SMALL = 256 << 10


@pytest.fixture(scope="module")
def narrow(tree, tmp_path_factory):
    """A gateway with small limits for strangers, and the servers behind it."""
    ollama, page = Server("ollama"), Server("page")
    made = Gateway(
        tmp_path_factory.mktemp("narrow"),
        tree,
        __gateway_ollama=f"127.0.0.1:{ollama.port}",
        __gateway_open_webui=f"127.0.0.1:{page.port}",
        gateway_address_rate_per_s=4,
        gateway_address_burst=20,
        gateway_address_streams=3,
    ).start()
    yield made, page
    made.stop()


@pytest.mark.parametrize(("path", "status"), [("/api/chat", 401), ("/healthz", 200), ("/", 200), ("/ollama/x", 403), ("/v1/x", 401), ("/api/pull", 403)])
def test_strangers_have_a_rate(narrow, path, status):
    gateway, _page = narrow
    time.sleep(5.5)  # the allowance of the test before is given back at four a second
    said = [gateway.ask("GET", path)[0] for _one in range(40)]
    assert said[:20] == [status] * 20 and said.count(429) >= 5, said
    # Whoever has a token has limits of his own.
    assert [gateway.ask("GET", "/api/version", token="alice")[0] for _one in range(40)] == [200] * 40


def test_strangers_have_so_many_requests_at_once(narrow):
    gateway, page = narrow
    time.sleep(5.5)
    over = threading.Event()
    page.answer = lambda handler: over.wait(20) and False
    lines = [gateway.connect() for _one in range(5)]
    try:
        for line in lines:
            line.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            time.sleep(0.1)
        for line in lines[3:]:
            line.settimeout(5)
            assert b" 429 " in line.recv(200)
    finally:
        over.set()
        page.answer = None
    assert all(b" 200 " in line.recv(200) for line in lines[:3])


def known(handler):
    """As Open WebUI: who has a session gets on; all else is a program that reads what it is sent."""
    if handler.path != "/api/v1/auths/" or handler.headers.get("Authorization") == "Bearer session" or handler.headers.get("Cookie") == "token=session":
        return False
    handler.send_response(401)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_a_large_body_is_read_from_those_only_whom_the_page_knows(gateway, page):
    page.answer = known
    upload = b"x" * (SMALL + 1)
    for path in ("/api/v1/files/", "/api/v1/audio/transcriptions", "/", "/api/chat/completions"):
        page.seen.clear()
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path.encode(), 20 << 20)
        for stranger in (b"", b"Authorization: Bearer other\r\n", b"Cookie: token=other\r\n"):
            with gateway.connect() as line:  # refused before a byte of it was sent
                line.settimeout(10)
                line.sendall(head + stranger + b"\r\n")
                assert b" 401 " in line.recv(200)
        assert {seen["path"] for seen in page.seen} == {"/api/v1/auths/"}
        assert all(seen["method"] == "GET" and seen["body"] == b"" and "Content-Length" not in seen["headers"] for seen in page.seen)
        for headers in ({"Authorization": "Bearer session"}, {"Cookie": "token=session"}):
            page.seen.clear()
            assert gateway.ask("POST", path, upload, headers=headers)[0] == 200
            assert [(seen["path"], len(seen["body"])) for seen in page.seen] == [("/api/v1/auths/", 0), (path, len(upload))]


@pytest.mark.parametrize("length", [0, 1, 99999, 100000, 199999, 261999])
def test_a_small_body_is_passed_on_without_a_question(gateway, page, length):
    page.answer = known
    assert gateway.ask("POST", "/api/v1/auths/signin", b"x" * length)[0] == 200
    assert [seen["path"] for seen in page.seen] == ["/api/v1/auths/signin"]


def test_the_question_itself_is_nobodys_to_ask(gateway, ollama, page):
    for path in ("/_gateway/session", "/_gateway/server/api/tags", "/_gateway/server/api/version", "/_gateway/health", "/_gateway/server/"):
        for token in (None, "alice"):
            status, _headers, _body = gateway.ask("GET", path, token=token)
            assert status == 404, path
    assert not ollama.seen and not page.seen


def test_log_lines_are_bounded(gateway, page):
    known_bytes = (gateway.folder / "access.log").stat().st_size
    for path in ("/" + "a" * 15000, "/" + "%01" * 5000 + "x", "/" + "%c3%a9" * 2500, "/%0a" + "b" * 9000):
        gateway.ask("GET", path)
    gateway.ask("X" * 3000, "/")
    gateway.ask("GET", "/" + "%22" * 5000, headers={"X": "y" * 15000})
    deadline = time.monotonic() + 10
    while (gateway.folder / "access.log").stat().st_size == known_bytes and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    lines = (gateway.folder / "access.log").read_bytes()[known_bytes:].splitlines()
    assert len(lines) >= 3 and max(map(len, lines)) < 2000
    assert [entry["path"] for entry in gateway.log() if entry["path"].startswith("/aaa")] == ["/" + "a" * 199]


def test_what_is_no_request_is_no_line(gateway):
    with gateway.connect() as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 400 " in line.recv(200)
    time.sleep(0.5)
    assert not [entry for entry in gateway.log() if entry["status"] == 400 and not entry["token"] and entry["path"] == "/"]


# --- Programs behind nginx ---
@pytest.mark.parametrize("where", ["page", "ollama"])
def test_whoever_answers_steers_nobody(gateway, ollama, page, where):
    """X-Accel-Redirect would have nginx serve its inner locations, X-Accel-Limit-Rate would let it drip."""
    server = {"page": page, "ollama": ollama}[where]

    def steer(handler):
        if handler.path not in ("/x", "/api/version"):
            return False
        answer = b"the answer itself" * 4000
        handler.send_response(200)
        for name, value in {
            "X-Accel-Redirect": "/_gateway/server/api/delete",
            "X-Accel-Limit-Rate": "10",
            "X-Accel-Buffering": "yes",
            "X-Accel-Charset": "utf-16",
            "X-Accel-Expires": "100",
            "Content-Type": "text/html",
            "Content-Length": str(len(answer)),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer)
        return True

    server.answer = steer
    started = time.monotonic()
    status, headers, body = gateway.ask("GET", *(("/x", None, None) if where == "page" else ("/api/version", None, "alice")))
    assert status == 200 and body == b"the answer itself" * 4000 and time.monotonic() - started < 5
    assert not [name for name in headers if name.startswith("x-accel")] and headers["content-type"] == "text/html"
    assert len(ollama.seen) == (where == "ollama")


# --- What is rendered says, line by line ---
def test_it_listens_where_it_was_told_to_and_nowhere_else(gateway):
    socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
    for port in (gateway.port, gateway.http_port):
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_a_client_does_not_say_where_it_comes_from(gateway, page):
    hostile = {
        "Forwarded": "for=10.0.0.1;proto=http",
        "X-Forwarded-For": "10.0.0.1",
        "X-Real-IP": "10.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
    }
    gateway.ask("GET", "/x", headers=hostile)
    headers = {name.lower(): value for name, value in page.seen[0]["headers"].items()}
    assert "forwarded" not in headers
    assert (headers["x-forwarded-for"], headers["x-real-ip"], headers["x-forwarded-proto"]) == ("127.0.0.1", "127.0.0.1", "https")
    assert headers["x-forwarded-host"] == headers["host"] != "evil.example"


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/v1/models", "/v1/models/qwen3", "/api/version"])
def test_no_query_reaches_the_server(gateway, ollama, path):
    post = path == "/api/chat"
    status, _headers, _body = gateway.ask("POST" if post else "GET", path + "?a=b&stream=false", b'{"model":"qwen3"}' if post else None, "alice")
    assert status == 200 and [seen["path"] for seen in ollama.seen] == [path]


@pytest.mark.parametrize(("version", "taken"), [("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_versions_of_tls(gateway, version, taken):
    """With every cipher that openssl has, so that it is the version that decides."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", version, "-cipher", "ALL:@SECLEVEL=0", "-CAfile", gateway.folder / "tls" / "ca.crt"],
        input="",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ("Verification: OK" in done.stdout and "Cipher is (NONE)" not in done.stdout) == taken, done.stdout + done.stderr
    if not taken:
        assert "protocol version" in done.stderr or "unsupported protocol" in done.stderr, done.stderr


def test_a_token_is_looked_for_in_one_place(gateway, ollama):
    """Two headers of the same name, a token in the query or the cookie: not one of them gets in."""
    token = TOKENS["alice"]
    for lines in (f"Authorization: Bearer wrong\r\nAuthorization: Bearer {token}", f"Cookie: Authorization={token}", f"Authorization: Basic {token}"):
        with gateway.connect() as line:
            line.sendall(f"GET /api/tags?token={token} HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n".encode())
            assert line.recv(200).split()[1] in (b"400", b"401")
    assert not ollama.seen
