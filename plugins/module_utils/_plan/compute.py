# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""The compute buffer of one device, by rules that were measured for each architecture.

Elements (f32) that stand at once for one token of a batch while the widest part of the graph is computed. Each rule
was read off dry runs of several shapes of the architecture, true ones and made-up ones with one size changed.
"""

from __future__ import annotations

from .kv_cache import PLAIN_KV_TYPES, cells, padded

# The build of llama.cpp from which a context's outputs are limited (its PR 23861), which took the vocabulary out
# of the compute buffer. b9452 has the old figure, b9509 (Ollama 0.30.5) the new one.
LIMITED_OUTPUTS_BUILD = 9509
NEWEST_MEASURED_BUILD = 10488
# Compressed attention: one row of kv_lora_rank + rope dimensions a token, no V.
LATENT_CACHE = frozenset(["deepseek2"])


def _gated(shape, quantized):
    """Dense models with gate, up and down: the FFN's three rows, the attention's output and two of the residual stream.

    With a quantized cache the allocator finds another place for the attention's output, by which of the two is wider.
    """
    query, hidden = shape["query"], shape["hidden"]
    extra = 0 if not quantized or query > hidden else query if query < hidden else -query
    return 3 * shape["feed_forward"] + query + 2 * hidden + extra


def _fused(shape, _quantized):
    """Gate and up in one matrix (Phi)."""
    return 3 * shape["feed_forward"] + 2 * shape["hidden"]


def _experts(shape, _quantized):
    """Qwen3's experts: their outputs twice, one row of each expert, the attention's output."""
    used = shape["experts_used"]
    return 2 * used * shape["hidden"] + used * shape["expert_feed_forward"] + shape["query"]


def _biased_experts(shape, _quantized):
    """gpt-oss: as above, and two rows of the residual stream."""
    used = shape["experts_used"]
    return 2 * used * shape["hidden"] + used * shape["expert_feed_forward"] + shape["query"] + 2 * shape["hidden"]


def _latent(shape, _quantized):
    """DeepSeek-V2-Lite, whose first, dense layer is its widest part."""
    return 3 * shape["feed_forward"] + 3 * shape["hidden"]


COMPUTE = {
    "qwen3": _gated,
    "llama": _gated,
    "gemma3": _gated,
    "phi3": _fused,
    "qwen3moe": _experts,
    "gpt-oss": _biased_experts,
    "deepseek2": _latent,
}


def unknown_reason(shape):
    """Why the rule of the shape's architecture was not measured for this shape, or None."""
    architecture = shape["architecture"]
    if architecture not in COMPUTE:
        return f"the compute buffer of the architecture {architecture} was not measured"
    if not shape["query"] or (not shape["feed_forward"] and not shape["experts_used"]):
        return "its header lacks the sizes of attention or feed-forward"
    if architecture == "qwen3moe" and (shape["experts_used"] != 8 or shape["query"] <= shape["hidden"]):
        return "only Qwen3's own mixtures of experts (8 used) were measured"
    if architecture == "llama" and shape["experts_used"]:
        return "mixtures of experts of the architecture llama were not measured"
    if architecture == "deepseek2" and (shape["layers"], shape["hidden"], shape["feed_forward"]) != (27, 2048, 10944):
        return "of DeepSeek's models only V2-Lite was measured"
    return None


def compute_bytes(shape, context, kv_type, ubatch, flash_attention, build=NEWEST_MEASURED_BUILD):
    """Bytes of the compute buffer of one device; None where the formula does not know it."""
    full = padded(context)
    windows = [row["window"] for row in shape["cache"] if row["window"] is not None]
    window = cells({"window": max(windows)}, context, ubatch) if windows else 0
    if build < LIMITED_OUTPUTS_BUILD:
        if shape["architecture"] != "qwen3":
            return None
        without = ubatch * (shape["vocabulary"] + shape["hidden"]) * 4
        return without if flash_attention else without + shape["heads"] * full * ubatch * 4
    quantized = kv_type not in PLAIN_KV_TYPES
    elements = COMPUTE[shape["architecture"]](shape, quantized)
    # masks in f16, one for each kind of layer, and the two rotations that go with a quantized cache
    latent = shape["architecture"] in LATENT_CACHE
    rotations = 2 * 4 * shape["cache"][0]["head_k"] ** 2 if quantized and not latent else 0
    if flash_attention:
        return ubatch * (4 * elements + 2 * (full + window)) + rotations
    if latent:
        return None
    # scores of every head and an f32 mask, and the rows of residual stream, query, key and value
    query = 0 if shape["architecture"] == "phi3" else 2 * shape["query"]
    scores = shape["heads"] * full + 2 * shape["hidden"] + query + (4 if windows else 2) * shape["key_value"]
    return ubatch * 4 * (max(scores, elements) + full + window)
