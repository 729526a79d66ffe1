# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What lies at a path of the host, and how much room there is."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from typing import Any

MIB = 1024 * 1024
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def path_state(path: str) -> dict[str, Any]:
    """{kind, target, owner, group, mode, size} of a path itself, not of what a link leads to.

    kind is file, directory, link, other or absent, where all else is None; owner and group are names, or numbers as
    text where there is no name; mode is four octal digits; size is in bytes.
    """
    try:
        info = os.lstat(path)
    except OSError:
        return {"kind": "absent", "target": None, "owner": None, "group": None, "mode": None, "size": None}
    return {
        "kind": KINDS.get(stat.S_IFMT(info.st_mode), "other"),
        "target": os.readlink(path) if stat.S_ISLNK(info.st_mode) else None,
        "owner": _user_name(info.st_uid),
        "group": _group_name(info.st_gid),
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
        "size": info.st_size,
    }


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def free_mib(path: str) -> int:
    """MiB that a process of root can still write below path (its nearest parent that exists)."""
    while not os.path.isdir(path):
        parent = os.path.dirname(path.rstrip("/")) or "/"
        if parent == path:
            break
        path = parent
    return shutil.disk_usage(path).free // MIB
