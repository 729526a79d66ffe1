# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models are loaded: their processes, who shares one, what starts another, when they end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from . import card
from .model import Model
from .settings import MIB, ApiError, Faults, env, env_bool, env_duration, env_uint, log, rfc3339, say

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "draft_num_predict")
"""What starts another process where it differs."""

OPTION_TYPES = {
    **dict.fromkeys((*RUNNER_OPTIONS, "num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), "integer"),
    **dict.fromkeys("top_p min_p typical_p temperature".split(), "float32"),
    **dict.fromkeys("repeat_penalty presence_penalty frequency_penalty".split(), "float32"),
    "stop": "array", "use_mmap": "boolean",
}  # fmt: skip


def merge_options(target: dict, given: dict | None) -> None:
    """Put given options into target; names that do not exist are logged, wrong types are errors."""
    for key, value in (given or {}).items():
        kind = OPTION_TYPES.get(key)
        if kind is None:
            log("WARN", "invalid option provided", option=key)
            continue
        types = {"boolean": bool, "array": list}.get(kind, (int, float))
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and kind != "boolean")):
            raise ApiError(500, f'option "{key}" must be of type {kind}')
        if kind == "array" and not all(isinstance(item, str) for item in value or []):
            raise ApiError(500, f'option "{key}" must be of an array of strings')
        if value is not None:
            target[key] = int(value) if kind == "integer" else value


class Runner:
    def __init__(self, model: Model, wanted: dict, keep_s: float):
        self.model, self.key, self.wanted = model, model.path, wanted
        self.session_s, self.expires_at = keep_s, time.time() + keep_s
        self.port = self.size = self.vram = self.references = 0
        self.timer = self.process = None
        self.going = False

    def request(self, method: str, path: str, body: dict | None = None, timeout: float | None = None):
        """(connection, response) of a request to the process; OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, None if body is None else json.dumps(body))
        return connection, connection.getresponse()

    def alive(self) -> bool:
        """Whether the process answers; one that hangs is waited for 10 s, as the real scheduler does."""
        try:
            connection, response = self.request("GET", "/health", timeout=10)
            connection.close()
            return response.status == 200
        except OSError:
            return False

    def serves(self, wanted: dict) -> bool:
        """Whether the process that runs can answer a request that wants this."""
        have, want = dict(self.wanted["options"]), dict(wanted["options"])
        for key in ("num_ctx", "num_batch"):
            if key in self.wanted["unset"] and key in wanted["unset"]:
                want[key] = have[key]
        want["use_mmap"] = have["use_mmap"] if want["use_mmap"] is None else want["use_mmap"]
        if want["num_gpu"] < 0:
            want["num_gpu"] = have["num_gpu"] = -1
        return have == want and not self.going and self.alive()

    def ps(self) -> dict:
        """The entry of /api/ps; a runner that is used has its whole time before it."""
        name, used = self.model.name.short(), self.references and not self.going
        return {
            "name": name, "model": name, "digest": self.model.digest, "details": self.model.details(parent=False),
            "expires_at": rfc3339(time.time() + self.session_s if used else self.expires_at), "size": self.size,
            "size_vram": self.vram, "context_length": self.wanted["options"]["num_ctx"],
        }  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Scheduler:
    """The loaded models. Keyed by the path of the weights: two names on the same weights share a process."""

    def __init__(self, faults: Faults, program: str):
        self.faults, self.program = faults, program
        self.loaded, self.trapped = {}, []
        self.change, self.pending = threading.Condition(), threading.Lock()
        total = sum(one["total"] for one in card.cards())
        self.default_ctx = 262144 if total >= 47 * 1024 * MIB else 32768 if total >= 23 * 1024 * MIB else 4096

    def options(self, model: Model, asked: dict | None) -> dict:
        """All options in force: defaults, the model's, the request's."""
        found = {"num_ctx": env_uint("OLLAMA_CONTEXT_LENGTH", 0) or self.default_ctx, "num_batch": 512, "num_gpu": -1,
                 "num_thread": 0, "num_predict": -1, "seed": -1, "stop": []}  # fmt: skip
        merge_options(found, model.params)
        merge_options(found, asked)
        return found

    @staticmethod
    def wanted(model: Model, options: dict, asked: dict | None) -> dict:
        """What a process must have been started with to serve this request."""
        given = set(model.params) | set(asked or {}) | ({"num_ctx"} if env_uint("OLLAMA_CONTEXT_LENGTH", 0) else set())
        wanted = {name: options.get(name) for name in RUNNER_OPTIONS}
        wanted["num_ctx"] = min(wanted["num_ctx"], model.gguf.get("context_length") or wanted["num_ctx"])
        return {"options": wanted, "unset": {"num_ctx", "num_batch"} - given}

    def acquire(self, model: Model, options: dict, asked: dict | None, keep_s: float | None) -> Runner:
        """A runner for the request, loaded if need be; to be released."""
        if model.gguf is None:
            raise ApiError(500, f"unable to load model: {model.path}")
        wanted = self.wanted(model, options, asked)
        runner = self.loaded.get(model.path)
        if runner and runner.serves(wanted) and self.use(runner, keep_s):
            return runner
        with self.pending:
            return self.place(model, wanted, keep_s)

    def place(self, model: Model, wanted: dict, keep_s: float | None) -> Runner:
        """Make room as the real scheduler does, then load; one at a time."""
        while True:
            runner = self.loaded.get(model.path)
            if runner and runner.serves(wanted):
                if self.use(runner, keep_s):
                    return runner
                continue
            if runner:
                self.expire(runner, wait=True)
                continue
            cards = card.cards()
            most = env_uint("OLLAMA_MAX_LOADED_MODELS", 0) or 3 * max(len(cards), 1)
            tight = cards and self.need(model, wanted) > card.free() * 80 // 100
            if self.loaded and (len(self.loaded) >= most or tight):
                victim = min(self.loaded.values(), key=lambda one: (one.references > 0, one.session_s, one.expires_at))
                self.expire(victim, wait=True)
                continue
            return self.load(model, wanted, keep_s)

    @staticmethod
    def slots(model: Model) -> int:
        return max(env_uint("OLLAMA_NUM_PARALLEL", 1), 1) if model.kind() == "completion" else 1

    def need(self, model: Model, wanted: dict) -> int:
        """The scheduler's own coarse estimate in bytes: file size and an f16 cache."""
        gguf = model.gguf
        head = gguf.get("embedding_length") // max(gguf.get("attention.head_count"), 1)
        kv_heads = gguf.get("attention.head_count_kv") or 1
        cells = wanted["options"]["num_ctx"] * self.slots(model)
        return gguf.size + 4 * gguf.get("block_count") * kv_heads * head * cells

    def batch(self, model: Model, wanted: dict) -> int:
        """num_batch where nobody set one: larger with a longer context, as far as the card has room."""
        if "num_batch" not in wanted["unset"] or model.kind() != "completion":
            return wanted["options"]["num_batch"]
        context = wanted["options"]["num_ctx"] * self.slots(model)
        size = 2048 if context > 32768 else 1024 if context > 4096 else 512
        need, free = self.need(model, wanted), card.free()
        while size > 512 and free and need > free * {2048: 60, 1024: 75}[size] // 100:
            size //= 2
        return size

    def arguments(self, model: Model, wanted: dict) -> list:
        """The command line of a model's process, without the program."""
        options, slots = wanted["options"], self.slots(model)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        batch = str(options["num_batch"])
        argv = ["--model", model.path, "--port", str(port), "--host", "127.0.0.1", "--no-webui", "--offline", "-c"]
        argv += [str(options["num_ctx"] * slots), "-np", str(slots), "-b", batch, "-ub", batch, "--keep", "4"]
        argv += ["--log-verbosity", "4", "--lab-faults", self.faults.path]
        cache = env("OLLAMA_KV_CACHE_TYPE").lower()
        argv += ["--cache-type-k", cache, "--cache-type-v", cache] if cache else []
        flash = "on" if env_bool("OLLAMA_FLASH_ATTENTION") else "off" if env("OLLAMA_FLASH_ATTENTION") else "auto"
        argv += ["--flash-attn", flash]
        argv += ["-ngl", str(options["num_gpu"])] if options["num_gpu"] >= 0 else []
        return argv + (["-t", str(options["num_thread"])] if options["num_thread"] > 0 else [])

    def load(self, model: Model, wanted: dict, keep_s: float | None) -> Runner:
        wanted["options"]["num_batch"] = self.batch(model, wanted)
        program = os.path.join(os.path.dirname(os.path.dirname(self.program)), "lib", "ollama", "llama-server")
        # Where the program of a runner matters, the lab puts an interpreter beside it (lab/faults/orphan).
        own = os.path.join(os.path.dirname(program), "interpreter")
        argv = self.arguments(model, wanted)
        log("INFO", "starting llama-server", cmd=" ".join([program, *argv]))
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([program, "-sE", program, *argv], executable=own if os.path.exists(own) else sys.executable, **streams)
        tail: list = []
        threading.Thread(target=relay, args=(process, tail), daemon=True).start()
        line = process.stdout.readline()
        if not line:
            raise ApiError(500, end_of(process, tail))
        runner = Runner(model, wanted, env_duration("OLLAMA_KEEP_ALIVE", 300.0) if keep_s is None else keep_s)
        runner.process = process
        runner.port, runner.size, runner.vram = json.loads(line)
        threading.Thread(target=process.wait, daemon=True).start()
        with self.change:
            runner.references = 1
            self.loaded[runner.key] = runner
        return runner

    def use(self, runner: Runner, keep_s: float | None) -> bool:
        """Count a request on a runner; whether it was still there."""
        with self.change:
            if self.loaded.get(runner.key) is not runner or runner.going:
                return False
            runner.references += 1
            if runner.timer:
                runner.timer.cancel()
            runner.session_s = runner.session_s if keep_s is None else keep_s
            return True

    def release(self, runner: Runner) -> None:
        """Count a request off; the last one starts the time that a runner has left."""
        with self.change:
            runner.references -= 1
            self.change.notify_all()
            if runner.references or runner.going:
                return
            runner.expires_at = time.time() + max(runner.session_s, 0)
            if runner.session_s < threading.TIMEOUT_MAX:
                runner.timer = threading.Timer(max(runner.session_s, 0), self.expire, args=(runner, False))
                runner.timer.daemon = True
                runner.timer.start()

    def unload(self, model: Model) -> None:
        runner = self.loaded.get(model.path)
        if runner:
            with self.change:
                runner.session_s, runner.expires_at = 0, time.time()
            threading.Thread(target=self.expire, args=(runner, False), daemon=True).start()

    def expire(self, runner: Runner, wait: bool) -> None:
        """Unload when nobody uses it any more; with wait, until its VRAM is seen to be free (at most 5 s)."""
        with self.change:
            runner.session_s = 0
            runner.expires_at = min(runner.expires_at, time.time())
            if runner.timer:
                runner.timer.cancel()
            self.change.wait_for(lambda: not runner.references or self.loaded.get(runner.key) is not runner)
            if runner.going:  # somebody else does
                self.change.wait_for(lambda: self.loaded.get(runner.key) is not runner)
            if self.loaded.get(runner.key) is not runner:
                return
            runner.going = True
        while self.faults.get("stuck_stopping", False):
            time.sleep(0.25)
        before = card.free() if runner.vram else 0
        runner.kill()
        if runner.vram:
            self.trapped.append(card.hold(self.faults.get("trapped_mib_after_unload") * MIB, 0))
        with self.change:
            self.loaded.pop(runner.key, None)
            self.change.notify_all()
        deadline = time.monotonic() + 5
        while wait and runner.vram and card.free() - before <= runner.vram * 0.75 and time.monotonic() < deadline:
            time.sleep(0.25)


def relay(process: subprocess.Popen, tail: list) -> None:
    """The child's log goes into the server's; its last lines explain a death."""
    for raw in process.stderr:
        tail.append(raw.decode("utf-8", "replace").rstrip("\n"))
        del tail[:-20]
        say(tail[-1])


def end_of(process: subprocess.Popen, tail: list) -> str:
    code = process.wait()
    time.sleep(0.05)  # for the last lines
    died = f"exit status {code}" if code >= 0 else f"signal: {signal.strsignal(-code).lower()}"
    reason = [text for text in tail if re.search("error|requires|out of memory", text)]
    return f"llama-server process has terminated: {died}" + (f": {reason[-1]}" if reason else "")
