# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Where a header is read: a file, a URL (HTTP Range) or a registry, never the weights."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import urllib.parse

from .. import _http
from .._ollama import names as ollama_names
from .._ollama import registry as ollama_registry
from . import split
from .ggml import GgufError
from .header import Reader, parse

DEADLINE_S = 60.0
SILENCE_S = 15.0


def read_file(path):
    """The header of a model in a GGUF file, and in the parts beside it."""
    return split.whole(read_one_file(path), str(path), read_one_file)


def read_one_file(path):
    """The header of a GGUF file, which may be a part of a model."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise GgufError(
            f"{path} cannot be read: {error.strerror}. Name a GGUF file that this user may read."
        ) from error
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

        return parse(Reader(fetch, about.st_size, str(path)))


def read_blobs(weights, adapters=()):
    """The header of a model of an Ollama server, from its files; of *weights* those that are no part are projectors."""
    headers = [read_one_file(path) for path in weights]
    parts = [header for header in headers if split.place(header)[1] > 1] or headers[:1]
    sizes = {
        "projector": [header["file_bytes"] for header in headers if header not in parts],
        "adapter": [read_one_file(path)["file_bytes"] for path in adapters],
    }
    return {**split.combined(parts), "extra_bytes": {kind: sum(found) for kind, found in sizes.items() if found}}


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
        reason = f" ({error.reason.rstrip('.')})" if error.reason else ""
        raise GgufError(f"{what}: the server answers HTTP {error.status}{reason}; {advice}") from error


def read_url(url, deadline_s=None):
    """The header of a model in a GGUF behind an HTTP(S) URL, and in the parts beside it, by ranged reads.

    All of it is read before the deadline, or it is an error; never the weights.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise GgufError(f"{_http.shown(url)} is no HTTP(S) URL. For a file on the host use gguf.")
    deadline = time.monotonic() + (DEADLINE_S if deadline_s is None else deadline_s)
    return split.whole(_read_one_url(url, deadline), url, lambda other: _read_one_url(other, deadline))


def _read_one_url(url, deadline, what=None, total=None):
    """The header of one file. total: its bytes where they are announced (by a registry): another size is an error."""
    what = what or _http.shown(url)
    final = [url]

    def fetch(start, stop):
        left = deadline - time.monotonic()
        if left <= 0:
            raise GgufError(f"{what} gave {start:,} bytes before the time was up; it is too slow. Try again later.")
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        with _translated(what), _http.opened(final[0], wanted, what, min(left, SILENCE_S)) as response:
            size = _ranged_size(response, start, what)
            if total is not None and size not in (None, total):
                raise GgufError(
                    f"{what} has {size:,} bytes where {total:,} were announced; the server is inconsistent. Try again "
                    "later."
                )
            final[0] = response.geturl()
            return _http.read_at_most(response, stop - start, deadline, what), size

    return parse(Reader(fetch, total, what))


def _ranged_size(response, start, what):
    """The whole file's size of a 206 answer that begins where it was asked to."""
    if response.status != 206:
        raise GgufError(
            f"{what}: the server ignored the request for a part (HTTP {response.status} instead of 206), and the whole"
            " file is too large to read for a plan. Download it and name it as gguf, or use a server that knows Range."
        )
    said = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)\Z", response.headers.get("Content-Range", "").strip())
    if not said or int(said[1]) != start:
        raise GgufError(
            f"{what}: the server answered with another part of the file than asked for. Download the file and name it "
            "as gguf."
        )
    return None if said[3] == "*" else int(said[3])


MODEL_LAYER = "application/vnd.ollama.image.model"
EXTRA_LAYERS = {
    "application/vnd.ollama.image.projector": "projector",
    "application/vnd.ollama.image.adapter": "adapter",
}


def read_manifest(ref, deadline_s=None):
    """What a registry keeps for a name: {name, layers: [{url, digest, bytes}, …] of weights, extra_bytes}.

    ref: [http://|https://][host/][namespace/]model[:tag]; HTTPS unless http:// is written; default registry
    registry.ollama.ai. Source: server/images.go and types/model/name.go of Ollama.
    """
    try:
        name = ollama_names.parse_name(ref)
    except ValueError as error:
        raise GgufError(str(error)) from error
    insecure = ref.startswith("http://")
    what = f"Model {name.short} in the registry {name.host}"
    with _translated(what):
        raw = ollama_registry.manifest(name, insecure, SILENCE_S, DEADLINE_S if deadline_s is None else deadline_s)
    try:
        layers = [(layer["mediaType"], layer["digest"], layer["size"]) for layer in ollama_registry.layers(raw) or [{}]]
        extra: dict[str, int] = {}
        for kind, _digest, size in layers:
            if kind in EXTRA_LAYERS:
                extra[EXTRA_LAYERS[kind]] = extra.get(EXTRA_LAYERS[kind], 0) + int(size)
    except (ValueError, KeyError, TypeError) as error:
        raise GgufError(
            f"{what}: its manifest is not one of a model. Check the name; the address may be that of another service."
        ) from error
    weights = [(digest, size) for kind, digest, size in layers if kind == MODEL_LAYER]
    if not weights or not all(_is_layer(*one) for one in weights):
        kinds = ", ".join(sorted({str(kind)[:60] for kind, _digest, _size in layers})) or "none"
        raise GgufError(
            f"{what} has no GGUF layer (media types: {kinds}); only GGUF models can be planned. Choose a tag with GGUF"
            " weights."
        )
    base = ollama_registry.base_url(name, insecure)
    found = [{"url": f"{base}/blobs/{digest}", "digest": digest, "bytes": size} for digest, size in weights]
    return {"name": name.short, "layers": found, "extra_bytes": extra}


def _is_layer(digest, size):
    return (
        isinstance(digest, str)
        and re.match(r"sha256:[0-9a-f]{64}\Z", digest) is not None
        and isinstance(size, int)
        and 0 < size < 1 << 50
    )


def read_registry(ref, deadline_s=None):
    """The header of a model in a registry, by name; see read_manifest() for the name's form."""
    deadline = time.monotonic() + (DEADLINE_S if deadline_s is None else deadline_s)
    manifest = read_manifest(ref, deadline_s)
    what = f"{manifest['name']} (registry)"
    if len(manifest["layers"]) > split.MAX_PARTS:
        raise GgufError(f"{what} has {len(manifest['layers'])} files; no model has more than {split.MAX_PARTS}.")
    parts = [_read_one_url(layer["url"], deadline, what, layer["bytes"]) for layer in manifest["layers"]]
    header = split.combined(parts)
    return {**header, "extra_bytes": manifest["extra_bytes"], "digest": manifest["layers"][0]["digest"]}
