# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs, copies, deletions, and what a start cleans up."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import time

import pytest

pytestmark = pytest.mark.both


def sha(body: bytes) -> str:
    """Return the digest of bytes."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def test_upload_and_look(server, name):
    digest = sha(name.encode())
    assert server.call("HEAD", f"/api/blobs/{digest}").status == 404
    assert server.call("POST", f"/api/blobs/{digest}", name.encode()).status == 201
    assert server.call("HEAD", f"/api/blobs/{digest}").status == 200
    assert server.call("POST", f"/api/blobs/{digest}", name.encode()).status == 200
    assert server.blob(digest).read_bytes() == name.encode()


def test_a_large_upload_of_what_is_there(server, gguf):
    """The server answers 200 without reading; a client that sends all before it reads may see a broken pipe, so look first."""
    digest = server.upload(gguf["plain"])
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert server.call("POST", f"/api/blobs/{digest}", gguf["plain"].read_bytes()).status == 200
    assert server.call("HEAD", f"/api/blobs/{digest}").status == 200


def test_an_upload_that_does_not_match_its_digest(server, name):
    digest, other = sha(name.encode()), sha(name.encode() + b"!")
    answer = server.call("POST", f"/api/blobs/{digest}", name.encode() + b"!")
    assert answer.status == 400 and answer.json()["error"] == f'digest mismatch, expected "{digest}", got "{other}"'
    assert not server.blob(digest).exists()


@pytest.mark.parametrize("digest", ["sha256:xyz", "md5:" + "0" * 32, "0" * 64])
def test_a_malformed_digest(server, digest):
    assert server.call("HEAD", f"/api/blobs/{digest}").status == 400


def test_an_upload_that_breaks_off_leaves_nothing(server, name):
    import socket

    digest = sha(name.encode() * 1000)
    before = {path.name for path in (server.models / "blobs").iterdir()}
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        head = f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(name) * 1000}\r\n\r\n"
        half.sendall(head.encode() + name.encode() * 10)
        time.sleep(0.3)
    deadline = time.monotonic() + 10
    while {path.name for path in (server.models / "blobs").iterdir()} - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not {path.name for path in (server.models / "blobs").iterdir()} - before


def test_copy_shares_everything(server, name):
    server.create(name, **{"from": "plain", "system": name})
    answer = server.post("/api/copy", {"source": name, "destination": f"{name}2:v1"})
    assert (answer.status, answer.body) == (200, b"")
    assert server.digest(f"{name}2:v1") == server.digest(name)


def test_copy_of_nothing(server, name):
    answer = server.post("/api/copy", {"source": "nobody", "destination": name})
    assert (answer.status, answer.json()) == (404, {"error": 'model "nobody" not found'})


@pytest.mark.parametrize("field", ["source", "destination"])
def test_copy_with_a_bad_name(server, field):
    answer = server.post("/api/copy", {"source": "plain", "destination": "y", field: "a b"})
    assert (answer.status, answer.json()) == (400, {"error": f'{field} "a b" is invalid'})


def test_copy_onto_itself(server, name):
    server.create(name, **{"from": "plain", "system": name})
    digest = server.digest(name)
    assert server.post("/api/copy", {"source": name, "destination": name}).status == 200
    assert server.digest(name) == digest


def test_delete_twice(server, name):
    server.create(name, **{"from": "plain"})
    assert server.call("DELETE", "/api/delete", {"model": name}).status == 200
    answer = server.call("DELETE", "/api/delete", {"model": name})
    assert (answer.status, answer.json()) == (404, {"error": f"model '{name}' not found"})


@pytest.mark.real
def test_delete_with_a_bad_name(server):
    answer = server.call("DELETE", "/api/delete", {"model": "a b"})
    assert (answer.status, answer.json()) == (400, {"error": 'name "a b" is invalid'})


def test_delete_removes_what_nobody_shares(server, name):
    server.create(name, **{"from": "plain", "system": f"only {name}"})
    server.create(f"{name}2", **{"from": "plain", "system": f"both {name}"})
    server.create(f"{name}3", **{"from": "plain", "system": f"both {name}"})
    server.call("DELETE", "/api/delete", {"model": name})
    server.call("DELETE", "/api/delete", {"model": f"{name}2"})
    assert not server.blob(sha(f"only {name}".encode())).exists()
    assert server.blob(sha(f"both {name}".encode())).exists()
    layer = json.loads(server.manifest("plain").read_text())["layers"][0]["digest"]
    assert server.blob(layer).exists()
    assert not server.manifest(name).parent.exists()


def test_replacing_removes_the_old_layers(server, name):
    server.create(name, **{"from": "plain", "system": f"old {name}"})
    server.create(name, **{"from": "plain", "system": f"new {name}"})
    assert not server.blob(sha(f"old {name}".encode())).exists()
    assert server.blob(sha(f"new {name}".encode())).exists()


def test_modes_of_files(server):
    layer = json.loads(server.manifest("plain").read_text())["layers"][0]["digest"]
    assert server.blob(layer).stat().st_mode & 0o777 == 0o644
    assert (server.models / "blobs").stat().st_mode & 0o777 == 0o755


def aged(path, hours: float):
    """Make a file with that age."""
    path.write_bytes(b"x")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("setting", [None, "1", "maybe"])
def test_a_start_prunes_what_is_old_and_unused(fresh, setting):
    """OLLAMA_NOPRUNE keeps it; a value that is no boolean counts as true."""
    server = fresh({"OLLAMA_NOPRUNE": setting}, start=False)
    blobs = server.models / "blobs"
    blobs.mkdir(parents=True)
    old, young = aged(blobs / f"sha256-{'a' * 64}", 2), aged(blobs / f"sha256-{'b' * 64}", 0.5)
    half, fresh_half = aged(blobs / f"sha256-{'c' * 64}-partial", 2), aged(blobs / f"sha256-{'d' * 64}-partial", 0.1)
    server.start()
    kept = setting is not None
    assert old.exists() is kept and half.exists() is kept
    assert young.exists() and fresh_half.exists()


def test_a_broken_manifest_stops_the_pruning(fresh):
    server = fresh(start=False)
    blobs = server.models / "blobs"
    blobs.mkdir(parents=True)
    old = aged(blobs / f"sha256-{'a' * 64}", 2)
    manifest = server.manifest("broken")
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    server.start()
    assert old.exists()


def test_bytes_of_another_blob_under_a_wrong_digest_leave_that_blob(server, name):
    digest, wrong = sha(name.encode()), sha(b"something else")
    server.call("POST", f"/api/blobs/{digest}", name.encode())
    assert server.call("POST", f"/api/blobs/{wrong}", name.encode()).status == 400
    assert server.blob(digest).exists() and not server.blob(wrong).exists()


def test_an_upload_leaves_the_connection_usable(server, name):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        for status in (201, 200):
            connection.request("POST", f"/api/blobs/{sha(name.encode())}", name.encode())
            response = connection.getresponse()
            assert (response.status, response.read(), response.headers.get("Connection")) == (status, b"", None)
        sock = connection.sock
        connection.request("GET", "/api/version")
        assert json.loads(connection.getresponse().read())["version"] and connection.sock is sock
