# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Processes of this host, by /proc: whose they are and which systemd unit they belong to."""

from __future__ import annotations

import contextlib
import os
import re

from .files import text_or_none

# Kinds of units that have processes (systemd.unit(5)); slices only group them.
UNIT_KINDS = (".service", ".scope", ".socket", ".mount", ".swap")


def unit_of(cgroup_text: str, init_text: str = "") -> str | None:
    """The unit of the system manager in the text of /proc/PID/cgroup, or None: what `systemctl status PID` names.

    As in systemd's cg_path_get_unit() (src/basic/cgroup-util.c) it is the first part after the slices. What follows
    belongs to the unit itself: a sub-group of its own (Delegate=), a unit of a user's manager, a unit inside a
    container. A path that begins otherwise belongs to no unit, such as a container's that Docker made without systemd.

    *init_text* is the same file of pid 1. Inside a container without a cgroup namespace its path precedes ours.
    Reads cgroup v2 (``0::/…``) and v1 (``…:name=systemd:/…``, which wins on hybrid hosts).

    >>> unit_of("0::/system.slice/ollama.service/runner")
    'ollama.service'
    >>> unit_of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service")
    'user@1000.service'
    >>> unit_of("1:name=systemd:/docker/ab/system.slice/a.service", "1:name=systemd:/docker/ab/init.scope")
    'a.service'
    """
    path, root = _cgroup_path(cgroup_text), _cgroup_path(init_text)
    root = re.sub(r"/(init\.scope|init)$", "", root)
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    parts = [part for part in path.split("/") if part]
    first = next((part for part in parts if not part.endswith(".slice")), "")
    return first if first.endswith(UNIT_KINDS) else None


def _cgroup_path(text: str) -> str:
    """The path in systemd's hierarchy, "" where the text has none."""
    paths = {}
    for line in text.splitlines():
        _number, _colon, rest = line.partition(":")
        controllers, _colon, path = rest.partition(":")
        paths[controllers] = path
    return paths.get("name=systemd", paths.get("", ""))


def unit_of_pid(pid: int, proc: str = "/proc") -> str | None:
    """The unit of a process; None where it has none, is gone, or cannot be seen."""
    own = text_or_none(os.path.join(proc, str(pid), "cgroup")) or ""
    return unit_of(own, text_or_none(os.path.join(proc, "1", "cgroup")) or "")


def describe(pid: int, proc: str = "/proc") -> dict:
    """{unit, ppid, uid, comm, exe, age_s} of a process, each None where /proc does not say.

    ``uid`` is the real user ID; ``age_s`` are seconds since its start, which with the pid shows a pid used twice.
    """
    folder = os.path.join(proc, str(pid))
    found: dict = dict.fromkeys(("unit", "ppid", "uid", "comm", "exe", "age_s"))
    status = text_or_none(os.path.join(folder, "status")) or ""
    if not status:
        return found
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    found["comm"] = fields["Name"].strip() if "Name" in fields else None
    found["ppid"] = int(fields["PPid"]) if "PPid" in fields else None
    found["uid"] = int(fields["Uid"].split()[0]) if "Uid" in fields else None
    with contextlib.suppress(OSError):
        found["exe"] = os.readlink(os.path.join(folder, "exe"))
    stat, uptime = text_or_none(os.path.join(folder, "stat")), text_or_none(os.path.join(proc, "uptime"))
    found["age_s"] = _age_s(stat, uptime)
    found["unit"] = unit_of_pid(pid, proc)
    return found


def _age_s(stat: str | None, uptime: str | None) -> float | None:
    if not stat or not uptime:
        return None
    # The name in brackets may hold anything; field 22 is the start in ticks after boot (man proc).
    fields = stat.rpartition(")")[2].split()
    return round(max(0.0, float(uptime.split()[0]) - int(fields[19]) / ticks_per_second()), 2)


def ticks_per_second() -> int:
    """Clock ticks a second of the times in /proc/PID/stat."""
    return os.sysconf("SC_CLK_TCK")
