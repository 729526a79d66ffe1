# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Entries of Open WebUI's list of models: what the server holds, what is declared, how one becomes the other."""

from __future__ import annotations

import urllib.parse
from typing import Any

from .client import OpenWebuiError

EVERYONE = {"principal_type": "user", "principal_id": "*", "permission": "read"}


def observe(client, model_id):
    """What Open WebUI keeps of a model, or None where it has no entry for it.

    {base, name, description, active, access, groups, capabilities, params}; access is everyone, administrators, groups
    (their names are in groups), or other for grants that this file does not make. The entry as the server sent it is
    under ``entry``.
    """
    try:
        entry = client.call("GET", "/api/v1/models/model?id=" + urllib.parse.quote(model_id, safe=""))
    except OpenWebuiError as error:
        if error.status == 404:
            return None
        raise
    meta = entry.get("meta") or {}
    access, groups = _readers(client, entry.get("access_grants") or [])
    return {
        "base": entry.get("base_model_id"),
        "name": entry.get("name"),
        "description": meta.get("description") or "",
        "active": bool(entry.get("is_active")),
        "access": access,
        "groups": groups,
        "capabilities": meta.get("capabilities") or {},
        "params": {key: value for key, value in (entry.get("params") or {}).items() if value is not None},
        "entry": entry,
    }


def _readers(client, grants):
    """(access, names of groups) that the grants come to."""
    plain = [{key: grant.get(key) for key in EVERYONE} for grant in grants]
    if not plain:
        return "administrators", []
    if plain == [EVERYONE]:
        return "everyone", []
    if all(grant["principal_type"] == "group" and grant["permission"] == "read" for grant in plain):
        names = {ident: name for name, ident in group_ids(client).items()}
        return "groups", sorted(names.get(grant["principal_id"], grant["principal_id"]) for grant in plain)
    return "other", []


def group_ids(client):
    """{name: id} of the groups."""
    return {group["name"]: group["id"] for group in client.call("GET", "/api/v1/groups/")}


def wanted(observed, asked):
    """What the entry should be: the keys of ``asked`` that are not None, over what is there.

    Of dicts only the keys that are asked for change.
    """
    base: dict[str, Any] = {
        "base": None,
        "name": None,
        "description": "",
        "active": True,
        "access": "administrators",
        "groups": [],
        "capabilities": {},
        "params": {},
    }
    base.update({key: observed[key] for key in base if observed})
    wanted = {key: base[key] if asked.get(key) is None else asked[key] for key in base}
    for key in ("capabilities", "params"):
        merged = {**base[key], **(asked.get(key) or {})}
        wanted[key] = {name: value for name, value in merged.items() if value is not None}
    wanted["groups"] = sorted(wanted["groups"]) if wanted["access"] == "groups" else []
    return wanted


def put(client, model_id, observed, wanted):
    """Make the entry what is wanted; what it holds besides stays. OpenWebuiError for a group that is not there."""
    entry = observed["entry"] if observed else {}
    form = {
        "id": model_id,
        "base_model_id": wanted["base"],
        "name": wanted["name"],
        "meta": {
            **(entry.get("meta") or {}),
            "description": wanted["description"] or None,
            "capabilities": wanted["capabilities"] or None,
        },
        "params": wanted["params"],
        "is_active": wanted["active"],
    }
    # An update leaves the grants alone, whatever it has of them (routers/models.py of 0.12.4): they have another route.
    regrant = observed is None or any(observed[key] != wanted[key] for key in ("access", "groups"))
    grants = _grants(client, wanted) if regrant else None
    if observed is None:
        client.call("POST", "/api/v1/models/create", {**form, "access_grants": grants})
        return
    client.call("POST", "/api/v1/models/model/update", form)
    if regrant:
        client.call("POST", "/api/v1/models/model/access/update", {"id": model_id, "access_grants": grants})


def _grants(client, wanted):
    if wanted["access"] != "groups":
        return [EVERYONE] if wanted["access"] == "everyone" else []
    known = group_ids(client)
    missing = [name for name in wanted["groups"] if name not in known]
    if missing:
        raise OpenWebuiError(
            f"there is no group {', '.join(missing)}; Open WebUI has {', '.join(sorted(known)) or 'none'}. Make it in "
            "Open WebUI first."
        )
    return [{"principal_type": "group", "principal_id": known[name], "permission": "read"} for name in wanted["groups"]]


def delete(client, model_id):
    """Remove the entry; the model itself stays at its server."""
    client.call("POST", "/api/v1/models/model/delete", {"id": model_id})
