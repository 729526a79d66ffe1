# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""What the Ollama server makes of a model's settings: its context, its slots, its batch, its card."""

from __future__ import annotations

from .kv_cache import KV_TYPES, MIB, PLAIN_KV_TYPES
from .shape import VramError

# Default num_ctx of Ollama by the VRAM of all cards together (server/routes.go; since 0.15.5).
DEFAULT_CONTEXTS = ((47 * 1024, 262144), (23 * 1024, 32768), (0, 4096))
# Ollama gives these one slot, whatever is asked (server/sched.go).
ONE_SLOT = frozenset(
    [
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    ]
)


def effective_context(asked, trained, total_mib):
    """(num_ctx, capped_by): what Ollama makes of an asked num_ctx (None: its default by total_mib of all cards).

    capped_by is None, "trained" (the model's context_length, silently) or "default" (the tier of the cards' VRAM).
    """
    wanted, reason = asked, None
    if not wanted:
        wanted, reason = next(context for least, context in DEFAULT_CONTEXTS if total_mib >= least), "default"
    if trained and wanted > trained:
        return trained, "trained"
    return wanted, reason


def rough_bytes(shape, context, slots):
    """What Ollama takes a model for before it asks the engine: the file, and a cache of f16.

    PredictServerVRAM of llm/llama_server.go, 0.32.15.
    """
    width = shape["hidden"] // shape["heads"] if shape["heads"] else 0
    return shape["file_bytes"] + 4 * shape["layers"] * max(shape["kv_heads"], 1) * width * context * slots


def stays_on_one(shape, context, slots, free_mib):
    """Whether Ollama keeps a model to one of several cards, the one with so much free memory.

    It does where its rough estimate is at most 80 % of that (bestSingleGPUFit of server/sched.go, 0.32.15). Any other
    model is given all cards, also one that would fit.
    """
    return rough_bytes(shape, context, slots) <= free_mib * MIB * 80 // 100


def automatic_batch(shape, context, slots, free_mib, flash_attention=True):
    """num_batch as Ollama chooses it (automaticGenerationBatch of server/sched.go), from its own rough estimate."""
    total_context = context * slots
    if not flash_attention:
        return 256 if total_context > 4096 and 0 < free_mib <= 8192 else 512
    predicted = rough_bytes(shape, context, slots)
    free = free_mib * MIB
    for batch, share, surcharge in ((2048, 0.60, 2048 * MIB), (1024, 0.75, 768 * MIB)):
        if total_context <= (32768 if batch == 2048 else 4096):
            continue
        if not free or (predicted <= free * share and predicted + surcharge <= free * 0.8):
            return batch
    return 512


def check_settings(shape, name, kv_type, flash_attention):
    """VramError for what the servers refuse to load."""
    if kv_type not in KV_TYPES:
        raise VramError(f"Model {name}: kv_cache_type={kv_type} is not known; choose one of {', '.join(KV_TYPES)}.")
    if kv_type in PLAIN_KV_TYPES:
        return
    if not flash_attention:
        raise VramError(
            f"Model {name}: kv_cache_type={kv_type} needs flash attention, which is off; the server would refuse to "
            "load it."
            " Set ollama_flash_attention=true, or ollama_kv_cache_type=f16."
        )
    block = KV_TYPES[kv_type][1]
    for row in shape["cache"] or []:
        for what in ("head_k", "head_v"):
            if row[what] % block:
                raise VramError(
                    f"Model {name}: kv_cache_type={kv_type} stores blocks of {block}, and its attention heads have "
                    f"{row[what]}"
                    " elements, which is no multiple; the server would refuse to load it. Set ollama_kv_cache_type=f16."
                )
