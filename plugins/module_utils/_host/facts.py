# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a role's preflight has to know of a host, read at once. Nothing here changes the host."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from .distribution import distribution
from .files import text_or_none
from .folders import refusal
from .listeners import listeners
from .paths import free_mib, path_state
from .units import Run, systemd_version, units

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def observe(
    paths: Iterable[str] = (),
    ports: Iterable[int] = (),
    unit_names: Sequence[str] = (),
    commands: Iterable[str] = (),
    root: str = "/",
    run: Run = subprocess.run,
) -> dict[str, Any]:
    """All of it in one dict; keys as in the RETURN of the module host_info.

    *root* is the folder below which /etc, /proc and /sys of the host are seen. Raises HostError of units().
    """
    return {
        "distribution": distribution(root),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "systemd": systemd_version(run),
        "memory_mib": memory_mib(root),
        "paths": {path: dict(path_state(path), free_mib=free_mib(path), refusal=refusal(path)) for path in paths},
        "listeners": listeners(set(ports), root),
        "units": units(list(unit_names), root, run),
        "commands": {name: shutil.which(name, path=SEARCH_PATH) for name in commands},
        "uid": os.geteuid(),
    }


def memory_mib(root: str = "/") -> dict[str, int | None]:
    """{total, available} in MiB from /proc/meminfo; None for what it does not say."""
    text = text_or_none(os.path.join(root, "proc/meminfo")) or ""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {
        "total": kib["MemTotal"] // 1024 if "MemTotal" in kib else None,
        "available": kib["MemAvailable"] // 1024 if "MemAvailable" in kib else None,
    }
