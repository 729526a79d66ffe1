# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""What a model says of itself in its GGUF header: its keys and the shapes of its tensors, never its weights.

From a file, a URL (HTTP Range), a registry by name, the answer of Ollama's ``/api/show``, or given keys. All
give one *header*::

    {
      "source": str,                   # where it came from, for people
      "version": 2 | 3 | None,         # None: not read from a GGUF
      "keys": {name: scalar | [scalar, …] | {"array": kind, "length": n}},   # long arrays are counted, not kept
      "tensors": [{"name": str, "type": "q4_k", "shape": [5120, 151936], "bytes": n, "offset": n}, …],
      "header_bytes": int | None,      # where the data would begin
      "file_bytes": int | None,        # of the whole file
      "bytes_read": int, "requests": int,
      "raw": bytes | None,             # the header itself, for write_header_file()
      "extra_bytes": {"projector": n, "adapter": n},   # other weights that a registry lists for the model
      "incomplete": str,               # only where tensors are missing: why (_plan.split)
      "parts": [header, …],            # only of a model in several files
    }

A header from a stranger is hostile until read: every length is held against what may still come, so that time and
memory are bounded by MAX_HEADER whatever the file says. The rules are those of the reader that will serve the
model (ggml/src/gguf.cpp of llama.cpp): a file that this refuses, llama-server refuses too.
"""

from __future__ import annotations

import struct

from .._gpu.memory import MIB
from .ggml import TYPES, GgufError, aligned, possible, type_bytes

MAX_HEADER = 64 * MIB  # the largest vocabularies make headers of about 16 MiB
MAX_KEYS = 65536
MAX_TENSORS = 65536
MAX_STRINGS = 1 << 21  # the largest vocabularies have 260,000 tokens and twice as many merges
MAX_KEY_LENGTH = 65535  # of the GGUF specification
KEPT_ARRAY = 2048  # per-layer arrays are kept; vocabularies are longer
KEPT_STRING = 65536  # chat templates are longer than any name and are cut
# Windows of a ranged read: the architecture's keys come with the first, all shapes of a model with a vocabulary
# of 150,000 with the fourth or fifth; never more than 2 MiB too much before 16 MiB.
FIRST_WINDOW = 64 * 1024
SECOND_WINDOW = MIB
LATER_WINDOW = 2 * MIB
# Value types of the GGUF specification: number -> (name, struct code, bytes).
SCALARS = {
    0: ("u8", "B", 1),
    1: ("i8", "b", 1),
    2: ("u16", "H", 2),
    3: ("i16", "h", 2),
    4: ("u32", "I", 4),
    5: ("i32", "i", 4),
    6: ("f32", "f", 4),
    7: ("bool", "?", 1),
    10: ("u64", "Q", 8),
    11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}
STRING, ARRAY = 8, 9


class Reader:
    """The first bytes of a file or URL, fetched in growing windows; nothing is fetched twice."""

    def __init__(self, fetch, total, what):
        self.fetch, self.total, self.what = fetch, total, what
        self.data = bytearray()
        self.at = 0
        self.requests = 0

    def damaged(self, what, so="it is damaged"):
        """The GgufError for something that no reader accepts."""
        return GgufError(f"{self.what} {what}; {so}.")

    def limit(self):
        return MAX_HEADER if self.total is None else min(MAX_HEADER, self.total)

    def need(self, count):
        """Make sure that count bytes stand at the cursor."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.limit():
            if self.total is not None and end > self.total:
                raise GgufError(
                    f"{self.what} ends at byte {self.total:,}, in the middle of its header (byte {end:,} is wanted);"
                    " it is cut short or not a GGUF. Download it again."
                )
            raise GgufError(
                f"{self.what} claims a header of more than {MAX_HEADER // MIB} MiB, so it is damaged or not a GGUF."
            )
        while len(self.data) < end:
            have = len(self.data)
            step = FIRST_WINDOW if not have else SECOND_WINDOW - FIRST_WINDOW if have < SECOND_WINDOW else LATER_WINDOW
            stop = min(max(have + step, end), self.limit())
            block, total = self.fetch(have, stop)
            self.requests += 1
            if total is not None:
                self.total = total
            if not block or len(block) > stop - have:
                raise GgufError(f"{self.what} ends at byte {have:,}, in the middle of its header. Download it again.")
            self.data += block

    def take(self, code, size):
        self.need(size)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def length(self, width_code, width):
        """A length, which cannot be more than what may still come."""
        count = self.take(width_code, width)
        if count > self.limit() - self.at:
            raise GgufError(
                f"{self.what} claims {count:,} more bytes at byte {self.at:,} of its header, more than it can have; "
                "it is damaged or not a GGUF."
            )
        return count

    def string(self, longest=None):
        count = self.length("Q", 8)
        if longest is not None and count > longest:
            raise self.damaged(f"has a name of {count:,} bytes in its header (at most {longest:,} are allowed)")
        self.need(count)
        text = bytes(self.data[self.at : self.at + min(count, KEPT_STRING)]).decode("utf-8", "replace")
        self.at += count
        return text


def _value(source, kind):
    if kind in SCALARS:
        _name, code, size = SCALARS[kind]
        return source.take(code, size)
    if kind == STRING:
        return source.string()
    if kind == ARRAY:
        return _array(source)
    what = f"has a value of the unknown kind {kind} at byte {source.at:,} of its header"
    raise source.damaged(what, "it is damaged or of a newer format")


def _array(source):
    kind = source.take("I", 4)
    count = source.take("Q", 8)
    if kind == STRING:
        return _strings(source, count)
    if kind not in SCALARS:
        raise source.damaged(f"has an array of the kind {kind} in its header, which llama.cpp does not read")
    name, code, size = SCALARS[kind]
    if count > (source.limit() - source.at) // size:
        raise source.damaged(f"claims an array of {count:,} values, more than its header can hold")
    source.need(count * size)
    start = source.at
    source.at += count * size
    if count > KEPT_ARRAY:
        return {"array": name, "length": count}
    return list(struct.unpack_from(f"<{count}{code}", source.data, start))


def _strings(source, count):
    if count > MAX_STRINGS or count > (source.limit() - source.at) // 8:
        raise source.damaged(f"claims an array of {count:,} strings, more than its header can hold")
    if count <= KEPT_ARRAY:
        return [source.string() for _index in range(count)]
    # Hundreds of thousands that nobody wants: by hand, because calls of string() would take seconds.
    length_of, at, have = struct.Struct("<Q").unpack_from, source.at, len(source.data)
    for _index in range(count):
        if at + 8 > have:
            source.at = at
            source.need(8)
            have = len(source.data)
        at += 8 + length_of(source.data, at)[0]
        if at > MAX_HEADER:
            raise source.damaged(f"claims strings of more than {MAX_HEADER // MIB} MiB in its header")
    source.at = at
    source.need(0)
    return {"array": "str", "length": count}


def parse(source):
    """The header behind these bytes, as the module's docstring describes it."""
    version, tensor_count, key_count = _preamble(source)
    keys = {}
    for _index in range(key_count):
        name = source.string(MAX_KEY_LENGTH)
        if name in keys:
            raise source.damaged(f"has the key '{name[:80]}' twice")
        keys[name] = _value(source, source.take("I", 4))
    alignment = _alignment(source, keys)
    tensors, data_bytes = _tensors(source, tensor_count, alignment)
    header_bytes = aligned(source.at, alignment)
    if source.total is not None and tensors and header_bytes + data_bytes > source.total + alignment:
        raise GgufError(
            f"{source.what} has {source.total:,} bytes where its tensors need {header_bytes + data_bytes:,}: it is"
            " cut short. Download it again."
        )
    return {
        "source": source.what,
        "version": version,
        "keys": keys,
        "tensors": tensors,
        "header_bytes": header_bytes,
        "file_bytes": source.total if source.total is not None else header_bytes + data_bytes,
        "bytes_read": len(source.data),
        "requests": source.requests,
        "raw": bytes(source.data[: source.at]),
        "extra_bytes": {},
    }


def key_spans(raw, what):
    """Where each key of a header in memory stands: ([(name, first byte, byte behind it)], where the tensors begin)."""
    source = Reader(None, len(raw), what)
    source.data = bytearray(raw)
    source.at = 16
    found = []
    for _index in range(source.take("Q", 8)):
        start = source.at
        name = source.string(MAX_KEY_LENGTH)
        _value(source, source.take("I", 4))
        found.append((name, start, source.at))
    return found, source.at


def _preamble(source):
    """(version, number of tensors, number of keys)."""
    source.need(8)
    magic = bytes(source.data[:4])
    if magic != b"GGUF":
        raise GgufError(
            f"{source.what} is not a GGUF: it begins with {magic!r}, not b'GGUF'. Name a .gguf file (safetensors and"
            " other formats have to be converted first)."
        )
    source.at = 4
    version = source.take("I", 4)
    if version in (0x02000000, 0x03000000):
        raise GgufError(
            f"{source.what} is a big-endian GGUF, which no server on this kind of machine reads; take the"
            " little-endian one."
        )
    if version not in (2, 3):
        raise GgufError(
            f"{source.what} is a GGUF of version {version}; versions 2 and 3 can be read. Convert it with a current"
            " llama.cpp."
        )
    tensors, keys = source.take("Q", 8), source.take("Q", 8)
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise source.damaged(
            f"claims {tensors:,} tensors and {keys:,} keys; no model has more than {MAX_TENSORS:,} of either"
        )
    return version, tensors, keys


def _alignment(source, keys):
    value = keys.get("general.alignment", 32)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 < value <= MIB or value & (value - 1):
        raise source.damaged(f"has general.alignment={str(value)[:40]}, which is no power of two")
    return value


def _tensors(source, count, alignment):
    """([tensor, …], bytes of the data behind the header)."""
    tensors, seen, expected = [], set(), 0
    for _index in range(count):
        tensor = _tensor(source)
        name = tensor["name"]
        if name in seen:
            raise source.damaged(f"has the tensor '{name[:80]}' twice")
        seen.add(name)
        if tensor["offset"] != expected:
            raise source.damaged(
                f"puts the tensor '{name[:80]}' at byte {tensor['offset']:,} of its data, where byte {expected:,} is"
                " its place"
            )
        tensors.append(tensor)
        expected += aligned(tensor["bytes"], alignment)
    return tensors, expected


def _tensor(source):
    name = source.string(MAX_KEY_LENGTH)
    label = f"has the tensor '{name[:80]}'"
    dimensions = source.take("I", 4)
    if not 1 <= dimensions <= 4:
        raise source.damaged(f"{label} with {dimensions} dimensions (1 to 4 are possible)")
    shape = [source.take("Q", 8) for _dimension in range(dimensions)]
    if not possible(shape):
        raise source.damaged(f"{label} of the impossible shape {shape}")
    number = source.take("I", 4)
    if number not in TYPES:
        raise source.damaged(f"{label} of the unknown type {number}", "it is damaged or newer than this reader")
    kind = TYPES[number][0]
    try:
        size = type_bytes(kind, shape)
    except GgufError as error:
        raise GgufError(f"{source.what}, tensor '{name[:80]}': {error}") from error
    return {"name": name, "type": kind, "shape": shape, "bytes": size, "offset": source.take("Q", 8)}
