# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a request ends is decided once: what reaches the next hop has its own framing, never the client's."""

from __future__ import annotations

import json
import socket

import pytest
from conftest import TOKENS

BEARER = b"Authorization: Bearer " + TOKENS["alice"].encode() + b"\r\n"
CHUNK = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
# Paths that the gateway answers by a request of its own, or hands on without a body.
BARE = ["/api/tags", "/api/ps", "/v1/models", "/v1/models/qwen3", "/api/version", "/healthz"]
FRAMINGS = {
    "length": b"Content-Length: 5\r\n\r\nhello",
    "length, nothing sent": b"Content-Length: 5\r\n\r\n",
    "chunks": CHUNK,
    "expect": b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "large": b"Content-Length: 3000000\r\n\r\n" + b"x" * 100,
}
HARMLESS = {
    "zero": b"Content-Length: 0\r\n\r\n",
    "te": b"TE: trailers, chunked\r\nTrailer: X\r\nConnection: TE\r\n\r\n",
    "upgrade": b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "connection names a header": b"Connection: close, Host, Authorization\r\n\r\n",
    "expect": b"Expect: 100-continue\r\n\r\n",
}
HOP_BY_HOP = {"content-length", "transfer-encoding", "te", "trailer", "expect", "upgrade", "keep-alive", "proxy-connection", "http2-settings"}


def say(gateway, raw, timeout=10):
    """First bytes of the final answer to what is sent as it is written; a hang fails."""
    with gateway.connect() as line:
        line.settimeout(timeout)
        line.sendall(raw)
        said = line.recv(4096)
        if said.startswith(b"HTTP/1.1 100 "):
            said = said.split(b"\r\n\r\n", 1)[1] or line.recv(4096)
        return said


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("path", BARE)
def test_a_body_where_none_belongs_is_refused_at_once(gateway, ollama, path, framing):
    for method in ("GET", "HEAD", "DELETE", "OPTIONS", "POST"):
        said = say(gateway, f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + BEARER + FRAMINGS[framing])
        assert said.split()[1] == (b"411" if framing == "chunks" else b"400"), (method, said)
    assert not ollama.seen


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stranger_gets_no_body_into_healthz(gateway, ollama, framing):
    assert say(gateway, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + FRAMINGS[framing]).split()[1] in (b"400", b"411")
    assert not ollama.seen


@pytest.mark.parametrize("headers", HARMLESS)
@pytest.mark.parametrize("path", BARE)
def test_nothing_of_a_clients_framing_is_passed_on(gateway, ollama, path, headers):
    said = say(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + BEARER + HARMLESS[headers])
    assert said.split()[1] == b"200", said
    for seen in ollama.seen:
        names = {name.lower() for name in seen["headers"]}
        assert not names & HOP_BY_HOP and seen["body"] == b"", seen
        assert seen["headers"].get("Connection", "keep-alive") == "keep-alive"
    assert len(ollama.seen) == 1


@pytest.mark.parametrize("path", BARE)
def test_other_methods_than_those_that_read(gateway, ollama, path):
    for method in ("DELETE", "OPTIONS", "POST", "PUT", "PATCH"):
        status, headers, _body = gateway.ask(method, path, token="alice")
        assert status == 405 and headers["allow"].startswith("GET"), method
    for method in ("TRACE", "CONNECT"):
        assert gateway.ask(method, path, token="alice")[0] == 405
    assert not ollama.seen


@pytest.mark.parametrize("headers", HARMLESS)
def test_an_inference_request_is_framed_anew(gateway, ollama, headers):
    body = json.dumps({"model": "qwen3", "options": {"num_ctx": 5}}).encode()
    lines = HARMLESS[headers][:-2] if headers != "zero" else b""
    said = say(gateway, b"POST /api/chat HTTP/1.1\r\nHost: x\r\n" + BEARER + lines + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert said.split()[1] == b"200", said
    seen = ollama.seen[0]
    assert int(seen["headers"]["Content-Length"]) == len(seen["body"]) == len(b'{"model": "qwen3", "options": {}}')
    assert not {name.lower() for name in seen["headers"]} & (HOP_BY_HOP - {"content-length"})


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stray_body_does_not_reach_the_page(gateway, page, method, framing):
    for path in ("/", "/api/v1/chats/", "/api/chat/completions", "/ws/socket.io/"):
        assert say(gateway, f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + FRAMINGS[framing]).split()[1] in (b"400", b"411")
    assert not page.seen


@pytest.mark.parametrize(
    ("method", "lines", "passes"),
    [
        ("GET", b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", True),
        ("GET", b"Upgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n", True),
        ("GET", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", False),
        ("GET", b"Upgrade: websocket2\r\nConnection: Upgrade\r\n\r\n", False),
        ("POST", b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n{}", False),
        ("POST", b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n", False),
    ],
    ids=range(6),
)
def test_only_a_websocket_is_upgraded(gateway, page, method, lines, passes):
    say(gateway, method.encode() + b" /ws/socket.io/ HTTP/1.1\r\nHost: x\r\n" + lines)
    names = {name.lower(): value for name, value in page.seen[0]["headers"].items()}
    assert ("upgrade" in names) == passes
    assert (names.get("connection") == "upgrade") == passes


# Refused while the head is read, after the length of a body is known that has not come yet.
REFUSED_HEADS = [
    (400, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    (400, b"POST /x HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    (405, b"TRACE /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhe"),
    (400, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhe"),
    (400, b"POST /x HTTP/1.1\r\nContent-Length: 100\r\nHost: x\r\nContent-Length: 0\r\n\r\nhe"),
    (501, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nTransfer-Encoding: xchunked\r\n\r\nhe"),
    (400, b"POST /x HTTP/1.1\r\nContent-Length: 100\r\nHost: x\r\nHost: y\r\n\r\nhe"),
    (400, b"POST /x HTTP/1.1\r\nContent-Length: 100\r\n\r\nhe"),
    (400, b"POST /x HTTP/1.1\r\nContent-Length: 100\r\nHost: x\r\nX: " + b"y" * 20000 + b"\r\n\r\nhe"),
]


@pytest.mark.parametrize(("status", "raw"), REFUSED_HEADS, ids=range(len(REFUSED_HEADS)))
def test_a_refused_head_is_answered_by_a_location(gateway, status, raw):
    """Otherwise nginx 1.22 crashes, once in some thousand tries, where the client is gone before the answer (test_attack.py has seen it)."""
    said = say(gateway, raw)
    assert said.startswith(b"HTTP/1.1 %d " % status) and b'\r\n\r\n{"error": "' in said, said  # nginx's own is HTML
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as line:
        line.sendall(raw)
        said = line.recv(4096)
    assert said.startswith(b"HTTP/1.1 %d " % status) and b'\r\n\r\n{"error": "' in said, said  # nginx's own is HTML
