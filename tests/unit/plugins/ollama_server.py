# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers for the tests of the client and of the model modules.

`ollama(folder)` runs an Ollama server of its own: the lab's stand-in, or, where GPUFLEET_TEST_OLLAMA names the
command of a real one, that. `Registry` is a plain HTTP registry in memory. `scripted(answers)` answers each
connection with the bytes it is told, for what no sane server does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
MIRROR = REPO / "lab" / "services" / "make_mirror.py"
SHAPES = REPO / "lab" / "real" / "shapes.py"
MEDIA = "application/vnd.ollama.image."


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _loaded(path):
    """The module of a file of the lab."""
    if not path.exists():
        pytest.skip("the lab (lab) is not in this copy of the collection")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def standin(folder):
    """The command of the lab's stand-in, unpacked in that folder."""
    mirror = _loaded(MIRROR)
    return mirror.unpack_standin(folder, mirror.STANDIN_VERSIONS[0])


@contextlib.contextmanager
def ollama(folder, environment=None):
    """The URL of a server whose home is `folder`; it is ended with SIGTERM."""
    port = free_port()
    real = os.environ.get("GPUFLEET_TEST_OLLAMA")
    command = [real or str(standin(folder / "standin")), "serve"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "LLAMA_ARG_"))}
    own = {"HOME": str(folder), "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NO_CLOUD": "1", "OLLAMA_CONTEXT_LENGTH": "4096"}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env={**inherited, **own, **(environment or {})}, stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(port, process, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError("the server did not listen")


def tiny_gguf(path, salt=""):
    """A model of two layers as a GGUF file; another `salt` is another file."""
    shapes = _loaded(SHAPES)
    shapes.write_tiny(str(path))
    if salt:
        raw = bytearray(path.read_bytes())
        raw[-len(salt) :] = salt.encode()
        path.write_bytes(bytes(raw))
    return str(path)


class Registry:
    """Manifests and blobs in memory behind plain HTTP, as Ollama pulls them with `insecure`."""

    def __init__(self):
        self.manifests, self.blobs, self.asked = {}, {}, []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                registry.answer(self)

            def do_HEAD(self):
                registry.answer(self)

            def log_message(self, *args):
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def publish(self, name, gguf, parameters=None):
        """Offer a model `namespace/model:tag` of a GGUF file's bytes; the manifest's digest."""
        config = {"model_format": "gguf", "model_family": "qwen3", "architecture": "amd64", "os": "linux"}
        layers = [self._layer("model", gguf)]
        if parameters:
            layers.append(self._layer("params", json.dumps(parameters).encode()))
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._layer("", json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json"),
            "layers": layers,
        }
        raw = json.dumps(manifest).encode()
        model, _colon, tag = name.partition(":")
        self.manifests[f"/v2/{model}/manifests/{tag}"] = raw
        return hashlib.sha256(raw).hexdigest()

    def _layer(self, kind, data, media=None):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": media or MEDIA + kind, "digest": digest, "size": len(data)}

    def answer(self, request):
        self.asked.append((request.command, request.path))
        body = self.manifests.get(request.path)
        if body is None and "/blobs/" in request.path:
            body = self.blobs.get(request.path.rsplit("/", 1)[1])
        if body is None:
            request.send_error(404)
            return
        status, total, wanted = 200, len(body), request.headers.get("Range")
        if wanted:
            first, _dash, last = wanted[len("bytes=") :].partition("-")
            first, last = int(first), min(int(last or total - 1), total - 1)
            body, status = body[first : last + 1], 206
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Location", request.path)
        if wanted:
            request.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def whole_request(connection):
    """A request with its body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        more = connection.recv(65536)
        if not more:
            return raw
        raw += more
    head, _end, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length.group(1)):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def scripted(*answers, hang=0.0):
    """The URL of a server that gives each connection the next of `answers` (bytes, or None to close at once), then closes it.

    The list it yields beside the URL fills with what was asked. `hang`: seconds before it answers.
    """
    asked = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve():
        for answer in answers:
            try:
                connection, _peer = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                if answer is not None:
                    with contextlib.suppress(OSError):
                        asked.append(whole_request(connection))
                        time.sleep(hang)
                        connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()
        thread.join(10)


def http(body, status="200 OK", length=None):
    """An HTTP answer with that body; `length` to lie about it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(raw) if length is None else length}\r\nConnection: close\r\n\r\n"
    return head.encode() + raw


def chunked(*lines, whole=True):
    """A streamed answer of JSON lines; without its end if not `whole`."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for line in lines:
        data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
        raw += f"{len(data):x}\r\n".encode() + data + b"\r\n"
    return raw + (b"0\r\n\r\n" if whole else b"")
