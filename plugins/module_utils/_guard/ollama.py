# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What is asked by HTTP: Ollama's list of loaded models, each runner's health, and what a runner is at.

The client is twenty lines over a socket: http.client alone costs more CPU than the whole tick may. And the socket is
CPython's own C type, which the module ``socket`` wraps: importing that one makes enumerations of all its constants,
3 ms of a tick of 25.
"""

from __future__ import annotations

import _socket
import json
import time

from .._gpu.memory import MIB
from .files import SIZE_LIMIT, full_name

HTTP_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 2.0
REST_STEP_S = 0.25
_DIGITS = str.maketrans("012345678", "999999999")


class HttpError(Exception):
    """A request without a usable answer; ``kind`` is "down" (nobody listens), "timeout" or "error"."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def http(host, port, path, body=None, timeout=HTTP_TIMEOUT_S):
    """(status, bytes) of one request in HTTP/1.0: the server closes, nothing is chunked. Raises HttpError.

    The timeout bounds the whole exchange, not each read: a server that drips bytes is a hung server.
    """
    try:
        answer = _exchange(host.strip("[]"), port, _request(host, port, path, body), time.monotonic() + timeout)
    except (_socket.timeout, TimeoutError) as error:
        raise HttpError("timeout", f"no answer from {host}:{port}{path} within {timeout:g} s") from error
    except ConnectionRefusedError as error:
        raise HttpError("down", f"nobody listens on {host}:{port}") from error
    except OSError as error:
        raise HttpError("error", f"{host}:{port}{path}: {error}") from error
    head, _blank, content = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1][:3].isdigit():
        raise HttpError("error", f"{host}:{port}{path} did not answer in HTTP")
    return int(words[1][:3]), content


def _request(host, port, path, body):
    """The bytes of a GET, or of a POST with a body."""
    verb = "GET" if body is None else "POST"
    lines = [f"{verb} {path} HTTP/1.0", f"Host: {host}:{port}", "User-Agent: vram-guard", "Accept: application/json"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def _exchange(host, port, request, deadline):
    """What the server sends until it closes, at most SIZE_LIMIT and a block."""
    # An address needs no name service, and asking it all the same imports its encodings: 3 ms a tick.
    connection = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        connection.connect((host, port))
        connection.sendall(request)
        parts, size = [], 0
        while size <= SIZE_LIMIT:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(65536)
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        connection.close()
    return b"".join(parts)


def ask_ollama(host, port, wall):
    """The "ollama" part of a sample: what /api/ps lists now."""
    try:
        version = _ask_json(host, port, "/api/version").get("version")
        models = [_model(entry, wall) for entry in _ask_json(host, port, "/api/ps").get("models") or []]
    except HttpError as error:
        return {"state": error.kind, "detail": str(error), "version": None, "models": []}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"/api/ps answered something else ({error})"
        return {"state": "error", "detail": detail, "version": None, "models": []}
    return {"state": "ok", "detail": "", "version": version, "models": models}


def _ask_json(host, port, path):
    status, content = http(host, port, path)
    if status != 200:
        raise HttpError("error", f"{path} answered {status}")
    return json.loads(content)


def _model(entry, wall):
    expires = entry.get("expires_at")
    return {
        "name": full_name(entry["name"]),
        "digest": str(entry.get("digest") or ""),
        "size_mib": round(entry["size"] / MIB),
        "size_vram_mib": round(entry["size_vram"] / MIB),
        "context_length": int(entry.get("context_length") or 0),
        "expires_at": str(expires or ""),
        "expires_in_s": seconds_until(expires, wall),
    }


def seconds_until(text, wall):
    """Seconds from the wall clock time to an RFC 3339 time with any number of decimals; None where it is not one.

    By hand: importing datetime costs 3 ms, a tenth of a tick, and compiling an expression 0.3 ms.
    """
    text = str(text)
    zone = text[-1:] if text[-1:] in ("Z", "z") else text[-6:]
    clock, fraction = text[:19], text[19 : len(text) - len(zone)]
    shapes = clock.translate(_DIGITS), fraction.translate(_DIGITS), zone.translate(_DIGITS)
    if (
        shapes[0] not in ("9999-99-99T99:99:99", "9999-99-99t99:99:99", "9999-99-99 99:99:99")
        or (fraction and (shapes[1][0] != "." or not shapes[1][1:] or shapes[1][1:].strip("9")))
        or shapes[2] not in ("Z", "z", "+99:99", "-99:99")
    ):
        return None
    year, month, day = int(clock[:4]), int(clock[5:7]), int(clock[8:10])
    # Days since 1970 of the proleptic Gregorian calendar, with the year beginning in March.
    year -= month < 3
    of_year = (153 * (month + (9 if month < 3 else -3)) + 2) // 5 + day - 1
    days = year * 365 + year // 4 - year // 100 + year // 400 + of_year - 719468
    of_day = int(clock[11:13]) * 3600 + int(clock[14:16]) * 60 + int(clock[17:19])
    offset = int(f"{zone[0]}1") * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60) if len(zone) == 6 else 0
    return round(days * 86400 + of_day + float(fraction or 0) - offset - wall, 1)


def probe(processes, unit):
    """Fill ``health`` of the unit's runners: a busy llama-server answers /health, a stopped or hung one does not."""
    answers = {}
    for process in processes:
        port = process["port"]
        if process["kind"] != "runner" or process["unit"] != unit or port is None:
            continue
        if port not in answers:
            try:
                http("127.0.0.1", port, "/health", timeout=HEALTH_TIMEOUT_S)
                answers[port] = "ok"
            except HttpError as error:
                answers[port] = error.kind
        process["health"] = answers[port]


def under_way(processes, unit):
    """How many generations the unit's runners are at; None where one of them cannot be asked.

    llama-server reports its slots on /slots (on by default, README of llama.cpp's server); runners before Ollama 0.30
    do not. What a hung runner was at is lost anyway, so it is not asked.
    """
    runners = [one for one in processes if one["kind"] == "runner" and one["unit"] == unit]
    if any(one["port"] is None for one in runners):
        return None
    busy = 0
    for port in {one["port"] for one in runners if one["health"] == "ok"}:
        try:
            status, content = http("127.0.0.1", port, "/slots", timeout=HEALTH_TIMEOUT_S)
            if status == 200:
                busy += sum(bool(slot["is_processing"]) for slot in json.loads(content))
            elif status == 503:
                busy += 1  # it loads, for somebody
            else:
                return None
        except HttpError as error:
            busy += error.kind != "down"  # down: it has ended since; else it answers when its batch is done
        except (ValueError, KeyError, TypeError):
            return None
    return busy


def await_rest(count, patience_s, clock_s=time.monotonic, sleep=time.sleep):
    """The last answer of count(), which is under_way(): 0 once it was 0 twice in a row.

    Twice, because requests that queue in the server are at no slot for the moment between two generations.
    """
    deadline = clock_s() + patience_s
    before, now = None, count()
    while not (before == 0 and now == 0) and clock_s() < deadline:
        sleep(REST_STEP_S)
        before, now = now, count()
    return now
