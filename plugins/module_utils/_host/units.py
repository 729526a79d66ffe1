# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""State of systemd and its units."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from .files import text_or_none

Run = Callable[..., Any]  # subprocess.run, or what stands for it in a test
TIMEOUT_S = 20
NEEDED = "the roles need a host that systemd runs."
PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NeedDaemonReload")


class HostError(Exception):
    """The host could not be read; the text is fit for an operator."""


def units(names: Sequence[str], root: str = "/", run: Run = subprocess.run) -> dict[str, dict[str, Any]]:
    """State of the units named, as parse_units() has it, with ``config``: the mark that their main process runs with.

    Raises HostError where systemctl cannot be asked.
    """
    if not names:
        return {}
    command = ["systemctl", "show", "--no-pager", "--property=" + ",".join(PROPERTIES), *names]
    try:
        done = run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"`systemctl show` failed ({error}); {NEEDED}") from error
    if done.returncode:
        raise HostError(f"`systemctl show` answered {done.returncode} ({done.stderr.strip()}); {NEEDED}")
    found = parse_units(done.stdout)
    for state in found.values():
        state["config"] = config_mark(state["main_pid"], root)
    return found


def parse_units(text: str) -> dict[str, dict[str, Any]]:
    """{unit: state} of an answer of `systemctl show` with PROPERTIES.

    A state is {load_state, active_state, sub_state, unit_file_state, main_pid (0: none), need_daemon_reload (bool)}.
    """
    found = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            found[values["Id"]] = {
                "load_state": values.get("LoadState", ""),
                "active_state": values.get("ActiveState", ""),
                "sub_state": values.get("SubState", ""),
                "unit_file_state": values.get("UnitFileState", ""),
                "main_pid": int(values.get("MainPID") or 0),
                "need_daemon_reload": values.get("NeedDaemonReload") == "yes",
            }
    return found


def config_mark(pid: int, root: str = "/") -> str | None:
    """Value of GPUFLEET_CONFIG in the environment of a running process, or None.

    Roles write it into a service's environment file as the fingerprint of its whole configuration. So the next run
    sees a process with an older one, also where the run that changed the files was cut off before the restart.
    """
    text = text_or_none(os.path.join(root, f"proc/{pid}/environ")) if pid else None
    for entry in (text or "").split("\0"):
        if entry.startswith("GPUFLEET_CONFIG="):
            return entry.partition("=")[2]
    return None


def systemd_version(run: Run = subprocess.run) -> int | None:
    """Version of systemd as a whole number, or None where there is none."""
    try:
        done = run(["systemctl", "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"systemd (\d+)", done.stdout)
    return int(match.group(1)) if match else None
