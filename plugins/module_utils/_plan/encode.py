# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Writing a GGUF header, and a file of a header and a hole for the dry run."""

from __future__ import annotations

import os
import struct

from .ggml import TYPE_NUMBERS, GgufError, aligned, type_bytes
from .header import ARRAY, SCALARS, STRING


def encode(keys, tensors, alignment=32):
    """A GGUF v3 header of these keys and tensors ({name, type, shape}); the data would follow at its end.

    Integers become u32 (or i64 where they do not fit), floats f32, lists arrays of their first element's kind.
    """
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))]
    out += [encode_key(name, value) for name, value in keys.items()]
    offset = 0
    for tensor in tensors:
        shape = tensor["shape"]
        out.append(
            _text(tensor["name"])
            + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[tensor["type"]], offset)
        )
        offset += aligned(type_bytes(tensor["type"], shape), alignment)
    header = b"".join(out)
    return header + b"\0" * (aligned(len(header), alignment) - len(header))


def encode_key(name, value):
    """One key with its value, as it stands in a header."""
    kind, data = _encoded(value)
    return _text(name) + struct.pack("<I", kind) + data


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


def write_header_files(folder, header):
    """The header's file in a folder, or those of its parts, by the names that llama.cpp looks for; the first's path."""
    parts = header.get("parts") or [header]
    paths = [os.path.join(folder, f"header-{number:05}-of-{len(parts):05}.gguf") for number in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts):
        write_header_file(path, part)
        os.chmod(path, 0o644)
    return paths[0]


def write_header_file(path, header):
    """Write the header, then a hole of the right length: a file for the dry run that takes a few MiB of disk."""
    raw = header_file_bytes(header)
    alignment = header["keys"].get("general.alignment", 32)
    data = (
        header["tensors"][-1]["offset"] + aligned(header["tensors"][-1]["bytes"], alignment) if header["tensors"] else 0
    )
    try:
        with open(path, "wb") as handle:
            handle.write(raw)
            handle.truncate(max(aligned(len(raw), alignment) + data, header["file_bytes"] or 0))
    except OSError as error:
        raise GgufError(
            f"The header file {path} cannot be written: {error.strerror}. Its folder has to allow files with holes."
        ) from error
