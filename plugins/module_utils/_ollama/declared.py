# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list `models_declared`: checked on the controller, compared with a server by one read, planned, measured.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from . import apply, declaration, load, names
from . import client as ollama_client
from .parameters import ModelfileError
from .store import Result, Store


class Entry:
    """A model of `models_declared`: a declaration, whether it is to be there, and whether it is to be in memory."""

    KEYS = (
        "name",
        "from",
        "gguf",
        "gguf_sha256",
        "modelfile",
        "parameters",
        "template",
        "system",
        "license",
        "messages",
        "adapter",
        "renderer",
        "parser",
        "quantize",
        "context_extension",
        "base_digest",
        "pull",
        "insecure",
        "state",
        "load",
        "keep_alive",
        "allow_offload",
        "comment",
    )

    def __init__(self, name: str, declared: declaration.Declaration | None, entry: dict[str, Any]):
        self.name, self.declared = name, declared
        self.load = bool(entry.get("load")) and declared is not None
        self.allow_offload = bool(entry.get("allow_offload"))
        self.keep_alive = declaration.check_keep_alive(entry.get("keep_alive"))
        self.comment = declaration.text_of(entry.get("comment"), f"Model {name}: comment").strip()

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Entry:
        """The entry, checked. Raises declaration.ModelError or ModelfileError."""
        unknown = sorted(str(key) for key in entry if key not in cls.KEYS)
        name = declaration.name_of(entry.get("name"), "name")
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.KEYS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(cls.KEYS)}."
            raise declaration.ModelError(f"Model {name}: unknown key {', '.join(unknown)}. {hint}")
        state = entry.get("state") or "present"
        if state not in ("present", "absent"):
            raise declaration.ModelError(f"Model {name}: state is '{state}'; it has to be present or absent.")
        return cls(name, declaration.declare(entry) if state == "present" else None, entry)

    @property
    def file_name(self) -> str:
        """Name of its Modelfile: the model's, with + for the slashes, which no model's name has."""
        short = self.name[: -len(":latest")] if self.name.endswith(":latest") else self.name
        return short.replace("/", "+") + ".modelfile"

    @property
    def modelfile(self) -> str:
        """Text of the file that shows it; "" of a model that is to be absent."""
        if self.declared is None:
            return ""
        comments = ("Written by Ansible (gpufleet.llm, role models) for people to read; the server does not read it.",)
        return declaration.declared_modelfile(self.declared, comments + ((self.comment,) if self.comment else ()))

    def compare(
        self, client: ollama_client.Client, store: Store, ps: list[dict[str, Any]], remembered: Measured
    ) -> tuple[dict[str, Any], list[str]]:
        """How it compares with the server, and warnings. Only reads."""
        result = Result(check=True)
        if self.declared:
            apply.ensure_present(client, store, self.declared, result)
        else:
            apply.ensure_absent(client, store, self.name, result)
        found = store.find(self.name)
        entry = load.running(client, found, ps) if found and self.declared else None
        lasting = not load.is_forever(self.keep_alive) or (entry is not None and load.expires_never(entry))
        measured = remembered.of(self.name, found, entry) if found and self.declared else None
        told = {
            "name": self.name,
            "pending": result.changed,
            "differs": result.differs,
            "actions": result.actions,
            "load_pending": self.load and (result.changed or measured is None or not lasting),
            "digest": found["digest"] if found else None,
            "loaded": loaded_as(entry, store) if entry else None,
            "measured": measured,
            "problem": self.problem(measured),
            "trained_context": result.trained_context,
        }
        return told, result.warnings

    def problem(self, measured: dict[str, Any] | None) -> str | None:
        """Why what was measured is not what was promised; None when it is, or nothing was measured."""
        if not measured or self.allow_offload or load.on_gpu(measured["size_mib"], measured["size_vram_mib"]):
            return None
        return load.offload_text(self.name, measured["size_mib"], measured["size_vram_mib"])

    def predicted(self) -> dict[str, Any]:
        """The same as `compare` for a host that has no server yet."""
        there = self.declared is not None
        return {
            "name": self.name,
            "pending": there,
            "differs": ["model"] if there else [],
            "actions": [f"create {self.name}"] if there else [],
            "load_pending": self.load,
            "digest": None,
            "loaded": None,
            "measured": None,
            "problem": None,
            "trained_context": None,
        }


class Measured:
    """What was measured of models when they were in memory, and whether it still holds.

    It holds while the model, the server's version and the settings of its process are the same: a model that the
    server has unloaded because nobody asked need not be loaded again to know what it takes.
    """

    MIB = 1024 * 1024

    def __init__(self, held: Any, version: str, settings: dict[str, Any] | None, planned: list[dict[str, Any]]):
        held = held if isinstance(held, dict) else {}
        self.held = held["models"] if isinstance(held.get("models"), dict) else {}
        self.fingerprint = str(held.get("fingerprint", ""))
        self.version, self.settings = version, settings
        # What the server itself counts is weights, KV cache and compute buffer, without CUDA's context.
        self.predicted = {str(one.get("name")): one.get("dry_run_mib") or one.get("formula_mib") for one in planned}

    @classmethod
    def read(
        cls, path: str | None, version: str, settings: dict[str, Any] | None, planned: list[dict[str, Any]]
    ) -> Measured:
        """From the file `path`, `{models: {name: measurement}, fingerprint}`; empty where it is missing or damaged."""
        held = None
        if path:
            try:
                with open(path, encoding="utf-8") as source:
                    held = json.load(source)
            except (OSError, ValueError):
                held = None
        return cls(held, version, settings, planned)

    def of(self, name: str, found: dict[str, Any], entry: dict[str, Any] | None) -> dict[str, Any] | None:
        """The measurement of a model: now when it is loaded, else the one remembered if it still holds."""
        now = {"digest": found["digest"], "version": self.version, "settings": self.settings}
        before = self.held.get(name)
        if not (isinstance(before, dict) and "size_mib" in before and all(before.get(key) == now[key] for key in now)):
            before = None
        predicted = self.predicted.get(name, (before or {}).get("predicted_mib"))
        if entry:
            size, vram = int(entry.get("size") or 0), int(entry.get("size_vram") or 0)
            sizes = {"size_mib": -(-size // self.MIB), "size_vram_mib": -(-vram // self.MIB)}
            measured = {"name": name, **now, **sizes, "context_length": entry.get("context_length")}
        elif before:
            measured = before
        else:
            return None
        return {**measured, "predicted_mib": round(predicted) if predicted else None}


def loaded_as(entry: dict[str, Any], store: Store) -> dict[str, Any]:
    """An entry of /api/ps with what it means: whether a part runs on the CPU, whether the store has another by now."""
    size, vram = int(entry.get("size") or 0), int(entry.get("size_vram") or 0)
    name = str(entry.get("name", ""))
    try:
        now = store.digest(name)
    except ValueError:
        now = None
    return {
        "name": name,
        "digest": entry.get("digest"),
        "size": size,
        "size_vram": vram,
        "context_length": entry.get("context_length"),
        "expires_at": entry.get("expires_at"),
        "offloaded": not load.on_gpu(size, vram),
        "stale": now != entry.get("digest"),
    }


def undeclared(declared: list[declaration.Declaration], tags: list[dict[str, Any]]) -> list[str]:
    """Names in the store that no declaration is, is made from, or keeps as its source."""
    needed = set()
    for one in declared:
        needed |= {name.lower() for name in (one.name, one.base) if name}
        needed |= {source.lower() for source in names.sources_of(one.name, tags)}
    return sorted(name for name in (str(one.get("name", "")) for one in tags) if name.lower() not in needed)


def problems(entries: Any, max_loaded: int = 0) -> list[str]:
    """What is wrong with a list of declared models, a sentence each; nothing is asked of any host."""
    if not isinstance(entries, list):
        return ["models_declared is no list; each entry of it declares one model."]
    found, loads = [], []
    names: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            found.append(
                f"Entry {number} of models_declared is {str(entry)[:60]}; it has to be keys with values, such as name "
                "and from."
            )
            continue
        try:
            one = Entry.of(entry)
        except (declaration.ModelError, ModelfileError) as error:
            text = str(error)
            found.append(
                text if text.startswith("Model ") else f"Model {entry.get('name', f'number {number}')}: {text}"
            )
            continue
        if one.name.lower() in names:
            found.append(
                f"Model {one.name} is declared twice (entries {names[one.name.lower()]} and {number}); say each thing "
                "once."
            )
        names[one.name.lower()] = number
        loads += [one.name] if one.load else []
    if max_loaded and len(loads) > max_loaded:
        found.append(
            f"{len(loads)} models are to be loaded ({', '.join(loads)}), and the server keeps {max_loaded} in memory; "
            "it would unload one for the next at every run. Raise ollama_max_loaded_models if the plan allows, or set "
            "load: false."
        )
    return found


def plan_models(
    entries: list[dict[str, Any]],
    on_server: list[str],
    num_ctx: int | None = None,
    num_parallel: int = 1,
    kv_cache_type: str = "f16",
    flash_attention: bool = True,
) -> list[dict[str, Any]]:
    """What gpu_capacity is to plan for declared models: where each one's shape is to be read, and its settings.

    A shape is read from the server where it has the model, or what that is made from; else from the file or the
    registry. A model made from another declared one inherits its source and parameters. One that is still to be
    quantized is left out: its weights are not known before.
    """
    declared = [entry.declared for entry in map(Entry.of, entries) if entry.declared]
    by_name = {one.name.lower(): one for one in declared}
    there = {name.lower() for name in on_server}
    planned = []
    for one in declared:
        root, parameters, seen = one, dict(one.parameters), {one.name.lower()}
        while root.base and root.base.lower() in by_name and root.base.lower() not in seen:
            root = by_name[root.base.lower()]
            seen.add(root.name.lower())
            parameters = {**root.parameters, **parameters}
        source = _plan_source(one, root, there)
        if source:
            model = {
                "name": one.name,
                **source,
                "num_ctx": parameters.get("num_ctx", num_ctx),
                "num_batch": parameters.get("num_batch"),
                "context_extension": root.extension._asdict() if root.extension else None,
            }
            model.update(num_parallel=num_parallel, kv_cache_type=kv_cache_type, flash_attention=flash_attention)
            planned.append({key: value for key, value in model.items() if value is not None})
    return planned


def _plan_source(one: declaration.Declaration, root: declaration.Declaration, there: set[str]) -> dict[str, str] | None:
    if one.quantize or root.quantize:
        return {"from_server": one.name} if one.name.lower() in there else None
    if root.files:
        return {"from_server": one.name} if one.name.lower() in there else {"gguf": root.files[0]}
    base = root.base or root.name
    if base.lower() in there:
        return {"from_server": base}
    return {"ref": f"http://{base}" if root.insecure else base}
