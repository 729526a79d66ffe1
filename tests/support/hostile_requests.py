# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests of a token holder who wants another client's answer: whatever a socket takes. Standard library only."""

from __future__ import annotations

PATHS = ["/api/tags", "/api/ps", "/v1/models", "/v1/models/qwen3", "/api/version", "/healthz", "/api/chat", "/v1/chat/completions", "/api/show", "/x"]
METHODS = ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"]
INFERENCE = b'{"model": "%s", "who": "hostile", "options": {"num_ctx": 7, "num_predict": 1}, "stream": false}'


def request(token, method, path, headers=b"", version=b"1.1"):
    """Head of a request, without the blank line."""
    return b"%s %s HTTP/%s\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s" % (method.encode(), path.encode(), version, token.encode(), headers)


def whole(token, body):
    """An inference request as it should be."""
    return request(token, "POST", "/api/chat", b"Content-Length: %d\r\n" % len(body)) + b"\r\n" + body


def inner(pick, token, inference):
    """What a body is that means to be the next request."""
    return whole(token, inference)[: -len(inference)] + inference * pick.randint(0, 1)


def framings(pick, token, inference):
    """Ways to say how long a body is, and what follows: [(headers, body)]."""
    body = pick.choice(
        [b"hello", inference, inner(pick, token, inference), b"x" * pick.randint(1, 70000), b'{"model": "qwen3", "pad": "%s"}' % (b"y" * 300000)]
    )
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    length = b"Content-Length: %d\r\n" % len(body)
    encoded = b"Transfer-Encoding: chunked\r\n"
    return [
        (length, body),
        (length, b""),
        (length, body[: len(body) // 2]),
        (b"Content-Length: 0\r\n", body),
        (b"", body),
        (encoded, chunked),
        (encoded, b"%x;ext=1\r\n%s\r\n0\r\nTrailer: x\r\nContent-Length: 3\r\n\r\n" % (len(body), body)),
        (encoded, b"%x\r\n%s" % (len(body) + 9, body)),
        (encoded, b"0\r\n\r\n" + inner(pick, token, inference)),
        (encoded, b"0\r\n\r\n"),
        (encoded, b"fffffffffffffffff\r\n" + body),
        (encoded + length, chunked),
        (length + encoded, body),
        (b"Transfer-Encoding: xchunked\r\n" + length, body),
        (b"Transfer-Encoding: chunked, identity\r\n" + length, chunked),
        (b"Transfer-Encoding:\tchunked\r\n", chunked),
        (b"Transfer-Encoding: CHUNKED\r\n", chunked),
        (b"Transfer-Encoding : chunked\r\n" + length, chunked),
        (b"X: y\r\n Transfer-Encoding: chunked\r\n" + length, chunked),
        (b"Content-Length: %d\r\nContent-Length: 0\r\n" % len(body), body),
        (b"Content-Length: +%d\r\n" % len(body), body),
        (b"Content-Length: 0x5\r\n", b"hello"),
        (b"Content_Length: 5\r\n", b"hello"),
        (b"Expect: 100-continue\r\n" + length, body),
        (b"Expect: 100-continue\r\n" + length, b""),
        (b"Expect: 200-maybe\r\n" + length, body),
        (b"TE: trailers, chunked\r\nTrailer: Content-Length\r\nConnection: TE, Trailer\r\n" + length, body),
        (b"Connection: close, Content-Length, Transfer-Encoding\r\n" + length, body),
        (b"Connection: keep-alive, Authorization\r\nKeep-Alive: timeout=900\r\n" + length, body),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + length, body),
        (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (b"Content-Encoding: gzip\r\n" + length, body),
    ]


def assault(pick, token, model="qwen3"):
    """Bytes of one try: one request or several behind one another."""
    inference = INFERENCE % model.encode()
    tries = []
    for _one in range(pick.choice([1, 1, 1, 2, 5])):
        if pick.random() < 0.3:  # one that a member takes, to answer it early
            tries.append(whole(token, inference))
            continue
        headers, body = pick.choice(framings(pick, token, inference))
        version = pick.choice([b"1.1"] * 8 + [b"1.0", b"1.0", b"0.9", b"2.0"])
        keep = pick.choice([b"", b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"]) if b"Connection:" not in headers else b""
        method = pick.choice(["GET", "GET", "GET", "POST", "POST", *METHODS])
        tries.append(request(token, method, pick.choice(PATHS), headers + keep, version) + b"\r\n" + body)
    return b"".join(tries)
