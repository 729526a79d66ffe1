# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Settings that Open WebUI keeps in its database."""

from __future__ import annotations

import json

from .client import OpenWebuiError


def observe(client, keys):
    """{key: value} of the dotted keys asked for.

    OpenWebuiError for a key that the server does not have: it would store it unread.
    """
    held = client.call("GET", "/api/v1/configs/export")
    unknown = sorted(key for key in keys if key not in held)
    if unknown:
        raise OpenWebuiError(f"Open WebUI has no setting {', '.join(unknown)}; GET /api/v1/configs/export names all.")
    return {key: held[key] for key in keys}


def as_held(held, value):
    """The value in the server's own type: environments and inventories carry switches and structures as text.

    >>> as_held(True, "false"), as_held("false", "false"), as_held(True, 1), as_held({}, '{"0": {}}')
    (False, 'false', 1, {'0': {}})
    """
    if isinstance(held, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(held, (dict, list)) and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def put(client, values):
    """Change these settings and no other."""
    client.call("POST", "/api/v1/configs/import", {"config": values})
