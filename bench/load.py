#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan, load, measure: gpu_capacity's dry run beside /api/ps of the real Ollama (`make bench-load`).

For each setting: gpu_capacity plans the file by formula and by dry run, as an operator would call it; then the real
server loads the same file with the same settings on a simulated card, and its size_vram is read. Exits 1 where size_vram
is not the dry run's figure to 1 MiB, or where the plan and the server chose other cards. Writes docs/measurements/plan_load.md and
tests/measurements/plan_load.json.

Needs the real server (`make real-server`). About four minutes. No card, no network: loopback only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / ".collections"), str(REPO / "lab/real"), str(REPO / "lab/services"), str(REPO / "lab/nvml")]

import lab_card  # noqa: E402
import make_mirror  # noqa: E402

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import extension  # noqa: E402
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import context_extension  # noqa: E402
from bench import plan as bench_plan  # noqa: E402

USABLE_4090_MIB = 24564 - 354
MIB = 1024 * 1024
FOREIGN = ("OLLAMA_", "LLAMA_ARG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "CUDA_VISIBLE_DEVICES")
SETTINGS = (
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 40960, "kv": "q8_0", "slots": 1, "flash": True, "batch": None},
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 8192, "kv": "f16", "slots": 2, "flash": True, "batch": 512},
    {"shape": "qwen3-14b-q8_0", "layers": 4, "num_ctx": 16384, "kv": "q4_0", "slots": 1, "flash": True, "batch": 1024},
    {"shape": "qwen3-14b-q4_K_M-library", "layers": 2, "num_ctx": 32768, "kv": "q8_0", "slots": 4, "flash": True, "batch": 512},
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 4096, "kv": "f16", "slots": 1, "flash": False, "batch": 512},
    # Two cards: one that fits stays on one; one that would fit, but not by Ollama's rough estimate, is dealt out; so is one that is larger.
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 8192, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "cards": 2, "card_mib": 3000},
    {"shape": "qwen3-14b-q8_0", "layers": 2, "num_ctx": 28672, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "cards": 2, "card_mib": 3000},
    {"shape": "qwen3-14b-q4_K_M", "layers": 8, "num_ctx": 8192, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "cards": 2, "card_mib": 2700},
)
# A longer context by another header before the same weights, by number only: the last two take 14 and 20 GB of memory.
LONGER = (
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 65536, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "extend": 2},
    {"shape": "qwen3-14b-q4_K_M", "layers": 2, "num_ctx": 131072, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "extend": 4},
    {"shape": "qwen3-14b-q4_K_M", "layers": None, "num_ctx": 65536, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "extend": 2},
    {"shape": "qwen3-14b-q4_K_M", "layers": None, "num_ctx": 131072, "kv": "q8_0", "slots": 1, "flash": True, "batch": 512, "extend": 4},
)


class LoadError(Exception):
    """A server that did not do what it was asked; the text names what it said."""


def free_port():
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, body=None, timeout=300):
    """The JSON answer of the server; raises LoadError with its own words."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    if answer.status != 200:
        raise LoadError(f"{path} answered {answer.status}: {text[:300]}")
    return json.loads(text)


@contextlib.contextmanager
def cards(prefix, count, mib, ledger):
    """LLAMA_ARG_RPC of one rpc process that shows so many cards of that size: one library, over which a model can be split."""
    port = free_port()
    environment = {**os.environ, "LAB_CARD_MIB": str(mib), "LD_PRELOAD": bench_plan.shim(), "LAB_CARD_LEDGER": str(ledger)}
    words = [prefix / "lab/ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-d", ",".join(["CPU"] * count), "-t", str(os.cpu_count() or 1)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait(lambda: accepts(port), process, "the rpc server")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def accepts(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait(ready, process, what, seconds=60):
    """Wait until ready() is true; raises LoadError where the process ends first or time runs out."""
    until = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise LoadError(f"{what} ended with {process.returncode} before it was ready.")
        if time.monotonic() > until:
            raise LoadError(f"{what} was not ready within {seconds} s.")
        time.sleep(0.1)


@contextlib.contextmanager
def server(prefix, home, setting, address):
    """The port of the real Ollama with the settings that belong to the server."""
    port = free_port()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    environment = {
        **kept, "HOME": str(home), "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NO_CLOUD": "1", "LLAMA_ARG_RPC": address,
        "OLLAMA_KV_CACHE_TYPE": setting["kv"], "OLLAMA_FLASH_ATTENTION": "1" if setting["flash"] else "0", "OLLAMA_NUM_PARALLEL": str(setting["slots"]),
    }  # fmt: skip
    log = home / "server.log"
    with open(log, "ab") as out, subprocess.Popen([prefix / "bin/ollama", "serve"], env=environment, stdout=out, stderr=out) as process:
        try:
            wait(lambda: accepts(port), process, f"ollama serve ({log})")
            yield port
        finally:
            process.terminate()


def place(home, setting):
    """The path of the model's file and its name on the server: blobs and manifest laid into the store, the weights as a link."""
    file = make_mirror.model_file(setting["shape"], setting["layers"])
    name = f"{setting['shape'].lower()}-{setting['layers']}"
    root = home / "published"
    make_mirror.publish(root, name, "latest", file, template="{{ .Prompt }}")
    store = home / ".ollama/models"
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    target = store / "manifests/registry.ollama.ai/library" / name
    target.mkdir(parents=True, exist_ok=True)
    for blob in (root / "registry/blobs").iterdir():
        if not (store / "blobs" / blob.name).exists():
            os.link(blob, store / "blobs" / blob.name)
    manifest = target / "latest"
    manifest.write_bytes((root / "registry/manifests/library" / name / "latest").read_bytes())
    path = store / "blobs" / f"sha256-{file['digest']}"
    if setting.get("extend"):
        started = time.monotonic()
        context_extension.place(str(store), f"{name}:latest", f"{name}:long", extension.Extension("yarn", setting["extend"]))
        print(f"{path.stat().st_size / 1e9:.1f} GB written with a longer context in {time.monotonic() - started:.1f} s", flush=True)
        return path, f"{name}:long"
    return path, name


def plan(prefix, path, setting, address):
    """The plan's entry of this model, by the module, as an operator would call it."""
    mib = setting.get("card_mib", USABLE_4090_MIB)
    arguments = {
        "models": [
            {
                "name": "model", "gguf": str(path), "num_ctx": setting["num_ctx"], "num_parallel": setting["slots"],
                "kv_cache_type": setting["kv"], "flash_attention": setting["flash"], "num_batch": setting["batch"],
                **({"context_extension": {"method": "yarn", "factor": setting["extend"]}} if setting.get("extend") else {}),
            }
        ],
        "gpus": [{"name": "simulated", "total_mib": mib + 354}] * setting.get("cards", 1),
        "method": "dry_run",
        "engine": str(prefix / "lib/ollama"),
        "engine_user": "root",
        "engine_environment": {"LLAMA_ARG_RPC": address},
    }  # fmt: skip
    words = [
        sys.executable, "-m", "ansible", "adhoc", "localhost", "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}",
        "-m", "gpufleet.llm.gpu_capacity", "-a", json.dumps(arguments),
    ]  # fmt: skip
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(REPO / ".collections")
    said = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    if said.returncode != 0 or "=> " not in said.stdout:
        raise LoadError(f"gpu_capacity failed: {said.stdout[-2000:]}{said.stderr[-2000:]}")
    return json.loads(said.stdout.split("=> ", 1)[1])["plan"]["models"][0]


def engine_by_card(told, count):
    """MiB that the plan gives the engine on each of so many cards: without what CUDA would take, which no simulated card has."""
    extra = (told["context_mib"] + (told["scratch_mib"] or 0)) // len(told["gpu"])
    return [max(told["per_gpu_mib"].get(str(index), 0) - extra, 0) for index in range(count)]


def measure(port, name, setting, batch, ledger):
    """/api/ps and the cards: {size_mib, size_vram_mib, context_length, held_mib: [MiB of each card]}."""
    options = {"num_ctx": setting["num_ctx"], **({"num_batch": batch} if setting["batch"] else {})}
    ask(port, "/api/generate", {"model": name, "options": options, "keep_alive": -1, "stream": False})
    (entry,) = ask(port, "/api/ps")["models"]
    seen = lab_card.Watcher(ledger=str(ledger)).look([0] * setting.get("cards", 1))
    held = [sum(mib for _pid, mib in holders) for holders, _ownerless in seen]
    return {"size_mib": entry["size"] / MIB, "size_vram_mib": entry["size_vram"] / MIB, "context_length": entry["context_length"], "held_mib": held}


def layers_on_cards(log):
    """What the engine last said of its layers, such as '3/3'."""
    said = [line.split("offloaded ", 1)[1].split()[0] for line in log.read_text(errors="replace").splitlines() if "offloaded " in line and "layers" in line]
    return said[-1] if said else "?"


def bench(settings):
    """One row a setting: the setting, the plan's figures, the server's."""
    prefix = bench_plan.engine_folder().parents[1]
    rows = []
    for setting in settings:
        started = time.monotonic()
        count = setting.get("cards", 1)
        with (
            tempfile.TemporaryDirectory(prefix="gpufleet-load-") as scratch,
            cards(prefix, count, setting.get("card_mib", USABLE_4090_MIB), f"{scratch}/ledger") as address,
        ):
            home = pathlib.Path(scratch)
            path, name = place(home, setting)
            told = plan(prefix, path, setting, address)
            with server(prefix, home, setting, address) as port:
                seen = measure(port, name, setting, told["num_batch"], home / "ledger")
            row = {
                **setting, "batch": told["num_batch"], "batch_given": setting["batch"] is not None,
                "cards": count, "planned_by_card_mib": engine_by_card(told, count),
                "formula_mib": told["formula_mib"], "dry_run_mib": told["dry_run_mib"], **seen, "offloaded": layers_on_cards(home / "server.log"),
                "engine": told["engine_build"], "release": prefix.name,
            }  # fmt: skip
        rows.append(row)
        print(f"{line(row)}  ({time.monotonic() - started:.0f} s)", flush=True)
    return rows


def line(row):
    """One row as a line of the table."""
    by_card = " + ".join(f"{mib:,}" for mib in row["held_mib"])
    return (
        f"| {row['shape']}, {row['layers']} layers | {row['num_ctx']:,} | {row['kv']} | {row['slots']} | {'on' if row['flash'] else 'off'}"
        f" | {row['batch']:,}{'' if row['batch_given'] else ' (chosen)'} | {row['cards']} | {row['formula_mib']:,} | {row['dry_run_mib']:,}"
        f" | {row['size_vram_mib']:,.2f} | {row['size_vram_mib'] - row['dry_run_mib']:+.2f} | {by_card} | {row['offloaded']} |"
    )


def faults(rows):
    """Where the plan and the server differ."""
    found = []
    for row in rows:
        about = f"{row['shape']} with {row['layers']} layers, num_ctx={row['num_ctx']}, {row['kv']}"
        if abs(row["size_vram_mib"] - row["dry_run_mib"]) > 1:
            found.append(f"{about}: size_vram is {row['size_vram_mib']:.2f} MiB and the dry run said {row['dry_run_mib']}.")
        if row["size_vram_mib"] != row["size_mib"] or not row["size_vram_mib"]:
            found.append(f"{about}: size_vram is {row['size_vram_mib']:.2f} MiB of {row['size_mib']:.2f}; wanted is all of it on the card.")
        if any(abs(held - planned) > 2 for held, planned in zip(row["held_mib"], row["planned_by_card_mib"])):
            found.append(f"{about}: the cards hold {row['held_mib']} MiB, and {row['planned_by_card_mib']} were planned for the engine.")
        if row["context_length"] != row["num_ctx"]:
            found.append(f"{about}: the server runs {row['context_length']} tokens.")
    return found


HEAD = """\
# Planned and loaded

`size_vram` of `/api/ps` (measured) next to the plan's dry run and formula (predicted), in MiB. Real Ollama {release} with llama.cpp {engine},
models of Qwen3-14B's widths with fewer layers, on simulated cards (llama.cpp's RPC backend). Made by `make bench-load`, which exits 1
where size_vram is not the dry run's figure to 1 MiB, not all of the model is on the cards, or a card holds something else than its part of
the plan. What CUDA itself takes is not in these figures.

| model | context | KV | slots | flash attention | batch | cards | formula | dry run | size_vram | difference | NVML, card by card | layers on cards |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def main(argv=None):
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, help="only these of SETTINGS and LONGER, from 0; nothing is written")
    asked = parser.parse_args(argv)
    try:
        rows = bench([(SETTINGS + LONGER)[number] for number in asked.numbers] or SETTINGS)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    if not asked.numbers:
        (REPO / "tests/measurements/plan_load.json").write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n")
        (REPO / "docs/measurements/plan_load.md").write_text(HEAD.format(**rows[0]) + "\n".join(map(line, rows)) + "\n")
    found = faults(rows)
    print("\n".join(found) or f"{len(rows)} settings: size_vram equals the dry run to 1 MiB, and each card holds its part.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
