# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Functions of Open WebUI: what the server holds, what is declared, how one becomes the other.

Measured on 0.12.4: active and global are toggles; the text of a function is rewritten before it is stored; valves are
replaced as a whole.
"""

from __future__ import annotations

import urllib.parse

# S/utils/plugin.py of 0.12.4, replace_imports(): plain text replacement, in strings and comments too.
REWRITES = (
    ("from utils", "from open_webui.utils"),
    ("from apps", "from open_webui.apps"),
    ("from main", "from open_webui.main"),
    ("from config", "from open_webui.config"),
)


def as_stored(content):
    """The text that the server stores for a function.

    >>> as_stored("from utils import x")
    'from open_webui.utils import x'
    """
    for old, new in REWRITES:
        content = content.replace(old, new)
    return content


def observe(client, function_id):
    """{name, description, content, active, global, valves} of a function, or None where the server has none."""
    listed = client.call("GET", "/api/v1/functions/export?include_valves=true")
    for entry in listed:
        if entry.get("id") == function_id:
            return {
                "name": entry.get("name"),
                "description": (entry.get("meta") or {}).get("description"),
                "content": entry.get("content"),
                "active": bool(entry.get("is_active")),
                "global": bool(entry.get("is_global")),
                "valves": entry.get("valves") or {},
            }
    return None


def wanted(observed, asked):
    """What the function should be: the keys of ``asked`` that are not None, over what is there."""
    base = observed or {
        "name": None,
        "description": "",
        "content": None,
        "active": False,
        "global": False,
        "valves": {},
    }
    wanted = {key: base[key] if asked.get(key) is None else asked[key] for key in base}
    if asked.get("content") is not None:
        wanted["content"] = as_stored(asked["content"])
    if asked.get("valves") is not None:
        wanted["valves"] = {name: value for name, value in asked["valves"].items() if value is not None}
    return wanted


def put(client, function_id, observed, wanted):
    """Make the function what is wanted; ``observed`` as observe() said just before."""
    form = {
        "id": function_id,
        "name": wanted["name"],
        "content": wanted["content"],
        "meta": {"description": wanted["description"] or ""},
    }
    if observed is None:
        client.call("POST", "/api/v1/functions/create", form)
        observed = dict(wanted, active=False, valves={}, **{"global": False})
    where = "/api/v1/functions/id/" + urllib.parse.quote(function_id, safe="")
    if any(observed[key] != wanted[key] for key in ("name", "description", "content")):
        client.call("POST", where + "/update", form)
    # Valves before the switch: the function is never at work with other valves than the declared ones.
    if observed["valves"] != wanted["valves"]:
        client.call("POST", where + "/valves/update", wanted["valves"])
    if observed["global"] != wanted["global"]:
        client.call("POST", where + "/toggle/global")
    if observed["active"] != wanted["active"]:
        client.call("POST", where + "/toggle")


def delete(client, function_id):
    """Remove the function."""
    client.call("DELETE", "/api/v1/functions/id/" + urllib.parse.quote(function_id, safe="") + "/delete")
