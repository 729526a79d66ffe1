#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's life, request by request (`make bench-model`): what ollama_model asks of a server, and what it changes.

Each step is predicted in check mode, done, and run again. Exits 1 where the prediction was another, a second run changed
or wrote anything, sent more than 3 requests or took more than 50 ms of the server's time, or gave another digest. Then
500 random declarations go through the same (tests/unit, GPUFLEET_EXAMPLES). Writes docs/measurements/model_bench.md and tests/measurements/model_bench.json.

Needs the real server (`make real-server`), or --server standin, or the path of another ollama command. Loopback only.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / ".collections"), str(REPO / "lab/services")]

import make_mirror  # noqa: E402

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import apply as ollama_apply
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client  # noqa: E402
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration as ollama_declaration
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import store as ollama_store
from ansible_collections.gpufleet.llm.tests.unit.plugins import ollama_server  # noqa: E402

READS, LIMIT_MS = 3, 50
UNIT = "tests/unit/plugins/module_utils/test_ollama_model.py::test_any_declaration_changes_once"


def once(url, entry, check=False, state="present"):
    """What became of one declaration, as the module does it: changed, differs, actions, requests, writes, ms, digest."""
    client = ollama_client.Client(url, timeout=120)
    store, result = ollama_store.Store(client), ollama_store.Result(check)
    if state == "present":
        ollama_apply.ensure_present(client, store, ollama_declaration.declare(entry), result)
    else:
        ollama_apply.ensure_absent(client, store, entry["name"], result)
    told = {
        "changed": result.changed, "differs": result.differs, "actions": [one for one in result.actions if not one.startswith("unload")],
        "requests": len(client.server.requests), "writes": client.server.writes, "ms": round(1000 * client.server.seconds, 1),
    }  # fmt: skip
    client.close()
    client = ollama_client.Client(url)
    told["digest"] = ollama_store.Store(client).digest(entry["name"])
    client.close()
    return told


def life(registry, weights):
    """[(step, declaration, state, what has to differ)], in order; callables are done before their step."""
    base, other = f"{registry.host}/lab/base:t", f"{registry.host}/lab/other:t"
    registry.publish("lab/base:t", weights, {"top_k": 5})
    registry.publish("lab/other:t", weights, {"top_k": 6})
    entry = {"name": "life", "from": base, "insecure": True, "parameters": {"num_ctx": 512, "temperature": 0.6}}
    changed = {**entry, "parameters": {"num_ctx": 1024, "temperature": 0.6}}
    fewer = {**entry, "parameters": {"num_ctx": 1024}}
    spoken = {**fewer, "system": "You are terse."}
    moved = {**spoken, "from": other}
    pulled = {**moved, "pull": "always"}
    return [
        ("create", entry, "present", ["model"]),
        ("change one parameter", changed, "present", ["parameters.num_ctx"]),
        ("remove a parameter", fewer, "present", ["parameters.temperature"]),
        ("change the system message", spoken, "present", ["system"]),
        ("swap the base", moved, "present", ["parent", "parameters.top_k"]),
        (lambda: registry.publish("lab/other:t", weights, {"top_k": 7}), None, None, None),
        ("the base was published again", pulled, "present", ["parameters.top_k"]),
        ("absent", {"name": "life"}, "absent", ["model"]),
    ]


def walk(url, registry, weights):
    """One row a step; each with what is wrong with it."""
    rows = []
    for step, entry, state, differs in life(registry, weights):
        if callable(step):
            step()
            continue
        said = once(url, entry, check=True, state=state)
        done = once(url, entry, state=state)
        # The server's time of a run that has nothing to do, on a machine that has other things to do: the best of 15.
        again = min((once(url, entry, state=state) for _turn in range(15)), key=lambda told: told["ms"])
        rows.append({"step": step, "predicted": said, "done": done, "again": again, "faults": faults(said, done, again, differs)})
        print(line(rows[-1]), flush=True)
    return rows


def faults(said, done, again, differs):
    """What is wrong with a step."""
    found = []
    if (said["changed"], said["writes"]) != (True, 0) or said["actions"] != done["actions"]:
        found.append(f"check mode said {said['actions']} with {said['writes']} writes, and {done['actions']} was done")
    # In check mode a base that is still to be pulled cannot be compared.
    if done["differs"] != differs:
        found.append(f"{done['differs']} differed; wanted {differs}")
    if again["changed"] or again["writes"]:
        found.append(f"the second run changed {again['differs']} with {again['writes']} writes")
    if again["requests"] > READS or again["ms"] > LIMIT_MS:
        found.append(f"the second run took {again['requests']} requests and {again['ms']} ms; {READS} and {LIMIT_MS} ms are allowed")
    if again["digest"] != done["digest"]:
        found.append("the second run gave another digest")
    return found


def line(row):
    """One row as a line of the table."""
    done, again = row["done"], row["again"]
    digest = done["digest"][:12] if done["digest"] else "none"
    return (
        f"| {row['step']} | {', '.join(done['differs'])} | {done['requests']}, {done['writes']} | {digest}"
        f" | {'yes' if again['changed'] else 'no'} | {again['requests']}, {again['writes']} | {again['ms']:.1f} |"
    )


def declarations(command, count):
    """Seconds that so many random declarations took, each present twice and predicted; None where one failed."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / ".collections"), "GPUFLEET_EXAMPLES": str(count)}
    if command:
        environment["GPUFLEET_TEST_OLLAMA"] = str(command)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", UNIT], cwd=REPO, env=environment, check=False)
    return round(time.monotonic() - started, 1) if done.returncode == 0 else None


HEAD = """\
# What a declared model asks of the server

`ollama_model` on {server}, a small model from a registry on loopback. Made by `make bench-model`, which exits 1 where check mode predicts
something else than is done, where a second run changes or writes anything, sends more than {reads} requests, takes more than {limit} ms of
the server's time, or gives another digest. The time is the best of 15 runs.

| step | differed | requests, writes | digest then | again: changed | requests, writes | ms |
|---|---|---|---|---|---|---|
"""


def main(argv=None):
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="real", help="real, standin, or the path of an ollama command")
    parser.add_argument("--examples", type=int, default=500, help="random declarations, 0 for none")
    parser.add_argument("--no-docs", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    command = None if args.server == "standin" else args.server
    if args.server == "real":
        there = make_mirror.real_releases(None)
        if not there:
            print("There is no real server: `make real-server` builds it; --server standin does without.", file=sys.stderr)
            return 2
        command = next(iter(there.values())) / "bin/ollama"
    if command:
        os.environ["GPUFLEET_TEST_OLLAMA"] = str(command)
    registry = ollama_server.Registry()
    with tempfile.TemporaryDirectory(prefix="gpufleet-model-") as scratch:
        folder = pathlib.Path(scratch)
        weights = pathlib.Path(ollama_server.tiny_gguf(folder / "tiny.gguf")).read_bytes()
        with ollama_server.ollama(folder) as url:
            client = ollama_client.Client(url)
            server = f"{'the real Ollama' if command else 'the stand-in'} {client.version()}"
            client.close()
            rows = walk(url, registry, weights)
    registry.close()
    took = declarations(command, args.examples) if args.examples else 0
    wrong = [f"{row['step']}: {fault}." for row in rows for fault in row["faults"]]
    wrong += [f"One of {args.examples} random declarations failed."] if took is None else []
    text = HEAD.format(server=server, reads=READS, limit=LIMIT_MS) + "\n".join(map(line, rows)) + "\n"
    if took:
        text += f"\n{args.examples} random declarations, each predicted, made present and made present again: all changed once ({took:.0f} s).\n"
    if not args.no_docs and not wrong:
        (REPO / "docs/measurements/model_bench.md").write_text(text, encoding="utf-8")
        table = {"server": server, "examples": args.examples, "steps": rows}
        (REPO / "tests/measurements/model_bench.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(wrong) or f"{server}: {len(rows)} steps and {args.examples} random declarations, each changed once.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
