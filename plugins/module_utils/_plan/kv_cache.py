# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""The KV cache: its types, and the bytes of one layer's part."""

from __future__ import annotations

from .._gpu.memory import MIB

# Bytes of one block of a KV cache type, and elements in it (ggml-common.h of llama.cpp).
KV_TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
PLAIN_KV_TYPES = ("f32", "f16", "bf16")


def mib(count):
    """Bytes as whole MiB, to the nearest."""
    return int(count / MIB + 0.5)


def padded(count, step=256):
    """llama.cpp's caches grow in steps of 256 cells."""
    return (count + step - 1) // step * step


def cells(row, context, ubatch):
    """Cells of one layer's cache for one slot: the context, or the window and one batch."""
    full = padded(context)
    return full if row["window"] is None else min(full, padded(row["window"] + ubatch))


def cache_bytes(row, context, slots, kv_type, ubatch):
    """Bytes of one layer's K and V."""
    size, elements = KV_TYPES[kv_type]
    return cells(row, context, ubatch) * slots * (row["k"] + row["v"]) * size // elements


def scratch_bytes(shape, context, slots, kv_type, ubatch):
    """What CUDA's pool takes to turn one layer's quantized K and V to f16 during prefill (llama.cpp #21054, #23446)."""
    if kv_type in PLAIN_KV_TYPES:
        return 0
    return max(2 * cells(row, context, ubatch) * slots * (row["k"] + row["v"]) for row in shape["cache"])
