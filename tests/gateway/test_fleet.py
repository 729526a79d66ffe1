# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One gateway in front of two others: spread, drained, down and up again, without an error that a client sees."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import subprocess
import time

import pytest
from conftest import TOKENS, Gateway, Server

BODY = json.dumps({"model": "qwen3", "messages": [], "options": {"num_ctx": 1234}, "keep_alive": 0}).encode()
NOBODY = "127.0.0.1:1"


class Fleet:
    """A front, its two members, and a server behind each."""

    def __init__(self, folder, tree):
        self.servers = [Server("one"), Server("two")]
        self.members = [
            Gateway(folder / server.name, tree, __gateway_ollama=f"127.0.0.1:{server.port}", __gateway_open_webui=NOBODY).start() for server in self.servers
        ]
        self.front = Gateway(
            folder / "front",
            tree,
            __gateway_ollama=NOBODY,
            __gateway_open_webui=NOBODY,
            __gateway_page=False,
            gateway_upstreams=[{"address": "127.0.0.1", "port": member.port, "ca": "unused"} for member in self.members],
        )
        self.conf = self.front.folder / "conf"
        (self.conf / "upstreams.pem").write_text("".join((member.folder / "tls" / "ca.crt").read_text() for member in self.members))
        self.health("--first")
        self.front.start()

    def health(self, *words):
        """Run the role's own health check, as its timer does, and the reload that systemd would do."""
        environment = {**os.environ, "GPUFLEET_GATEWAY_DIR": str(self.conf)}
        done = subprocess.run(["sh", self.front.folder / "program" / "health", *words], env=environment, capture_output=True, text=True, check=True)
        if done.stdout:
            self.front.command("-s", "reload")
            time.sleep(0.5)
        return done.stdout.strip()

    def drain(self, number, wanted=True):
        """Lay a member's flag down, or take it away."""
        flag = self.members[number].folder / "run" / "drain"
        if wanted:
            flag.write_text("driver\n")
            flag.chmod(0o600)  # that it is there counts, not who may read it
        else:
            flag.unlink()

    def ask(self, count, clients=8):
        """{server: answers} of so many requests; anything but 200 counts under its status."""

        def one(_number):
            status, headers, body = self.front.ask("POST", "/api/chat", BODY, "alice")
            return json.loads(body)["from"] if status == 200 and headers["x-gateway-removed"] else str(status)

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            said = list(pool.map(one, range(count)))
        return {name: said.count(name) for name in sorted(set(said))}


@pytest.fixture(scope="module")
def fleet(tree, tmp_path_factory):
    made = Fleet(tmp_path_factory.mktemp("fleet"), tree)
    yield made
    for one in (made.front, *made.members):
        one.stop()


def test_requests_are_spread(fleet):
    said = fleet.ask(60)
    assert sum(said.values()) == 60 and said["one"] > 10 and said["two"] > 10
    assert fleet.front.ask("GET", "/healthz")[0] == 200
    assert fleet.front.ask("POST", "/api/chat", BODY)[0] == 401
    # What the front takes out the member does not see; what a member is sent past the front it takes out itself.
    assert all(b"num_ctx" not in seen["body"] for server in fleet.servers for seen in server.seen)


def test_a_thousand_requests_while_one_host_is_drained_and_comes_back(fleet):
    """At once by the member's own 503, for good by the health check; running streams go on to their end."""
    fleet.servers[0].seen.clear()

    def slow(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _beat in range(30):
            handler.wfile.write(b"4\r\nbeat\r\n")
            handler.wfile.flush()
            time.sleep(0.1)
        handler.wfile.write(b"0\r\n\r\n")
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for server in fleet.servers:
            server.answer = slow
        running = [pool.submit(fleet.front.ask, "POST", "/api/chat", BODY, "alice") for _one in range(6)]
        time.sleep(1)
        for server in fleet.servers:
            server.answer = None
        fleet.drain(0)
        before = len(fleet.servers[0].seen)
        said = fleet.ask(300)
        assert said == {"two": 300}, said
        assert "down" in fleet.health()
        assert fleet.ask(200) == {"two": 200}
        # The drained host has had none of them; its streams came whole.
        assert [one for one in fleet.servers[0].seen[before:] if one["path"] != "/api/version"] == []
        assert [(status, body) for status, _headers, body in (one.result() for one in running)] == [(200, b"beat" * 30)] * 6
    fleet.drain(0, False)
    assert "down" not in fleet.health()
    assert fleet.health() == ""
    said = fleet.ask(500)
    assert sum(said.values()) == 500 and set(said) == {"one", "two"}


def test_a_token_that_the_members_do_not_know(fleet):
    """Whoever forgot to declare it there is told so."""
    for server in fleet.servers:
        server.answer = None
    policies = [member.folder / "conf" / "policy.js" for member in fleet.members]
    known = [policy.read_text() for policy in policies]
    for member, policy, text in zip(fleet.members, policies, known):
        policy.write_text(text.replace(hashlib.sha256(TOKENS["alice"].encode()).hexdigest(), "0" * 64))
        member.command("-s", "reload")
    time.sleep(1)
    try:
        status, _headers, body = fleet.front.ask("GET", "/v1/models", token="alice")
        assert status == 502 and b"gateway_tokens has to be the same" in body
    finally:
        for member, policy, text in zip(fleet.members, policies, known):
            policy.write_text(text)
            member.command("-s", "reload")
        time.sleep(1)


def test_a_host_that_is_gone_is_no_error(fleet):
    fleet.members[1].stop()
    time.sleep(0.5)
    assert fleet.ask(100) == {"one": 100}
    assert "down" in fleet.health()
    fleet.members[1].start()
    assert "down" not in fleet.health()
    assert fleet.front.ask("GET", "/healthz")[0] == 200


def test_all_red_takes_nobody_out(fleet):
    fleet.drain(0)
    fleet.drain(1)
    try:
        assert "down" not in fleet.health()
        # Not 502: a member that says 503 is not taken for one that is gone, however often it says so.
        assert fleet.ask(40) == {"503": 40}
        _status, headers, _body = fleet.front.ask("POST", "/api/chat", BODY, "alice")
        assert headers["retry-after"] == "30"
        assert fleet.front.ask("GET", "/healthz")[0] == 503
    finally:
        fleet.drain(0, False)
        fleet.drain(1, False)


def test_a_member_with_another_certificate_gets_nothing(fleet):
    """The front believes the authorities that it was given, and no other."""
    pem = (fleet.conf / "upstreams.pem").read_text()
    (fleet.conf / "upstreams.pem").write_text((fleet.front.folder / "tls" / "ca.crt").read_text())
    fleet.front.command("-s", "reload")
    time.sleep(1)
    for server in fleet.servers:
        server.seen.clear()
    try:
        assert fleet.front.ask("POST", "/api/chat", BODY, "alice")[0] in (502, 503)
        assert not any(server.seen for server in fleet.servers)
    finally:
        (fleet.conf / "upstreams.pem").write_text(pem)
        fleet.front.command("-s", "reload")
