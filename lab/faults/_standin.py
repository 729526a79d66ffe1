# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that only the stand-in server can be told to have: lab-faults.json beside its models folder, read at every request."""

from __future__ import annotations

import json

import _kit

PATH = "/var/lib/ollama/lab-faults.json"


def read():
    """Return the faults that are set."""
    text = _kit.host("cat $1 2>/dev/null || echo {}", PATH)
    return json.loads(text)


def write(faults):
    """Replace the file at once; the server never reads half of it."""
    _kit.host('cat > "$1.new"; chmod 0644 "$1.new"; mv "$1.new" "$1"', PATH, data=json.dumps(faults) + "\n")


def set_fault(key, value):
    """Set one fault, keep the others."""
    write(dict(read(), **{key: value}))


def clear_fault(key):
    """Remove one fault; return whether it was there."""
    faults = read()
    there = faults.pop(key, None) is not None
    write(faults)
    return there
