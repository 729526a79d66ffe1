# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having in the store what a model is made from: pulled from a registry, or imported from GGUF files.

Private to this collection: it may change or go without notice.

A GGUF file is remembered by its content: it is imported once under a name of its own,
`model:tag.src-<12 hex digits of its sha256>[-quantization]`, from which the model is then made. The server
rewrites a file when it imports it, so the digest in the store says nothing about the file.
"""

from __future__ import annotations

import hashlib
import os
import re

from . import client as ollama_client
from . import load, names, registry
from .declaration import Declaration, ModelError
from .store import Result, Store


def ensure_base(
    client: ollama_client.Client, store: Store, declared: Declaration, result: Result, unload_timeout: float
) -> str:
    """Have what the model is made from in the store; its name."""
    if declared.base:
        ensure_pulled(client, store, declared.base, declared, result, unload_timeout)
        if not declared.quantize and not declared.extension:
            return declared.base
        change = declared.extension.text if declared.extension else declared.quantize
        found = store.find(declared.base)
        if found is None or (result.check and result.changed):
            return names.source_name(declared.name, "0" * 12, change)
        source = names.source_name(declared.name, found["digest"], change)
        if store.find(source):
            return source
        base = found["name"]
        if declared.extension:
            _extend(store, declared, base, source, result)
        elif result.act(f"quantize {base} to {declared.quantize} as {source}"):
            client.create({"model": source, "from": base, "quantize": declared.quantize})
            store.changed()
        return source
    return _ensure_imported(client, store, declared, result)


def _extend(store: Store, declared: Declaration, base: str, source: str, result: Result) -> None:
    """Put `base` with a longer context into the store as `source`."""
    if not result.act(f"extend the context of {base} as {source}"):
        return
    if store.extend is None:
        raise ModelError(
            f"Model {declared.name}: context_extension writes into the folder of the server's models; name that folder "
            "with models_dir, and run on the server's own host."
        )
    result.bytes_written += store.extend(base, source, declared.extension)["bytes"]
    store.changed()


def _ensure_imported(client: ollama_client.Client, store: Store, declared: Declaration, result: Result) -> str:
    """Have the GGUF files in the store under a name that says their content; that name."""
    if declared.file_digest:
        source = names.source_name(declared.name, declared.file_digest, declared.quantize)
        if store.find(source):
            # The pin says what the file is; it need not be read again, nor be there any more.
            return source
    digests = [file_digest(readable(path)) for path in declared.files]
    if declared.file_digest and digests[0] != f"sha256:{declared.file_digest}":
        raise ModelError(
            f"Model {declared.name}: {declared.files[0]} has {digests[0]}; wanted sha256:{declared.file_digest}. "
            "The file is damaged or another one: fetch it again, or correct gguf_sha256."
        )
    content = digests[0][7:] if len(digests) == 1 else _join_digests(digests)
    source = names.source_name(declared.name, content, declared.quantize)
    if store.find(source):
        return source
    twin = next(
        (
            one["name"]
            for one in store.all()
            if names.is_source(one["name"]) and one["name"].endswith(source[source.rindex(".src-") :])
        ),
        None,
    )
    if not result.act(f"import {', '.join(declared.files)} as {source}"):
        return source
    if twin:
        client.copy(twin, source)
    else:
        for path, digest in zip(declared.files, digests):
            result.bytes_uploaded += client.push_blob(path, digest)
        request = {
            "model": source,
            "files": {
                f"{number}-{_plain(path)}": digest for number, (path, digest) in enumerate(zip(declared.files, digests))
            },
        }
        client.create({**request, "quantize": declared.quantize} if declared.quantize else request)
    store.changed()
    return source


def _join_digests(digests: list[str]) -> str:
    """One digest for several files in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _plain(path: str) -> str:
    """A file's name as the server takes it: relative, without odd characters, ending in .gguf."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(path)).lstrip(".")
    return name if name.lower().endswith(".gguf") else f"{name}.gguf"


def readable(path: str) -> str:
    """`path`, if it is a GGUF file that can be read."""
    try:
        with open(path, "rb") as source:
            magic = source.read(4)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}. Wanted a GGUF file on the host; check the path."
        ) from None
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is no GGUF file (it starts with {magic!r}); convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    return path


def ensure_pulled(
    client: ollama_client.Client, store: Store, name: str, declared: Declaration, result: Result, unload_timeout: float
) -> None:
    """Have `name` from its registry as `pull` and `base_digest` say."""
    found = store.find(name)
    have = found["digest"] if found else None
    pin = declared.base_digest
    fits = have is not None and (pin is None or have.startswith(pin))
    if declared.pull == "never":
        if not found:
            raise ModelError(
                f"Model {declared.name} is made from {name}, which the server does not have, and pull is never. Bring "
                "it there, or set pull: missing."
            )
        if not fits:
            raise ModelError(
                f"{name} has digest {have}; base_digest wants {pin}, and pull is never. Bring that version there, or "
                "change base_digest."
            )
        return
    if fits and (declared.pull == "missing" or pin is not None):
        # A pinned model that is there cannot become another one, whatever the registry has now.
        return
    offered = None
    if have is not None:
        try:
            offered = registry.digest(name, declared.insecure)
        except ollama_client.OllamaError as error:
            before = "" if result.check else " before it is tried"
            result.warnings.append(f"{error} Whether a pull of {name} would change it is not known{before}.")
    if offered is not None and pin is not None and not offered.startswith(pin):
        raise ModelError(
            f"The registry has {name} with digest {offered}; base_digest wants {pin}. The tag was moved: check the "
            "new version and change base_digest."
        )
    if offered is not None and offered == have:
        return
    if result.check:
        if offered is not None or have is None:
            result.act(f"pull {name}")
        return
    if found is not None and have is not None:
        load.unload(client, found["name"], result, unload_timeout)
    pulled = client.pull(found["name"] if found else name, declared.insecure)
    store.changed()
    now = store.digest(name)
    result.bytes_pulled += pulled["bytes"]
    if now != have:
        result.act(f"pull {name}")
    if now is None:
        raise ModelError(f"The server said that it pulled {name}, but does not list it. See `journalctl -u ollama`.")
    if pin is not None and not now.startswith(pin):
        raise ModelError(
            f"{name} was pulled with digest {now}; base_digest wants {pin}. The tag was moved: check the new version "
            "and change base_digest."
        )


def file_digest(path: str) -> str:
    """`sha256:<hex>` of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1024 * 1024), b""):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
