# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How GGUF packs keys and tensor infos, and how many bytes a tensor takes."""

from __future__ import annotations

import math
import struct

ALIGNMENT = 32

# GGUF's value types (gguf.md, "Metadata value types").
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10

# ggml's tensor types: name -> (id, elements per block, bytes per block), from ggml.h and ggml-common.h.
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "BF16": (30, 1, 2),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "MXFP4": (39, 32, 17),
}


def tensor_bytes(dims, kind):
    """Return the bytes that a tensor takes in the file and in memory."""
    _number, block, size = TYPES[kind]
    return math.prod(dims) // block * size


def packed_string(text):
    """Return a GGUF string: length, then UTF-8."""
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


PACK = {
    UINT32: lambda value: struct.pack("<I", value),
    INT32: lambda value: struct.pack("<i", value),
    UINT64: lambda value: struct.pack("<Q", value),
    FLOAT32: lambda value: struct.pack("<f", value),
    BOOL: lambda value: struct.pack("<?", value),
    STRING: packed_string,
}


def packed_pair(key, kind, value):
    """Return one key with its value as GGUF writes it."""
    if isinstance(kind, tuple):
        _array, element = kind
        body = b"".join(map(PACK[element], value))
        return packed_string(key) + struct.pack("<IIQ", ARRAY, element, len(value)) + body
    return packed_string(key) + struct.pack("<I", kind) + PACK[kind](value)


def aligned(number):
    """Return the next multiple of GGUF's alignment."""
    return -(-number // ALIGNMENT) * ALIGNMENT


def header(keys, tensors):
    """Return (header bytes up to the first tensor, [offset of each tensor], length of the data)."""
    infos, offsets, offset = [], [], 0
    for tensor in tensors:
        offsets.append(offset)
        infos.append(
            packed_string(tensor["name"])
            + struct.pack("<I", len(tensor["shape"]))
            + struct.pack(f"<{len(tensor['shape'])}Q", *tensor["shape"])
            + struct.pack("<IQ", TYPES[tensor["type"]][0], offset)
        )
        offset += aligned(tensor["bytes"])
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(packed_pair(*pair) for pair in keys) + b"".join(infos)
    return raw.ljust(aligned(len(raw)), b"\0"), offsets, offset
