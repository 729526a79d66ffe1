# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a source of packages has: an index of a flat repository, or apt's own lists."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from .._host.units import Run
from .packages import ask


def parse_index(text: str) -> dict[str, list[str]]:
    """``{package: [versions]}`` of an APT index (the file Packages)."""
    found: dict[str, list[str]] = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.+)$", stanza, re.MULTILINE))
        if len(fields) == 2:
            found.setdefault(fields["Package"], []).append(fields["Version"].strip())
    return found


def parse_madison(text: str) -> dict[str, list[str]]:
    """The same of `apt-cache madison`."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 3 and "Packages" in cells[2]:
            found.setdefault(cells[0], []).append(cells[1])
    return found


def ask_apt(selection: dict[str, Any], run: Run = subprocess.run) -> dict[str, list[str]]:
    """What apt's own lists offer of the packages that a selection names. Raises PackagesError."""
    names = selection["packages"] + selection["modules"] + selection["headers"] + selection["toolkit"]
    names += [name for choice in selection["beside"] for name in choice]
    return parse_madison(ask(["apt-cache", "madison", *names], run))
