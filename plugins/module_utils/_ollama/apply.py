# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a model as declared, or removing it; with `Result.check` only predicting it.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import re
from typing import Any

from . import client as ollama_client
from . import load, names, sources
from .declaration import Declaration, ModelError
from .difference import FIELDS, difference, wanted
from .observed import observe
from .store import Result, Store


def ensure_present(
    client: ollama_client.Client, store: Store, declared: Declaration, result: Result, unload_timeout: float = 60.0
) -> None:
    """Have the model in the store as declared. Fills `result`; with result.check it only predicts."""
    if declared.requires:
        _check_requires(client, declared)
    if declared.only_pulled:
        had = store.find(declared.name)
        sources.ensure_pulled(client, store, declared.name, declared, result, unload_timeout)
        result.base_digest = store.digest(declared.name)
        if result.changed:
            result.differs = ["weights"] if had else ["model"]
        return
    found = store.find(declared.name)
    if found:
        result.before = observe(client.show(found["name"]))
    adapter = sources.file_digest(sources.readable(declared.adapter))[7:] if declared.adapter else None
    base_name = sources.ensure_base(client, store, declared, result, unload_timeout)
    base_found = store.find(base_name)
    result.base_digest = base_found["digest"] if base_found else None
    if base_found and not (result.check and result.changed):
        base = observe(client.show(base_found["name"]))
        result.after = wanted(declared, base_found["name"], base, adapter)
        result.trained_context = base["trained_context"]
        _warn_of_context(declared, base, result)
        result.differs = difference(result.before, result.after) if result.before else ["model"]
    else:
        # Only in check mode: the base is not there yet, or will be another one.
        empty: dict[str, Any] = {field: [] for field in ("weights", "adapters", "messages")}
        result.after = wanted(declared, base_name, {**dict.fromkeys(FIELDS, ""), **empty, "parameters": {}}, adapter)
        moved = result.before and result.before["parent"].lower() != result.after["parent"].lower()
        result.differs = [*(["parent"] if moved else []), "weights"] if result.before else ["model"]
    if result.differs:
        _make(client, store, declared, found, base_name, adapter, result, unload_timeout)
    for old in names.sources_of(found["name"] if found else declared.name, store.all()):
        if not names.same_name(old, base_name) and result.act(f"delete {old}"):
            load.unload(client, old, result, unload_timeout)
            client.delete(old)
            store.changed()


def _make(client, store, declared, found, base_name, adapter, result, unload_timeout) -> None:
    """Create the model, or replace the one that is there."""
    target = found["name"] if found else declared.name
    if not result.act(f"{'replace' if found else 'create'} {target}"):
        return
    if found:
        load.unload(client, target, result, unload_timeout)
    if adapter:
        result.bytes_uploaded += client.push_blob(declared.adapter, f"sha256:{adapter}")
    client.create(create_request(declared, target, store.find(base_name)["name"], adapter))
    store.changed()
    _check_outcome(client, target, result)


def create_request(declared: Declaration, name: str, base: str, adapter: str | None = None) -> dict[str, Any]:
    """The fields of /api/create that make `declared` from `base`; what is left out is inherited."""
    request: dict[str, Any] = {
        "model": name,
        "from": base,
        "parameters": declared.parameters,
        "template": declared.template,
        "system": declared.system,
        "license": list(declared.license),
        "messages": list(declared.messages),
        "renderer": declared.renderer,
        "parser": declared.parser,
        "requires": declared.requires,
        "adapters": {"adapter.gguf": f"sha256:{adapter}"} if adapter else {},
    }
    return {key: value for key, value in request.items() if value}


def _check_outcome(client: ollama_client.Client, name: str, result: Result) -> None:
    """Fail if the server did not store what was sent: else the next run would change it again, and each after it."""
    left = difference(observe(client.show(name)), result.after or {})
    if left:
        raise ModelError(
            f"Model {name} was created, but the server holds something else in {', '.join(left)}. Either another "
            "writer "
            "changed it at the same time "
            "(run again), or this server's version sets it by itself (declare the value that `ollama show` gives)."
        )


def _check_requires(client: ollama_client.Client, declared: Declaration) -> None:
    version = client.version()
    if _numbers(version) < _numbers(declared.requires):
        raise ModelError(
            f"Model {declared.name} requires Ollama {declared.requires}; the server is {version}, and does not check "
            "that itself. Set ollama_version."
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version.partition("-")[0])[:3])


def _warn_of_context(declared: Declaration, base: dict[str, Any], result: Result) -> None:
    asked, trained = declared.parameters.get("num_ctx"), base.get("trained_context")
    if asked and isinstance(trained, (int, float)) and asked > trained > 0:
        result.warnings.append(
            f"Model {declared.name}: num_ctx={asked} exceeds the model's trained context of {int(trained):,}; Ollama "
            "caps it silently. "
            f"Set num_ctx to {int(trained)} or less, or use a GGUF with YaRN metadata."
        )


def ensure_absent(
    client: ollama_client.Client, store: Store, name: str, result: Result, unload_timeout: float = 60.0
) -> None:
    """Have neither the model nor the sources kept for it; what is loaded of it is unloaded first."""
    found = store.find(name)
    doomed = ([found["name"]] if found else []) + names.sources_of(name, store.all())
    if found:
        result.before = observe(client.show(found["name"]))
        result.differs = ["model"]
    for one in doomed:
        if result.act(f"delete {one}"):
            load.unload(client, one, result, unload_timeout)
            try:
                client.delete(one)
            except ollama_client.OllamaError as error:
                if error.kind != "not_found":
                    raise
            store.changed()
