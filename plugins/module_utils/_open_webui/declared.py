# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Models and accounts of Open WebUI as an inventory declares them, made complete for the modules."""

from __future__ import annotations

from .._ollama import runner_options
from .client import OpenWebuiError

MODEL_KEYS = ("id", "state", "base", "name", "description", "active", "access", "groups", "capabilities", "params")
USER_KEYS = ("email", "state", "name", "role", "password", "update_password")


def page_models(given, declared=()):
    """The entries of Open WebUI's list, each complete with id, name, access, capabilities and params.

    No option of the runner's is in its params that is not asked for. ``given`` is open_webui_models of an inventory,
    or None for those of ``declared`` (models_declared of the role models).
    A model of Ollama's own gets its tag, as the server lists it so. OpenWebuiError for what cannot be meant.

    >>> page_models(None, [{"name": "qwen3-14b-4090"}])[0]["id"]
    'qwen3-14b-4090:latest'
    """
    if given is None:
        given = [{"id": model["name"]} for model in declared if model.get("state") != "absent"]
    entries = []
    for model in given:
        _known("open_webui_models", model, MODEL_KEYS, "id")
        entry = {"access": "everyone", "state": "present", **model}
        entry["base" if entry.get("base") else "id"] = tagged(entry.get("base") or entry["id"])
        entry.setdefault("name", model["id"])
        entry["capabilities"] = {"builtin_tools": False, **(model.get("capabilities") or {})}
        entry["params"] = {**dict.fromkeys(runner_options.ALL), **(model.get("params") or {})}
        entries.append(entry)
    return entries


def tagged(name):
    """The name with the tag that Ollama gives it."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + ":latest"


def page_users(given):
    """The accounts of an inventory (open_webui_users); OpenWebuiError names what cannot be meant, never a password."""
    for user in given:
        _known("open_webui_users", user, USER_KEYS, "email")
    return list(given)


def _known(variable, entry, keys, needed):
    if not isinstance(entry, dict) or not entry.get(needed):
        raise OpenWebuiError(f"An entry of {variable} has no {needed}; each needs one. Correct it in the inventory.")
    unknown = sorted(set(entry) - set(keys))
    if unknown:
        raise OpenWebuiError(
            f"{variable} has {', '.join(unknown)} for {entry[needed]}; known are {', '.join(keys)}. Correct it in the "
            "inventory."
        )
