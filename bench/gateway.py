#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's figures (`make bench-gateway`): runner starts, delay of the first byte, parallel streams over a reload.

The role's own nginx.conf and JavaScript run under the distribution's nginx on loopback. Behind it is the real Ollama with a
tiny model (where `make real-server` built it, else the stand-in), and for the streams a server that only writes them.
Exits 1 where more than one runner was started through the gateway, or a stream was lost. Writes docs/measurements/gateway_bench.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / ".collections"), str(REPO / "lab/services"), str(REPO / "lab/real")]

import make_mirror  # noqa: E402
import shapes  # noqa: E402


def load(name, path):
    """The module of a conftest.py, of which there are two."""
    spec = importlib.util.spec_from_file_location(name, REPO / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gateway = load("gateway_conftest", "tests/gateway/conftest.py")
contract = load("contract_conftest", "tests/contract/conftest.py")

CONTEXTS = (1024, 1536, 2048, 3072, 4096)
ROUTES = ("/api/chat", "/api/generate", "/api/show", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def request_body(path, pick):
    """A body for the route, with runner options as a client might send them."""
    message = [{"role": "user", "content": f"Say hello {pick.random()}."}]
    body = {"model": "base", "stream": pick.random() < 0.5}
    if path in ("/api/generate", "/v1/completions"):
        body["prompt"] = "Say hello."
    elif path == "/v1/responses":
        body["input"] = "Say hello."
    elif path != "/api/show":
        body["messages"] = message
    body.update({"max_tokens": 4, "max_output_tokens": 4} if path.startswith("/v1") else {})
    options = {"num_ctx": pick.choice(CONTEXTS), "num_batch": pick.choice((64, 128, 256)), "num_thread": pick.choice((1, 2)), "num_predict": 4}
    body["options"] = {key: value for key, value in options.items() if key == "num_predict" or pick.random() < 0.7}
    if pick.random() < 0.3:
        body["keep_alive"] = pick.choice((0, "1s", 60))
    if pick.random() < 0.3:
        body["shift"] = pick.random() < 0.5
    return json.dumps(body).encode()


def starts(server):
    """How many runners the server has started, by its own log."""
    return server.log.read_text(errors="replace").count("starting llama-server")


def through(front, server, count, clients):
    """{runner starts, statuses} of requests with random runner options from some clients at once."""
    before, seed = starts(server), iter(range(10**9))

    def one(_number):
        pick = random.Random(next(seed))
        path = pick.choice(ROUTES)
        body = request_body(path, pick)
        if front:
            return front.ask("POST", path, body, "alice", timeout=900)[0]
        return server.call("POST", path, body, timeout=900).status

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        statuses = list(pool.map(one, range(count)))
    return {"requests": count, "runner_starts": starts(server) - before, "statuses": {str(one): statuses.count(one) for one in sorted(set(statuses))}}


def first_byte(ask_direct, ask_through, pairs):
    """Milliseconds to the answer's first byte, direct and through the gateway, in pairs: medians and the median difference."""
    direct, beyond = [], []
    for number in range(pairs):
        order = [(ask_direct, direct), (ask_through, beyond)]
        for ask, into in order if number % 2 else reversed(order):
            started = time.perf_counter()
            ask()
            into.append((time.perf_counter() - started) * 1000)
    difference = [two - one for one, two in zip(direct, beyond)]
    return {"pairs": pairs, "direct_ms": statistics.median(direct), "through_ms": statistics.median(beyond), "difference_ms": statistics.median(difference)}


def first_bytes(front, origin):
    """first_byte() on connections that stay open, as clients keep them, against a server that answers at once."""
    import http.client

    body = json.dumps({"model": "base", "messages": [{"role": "user", "content": "word " * 400}], "options": {"num_ctx": 9, "top_k": 3}}).encode()
    plain = http.client.HTTPConnection("127.0.0.1", origin.port)
    secure = http.client.HTTPSConnection("localhost", front.port, context=front.context())

    def ask(line, headers):
        def once():
            line.request("POST", "/api/chat", body, headers)
            answer = line.getresponse()
            if answer.status != 200 or b'"from"' not in answer.read():
                raise SystemExit(f"{line.host}:{line.port} answered {answer.status}; 200 with a body was wanted.")

        return once

    return first_byte(ask(plain, {}), ask(secure, {"Authorization": f"Bearer {gateway.TOKENS['alice']}"}), 300)


def streams(front, origin, count, seconds):
    """Streams that came through whole, and the reloads under them."""

    def stream(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number in range(seconds * 2):
            handler.wfile.write(b"10\r\n%s\r\n" % (b'{"n":%9d}\n' % number)[:16].ljust(16))
            handler.wfile.flush()
            time.sleep(0.5)
        handler.wfile.write(b"0\r\n\r\n")
        return True

    origin.answer = stream
    whole, lock = [], threading.Lock()

    def read(_number):
        with contextlib.suppress(OSError):
            status, _headers, body = front.ask("POST", "/api/chat", b'{"model":"base","options":{"num_ctx":5}}', "alice")
            with lock:
                whole.append(status == 200 and len(body) == 16 * seconds * 2)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(read, number) for number in range(count)]
        time.sleep(seconds / 2)
        front.command("-s", "reload")
        concurrent.futures.wait(waiting)
    origin.answer = None
    return {"streams": count, "seconds": seconds, "reloads": 1, "whole": sum(whole)}


def models_of(folder, server):
    """Lay the tiny model down as `base`."""
    shapes.write(shapes.TINY, folder / "tiny.gguf")
    server.create("base", files={"tiny.gguf": server.upload(folder / "tiny.gguf")})


def main():
    """Measure, write the page, exit 1 where a promise was broken."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--requests", type=int, default=1000)
    asked.add_argument("--direct", type=int, default=60, help="requests past the gateway; each costs a reload")
    asked.add_argument("--streams", type=int, default=100)
    asked.add_argument("--seconds", type=int, default=60)
    asked.add_argument("--only", choices=["starts", "latency", "streams"])
    args = asked.parse_args()
    found = {}
    real = make_mirror.real_releases(None)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = next(iter(real.values())) / "bin" / "ollama" if real else make_mirror.unpack_standin(folder / "standin", make_mirror.STANDIN_VERSIONS[0])
        tree = gateway.packages()
        settings = {"models": [{"name": "base"}], "__gateway_open_webui": "127.0.0.1:1"}
        if args.only in (None, "starts"):
            environment = {"OLLAMA_CONTEXT_LENGTH": "2048", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "1"}
            server = contract.Process(command, folder / "server", environment).start()
            models_of(folder, server)
            front = gateway.Gateway(folder / "front", tree, __gateway_ollama=f"127.0.0.1:{server.port}", **settings).start()
            found["server"] = f"{'real' if real else 'stand-in'} {server.get('/api/version').json()['version']}"
            found["through"] = through(front, server, args.requests, 8)
            print(json.dumps(found["through"]), flush=True)
            found["direct"] = through(None, server, args.direct, 8)
            print(json.dumps(found["direct"]), flush=True)
            front.stop()
            server.stop()
        origin = gateway.Server("origin")
        front = gateway.Gateway(folder / "front2", tree, __gateway_ollama=f"127.0.0.1:{origin.port}", **settings).start()
        if args.only in (None, "latency"):
            found["first_byte"] = first_bytes(front, origin)
            print(json.dumps(found["first_byte"]), flush=True)
        if args.only in (None, "streams"):
            found["held"] = streams(front, origin, args.streams, args.seconds)
            print(json.dumps(found["held"]), flush=True)
        front.stop()
    if args.only is None:
        write(found)
    wrong = [
        found.get("through", {}).get("runner_starts", 1) != 1,
        found.get("held", {}).get("whole", 0) != found.get("held", {}).get("streams", 0),
    ]
    return int(any(wrong))


def write(found):
    """docs/measurements/gateway_bench.md."""
    load_average = os.getloadavg()[0]
    rows = [
        ("requests through the gateway, eight clients, random runner options, every open route", f"{found['through']['requests']:,}"),
        ("… runner starts", str(found["through"]["runner_starts"])),
        ("… answers by status", ", ".join(f"{key}: {value:,}" for key, value in found["through"]["statuses"].items())),
        ("the same kind of requests directly", f"{found['direct']['requests']:,}"),
        ("… runner starts", str(found["direct"]["runner_starts"])),
        (
            "first byte of a 2 kB chat, median, direct / through (TLS, pinned)",
            f"{found['first_byte']['direct_ms']:.1f} / {found['first_byte']['through_ms']:.1f} ms",
        ),
        ("… median difference of 300 pairs", f"{found['first_byte']['difference_ms']:.1f} ms"),
        (f"parallel streams of {found['held']['seconds']} s, one reload in the middle", f"{found['held']['whole']} of {found['held']['streams']} came whole"),
    ]
    lines = [
        "# What does the gateway cost, and what does it save?",
        "",
        f"Made by `make bench-gateway` on {time.strftime('%Y-%m-%d')}. Server of the first five rows: Ollama, {found['server']}, a tiny model on the CPU. "
        f"Load of the machine at the end: {load_average:.0f} on {os.cpu_count()} cores.",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
        "",
    ]
    (REPO / "docs/measurements/gateway_bench.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
