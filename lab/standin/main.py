# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process: `ollama serve`, `ollama --version`, and what a start prepares."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import urllib.request
from http.server import ThreadingHTTPServer

from . import VERSION, card, runner
from .api import Api, Handler
from .settings import env, env_bool, home, host_and_port, log


class Listener(ThreadingHTTPServer):
    """Accepts connections until SIGTERM."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple, family: int, api: Api):
        self.address_family = family
        super().__init__(address, type("BoundHandler", (Handler,), {"api": api}))

    server_bind = socketserver.TCPServer.server_bind  # the one between asks the resolver for its name

    def handle_error(self, request, client_address):
        log("ERROR", "request failed", client=client_address, error=sys.exc_info()[1])


def make_keys() -> None:
    """~/.ollama/id_ed25519, which the real server makes at its first start and cannot start without."""
    path = os.path.join(home(), ".ollama", "id_ed25519")
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    for name, mode in ((path, 0o600), (path + ".pub", 0o644)):
        with contextlib.suppress(FileExistsError):
            with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as handle:
                handle.write(os.urandom(32).hex() + "\n")


def serve(program: str) -> int:
    """`ollama serve`: prepare the store, listen until SIGTERM, end the children."""
    host, port = host_and_port()
    try:
        make_keys()
        api = Api(program)
        family, _type, _proto, _canon, address = socket.getaddrinfo(host or "::", port, type=socket.SOCK_STREAM)[0]
        listener = Listener(address, family, api)
        if not env_bool("OLLAMA_NOPRUNE"):
            api.store.prune()
    except OSError as error:
        sys.exit(f"Error: {error.filename or f'listen tcp {host}:{port}: bind'}: {(error.strerror or str(error)).lower()}")
    shown = {**{key: env(key) for key in os.environ if key.startswith("OLLAMA_")}, "OLLAMA_MODELS": api.store.root}
    log("INFO", "server config", env="map[" + " ".join(f"{key}:{value}" for key, value in sorted(shown.items())) + "]")
    for number, one in enumerate(card.cards()):
        total, free = (f"{one[key] / 2**30:.1f} GiB" for key in ("total", "free"))
        log("INFO", "inference compute", id=f"GPU-{number}", library="CUDA", total=total, available=free)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_args: threading.Thread(target=listener.shutdown).start())
    log("INFO", f"Listening on {host}:{listener.server_address[1]} (version {VERSION})")
    listener.serve_forever()
    for one in list(api.scheduler.loaded.values()):
        one.kill()
    return 0


def print_version() -> int:
    """`ollama --version`: the server's version, and this program's where they differ."""
    host, port = host_and_port()
    version, opener = "", urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, ValueError):
        version = json.load(opener.open(f"http://{host or '127.0.0.1'}:{port}/api/version", timeout=10))["version"]
    print(f"ollama version is {version}" if version else "Warning: could not connect to a running Ollama instance")
    if version != VERSION:
        print(f"Warning: client version is {VERSION}")
    return 0


def main() -> int:
    """Be llama-server under that name, else ollama."""
    program = os.path.realpath(sys.argv[0])
    if os.path.basename(program) == "llama-server":
        return runner.main(sys.argv[1:])
    if sys.argv[1:] == ["serve"]:
        return serve(program)
    if sys.argv[1:] == ["--version"]:
        return print_version()
    sys.exit("Usage: ollama serve | --version (lab stand-in)")
