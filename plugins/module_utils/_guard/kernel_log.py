# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The kernel's log: NVIDIA's Xids. Imported by the one tick a minute that reads it."""

from __future__ import annotations

import re
import subprocess

LINE = re.compile(r"(\d+\.\d+) .*NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")


def read_xids(gpus, since_s, run=None):
    """The "xids" part of a sample: NVIDIA's lines of the kernel log within the last since_s seconds.

    *gpus* are those of a sample: an Xid names a PCI address, the sample a UUID.
    """
    command = ["journalctl", "--dmesg", "--quiet", "--no-pager", "--output=short-unix", f"--since=-{int(since_s)}s"]
    try:
        done = (run or subprocess.run)(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return {"state": "unreadable", "events": []}
    if done.returncode not in (0, 1):
        return {"state": "unreadable", "events": []}
    by_pci = {short_pci(gpu["pci"]): gpu["uuid"] for gpu in gpus if gpu["pci"]}
    events = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        match = LINE.match(line)
        if match:
            when, pci, number = match.groups()
            events.append({"at": when, "gpu": by_pci.get(short_pci(pci), pci), "xid": int(number)})
    return {"state": "ok", "events": events}


def short_pci(text):
    """Domain, bus and device in one spelling: the kernel says 0000:01:00, NVML 00000000:01:00.0."""
    parts = text.lower().split(".")[0].split(":")
    return ":".join([parts[0][-4:].rjust(4, "0"), *parts[1:]])
