# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Models and accounts of Open WebUI as an inventory declares them, made complete for the modules."""

from __future__ import annotations

from .._ollama import runner_options

MODEL_KEYS = ("id", "state", "base", "name", "description", "active", "access", "groups", "capabilities", "params")
USER_KEYS = ("email", "state", "name", "role", "password", "update_password")


def complete_models(given, declared=()):
    """The entries of Open WebUI's list, each complete with id, name, access, capabilities and params.

    No option of the runner's is in its params that is not asked for. ``given`` is open_webui_models of an inventory
    without model_problems(), or None for those of ``declared`` (models_declared of the role models).
    A model of Ollama's own gets its tag, as the server lists it so.

    >>> complete_models(None, [{"name": "qwen3-14b-4090"}])[0]["id"]
    'qwen3-14b-4090:latest'
    """
    if given is None:
        given = [{"id": model["name"]} for model in declared if model.get("state") != "absent"]
    entries = []
    for model in given:
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


def model_problems(given):
    """What is wrong with open_webui_models of an inventory, a sentence each; None is the default, so nothing is."""
    return _problems("open_webui_models", given or [], MODEL_KEYS, "id")


def user_problems(given):
    """What is wrong with open_webui_users of an inventory, a sentence each; never with a password in it."""
    return _problems("open_webui_users", given, USER_KEYS, "email")


def _problems(variable, entries, keys, needed):
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get(needed):
            found.append(f"An entry of {variable} has no {needed}; each needs one. Correct it in the inventory.")
            continue
        unknown = sorted(set(entry) - set(keys))
        if unknown:
            found.append(
                f"{variable} has {', '.join(unknown)} for {entry[needed]}; known are {', '.join(keys)}. Correct it in"
                " the inventory."
            )
    return found
