# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The program of the soak test: puts a load on a server, and samples the host once a second while it works.

One process on the host, standard library only. Threads: one for each conversation, one that asks /api/ps, one that
samples; what they see goes as JSON lines into ``run.jsonl`` (shapes: ``_soak.measure``), what people want to know
meanwhile as lines into ``progress``. SIGINT and SIGTERM end it in an orderly way with what was measured so far.
Whatever happens to the server is recorded and never ends the program.

It changes nothing on the host but what its requests make the server do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from .._host.files import read_text
from .._ollama import client as ollama_client
from .._ollama import names as ollama_names
from . import load as soak_load
from .client import PATHS
from .conversations import Conversations
from .files import RunFiles, read_plan
from .measure import SCHEMA
from .watch import PS_TIMEOUT_S, Watch

CONFIG = {
    "load": None,  # as load.settle() makes it
    "model": "",  # empty: the first of the plan
    "target": "ollama",
    "url": "http://127.0.0.1:11434",
    "ollama_url": "http://127.0.0.1:11434",
    "unit": "ollama.service",
    "plan_path": "/etc/gpufleet/plan.json",
    "guard_state_path": "/var/lib/vram-guard/state.json",
    "interval_s": 1.0,
    "timeout_s": 600.0,
    "token": "",
    "email": "",
    "password": "",
    "ca_file": "",
    "host": "",
}
GRACE_S = 120.0  # for answers under way when the time is over


def run(config, folder, out=None, nvml=None, stop=None):
    """Do a whole run; the reason of its end. ``stop`` is an event that ends it early."""
    stop = stop or threading.Event()
    files, began, cpu = RunFiles(folder, out), time.monotonic(), time.process_time()
    watch = Watch(config, files, began, nvml)
    chats = Conversations(config, watch, files)
    plan = read_plan(config["plan_path"])
    files.write("start", heading(config, watch.read_gpus(), plan, server_versions(config)))
    threads = [threading.Thread(target=target, daemon=True) for target in (watch.ask_ps, watch.sample_all)]
    for thread in threads:
        thread.start()
    reason, detail = "done", ""
    try:
        put_load(config, watch, chats, files, stop)
        if stop.is_set():
            reason, detail = "stopped", "a signal asked for it"
    except Exception as error:  # a program that measures records its own failure, too
        reason, detail = "failed", f"{type(error).__name__}: {error}"
    chats.end()
    watch.stop.set()
    threads[1].join(2 * config["interval_s"] + 5)
    watch.note_xids(watch.now(), watch.sample())
    why = f"{reason}: {detail}" if detail else reason
    files.say(f"Ended ({why}) after {watch.now():,.0f} s, {chats.rounds} requests, peak {watch.peak_mib:,} MiB")
    cpu_s = round(time.process_time() - cpu, 3)
    files.write("end", {"t": watch.now(), "reason": reason, "detail": detail, "cpu_s": cpu_s})
    files.close()
    return reason


def put_load(config, watch, chats, files, stop):
    """Load the model, let it rest for the first measure, and ask until the load is done or somebody stops it."""
    files.say(f"Loading {config['model']}, so that its first measure is that of a model at rest")
    trouble = loaded(config, stop)
    if trouble:
        # Not the end: the requests will say the same, and maybe it recovers.
        files.say(trouble)
    # /api/ps and a sample are to have seen the loaded model: the start value of the table.
    stop.wait(2 * config["interval_s"])
    files.write("event", {"t": watch.now(), "what": "ready"})
    stop.wait(config["interval_s"])
    threads, duration_s = chats.start(), config["load"]["duration_s"]
    while any(thread.is_alive() for thread in threads) and not stop.is_set():
        if duration_s and chats.elapsed() > duration_s + GRACE_S:
            return
        stop.wait(0.2)


def heading(config, raw, plan, versions):
    """The first line of a run."""
    planned = {gpu["index"]: gpu["planned_mib"] for gpu in (plan or {}).get("gpus", ())}
    keys = ("index", "name", "uuid", "total_mib", "reserved_mib")
    gpus = [{**{key: gpu[key] for key in keys}, "planned_mib": planned.get(gpu["index"])} for gpu in raw["gpus"]]
    system = {"driver": raw["driver_version"], "kernel": os.uname().release, "python": sys.version.split()[0]}
    return {
        "schema": SCHEMA,
        "host": config["host"] or os.uname().nodename,
        "at": round(time.time(), 1),
        "load": config["load"],
        "target": {"kind": config["target"], "url": config["url"]},
        "model": config["model"],
        "interval_s": config["interval_s"],
        "gpus": gpus,
        "nvml": {"state": raw["state"], "source": raw["source"]},
        "plan": plan,
        "versions": {**system, **versions},
    }


def server_versions(config):
    """{ollama, digest} as far as the server answers; it may be down."""
    client = ollama_client.Client(config["ollama_url"], timeout=PS_TIMEOUT_S, retries=0)
    found: dict = {"ollama": None, "digest": None}
    try:
        found["ollama"] = client.version()
        digests = [
            one.get("digest") for one in client.tags() if ollama_names.same_name(str(one.get("name")), config["model"])
        ]
        found["digest"] = digests[0] if digests else None
    except ollama_client.OllamaError:
        pass
    finally:
        client.close()
    return found


def loaded(config, stop):
    """Load the model with its own settings; None, or why it could not be.

    In a thread, so that a signal is not kept waiting.
    """
    problems = []

    def work():
        client = ollama_client.Client(config["ollama_url"], timeout=config["timeout_s"], retries=0)
        try:
            client.generate_load(config["model"])
        except ollama_client.OllamaError as error:
            problems.append(str(error))
        finally:
            client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(0.1)
    return problems[0] if problems else None


def configured(folder):
    """The configuration of FOLDER/config.json, complete. OSError, ValueError, KeyError, TypeError or LoadError."""
    config = {**CONFIG, **json.loads(read_text(os.path.join(folder, "config.json")) or "")}
    load = dict(config["load"])
    config["load"] = soak_load.settle(load.pop("preset"), load)
    if not config["model"]:
        plan = read_plan(config["plan_path"]) or {"models": []}
        config["model"] = plan["models"][0]["name"] if plan["models"] else ""
    if not config["model"] or config["target"] not in PATHS:
        raise soak_load.LoadError(
            "A model (named, or in a serving plan) and a target of ollama, openai or open_webui were wanted."
        )
    return config


def main(argv):
    """`_soak FOLDER`: run what FOLDER/config.json says; 0 done, 1 failed, 2 bad configuration, 3 stopped."""
    folder = argv[0] if argv else "."
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        config = configured(folder)
    except (OSError, ValueError, KeyError, TypeError, soak_load.LoadError) as error:
        sys.stderr.write(f"{folder}/config.json cannot be used: {error}\n")
        return 2
    reason = run(config, folder, sys.stdout, stop=stop)
    return {"done": 0, "stopped": 3}.get(reason, 1)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a request that hangs must not keep the program
