# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""A header (see _plan.header) that was not read from a GGUF: the running server's answer, and given keys."""

from __future__ import annotations

from . import split
from .ggml import GgufError, aligned, possible, type_bytes
from .header import MAX_TENSORS


def from_show(answer, name="the model"):
    """The header that an answer of /api/show amounts to (Ollama >= 0.5 lists the tensors)."""
    keys, tensors = answer.get("model_info"), answer.get("tensors")
    if not isinstance(keys, dict) or not isinstance(tensors, list) or not tensors:
        raise GgufError(
            f"The Ollama server says nothing of the tensors of {name}, so it cannot be planned from there; give ref, "
            "url or gguf."
        )
    header = from_metadata(
        {**{key: value for key, value in keys.items() if value is not None}, "tensors": tensors},
        f"{name} (Ollama server)",
    )
    if answer.get("projector_info") and not header.get("incomplete"):
        return split.partial(header, "it has a projector, and the server does not say how large that is")
    return header


def from_metadata(metadata, source="given metadata"):
    """The header of given GGUF keys with ``tensors``: a list of {name, type, shape}.

    ``file_bytes`` may stand beside the keys; without it the sum of the tensors is taken, which leaves out the
    header's few MiB.
    """
    keys = {str(key): value for key, value in metadata.items() if key not in ("tensors", "file_bytes")}
    given = metadata.get("tensors")
    if not isinstance(given, list) or not given:
        raise GgufError(
            f"{source}: tensors is missing; wanted is a list of name, type and shape, as /api/show gives it."
        )
    if len(given) > MAX_TENSORS:
        raise GgufError(f"{source}: {len(given):,} tensors are given; no model has more than {MAX_TENSORS:,}.")
    tensors, offset = [], 0
    for entry in given:
        tensors.append({**_tensor(entry, source), "offset": offset})
        offset += aligned(tensors[-1]["bytes"], 32)
    file_bytes = metadata.get("file_bytes")
    if file_bytes is not None:
        try:
            file_bytes = int(file_bytes)
        except (TypeError, ValueError) as error:
            raise GgufError(f"{source}: file_bytes={str(file_bytes)[:40]} is no number of bytes.") from error
    header = {
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
    return split.given(header)


def _tensor(entry, source):
    try:
        shape = [int(size) for size in entry["shape"]]
        name, kind = str(entry["name"]), str(entry["type"]).lower()
    except (KeyError, TypeError, ValueError) as error:
        raise GgufError(f"{source}: {str(entry)[:120]} is no tensor; wanted are name, type and shape.") from error
    if not possible(shape):
        raise GgufError(f"{source}: the tensor '{name[:80]}' has the impossible shape {shape}.")
    try:
        size = type_bytes(kind, shape)
    except GgufError as error:
        raise GgufError(f"{source}, tensor '{name[:80]}': {error}") from error
    return {"name": name, "type": kind, "shape": shape, "bytes": size}
