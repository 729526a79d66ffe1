# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault catalogue: executable files in lab/faults, one a fault.

A fault is called as `FAULT inject ARGUMENT…` or `FAULT heal` with this environment: LAB_NAME, LAB_HOST, LAB_CONTAINER (the
host's), LAB_MIRROR (the mirror's container), LAB_SERVER (real or standin), LAB_CACHE (the machine's cache folder). Its second
line, a comment, says what it does. It exits 0, or says in one sentence why it cannot.
"""

from __future__ import annotations

import os
import subprocess

from . import state
from .hosts import container
from .shell import LAB, LabError, cache, say

FOLDER = LAB / "faults"


def catalogue():
    """Return {name: what it does}."""
    found = {}
    for path in sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []:
        if path.is_file() and os.access(path, os.X_OK):
            lines = path.read_text(encoding="utf-8").splitlines()
            found[path.name] = lines[1].lstrip("# ").strip() if len(lines) > 1 else ""
    return found


def _call(lab, host, fault, words):
    known = state.state(lab)
    if known is None:
        raise LabError(f"There is no lab {lab}; `lab status` lists what there is.")
    if host not in known["hosts"]:
        raise LabError(f"Lab {lab} has no host {host}; it has {', '.join(known['hosts'])}.")
    if fault not in catalogue():
        raise LabError(f"There is no fault {fault!r}; the catalogue has {', '.join(catalogue()) or 'none'}.")
    env = dict(
        os.environ,
        LAB_NAME=lab,
        LAB_HOST=host,
        LAB_CONTAINER=container(lab, host),
        LAB_MIRROR=container(lab, "mirror"),
        LAB_SERVER=known["server"],
        LAB_CACHE=str(cache()),
    )
    done = subprocess.run([str(FOLDER / fault), *words], stdin=subprocess.DEVNULL, env=env, check=False)
    if done.returncode:
        raise LabError(f"{fault} {words[0]} ended with {done.returncode}; what it said stands above.")


def inject(lab, fault, host, words):
    """Break something on a host, and remember it."""
    _call(lab, host, fault, ["inject", *words])
    state.note_fault(lab, [host, fault, *words])
    say(f"{fault} on {host}: `lab heal --lab {lab} {host}` undoes it")


def heal(lab, host, fault=None):
    """Undo one fault, or every one that was injected on a host."""
    known = state.state(lab) or {"faults": []}
    injected = [one[1] for one in known["faults"] if one[0] == host]
    for one in [fault] if fault else reversed(injected):
        _call(lab, host, one, ["heal"])
        state.forget_fault(lab, host, one)
        say(f"{one} on {host}: healed")
    if not fault and not injected:
        say(f"Nothing was injected on {host}")
