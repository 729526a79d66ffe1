# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A token holder who sends whatever a socket takes never sees or changes another client's answer.

A fleet: one in front (with one worker, where every connection to a member is shared, and with two), two members that
answer the attacker early with 429, and a third that answers before it has read a body. Two honest clients compare each
answer byte by byte. GATEWAY_HONEST=5000 makes that 10,000 requests for each kind of front.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import socket
import ssl
import struct
import threading
import time

import pytest
from conftest import TOKENS, Gateway
from test_fleet import Fleet

from tests.support import hostile_requests

HONEST = int(os.environ.get("GATEWAY_HONEST", "250"))
NOBODY = "127.0.0.1:1"
MARK = b"honest-"
MODELS = [{"name": "qwen3"}, {"name": "small:1b"}]
LISTED = [{"name": name, "id": name, "size": 9276180001} for name in ("qwen3:latest", "small:1b", "secret:latest")]


class Echo(http.server.ThreadingHTTPServer):
    """A server that says back what it was sent; over TLS, and early to the attacker, where it has a certificate."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, certificate=None):
        super().__init__(("127.0.0.1", 0), EchoHandler)
        self.early = 0
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.certificate = certificate
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A connection that the attacker's abort ends is no event."""


class EchoHandler(http.server.BaseHTTPRequestHandler):
    """Echoes path and body; lists three models."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_GET(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.server.certificate and self.headers.get("Authorization") == f"Bearer {TOKENS['frank']}":
            self.server.early += 1
            self.say(429, b'{"error": "early"}')
            self.rfile.read(length)
            return
        body = self.rfile.read(length)
        if self.path in ("/api/tags", "/api/ps", "/v1/models"):
            if self.server.certificate:  # as a member's own gateway does for the two honest tokens
                allowed = LISTED[:1] if self.headers.get("Authorization") == f"Bearer {TOKENS['bob']}" else LISTED[:2]
            else:
                allowed = LISTED
            self.say(200, json.dumps({"models": allowed, "data": allowed}).encode())
        else:
            self.say(200, json.dumps({"path": self.path, "body": body.decode()}).encode())

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = do_GET  # noqa: N815 - the names that http.server looks for

    def say(self, status, answer):
        """One answer, and the connection stays open."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)
        self.wfile.flush()

    def log_message(self, *args):
        """Keep the tests' output short."""


class Stage(Fleet):
    """A front of so many workers, two members with an Echo behind each, and one that answers early."""

    def __init__(self, folder, tree, workers):
        fast = {"rate_per_minute": 600000, "burst": 10000, "streams": 300}
        honest = [{"name": "alice", "token": TOKENS["alice"], **fast}, {"name": "bob", "token": TOKENS["bob"], "models": ["qwen3"], **fast}]
        hostile = {"name": "frank", "token": TOKENS["frank"]}
        self.servers = [Echo(), Echo()]
        slow = {"rate_per_minute": 1, "burst": 0, "streams": 1}
        self.members = [
            Gateway(
                folder / str(number),
                tree,
                models=MODELS,
                tokens=[*honest, {**hostile, **slow}],
                __gateway_ollama=f"127.0.0.1:{server.server_address[1]}",
                __gateway_open_webui=NOBODY,
            ).start()
            for number, server in enumerate(self.servers)
        ]
        self.early = Echo(self.members[0].folder / "tls" / "server.pem")
        ports = [*(member.port for member in self.members), self.early.server_address[1]]
        self.front = Gateway(
            folder / "front",
            tree,
            workers=workers,
            models=MODELS,
            tokens=[*honest, {**hostile, **fast}],
            __gateway_ollama=NOBODY,
            __gateway_open_webui=NOBODY,
            __gateway_page=False,
            gateway_upstreams=[{"address": "127.0.0.1", "port": port, "ca": "unused"} for port in ports],
        )
        self.conf = self.front.folder / "conf"
        (self.conf / "upstreams.pem").write_text("".join((member.folder / "tls" / "ca.crt").read_text() for member in self.members))
        self.health("--first")
        self.front.start()


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def stage(request, tree, tmp_path_factory):
    made = Stage(tmp_path_factory.mktemp("stage"), tree, request.param)
    yield made
    for one in (made.front, *made.members):
        one.stop()


# --- The attacker ---
class Attacker(threading.Thread):
    """Tries one thing after another until it is told to stop; keeps all that it was answered."""

    def __init__(self, front, seed):
        super().__init__(daemon=True)
        self.front, self.pick, self.over = front, random.Random(seed), threading.Event()
        self.tries, self.statuses, self.stolen = 0, {}, []

    def run(self):
        while not self.over.is_set():
            try:
                self.once()
            except OSError:
                pass
            self.tries += 1

    def once(self):
        """One connection with one or more tries on it, which ends in one of the ways that connections end."""
        line = self.front.connect()
        line.settimeout(self.pick.choice([0.02, 0.1, 0.4]))
        answered = b""
        try:
            for _use in range(self.pick.choice([1, 2, 4])):
                line.sendall(hostile_requests.assault(self.pick, TOKENS["frank"]))
                if self.pick.random() < 0.8:
                    answered += line.recv(65536)
        except OSError:
            pass
        if self.pick.random() < 0.3:  # an abort instead of an orderly end
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
        for part in answered.split(b"HTTP/1.1 ")[1:]:
            self.statuses[part[:3]] = self.statuses.get(part[:3], 0) + 1
        if MARK in answered:
            self.stolen.append(answered)


def honest(front, name, count, wrong, times):
    """So many requests on a connection that stays open, each answer compared with the only right one."""
    shown = LISTED[:1] if name == "bob" else LISTED[:2]
    lists = json.dumps({"models": shown, "data": shown}).encode()
    line = http.client.HTTPSConnection("localhost", front.port, context=front.context(), timeout=30)
    for number in range(count):
        pad = "z" * (number * 37 % 3001)
        body = json.dumps({"model": "qwen3", "who": f"honest-{name}-{number}", "pad": pad}).encode()
        path = ("/api/chat", "/v1/chat/completions", "/api/generate")[number % 3]
        wanted = json.dumps({"path": path, "body": body.decode()}).encode()
        method, given = "POST", body
        if number % 10 == 7:
            method, path, given = "GET", "/api/tags", None
            wanted = lists
        started = time.monotonic()
        try:
            line.request(method, path, given, {"Authorization": f"Bearer {TOKENS[name]}"})
            answer = line.getresponse()
            got = (answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            got = (type(error).__name__, str(error).encode())
            line.close()
        times.append(time.monotonic() - started)
        # A list is read and written again by each gateway, so only its meaning is the same.
        same = got[0] == 200 and (got[1] == wanted or (method == "GET" and json.loads(got[1]) == {**json.loads(wanted), "data": json.loads(got[1])["data"]}))
        if not same:
            wrong.append((name, number, got))
    line.close()


def test_nobody_gets_another_clients_answer(stage):
    attackers = [Attacker(stage.front, seed) for seed in (20, 31, 47)]
    for one in attackers:
        one.start()
    wrong, times = [], []
    clients = [threading.Thread(target=honest, args=(stage.front, name, HONEST, wrong, times)) for name in ("alice", "bob")]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    for one in attackers:
        one.over.set()
    for one in attackers:
        one.join(30)
    tries = sum(one.tries for one in attackers)
    early = sum(one.statuses.get(b"429", 0) for one in attackers)
    print(f"{2 * HONEST} honest requests, {tries} tries, {early} early answers, slowest {max(times):.2f} s", {**attackers[0].statuses})
    assert not wrong, (len(wrong), wrong[:3])
    assert not [stolen for one in attackers for stolen in one.stolen]
    # It was an attack: it reached members that answered early, and much of it was refused.
    assert tries > HONEST / 10 and early and stage.early.early > 0
    assert {b"200", b"400", b"405", b"429"} <= {status for one in attackers for status in one.statuses}
    assert max(times) < 15


def test_the_front_has_not_lost_a_worker(stage):
    for one in (stage.front, *stage.members):
        errors = (one.folder / "error.log").read_text(errors="replace")
        assert "exited on signal" not in errors and "[alert]" not in errors and "[emerg]" not in errors
