# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""A longer context for a model that was trained for it by YaRN: the same weights behind another GGUF header.

Ollama limits ``num_ctx`` to the header's ``context_length`` before it starts its engine (llm/server.go of 0.32.15), so
no flag and no environment variable goes beyond it. Three more keys, ``rope.scaling.type``, ``.factor`` and
``.original_context_length``, make the engine scale its positions (``rope scaling = yarn`` in its log), and a longer
``context_length`` lets Ollama ask for it.

``extended_header()`` is pure. ``rewrite()`` makes the new file from the old one in one pass: the digest is computed on
the way, and holes stay holes. ``place()`` puts the file and a manifest into a server's store, as the user that owns it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

from .._host import folders
from .._ollama import names
from .._ollama.extension import Extension, ExtensionError
from .encode import encode_key
from .header import key_spans
from .sources import MODEL_LAYER, read_file

# Qwen's model cards: the native context is 32,768 where the header says 40,960 (max_position_embeddings leaves room for
# the answer).
NATIVE_CONTEXT = {"qwen2": 32768, "qwen3": 32768, "qwen3moe": 32768}
TRAINED_CONTEXTS = (32768, 40960)
BLOCK = 8 * 1024 * 1024
MARGIN_BYTES = 256 * 1024 * 1024


def changes(header: dict[str, Any], extension: Extension) -> dict[str, Any]:
    """The keys that the extension sets: {name: value}. ExtensionError where it would be wrong for the model."""
    keys, source = header["keys"], header["source"]
    architecture = keys.get("general.architecture")
    native = NATIVE_CONTEXT.get(str(architecture))
    if native is None:
        raise ExtensionError(
            f"{source} is of the architecture {architecture}; a context can be extended by {extension.method} for "
            f"{', '.join(sorted(NATIVE_CONTEXT))} only. Take context_extension out of the declaration, or use a GGUF "
            f"that carries its scaling."
        )
    trained = keys.get(f"{architecture}.context_length")
    carried = keys.get(f"{architecture}.rope.scaling.type")
    if carried not in (None, "none"):
        raise ExtensionError(
            f"{source} already carries rope scaling ({carried}, context_length {trained}); "
            "take context_extension out of the declaration."
        )
    if trained not in TRAINED_CONTEXTS:
        raise ExtensionError(
            f"{source} has a trained context of {trained}; YaRN is known to be right for {architecture} models of "
            f"{' or '.join(str(one) for one in TRAINED_CONTEXTS)} tokens only. Set num_ctx up to {trained} without "
            "context_extension."
        )
    return {
        f"{architecture}.context_length": int(native * extension.factor),
        f"{architecture}.rope.scaling.type": extension.method,
        f"{architecture}.rope.scaling.factor": float(extension.factor),
        f"{architecture}.rope.scaling.original_context_length": native,
    }


def extended_header(header: dict[str, Any], extension: Extension) -> dict[str, Any]:
    """The header (shape: ``_plan.header``) of the same weights with the extension; bytes and sizes follow if known."""
    wanted = changes(header, extension)
    extended = {**header, "keys": {**header["keys"], **wanted}}
    if header["raw"] is None:
        return extended
    raw = replaced(header["raw"], wanted, str(header["source"]))
    alignment = header["keys"].get("general.alignment", 32)
    header_bytes = -(-len(raw) // alignment) * alignment
    moved = header_bytes - header["header_bytes"]
    return {**extended, "raw": raw, "header_bytes": header_bytes, "file_bytes": header["file_bytes"] + moved}


def replaced(raw: bytes, wanted: dict[str, Any], what: str) -> bytes:
    """The header's bytes with some keys set: others keep their bytes and their order, the set ones stand at the end."""
    version, tensors = struct.unpack_from("<IQ", raw, 4)
    spans, end = key_spans(raw, what)
    kept = [raw[start:stop] for name, start, stop in spans if name not in wanted]
    added = [encode_key(name, value) for name, value in wanted.items()]
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, len(kept) + len(added))
    return b"".join([head, *kept, *added, raw[end:]])


# --- the file ---


def rewrite(path: str, folder: str, extension: Extension) -> tuple[str, int]:
    """Write the extended file as ``folder/sha256-<digest>``; returns (``sha256:<digest>``, its bytes).

    One pass; holes stay holes. Nothing is left where it fails. The same file and extension give the same digest.
    """
    header = read_file(path)
    extended = extended_header(header, extension)
    about = os.stat(path)
    _check_room(folder, about.st_blocks * 512 + len(extended["raw"]))
    head = extended["raw"].ljust(extended["header_bytes"], b"\0")
    handle, part = tempfile.mkstemp(prefix=".extended-", dir=folder)
    try:
        with open(path, "rb", buffering=0) as source, os.fdopen(handle, "wb", buffering=0) as target:
            hasher = hashlib.sha256(head)
            _write(target, head)
            _copy(source, target, header["header_bytes"], about.st_size, hasher)
            target.truncate(len(head) + about.st_size - header["header_bytes"])
            os.fchmod(target.fileno(), 0o644)
            os.fsync(target.fileno())
        digest = hasher.hexdigest()
        os.rename(part, os.path.join(folder, f"sha256-{digest}"))
    except OSError as error:
        raise ExtensionError(
            f"{path} could not be written with a longer context into {folder}: {error.strerror or error}."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    return f"sha256:{digest}", len(head) + about.st_size - header["header_bytes"]


def _check_room(folder: str, needed: int) -> None:
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < needed + MARGIN_BYTES:
        raise ExtensionError(
            f"{folder} has {free >> 20:,} MiB free; {(needed + MARGIN_BYTES) >> 20:,} MiB are needed, since a longer "
            f"context is written"
            " beside the model that it is made from. Free that room, or take context_extension out of the declaration."
        )


def _copy(source: Any, target: Any, start: int, end: int, hasher: Any) -> None:
    """Append [start, end) of *source* to *target*; a hole is hashed as zeros and skipped."""
    zeros = bytes(BLOCK)
    for first, last, hole in _extents(source.fileno(), start, end):
        if hole:
            target.seek(last - first, os.SEEK_CUR)
            left = last - first
            while left:
                step = min(left, BLOCK)
                hasher.update(zeros if step == BLOCK else zeros[:step])
                left -= step
            continue
        source.seek(first)
        left = last - first
        while left:
            block = source.read(min(left, BLOCK))
            if not block:
                raise OSError(5, f"it ended {left:,} bytes early")
            hasher.update(block)
            _write(target, block)
            left -= len(block)


def _write(target: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


def _extents(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(first, last, whether it is a hole) over [start, end), in order, without a gap."""
    at = start
    while at < end:
        try:
            data = min(os.lseek(descriptor, at, os.SEEK_DATA), end)
        except OSError:  # ENXIO: nothing but a hole up to the end
            data = end
        if data > at:
            yield at, data, True
        if data == end:
            return
        at = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        yield data, at, False


# --- the store ---


def place(models_dir: str, base: str, name: str, extension: Extension) -> dict[str, Any]:
    """Put the extended *base* into the store as *name*; what was written: {"digest": of the weights, "bytes": n}.

    The manifest is the base's with other weights, so template, parameters and license stay. It is written last, and
    the work is done as the owner of the store, so no link that this account has planted leads root anywhere.
    ExtensionError says what was in the way.
    """
    blobs = os.path.join(models_dir, "blobs")
    if not os.path.isdir(blobs):
        raise ExtensionError(f"{blobs} is no folder; the folder of a server's models was wanted as models_dir.")
    try:
        return folders.as_owner(blobs, lambda _stream: _place(models_dir, base, name, extension))[0]
    except (folders.FolderError, OSError) as error:
        raise ExtensionError(str(error)) from error


def _place(models_dir: str, base: str, name: str, extension: Extension) -> dict[str, Any]:
    manifest = _manifest(models_dir, base)
    weights = [layer for layer in manifest["layers"] if layer["mediaType"] == MODEL_LAYER]
    if len(weights) != 1:
        raise ExtensionError(
            f"{base} has {len(weights)} files of weights; a context can be extended for a model of one file."
        )
    blobs = os.path.join(models_dir, "blobs")
    digest, size = rewrite(os.path.join(blobs, weights[0]["digest"].replace(":", "-")), blobs, extension)
    layers = [
        {**layer, "digest": digest, "size": size} if layer is weights[0] else layer for layer in manifest["layers"]
    ]
    path = _manifest_path(models_dir, name)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump({**manifest, "layers": layers}, target, separators=(",", ":"))
            target.flush()
            os.fchmod(target.fileno(), 0o644)
            os.fsync(target.fileno())
        os.rename(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    return {"digest": digest, "bytes": size}


def _manifest_path(models_dir: str, name: str) -> str:
    parts = names.parse_name(name)
    return os.path.join(models_dir, "manifests", parts.host, parts.namespace, parts.model, parts.tag)


def _manifest(models_dir: str, name: str) -> dict[str, Any]:
    path = _manifest_path(models_dir, name)
    try:
        with open(path, encoding="utf-8") as handle:
            manifest = json.load(handle)
        for layer in manifest["layers"]:
            layer["mediaType"], layer["digest"].replace(":", "-")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExtensionError(
            f"{path} is no manifest of {name} that can be read ({error}). Pull {name} again."
        ) from error
    return manifest
