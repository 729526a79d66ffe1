#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A token holder who wants others' answers, another runner, or all of the host; and a stranger, who has no token.

    token_holder.py steal|pin|work|strangers HOST CA MODEL SECONDS

Tokens come as JSON in TOKENS: {mallory, alice, bob}. Prints one JSON object of what was seen; the caller judges it. hostile_requests.py, which
makes what is sent, lies beside this program.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import ssl
import sys
import threading
import time

import hostile_requests

MIB = 1 << 20
PINNED = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]
CLOSED = ["/api/create", "/api/pull", "/api/push", "/api/copy", "/api/delete", "/api/blobs/sha256:0", "/api/experimental/x", "//api//delete", "/API/DELETE"]
INNER = ["/_gateway/server/api/tags", "/_gateway/session", "/_gateway/health", "/_gateway/token", "/ollama/api/tags", "/ollama/../api/delete", "/%6fllama/"]


class Target:
    """The attacked gateway."""

    def __init__(self, host, ca, model):
        self.host, _colon, port = host.partition(":")
        self.port, self.model, self.context = int(port or 443), model, ssl.create_default_context(cafile=ca)

    def connect(self, timeout=30):
        """An open TLS connection."""
        return self.context.wrap_socket(socket.create_connection((self.host, self.port), timeout=timeout), server_hostname=self.host)

    def open(self):
        """A connection that stays open, as an honest client has one."""
        return http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=120)

    def ask(self, method, path, body=None, token=None, line=None):
        """(status, body) of one request; a line that breaks is a status of its own."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        line = line or self.open()
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            line.close()
            return type(error).__name__, b""


def attack(target, token, over, seed, counts):
    """Try one thing after another until it is over."""
    pick = random.Random(seed)
    while not over.is_set():
        try:
            with target.connect(5) as line:
                line.settimeout(pick.choice([0.05, 0.3, 1.0]))
                for _use in range(pick.choice([1, 2, 4])):
                    line.sendall(hostile_requests.assault(pick, token, target.model))
                    status = line.recv(65536)[9:12].decode("latin-1")
                    counts[status] = counts.get(status, 0) + 1
        except (OSError, ValueError):
            pass
        counts["tries"] = counts.get("tries", 0) + 1
        time.sleep(0.02)


def honest(target, token, paths, over, wrong, counts):
    """Ask for the same things again and again: each answer equals the first."""
    line, known = target.open(), {}
    while not over.is_set():
        for path in paths:
            body = json.dumps({"model": target.model}).encode() if path == "/api/show" else None
            got = target.ask("POST" if body else "GET", path, body, token, line)
            if path == "/api/ps" and got[0] == 200:  # how long a model stays loaded is counted from each request
                got = (200, [one["name"] for one in json.loads(got[1])["models"]])
            if got != known.setdefault(path, got) or got[0] != 200:
                wrong.append([path, repr(got)[:200]])
            counts["honest"] = counts.get("honest", 0) + 1


def steal(target, tokens, seconds):
    """Two honest clients beside three attackers, one of whom has no token."""
    over, wrong, counts = threading.Event(), [], {}
    threads = [threading.Thread(target=attack, args=(target, token, over, seed, counts)) for seed, token in enumerate([tokens["mallory"]] * 2 + ["no-token"])]
    for name, paths in (("alice", ["/api/tags", "/api/show", "/api/ps"]), ("bob", ["/v1/models", "/api/version", f"/v1/models/{target.model}"])):
        threads.append(threading.Thread(target=honest, args=(target, tokens[name], paths, over, wrong, counts)))
    for one in threads:
        one.start()
    time.sleep(seconds)
    over.set()
    for one in threads:
        one.join(60)
    return {"wrong": wrong[:5], "count_wrong": len(wrong), **counts}


def pin(target, tokens, _seconds):
    """Runner options on every route, in every spelling; and what is closed."""
    said = {"inference": [], "closed": [], "inner": []}
    spellings = ["num_ctx", "NUM_CTX", "num\\u005fctx"]
    others = ["num_gpu", "num_batch", "num_thread", "main_gpu", "use_mmap", "draft_num_predict"]
    for number, path in enumerate(PINNED * 2):
        options = ",".join(f'"{name}":{512 + number}' for name in [spellings[number % 3], *others])
        more = '"messages":[{"role":"user","content":"hi"}],"prompt":"hi","input":"hi","max_tokens":1,"max_output_tokens":1'
        body = f'{{"model":"{target.model}",{more},"stream":false,"options":{{{options},"num_predict":1}},"keep_\\u0061live":0,"shift":false}}'
        said["inference"].append(target.ask("POST", path, body.encode(), tokens["mallory"])[0])
        time.sleep(0.6)
    for path in CLOSED:
        for token in (None, tokens["mallory"]):
            said["closed"].append(target.ask("POST", path, b"{}", token)[0])
    for path in INNER:
        for token in (None, tokens["mallory"]):
            said["inner"].append(target.ask("GET", path, None, token)[0])
            time.sleep(0.3)
    return said


def work(target, tokens, _seconds):
    """Bodies that were made to cost time and memory, eight at once, beside an honest client who is timed."""
    head, size = f'{{"model":"{target.model}","keep_alive":0,"a":'.encode(), 6 * MIB - 100
    shapes = [
        head + b'"' + b"A" * (size - 200) + b'"}',
        head + b'"' + b"\\n" * 50000 + "é".encode() * (size // 3) + b'"}',
        head + b"1," + b'"k":1,' * (size // 6 - 100) + b'"z":1}',
        head + b"[" + b"[]," * (size // 3 - 100) + b"1]}",
        head + b" " * (size - 200) + b"1}",
        head + b'"' + b"A" * (7 * MIB) + b'"}',
    ]
    over, slow, said = threading.Event(), [], []

    def timed():
        line = target.open()
        while not over.is_set():
            started = time.monotonic()
            if target.ask("GET", "/api/version", None, tokens["alice"], line)[0] != 200:
                said.append("alice")
            slow.append(time.monotonic() - started)

    def heavy(number):
        said.append(target.ask("POST", "/api/show", shapes[number % len(shapes)], tokens["mallory"])[0])

    watch = threading.Thread(target=timed)
    watch.start()
    for start in range(0, 24, 8):
        many = [threading.Thread(target=heavy, args=(number,)) for number in range(start, start + 8)]
        for one in many:
            one.start()
        for one in many:
            one.join(120)
    over.set()
    watch.join(60)
    return {"statuses": sorted({str(one) for one in said}), "worst_s": max(slow), "count": len(slow)}


def strangers(target, _tokens, _seconds):
    """Without a token: bodies where none belongs, uploads, long lines, many requests."""
    said = {"bodies": [], "uploads": [], "many": {}}
    for path in ("/healthz", "/api/tags", "/api/chat", "/v1/models"):
        with target.connect(20) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {5 * MIB}\r\n\r\n".encode() + b"x" * 1000)
            said["bodies"].append(line.recv(200)[9:12].decode())
    for path in ("/api/v1/files/", "/api/v1/audio/transcriptions", "/api/chat/completions", "/"):
        with target.connect(20) as line:
            line.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x.y.z\r\nContent-Length: {20 * MIB}\r\n\r\n".encode())
            said["uploads"].append(line.recv(200)[9:12].decode())
    for path in ("/" + "a" * 15000, "/" + "%01" * 5000):
        target.ask("GET", path)
    line = target.open()
    for _one in range(1000):
        status = str(target.ask("GET", "/api/tags", None, None, line)[0])
        said["many"][status] = said["many"].get(status, 0) + 1
    for port in (11434, 8080):
        try:
            socket.create_connection((target.host, port), timeout=3).close()
            said[str(port)] = "open"
        except OSError:
            said[str(port)] = "closed"
    return said


if __name__ == "__main__":
    what, host, ca, model, seconds = sys.argv[1:]
    print(json.dumps(globals()[what](Target(host, ca, model), json.loads(os.environ["TOKENS"]), float(seconds))))
