# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `lab up` recorded of a lab, and the faults that were injected since: $CACHE/labs/NAME/lab.json."""

from __future__ import annotations

import json
import os

from .shell import cache


def folder(name):
    """Return the folder with everything that a lab has on this machine besides caches; gone after `down`."""
    return cache("labs", name)


def mirror_folder(name):
    """Return the folder that a lab's mirror serves; its faults and its access log are in it."""
    return folder(name) / "mirror"


def state(name):
    """Return what `up` recorded of a lab, or None."""
    try:
        return json.loads((folder(name) / "lab.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write(name, content):
    """Replace what is recorded of a lab, at once."""
    path = folder(name) / "lab.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def note_fault(name, fault):
    """Record a fault that was injected, as [host, fault, arguments…]."""
    known = state(name)
    write(name, {**known, "faults": [*[one for one in known.get("faults", []) if one[:2] != fault[:2]], fault]})


def forget_fault(name, host, fault):
    """Record that a fault was healed."""
    known = state(name)
    write(name, {**known, "faults": [one for one in known.get("faults", []) if one[:2] != [host, fault]]})
