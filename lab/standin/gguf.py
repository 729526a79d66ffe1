# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a GGUF file, and the pass through llama-quantize as far as a client sees it."""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
import subprocess

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
# type number: (name, values in a block, bytes of a block), of ggml.h
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17),
}  # fmt: skip
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 32: "BF16",
}  # fmt: skip
MARK = b"this file passed through the lab"
"""Ends a file that rewrite() made."""


class GgufError(Exception):
    """Not a GGUF file that can be read."""


class Gguf:
    """Header of a file: kv (arrays as None), tensors [(name, shape, type, offset)]."""

    def __init__(self, path: str):
        self.path, self.kv, self.tensors, self.at, self.size = path, {}, [], 4, os.path.getsize(path)
        if self.size < 24:
            raise GgufError("invalid file magic")
        with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as self.map:
            if self.map[:4] != b"GGUF":
                raise GgufError("invalid file magic")
            self.rewritten = self.map[-len(MARK) :] == MARK
            try:
                self._read()
            except (struct.error, KeyError, OverflowError, IndexError) as error:
                raise GgufError("unexpected EOF") from error

    def _take(self, form: str):
        value = struct.unpack_from(form, self.map, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._take("<Q")
        if length > self.size - self.at:
            raise GgufError("unexpected EOF")
        self.at += length
        return self.map[self.at - length : self.at].decode("utf-8", "replace")

    def _value(self, kind: int):
        if kind == 8:
            return self._string()
        if kind == 6:
            return float(f"{self._take('<f'):.7g}")
        if kind != 9:
            return self._take(_SCALARS[kind])
        inner, count = self._take("<I"), self._take("<Q")
        if count > self.size - self.at:
            raise GgufError("unexpected EOF")
        if inner == 8:
            length = struct.Struct("<Q").unpack_from
            for _index in range(count):
                self.at += 8 + length(self.map, self.at)[0]
        else:
            self.at += count * struct.calcsize(_SCALARS[inner])
        return None

    def _read(self) -> None:
        if self._take("<I") not in (2, 3):
            raise GgufError("unsupported version")
        tensors, pairs = self._take("<Q"), self._take("<Q")
        for _index in range(pairs):
            key = self._string()
            self.kv[key] = self._value(self._take("<I"))
        for _index in range(tensors):
            name = self._string()
            shape = [self._take("<Q") for _dim in range(self._take("<I"))]
            self.tensors.append((name, shape, self._take("<I"), self._take("<Q")))

    @property
    def arch(self) -> str:
        return self.kv.get("general.architecture", "unknown")

    def get(self, key: str) -> int:
        """A number of the architecture, such as block_count; 0 without."""
        return int(self.kv.get(f"{self.arch}.{key}") or 0)

    def file_type(self) -> str:
        """The quantization, such as Q4_K_M."""
        return FILE_TYPES.get(int(self.kv.get("general.file_type", 1024)), "unknown")

    def parameter_count(self) -> int:
        return sum(math.prod(shape) for _name, shape, _kind, _offset in self.tensors)

    def facts(self) -> dict:
        """What the config of a model's image says about its weights."""
        count = self.parameter_count()
        unit, letter, places = (1e9, "B", 1) if count >= 1e9 else (1e6, "M", 2) if count >= 1e6 else (1e3, "K", 0)
        return {
            "model_format": "gguf", "model_family": self.arch, "model_families": [self.arch],
            "model_type": f"{count / unit:.{places}f}{letter}", "file_type": self.file_type(),
        }  # fmt: skip


def tensor_bytes(shape: list, kind: int) -> int:
    _name, block, size = TENSOR_TYPES.get(kind, ("?", 1, 4))
    return math.prod(shape) // block * size


@functools.lru_cache(maxsize=64)
def _remembered(path: str, _size: int, _changed: int) -> Gguf:
    return Gguf(path)


def read(path: str) -> Gguf:
    """Gguf of a file, remembered by size and time."""
    stat = os.stat(path)
    return _remembered(path, stat.st_size, stat.st_mtime_ns)


def rewrite(source: Gguf, out_path: str) -> None:
    """What llama-quantize does as far as a client can see: other bytes, and a copy of the copy is the copy."""
    subprocess.run(["cp", "--sparse=always", source.path, out_path], check=True)
    with open(out_path, "ab") as out:
        out.write(b"" if source.rewritten else MARK)
