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
from .ggml import GgufError
from .header import Reader, parse

DEADLINE_S = 60.0
SILENCE_S = 15.0


def read_file(path):
    """The header of a GGUF file."""
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
    no_model = (
        f"{what}: its manifest is not one of a model. Check the name; the address may be that of another service."
    )
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
    if (
        not isinstance(digest, str)
        or not re.match(r"sha256:[0-9a-f]{64}\Z", digest)
        or not isinstance(size, int)
        or not 0 < size < 1 << 50
    ):
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
    header = read_url(
        manifest["url"], what=f"{manifest['name']} (registry)", total=manifest["bytes"], deadline_s=deadline_s
    )
    return {**header, "extra_bytes": manifest["extra_bytes"], "digest": manifest["digest"]}
