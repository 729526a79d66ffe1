# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The options of a role: which there are, what they are set to, whether a value is within its bounds."""

from __future__ import annotations

import hashlib
import json
import os
import re

ROLES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "roles")

# Texts that the roles write into units, configuration and command lines as they are: nothing in them means anything there.
# {kind: (regular expression for the whole text, what was wanted)}
KINDS = {
    "account": (r"(?!root$)[a-z_][a-z0-9_-]{0,31}", "the name of an account that is not root's, of small letters, digits, _ and -,"),
    "folder": (r"(/(?!\.\.?(/|$))[A-Za-z0-9._+@-]+)+", "an absolute path of letters, digits and ._+@-"),
    "host": (r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", "a name or an address"),
    "networks": (r"any|localhost|link-local|multicast|[0-9A-Fa-f.:]+(/[0-9]{1,3})?", "a list of addresses, networks such as 10.0.0.0/8, localhost or any"),
    "release": (r"[0-9]+[.][0-9]+[.][0-9]+(-rc[0-9]+)?", "a release such as 0.32.15"),
    "unit": (r"[A-Za-z0-9@_.:-]+[.](service|timer|path|socket|target)", "the name of a systemd unit"),
    "url": (
        r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~%+@-]*)*",
        "an address that begins with http:// or https://, without an account in it",
    ),
}


class RoleError(Exception):
    """A role that this collection does not have; the text is for the operator."""


def options(loader, role):
    """Names that meta/argument_specs.yml of *role* documents, over all its entry points."""
    path = os.path.join(ROLES, role, "meta", "argument_specs.yml")
    if not os.path.isfile(path):
        raise RoleError(f"gpufleet.llm has no role '{role}' with argument specs; give the name of one of its roles.")
    specs = loader.load_from_file(path, cache="all")["argument_specs"]
    return {name for entry in specs.values() for name in entry.get("options", {})}


def fingerprint(settings):
    """16 hexadecimal digits that differ when a setting of {name: value} differs."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def bound_problem(name, value, bound):
    """One sentence of what is wrong with *value*, '' where nothing is.

    *bound* has any of: min, max (whole numbers, for the value or, with ``values``, for each value of a
    dictionary and of those in it), null (None
    is a value, too), match (a regular expression for the whole text, or for each element of a list), kind (one of
    KINDS instead of match and wanted), count (the least number of elements), wanted (what a text has to look like, in words), because (why).
    """
    if value is None and bound.get("null"):
        return ""
    if "kind" in bound:
        match, wanted = KINDS[bound["kind"]]
        bound = {"match": match, "wanted": wanted, **bound}
    if "match" in bound or "count" in bound:
        fits = _texts_fit(value, bound)
    else:
        fits = all(_within(one, bound) for one in (_leaves(value) if bound.get("values") else [value]))
    if fits:
        return ""
    because = f" ({bound['because']})" if bound.get("because") else ""
    return f"{name} is {_shown(value)}; {_wanted(bound)} was wanted{because}. Correct it in the inventory."


def _leaves(value):
    """The values of a dictionary and of the dictionaries in it."""
    return [leaf for one in value.values() for leaf in _leaves(one)] if isinstance(value, dict) else [value]


def _within(value, bound):
    # By the text, since int() takes "5\\n", "1_000" and True for numbers, and the text is what is written.
    if not re.fullmatch(r"-?[0-9]{1,18}", str(value)):
        return False
    number = int(str(value))
    return bound.get("min", number) <= number <= bound.get("max", number)


def _texts_fit(value, bound):
    elements = value if isinstance(value, (list, tuple)) else [value]
    if len(elements) < bound.get("count", 0):
        return False
    return all(re.fullmatch(bound.get("match", ".*"), str(one), re.ASCII) for one in elements)


def _shown(value):
    if value is None:
        return "null"
    return json.dumps(value, default=str) if isinstance(value, (str, list, tuple, dict)) else str(value)


def _wanted(bound):
    if bound.get("wanted"):
        return bound["wanted"]
    number = "a whole number" if not bound.get("values") else "whole numbers"
    if "min" in bound and "max" in bound:
        text = f"{number} from {bound['min']} to {bound['max']}"
    elif "min" in bound:
        text = f"{number} of at least {bound['min']}"
    else:
        text = f"{number} of at most {bound['max']}"
    return f"null or {text}" if bound.get("null") else text
