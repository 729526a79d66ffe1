#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the formula of the serving plan against the dry run of the real llama-server (`make bench-plan`).

For every architecture that lab/real/shapes.py can write in its true shape: weights, KV cache and compute
buffer by formula and by dry run, over contexts, cache types, slots and batches. Prints one line a shape, and
writes docs/measurements/plan_accuracy.md and tests/measurements/plan_accuracy.json (every figure; the unit tests hold the formula against it
on machines without the engine). Exits 1 where a term is off by more than out_of_bounds() allows.

Needs the real server (`make real-server`). Takes ten minutes on an idle machine, 20 s with --quick.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / ".collections"), str(REPO / "lab/real")]

import shapes  # noqa: E402

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import dry_run  # noqa: E402
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import formula as plan_formula
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import shape as plan_shape

CARD_MIB = 200000  # larger than any of the settings: a card that is too small is not what is measured here
COLUMNS = ("shape", "context", "kv_cache_type", "slots", "ubatch", "flash_attention", "weights_mib", "kv_mib", "compute_mib")
TERMS = ("weights_mib", "kv_mib", "compute_mib")
REFERENCE = ("qwen3-14b-q4_K_M", "qwen3-14b-q4_K_M-library", "qwen3-14b-q8_0")
OTHERS = (
    "qwen3-4b-q4_K_M",
    "qwen3-8b-q8_0",
    "qwen3-32b-q4_K_M",
    "qwen3-30b-a3b-q4_K_M",
    "llama3.1-8b-q8_0",
    "llama3.2-3b-q4_K_M",
    "mistral-small-24b-q4_K_M",
    "phi-4-q4_K_M",
    "gemma3-12b-q4_K_M",
    "gpt-oss-20b-mxfp4",
    "deepseek-v2-lite-q4_K_M",
)


def settings(shape, quick=False):
    """(context, kv type, slots, ubatch, flash attention) that are tried for a shape."""
    if quick:
        return [(8192, kv_type, 1, 512, True) for kv_type in ("f16", "q8_0")]
    if shape in REFERENCE:
        on = itertools.product((8192, 16384, 32768, 40960, 65536, 131072), ("f16", "q8_0", "q4_0"), (1, 2, 4), (512, 1024, 2048))
    else:
        on = itertools.product((8192, 16384), ("f16", "q8_0", "q4_0"), (1, 2), (512, 2048))
    off = itertools.product((4096, 8192), ("f16",), (1, 2), (512,))
    return [(*one, True) for one in on] + [(*one, False) for one in off]


def engine_folder():
    """lib/ollama of the newest real server in the cache."""
    cache = pathlib.Path(os.environ.get("GPUFLEET_CACHE", "~/.cache/gpufleet")).expanduser() / "real"
    found = [one for one in cache.glob("*/lib/ollama/llama-server") if (one.parents[2] / "lab/ggml-rpc-server").exists()]
    if not found:
        sys.exit(f"No real server below {cache}. Build it first: make real-server")
    return max(found, key=lambda one: [int(part) for part in one.parents[2].name.split(".") if part.isdigit()]).parent


def shim():
    """Path of the library that makes a card of an rpc server."""
    return subprocess.run([REPO / "lab/real/build", "--shim"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def simulated_card(prefix, mib=CARD_MIB):
    """A card of the lab: the address of an rpc server that claims so much memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "LAB_CARD_MIB": str(mib), "LD_PRELOAD": shim()}
    server = subprocess.Popen(
        [prefix / "lab/ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _attempt in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def header_of(shape):
    """The header of a shape as the formula sees it, without the vocabulary; its context is as long as wanted (YaRN)."""
    told = shapes.describe(shape)
    keys = dict(told["metadata"])
    keys[f"{keys['general.architecture']}.context_length"] = 1 << 20
    return plan_given.from_metadata({**keys, "tensors": told["tensors"]}, shape)


def formula(header, context, kv_type, slots, ubatch, flash_attention):
    """The formula's terms for one setting."""
    shape = plan_shape.describe(header)
    return plan_formula.predict(shape, context, slots, kv_type, ubatch, flash_attention)


def measure(engine, shape, path, header, setting):
    """The dry run's terms for one setting, or {"refused": why}."""
    context, kv_type, slots, ubatch, flash_attention = setting
    model = {"context": context, "slots": slots, "kv_cache_type": kv_type, "flash_attention": flash_attention, "gguf": path, "header": header}
    return dry_run.run(engine, model, [{"index": 0, "uuid": None}], ubatch, given=True)


def bench(quick=False, only=None):
    """Every figure: {engine, rows: [one list of COLUMNS a setting], refused: [{…}]}."""
    folder = engine_folder()
    rows, refused = [], []
    with tempfile.TemporaryDirectory(prefix="gpufleet-bench-") as scratch, simulated_card(folder.parents[1]) as address:
        engine = dry_run.find(str(folder), {"LLAMA_ARG_RPC": address})
        for shape in only or [*REFERENCE, *OTHERS]:
            path, header = os.path.join(scratch, "model.gguf"), header_of(shape)
            shapes.write(shape, path)
            worst, started = dict.fromkeys(TERMS, 0), time.monotonic()
            for setting in settings(shape, quick):
                told, said = formula(header, *setting), measure(engine, shape, path, header, setting)
                if "refused" in said:
                    refused.append({"shape": shape, "setting": list(setting), "why": said["refused"]})
                    continue
                rows.append([shape, *setting, *(said[term] for term in TERMS)])
                for term in TERMS:
                    if told[term] is not None:
                        worst[term] = max(worst[term], abs(told[term] - said[term]))
            print(f"{shape:28} worst difference, MiB: {worst}  ({time.monotonic() - started:.0f} s)", flush=True)
    return {"engine": engine["label"], "columns": list(COLUMNS), "rows": rows, "refused": refused}


def summary(taken):
    """[{shape, source, architecture, settings, worst: {term: MiB}, unknown: settings that only the dry run knows, example}] per shape."""
    made = []
    for shape in dict.fromkeys(row[0] for row in taken["rows"]):
        header, worst, unknown, largest = header_of(shape), dict.fromkeys(TERMS, 0), 0, 0.0
        mine = [row for row in taken["rows"] if row[0] == shape]
        for row in mine:
            told = formula(header, *row[1:6])
            unknown += told["compute_mib"] is None
            for term, seen in zip(TERMS, row[6:]):
                if told[term] is not None:
                    worst[term] = max(worst[term], abs(told[term] - seen))
                    if term == "compute_mib":
                        largest = max(largest, abs(told[term] - seen) / sum(row[6:]))
        made.append(
            {
                "shape": shape,
                "source": shapes.SHAPES[shape]["source"],
                "architecture": header["keys"]["general.architecture"],
                "settings": len(mine),
                "worst": worst,
                "unknown": unknown,
                "share": largest,
                "example": mine[0],
            }
        )
    return made


def faults(made):
    """What is outside of the bounds: weights and KV to 1 MiB, compute to 1 MiB for Qwen3-14B and 2 % of the total elsewhere."""
    found = []
    for one in made:
        found += [f"{one['shape']}: {term} is off by {one['worst'][term]} MiB" for term in ("weights_mib", "kv_mib") if one["worst"][term] > 1]
        if one["shape"] in REFERENCE and one["worst"]["compute_mib"] > 1:
            found.append(f"{one['shape']}: compute_mib is off by {one['worst']['compute_mib']} MiB")
        if one["share"] > 0.02:
            found.append(f"{one['shape']}: compute_mib is off by {one['share']:.1%} of the total")
    return found


def page(taken, made):
    """docs/measurements/plan_accuracy.md"""
    lines = [
        "# How exact is the plan?",
        "",
        f"The formula of the serving plan, held against the dry run of the real llama-server {taken['engine']} on header files of the true shapes.",
        "Made by `make bench-plan`; every figure is in `plan_accuracy.json`. The card is simulated (llama.cpp's RPC backend): what CUDA's own graph,",
        "context and scratch take was not measured.",
        "",
        "Each line: the largest difference in MiB over all settings (contexts, KV types, slots, batches, flash attention on and off). The engine's",
        "figures are cut to whole MiB, the formula's are rounded, so 1 is agreement.",
        "",
        "| shape | architecture | settings | weights | KV | compute | dry run only | weights + KV + compute at the first setting | shape from |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in made:
        row, worst = one["example"], one["worst"]
        first = f"{row[6]:,} + {row[7]:,} + {row[8]:,} ({row[1]}, {row[2]}, b{row[4]})"
        lines.append(
            f"| {one['shape']} | {one['architecture']} | {one['settings']} | {worst['weights_mib']} | {worst['kv_mib']} | {worst['compute_mib']}"
            f" | {one['unknown'] or '-'} | {first} | {one['source']} |"
        )
    lines += ["", "Dry run only: settings whose compute buffer the formula does not claim to know (MLA without flash attention).", ""]
    for shape, why in sorted({(one["shape"], one["why"]) for one in taken["refused"]}):
        mine = [one["setting"] for one in taken["refused"] if (one["shape"], one["why"]) == (shape, why)]
        slots = sorted({setting[2] for setting in mine})
        types = sorted({setting[1] for setting in mine})
        lines += [f"No answer for {shape} in {len(mine)} settings (KV {', '.join(types)}; slots {', '.join(map(str, slots))}): {why}", ""]
    lines += [
        "Any other architecture is planned by the dry run; a plan that was made without it says so (`fits: null`, or `false` where the known terms",
        "alone are too much). By name, dry run only: recurrent and hybrid models (Mamba, Jamba, RWKV, LFM2, Qwen3-Next, Granite hybrids, Nemotron-H),",
        "DeepSeek models other than V2-Lite, mixtures of experts other than Qwen3's and gpt-oss, embedding models, files that hold an image encoder.",
        "",
    ]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two settings a shape; nothing is written")
    parser.add_argument("--render", action="store_true", help="write the page anew from the figures that are there")
    parser.add_argument("shapes", nargs="*", help="only these; nothing is written")
    asked = parser.parse_args(argv)
    figures = REPO / "tests/measurements/plan_accuracy.json"
    taken = json.loads(figures.read_text()) if asked.render else bench(asked.quick, asked.shapes)
    made = summary(taken)
    if not asked.quick and not asked.shapes:
        rows = ",\n".join(json.dumps(row) for row in taken["rows"])
        head = json.dumps({key: taken[key] for key in ("engine", "columns", "refused")}, indent=1)
        figures.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n')
        (REPO / "docs/measurements/plan_accuracy.md").write_text(page(taken, made))
    found = faults(made)
    print("\n".join(found) or f"{len(taken['rows'])} settings of {len(made)} shapes agree with {taken['engine']}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
