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
    }

A header from a stranger is hostile until read: every length is held against what may still come, so that time and
memory are bounded by MAX_HEADER whatever the file says. The rules are those of the reader that will serve the
model (ggml/src/gguf.cpp of llama.cpp): a file that this refuses, llama-server refuses too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import struct
import time
import urllib.parse

from .. import _http
from .._ollama import names as ollama_names
from .._ollama import registry as ollama_registry

MIB = 1024 * 1024

MAX_HEADER = 64 * MIB  # the largest vocabularies make headers of about 16 MiB
MAX_KEYS = 65536
MAX_TENSORS = 65536
MAX_STRINGS = 1 << 21  # the largest vocabularies have 260,000 tokens and twice as many merges
MAX_KEY_LENGTH = 65535  # of the GGUF specification
KEPT_ARRAY = 2048  # per-layer arrays are kept; vocabularies are longer
KEPT_STRING = 65536  # chat templates are longer than any name and are cut
MAX_MANIFEST = MIB
MAX_REDIRECTS = 5
DEADLINE_S = 60.0
SILENCE_S = 15.0

# Windows of a ranged read: the architecture's keys come with the first, all shapes of a model with a vocabulary
# of 150,000 with the fourth or fifth; never more than 2 MiB too much before 16 MiB.
FIRST_WINDOW = 64 * 1024
SECOND_WINDOW = MIB
LATER_WINDOW = 2 * MIB

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


# --- reading bytes as they are needed ---


class _Bytes:
    """The first bytes of a file or URL, fetched in growing windows; nothing is fetched twice."""

    def __init__(self, fetch, total, what):
        self.fetch, self.total, self.what = fetch, total, what
        self.data = bytearray()
        self.at = 0
        self.requests = 0

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
            raise GgufError(f"{self.what} claims a header of more than {MAX_HEADER // MIB} MiB, so it is damaged or not a GGUF.")
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
            raise GgufError(f"{self.what} claims {count:,} more bytes at byte {self.at:,} of its header, more than it can have; it is damaged or not a GGUF.")
        return count

    def string(self, longest=None):
        count = self.length("Q", 8)
        if longest is not None and count > longest:
            raise GgufError(f"{self.what} has a name of {count:,} bytes in its header (at most {longest:,} are allowed); it is damaged.")
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
    raise GgufError(f"{source.what} has a value of the unknown kind {kind} at byte {source.at:,} of its header; it is damaged or of a newer format.")


def _array(source):
    kind = source.take("I", 4)
    count = source.take("Q", 8)
    if kind == STRING:
        return _strings(source, count)
    if kind not in SCALARS:
        raise GgufError(f"{source.what} has an array of the kind {kind} in its header, which llama.cpp does not read; it is damaged.")
    name, code, size = SCALARS[kind]
    if count > (source.limit() - source.at) // size:
        raise GgufError(f"{source.what} claims an array of {count:,} values, more than its header can hold; it is damaged.")
    source.need(count * size)
    start = source.at
    source.at += count * size
    if count > KEPT_ARRAY:
        return {"array": name, "length": count}
    return list(struct.unpack_from(f"<{count}{code}", source.data, start))


def _strings(source, count):
    if count > MAX_STRINGS or count > (source.limit() - source.at) // 8:
        raise GgufError(f"{source.what} claims an array of {count:,} strings, more than its header can hold; it is damaged.")
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
            raise GgufError(f"{source.what} claims strings of more than {MAX_HEADER // MIB} MiB in its header; it is damaged.")
    source.at = at
    source.need(0)
    return {"array": "str", "length": count}


def _parse(source):
    """The header behind these bytes, as the module's docstring describes it."""
    source.need(8)
    magic = bytes(source.data[:4])
    if magic != b"GGUF":
        raise GgufError(
            f"{source.what} is not a GGUF: it begins with {magic!r}, not b'GGUF'. Name a .gguf file (safetensors and other formats have to be converted first)."
        )
    source.at = 4
    version = source.take("I", 4)
    if version not in (2, 3):
        if version in (0x02000000, 0x03000000):
            raise GgufError(f"{source.what} is a big-endian GGUF, which no server on this kind of machine reads; take the little-endian one.")
        raise GgufError(f"{source.what} is a GGUF of version {version}; versions 2 and 3 can be read. Convert it with a current llama.cpp.")
    tensor_count, key_count = source.take("Q", 8), source.take("Q", 8)
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise GgufError(
            f"{source.what} claims {tensor_count:,} tensors and {key_count:,} keys; no model has more than {MAX_TENSORS:,} of either, so it is damaged."
        )
    keys = {}
    for _index in range(key_count):
        name = source.string(MAX_KEY_LENGTH)
        if name in keys:
            raise GgufError(f"{source.what} has the key '{name[:80]}' twice; it is damaged.")
        keys[name] = _value(source, source.take("I", 4))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment <= 0 or alignment & (alignment - 1) or alignment > MIB:
        raise GgufError(f"{source.what} has general.alignment={str(alignment)[:40]}, which is no power of two; it is damaged.")
    tensors, data_bytes = _tensors(source, tensor_count, alignment)
    header_bytes = _padded(source.at, alignment)
    if source.total is not None and tensors and header_bytes + data_bytes > source.total + alignment:
        raise GgufError(f"{source.what} has {source.total:,} bytes where its tensors need {header_bytes + data_bytes:,}: it is cut short. Download it again.")
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


def _tensors(source, count, alignment):
    tensors, seen, expected = [], set(), 0
    for _index in range(count):
        name = source.string(MAX_KEY_LENGTH)
        if name in seen:
            raise GgufError(f"{source.what} has the tensor '{name[:80]}' twice; it is damaged.")
        seen.add(name)
        dimensions = source.take("I", 4)
        if not 1 <= dimensions <= 4:
            raise GgufError(f"{source.what} has the tensor '{name[:80]}' with {dimensions} dimensions (1 to 4 are possible); it is damaged.")
        shape = [source.take("Q", 8) for _dimension in range(dimensions)]
        if min(shape) < 1 or math.prod(shape) >= 1 << 60:
            raise GgufError(f"{source.what} has the tensor '{name[:80]}' of the impossible shape {shape}; it is damaged.")
        number = source.take("I", 4)
        if number not in TYPES:
            raise GgufError(f"{source.what} has the tensor '{name[:80]}' of the unknown type {number}; it is damaged or newer than this reader.")
        try:
            size = type_bytes(TYPES[number][0], shape)
        except GgufError as error:
            raise GgufError(f"{source.what}, tensor '{name[:80]}': {error}") from error
        offset = source.take("Q", 8)
        if offset != expected:
            raise GgufError(f"{source.what} puts the tensor '{name[:80]}' at byte {offset:,} of its data, where byte {expected:,} is its place; it is damaged.")
        tensors.append({"name": name, "type": TYPES[number][0], "shape": shape, "bytes": size, "offset": offset})
        expected += _padded(size, alignment)
    return tensors, expected


def _padded(size, alignment):
    return (size + alignment - 1) // alignment * alignment


# --- a file ---


def read_file(path):
    """The header of a GGUF file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}. Name a GGUF file that this user may read.") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise GgufError(f"{path} is not a plain file. Name a GGUF file.")
    with os.fdopen(descriptor, "rb", buffering=0) as handle:

        def fetch(start, stop):
            try:
                handle.seek(start)
                return handle.read(stop - start), about.st_size
            except OSError as error:
                raise GgufError(f"{path} cannot be read: {error.strerror}.") from error

        return _parse(_Bytes(fetch, about.st_size, str(path)))


# --- a URL ---


# What to do about a status of a server that was asked for a file or a manifest.
STATUS_ADVICE = {
    401: "it wants a login, which cannot be given here; download the file and name it as gguf.",
    403: "it refuses access; check the name, or download the file and name it as gguf.",
    404: "there is nothing of that name; check its spelling.",
    416: "the file is shorter than a GGUF's header.",
}


@contextlib.contextmanager
def _translated(what):
    try:
        yield
    except _http.HttpError as error:
        if error.status is None:
            raise GgufError(str(error)) from error
        advice = STATUS_ADVICE.get(error.status, "try again, or download the file and name it as gguf.")
        raise GgufError(f"{what}: the server answers HTTP {error.status}; {advice}") from error


def read_url(url, what=None, total=None, deadline_s=None):
    """The header of a GGUF behind an HTTP(S) URL, by ranged reads; never the weights.

    total: the file's bytes where they are known beforehand (a registry says them): another size is an error.
    """
    what = what or _http.shown(url)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise GgufError(f"{what} is no HTTP(S) URL. For a file on the host use gguf.")
    deadline = time.monotonic() + (DEADLINE_S if deadline_s is None else deadline_s)
    final = [url]

    def fetch(start, stop):
        left = deadline - time.monotonic()
        if left <= 0:
            raise GgufError(f"{what} gave {start:,} bytes before the time was up; it is too slow. Try again later.")
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        with _translated(what), _http.opened(final[0], wanted, what, min(left, SILENCE_S)) as response:
            size = _ranged_size(response, start, what)
            if total is not None and size not in (None, total):
                raise GgufError(f"{what} has {size:,} bytes where {total:,} were announced; the server is inconsistent. Try again later.")
            final[0] = response.geturl()
            return _http.read_at_most(response, stop - start, deadline, what), size

    return _parse(_Bytes(fetch, total, what))


def _ranged_size(response, start, what):
    """The whole file's size of a 206 answer that begins where it was asked to."""
    if response.status != 206:
        raise GgufError(
            f"{what}: the server ignored the request for a part (HTTP {response.status} instead of 206), and the whole"
            " file is too large to read for a plan. Download it and name it as gguf, or use a server that knows Range."
        )
    said = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)\Z", response.headers.get("Content-Range", "").strip())
    if not said or int(said[1]) != start:
        raise GgufError(f"{what}: the server answered with another part of the file than asked for. Download the file and name it as gguf.")
    return None if said[3] == "*" else int(said[3])


# --- a registry ---

MODEL_LAYER = "application/vnd.ollama.image.model"
EXTRA_LAYERS = {
    "application/vnd.ollama.image.projector": "projector",
    "application/vnd.ollama.image.adapter": "adapter",
}


def read_manifest(ref, deadline_s=None):
    """What a registry keeps for a name: {name, url, digest, bytes, extra_bytes, parameters_url | None}.

    ref: [http://|https://][host/][namespace/]model[:tag]; HTTPS unless http:// is written; default registry
    registry.ollama.ai. Source: server/images.go and types/model/name.go of Ollama.
    """
    try:
        name = ollama_names.parse_name(ref)
    except ValueError as error:
        raise GgufError(str(error)) from error
    insecure = ref.startswith("http://")
    what = f"Model {name.short} in the registry {name.host}"
    no_model = f"{what}: its manifest is not one of a model. Check the name; the address may be that of another service."
    try:
        with _translated(what):
            raw = ollama_registry.manifest(name, insecure, SILENCE_S, DEADLINE_S if deadline_s is None else deadline_s)
        layers = ollama_registry.layers(raw)
        found = {layer["mediaType"]: (layer["digest"], layer["size"]) for layer in reversed(layers)}
        extra = {}
        for layer in layers:
            if layer["mediaType"] in EXTRA_LAYERS:
                kind = EXTRA_LAYERS[layer["mediaType"]]
                extra[kind] = extra.get(kind, 0) + int(layer["size"])
    except (ValueError, KeyError, TypeError) as error:
        raise GgufError(no_model) from error
    digest, size = found.get(MODEL_LAYER, (None, None))
    if not isinstance(digest, str) or not re.match(r"sha256:[0-9a-f]{64}\Z", digest) or not isinstance(size, int) or not 0 < size < 1 << 50:
        raise GgufError(
            f"{what} has no GGUF layer (media types: {', '.join(sorted(str(kind)[:60] for kind in found)) or 'none'});"
            " only GGUF models can be planned. Choose a tag with GGUF weights."
        )
    return {
        "name": name.short,
        "url": f"{ollama_registry.base_url(name, insecure)}/blobs/{digest}",
        "digest": digest,
        "bytes": size,
        "extra_bytes": extra,
    }


def read_registry(ref, deadline_s=None):
    """The header of a model in a registry, by name; see read_manifest() for the name's form."""
    manifest = read_manifest(ref, deadline_s)
    header = read_url(manifest["url"], what=f"{manifest['name']} (registry)", total=manifest["bytes"], deadline_s=deadline_s)
    return {**header, "extra_bytes": manifest["extra_bytes"], "digest": manifest["digest"]}


# --- the running server, and given keys ---


def from_show(answer, name="the model"):
    """The header that an answer of /api/show amounts to (Ollama >= 0.5 lists the tensors)."""
    keys, tensors = answer.get("model_info"), answer.get("tensors")
    if not isinstance(keys, dict) or not isinstance(tensors, list) or not tensors:
        raise GgufError(f"The Ollama server says nothing of the tensors of {name}, so it cannot be planned from there; give ref, url or gguf.")
    return from_metadata(
        {**{key: value for key, value in keys.items() if value is not None}, "tensors": tensors},
        f"{name} (Ollama server)",
    )


def from_metadata(metadata, source="given metadata"):
    """The header of given GGUF keys with ``tensors``: a list of {name, type, shape}.

    ``file_bytes`` may stand beside the keys; without it the sum of the tensors is taken, which leaves out the
    header's few MiB.
    """
    keys = {str(key): value for key, value in metadata.items() if key not in ("tensors", "file_bytes")}
    given = metadata.get("tensors")
    if not isinstance(given, list) or not given:
        raise GgufError(f"{source}: tensors is missing; wanted is a list of name, type and shape, as /api/show gives it.")
    if len(given) > MAX_TENSORS:
        raise GgufError(f"{source}: {len(given):,} tensors are given; no model has more than {MAX_TENSORS:,}.")
    tensors, offset = [], 0
    for entry in given:
        try:
            shape = [int(size) for size in entry["shape"]]
            name, kind = str(entry["name"]), str(entry["type"]).lower()
        except (KeyError, TypeError, ValueError) as error:
            raise GgufError(f"{source}: {str(entry)[:120]} is no tensor; wanted are name, type and shape.") from error
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) >= 1 << 60:
            raise GgufError(f"{source}: the tensor '{name[:80]}' has the impossible shape {shape}.")
        try:
            size = type_bytes(kind, shape)
        except GgufError as error:
            raise GgufError(f"{source}, tensor '{name[:80]}': {error}") from error
        tensors.append({"name": name, "type": kind, "shape": shape, "bytes": size, "offset": offset})
        offset += _padded(size, 32)
    file_bytes = metadata.get("file_bytes")
    if file_bytes is not None:
        try:
            file_bytes = int(file_bytes)
        except (TypeError, ValueError) as error:
            raise GgufError(f"{source}: file_bytes={str(file_bytes)[:40]} is no number of bytes.") from error
    return {
        "source": source,
        "version": None,
        "keys": keys,
        "tensors": tensors,
        "header_bytes": None,
        "file_bytes": file_bytes or offset,
        "bytes_read": 0,
        "requests": 0,
        "raw": None,
        "extra_bytes": {},
    }


# --- writing ---


def encode(keys, tensors, alignment=32):
    """A GGUF v3 header of these keys and tensors ({name, type, shape}); the data would follow at its end.

    Integers become u32 (or i64 where they do not fit), floats f32, lists arrays of their first element's kind.
    """
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))]
    for name, value in keys.items():
        kind, data = _encoded(value)
        out.append(_text(name) + struct.pack("<I", kind) + data)
    offset = 0
    for tensor in tensors:
        shape = tensor["shape"]
        out.append(_text(tensor["name"]) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[tensor["type"]], offset))
        offset += _padded(type_bytes(tensor["type"], shape), alignment)
    header = b"".join(out)
    return header + b"\0" * (_padded(len(header), alignment) - len(header))


def _text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encoded(value):
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, list) and value:
        kind = max((_encoded(element)[0] for element in value), default=4)
        if kind == STRING:
            return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(_text(element) for element in value)
        return ARRAY, struct.pack(f"<IQ{len(value)}{SCALARS[kind][1]}", kind, len(value), *value)
    raise GgufError(f"A value of the kind {type(value).__name__} cannot be written to a GGUF.")


def header_file_bytes(header):
    """The bytes that write_header_file() begins with: those that were read, or the given keys encoded.

    GgufError where the keys are not all there (the vocabulary of a running server's answer).
    """
    if header["raw"] is not None:
        return header["raw"]
    keys = {key: value for key, value in header["keys"].items() if not isinstance(value, dict)}
    if len(keys) != len(header["keys"]):
        raise GgufError(f"{header['source']}: the header is not whole, so no header file can be made of it.")
    if not any(key.startswith("tokenizer.") for key in keys):
        keys["tokenizer.ggml.model"] = "none"  # llama.cpp then takes <arch>.vocab_size
        embedding = [tensor["shape"] for tensor in header["tensors"] if tensor["name"] == "token_embd.weight"]
        keys.setdefault(f"{keys.get('general.architecture')}.vocab_size", embedding[0][-1] if embedding else 1)
    return encode(keys, header["tensors"])


def write_header_file(path, header):
    """Write the header, then a hole of the right length: a file for the dry run that takes a few MiB of disk."""
    raw = header_file_bytes(header)
    alignment = header["keys"].get("general.alignment", 32)
    data = header["tensors"][-1]["offset"] + _padded(header["tensors"][-1]["bytes"], alignment) if header["tensors"] else 0
    try:
        with open(path, "wb") as handle:
            handle.write(raw)
            handle.truncate(max(_padded(len(raw), alignment) + data, header["file_bytes"] or 0))
    except OSError as error:
        raise GgufError(f"The header file {path} cannot be written: {error.strerror}. Its folder has to allow files with holes.") from error
