# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""llama-server: say what will be taken, take it, answer on a loopback port until killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import card, gguf
from .settings import MIB, Faults, env, say


def parse(argv: list) -> dict:
    """The flags that Ollama passes to llama-server, and LLAMA_ARG_* for those that it does not."""

    def given(names: str, default: str) -> str:
        found = [word for before, word in zip(argv, argv[1:]) if before in names.split()]
        return found[-1] if found else default

    layers = given("-ngl --n-gpu-layers --gpu-layers", "auto")
    target = given("--fit-target", env("LLAMA_ARG_FIT_TARGET") or "1024")
    fit = given("-fit --fit", env("LLAMA_ARG_FIT") or "on").lower() not in ("off", "0", "false")
    return {
        "model": given("-m --model", ""), "host": given("--host", "127.0.0.1"), "port": int(given("--port", "8080")),
        "ctx": int(given("-c --ctx-size", "0")), "parallel": max(int(given("-np --parallel", "1")), 1),
        "ubatch": int(given("-ub --ubatch-size", "512")), "faults": given("--lab-faults", ""),
        "cache_k": given("-ctk --cache-type-k", env("LLAMA_ARG_CACHE_TYPE_K") or "f16"),
        "cache_v": given("-ctv --cache-type-v", env("LLAMA_ARG_CACHE_TYPE_V") or "f16"),
        "flash": given("-fa --flash-attn", env("LLAMA_ARG_FLASH_ATTN") or "auto") not in ("off", "0", "false"),
        "gpu_layers": int({"auto": "-1", "all": "1000000"}.get(layers, layers)),
        # without fit as many layers as asked for, whatever is free
        "fit_target": int(target.split(",")[0]) * MIB if fit else -(2**62),
    }  # fmt: skip


def problem(flags: dict) -> str:
    """Why these flags do not start, "" where they do."""
    for name in ("cache_k", "cache_v"):
        if flags[name] not in card.CACHE_BYTES:
            return f'error while handling argument "--cache-type-{name[-1]}": Unsupported cache type: {flags[name]}'
    if not flags["flash"] and flags["cache_v"] not in ("f32", "f16", "bf16"):
        return "llama_init_from_model: quantized V cache requires flash_attn to be enabled"
    return ""


def announce(plan: dict, cards: list) -> None:
    total = sum(one["total"] for one in cards) // MIB
    free = (sum(one["free"] for one in cards) - card.CONTEXT * len(cards)) // MIB
    m = {key: value // MIB for key, value in plan.items() if key != "places"}
    head = "common_memory_breakdown_print: |"
    say(f"{head} memory breakdown [MiB] | total   free     self   model   context   compute    unaccounted |")
    parts = f"({m['wanted']} = {m['model']} + {m['cache']} + {m['compute']})"
    say(f"{head}   - CUDA0 (NVIDIA) | {total} = {free} + {parts} + {total - free} |")
    host = f"{m['host_weights'] + m['host_compute']} = {m['host_weights']} + 0 + {m['host_compute']}"
    say(f"{head}   - Host            | {host} |")
    wanted = f"{m['wanted']} MiB of device memory vs. {free} MiB of free device memory"
    say(f"common_params_fit_impl: projected to use {wanted}")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format, *args):  # noqa: A002  (the name is the base class's)
        """Keep the log as short as llama-server's."""

    def do_GET(self):
        server, said = self.server, {"status": "ok"}
        if self.path == "/slots":
            busy = [slot < len(server.busy) for slot in range(server.count)]
            said = [{"id": slot, "n_ctx": server.slot_ctx, "is_processing": one} for slot, one in enumerate(busy)]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def do_POST(self):
        """Say words, one at a time, each ended by a zero."""
        asked, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        if server.card is not None:
            leak = float(server.faults.get("leak_mib_per_request", 0)) * MIB
            server.held.append(card.hold(int(leak), server.card))
        self.send_response(200)
        self.end_headers()
        with server.slots:
            server.busy.append(self)
            try:
                for word in asked["words"]:
                    self.wfile.write(word.encode() + b"\0")
                    self.wfile.flush()
                    time.sleep(asked["delay"])
            finally:
                server.busy.remove(self)


class Server(ThreadingHTTPServer):
    """A loaded model: its memory, its slots."""

    daemon_threads = True

    def __init__(self, flags: dict, plan: dict):
        self.count, self.slot_ctx = flags["parallel"], flags["ctx"] // flags["parallel"]
        self.slots, self.busy, self.faults = threading.Semaphore(self.count), [], Faults(flags["faults"])
        self.held = [card.hold(size + card.CONTEXT, index) for index, size in enumerate(plan["places"]) if size]
        self.card = next((index for index, size in enumerate(plan["places"]) if size), None)
        super().__init__((flags["host"], flags["port"]), Handler)

    def handle_error(self, request, client_address):
        """A client that went away is no news."""


def main(argv: list) -> int:
    """Load a model and serve it; the exit status."""
    flags, cards = parse(argv), card.cards()
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write("llama-server")
        header = gguf.Gguf(flags["model"])
        flags["ctx"] = flags["ctx"] or header.get("context_length") * flags["parallel"]
        plan = {} if problem(flags) else card.plan(header, flags, cards)
    except (gguf.GgufError, OSError, MemoryError) as error:
        sys.exit(f"llama_model_load: error loading model: {error}")
    if not plan:
        sys.exit(problem(flags))
    if cards:
        announce(plan, cards)
    server = Server(flags, plan)
    say(f"load_tensors: offloaded {plan['on_card']}/{plan['layers']} layers to GPU")
    say(f"llama_kv_cache: size = {plan['cache'] / MIB:.2f} MiB ({flags['ctx']} cells, {plan['layers'] - 1} layers)")
    say(f"main: server is listening on http://{flags['host']}:{server.server_address[1]}")
    if flags["faults"]:  # started by the stand-in, which reads this line
        print(json.dumps([server.server_address[1], plan["size"], plan["vram"]]), flush=True)
        os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    server.serve_forever(poll_interval=60)
    return 0
