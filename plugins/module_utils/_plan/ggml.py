# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""ggml's tensor types and what a tensor of each takes in a file."""

from __future__ import annotations

import math

# ggml types: number -> (name, elements in a block, bytes of a block); ggml/src/ggml-common.h of llama.cpp.
TYPES = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
}
TYPE_NUMBERS = {name: number for number, (name, _elements, _size) in TYPES.items()}


class GgufError(Exception):
    """A header that could not be read; the text is fit for an operator."""


def type_bytes(name, shape):
    """Bytes that a tensor of this ggml type and shape takes in a file. GgufError where that cannot be."""
    number = TYPE_NUMBERS.get(name)
    if number is None:
        raise GgufError(f"Tensor type '{str(name)[:40]}' is not known; known are {', '.join(sorted(TYPE_NUMBERS))}.")
    _name, elements, size = TYPES[number]
    if shape[0] % elements:
        raise GgufError(f"A tensor row of {shape[0]} elements cannot be of type {name}, whose blocks have {elements}.")
    return math.prod(shape) // elements * size


def aligned(size, alignment):
    return (size + alignment - 1) // alignment * alignment


def possible(shape):
    """Whether a tensor can have this shape (gguf.cpp): one to four dimensions, none empty, fewer than 2^60 elements."""
    return 1 <= len(shape) <= 4 and min(shape) >= 1 and math.prod(shape) < 1 << 60
