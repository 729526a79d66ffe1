# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""How much VRAM a model takes on a card, term by term: the formula.

    total = weights + KV cache + compute buffer + CUDA context + scratch

``describe()`` turns a header (``_plan.gguf``) into a *shape*: what decides the memory, and nothing else. ``predict()``
turns a shape and settings into MiB. What the formula does not know it says (``unknown``) and leaves to the
server's own dry run (``_plan.dry_run``); it never guesses.

Where the figures come from, unless a line says otherwise: dry runs of llama-server b10488 (the engine of Ollama
0.32.15) on header files of the true shapes, docs/measurements/plan_accuracy.md. CUDA context and scratch cannot be
seen without a card and are predicted.
"""

from __future__ import annotations

from .._gpu.memory import CUDA_CONTEXT_MIB
from .compute import NEWEST_MEASURED_BUILD, compute_bytes
from .kv_cache import cache_bytes, mib, padded, scratch_bytes


def predict(shape, context, slots, kv_type, ubatch, flash_attention=True, build=NEWEST_MEASURED_BUILD):
    """{weights_mib, kv_mib, compute_mib, context_mib, scratch_mib, total_mib, host_mib, known} on one card.

    A term that the formula does not know is None; total_mib is then the sum of the others and known is False, so
    total_mib is only the least that it takes.
    """
    ubatch = min(ubatch, padded(context) * slots)
    unknown = shape["unknown"]
    terms = {
        "weights_mib": mib(sum(shape["layer_bytes"]) + shape["end_bytes"] + shape["extra_bytes"]),
        "kv_mib": None,
        "compute_mib": None,
        "context_mib": CUDA_CONTEXT_MIB,
        "scratch_mib": None,
    }
    if "kv" not in unknown:
        terms["kv_mib"] = mib(sum(cache_bytes(row, context, slots, kv_type, ubatch) for row in shape["cache"]))
        terms["scratch_mib"] = mib(scratch_bytes(shape, context, slots, kv_type, ubatch))
    if "compute" not in unknown:
        compute = compute_bytes(shape, context, kv_type, ubatch, flash_attention, build)
        terms["compute_mib"] = None if compute is None else mib(compute)
    return {
        **terms,
        "total_mib": sum(value for value in terms.values() if value is not None),
        "host_mib": mib(shape["host_bytes"]),
        "known": not unknown and terms["compute_mib"] is not None,
    }


def split(shape, context, slots, kv_type, ubatch, free_mib, flash_attention=True, build=NEWEST_MEASURED_BUILD):
    """MiB on each of several cards, as llama.cpp deals the layers out: by the cards' free memory.

    Its rule (llama-model.cpp, default tensor split): unit i of layers + 1 (the last is the output) goes to the first
    card whose share of the free memory, summed up, is above i / (layers + 1). Each card has its own compute buffer,
    context and scratch. CUDA may copy its inputs for pipelining, which is not in here: not verified.
    """
    whole, units = sum(free_mib), shape["layers"] + 1
    if not whole:
        return [0] * len(free_mib)
    ends = [sum(free_mib[: index + 1]) / whole for index in range(len(free_mib))]
    shares = [0] * len(free_mib)
    ubatch = min(ubatch, padded(context) * slots)
    for unit in range(units):
        card = next((index for index, end in enumerate(ends) if unit / units < end), len(ends) - 1)
        if unit == shape["layers"]:
            shares[card] += shape["end_bytes"] + shape["extra_bytes"]
        else:
            shares[card] += shape["layer_bytes"][unit]
            if shape["cache"]:
                shares[card] += cache_bytes(shape["cache"][unit], context, slots, kv_type, ubatch)
    each = CUDA_CONTEXT_MIB
    if "kv" not in shape["unknown"]:
        each += mib(scratch_bytes(shape, context, slots, kv_type, ubatch))
    if "compute" not in shape["unknown"]:
        each += mib(compute_bytes(shape, context, kv_type, ubatch, flash_attention, build) or 0)
    return [mib(share) + each if share else 0 for share in shares]
