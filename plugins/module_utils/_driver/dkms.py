# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What DKMS has built, and the first error of a build that failed."""

from __future__ import annotations

import os
import re
from typing import Any

from .._host.files import names_in, text_or_none
from .kernels import kernel_key
from .versions import version_key


def read(root: str) -> list[dict[str, Any]]:
    """What /var/lib/dkms says of modules called nvidia…, newest state of each version and kernel.

    ``kernel-<release>-<arch>`` is a link to what is installed; ``<version>/<release>/<arch>/module`` is what was
    built; ``<version>/build/make.log`` stays behind from a build that failed.
    """
    base = os.path.join(root, "var/lib/dkms")
    found: list[dict[str, Any]] = []
    for module in (name for name in names_in(base) if name.startswith("nvidia")):
        folder = os.path.join(base, module)
        linked = {
            os.path.normpath(os.readlink(os.path.join(folder, name)))
            for name in names_in(folder)
            if name.startswith("kernel-") and os.path.islink(os.path.join(folder, name))
        }
        for version in sorted((name for name in names_in(folder) if name[:1].isdigit()), key=version_key):
            found += _version(root, module, version, linked)
    return found


def _version(root: str, module: str, version: str, linked: set[str]) -> list[dict[str, Any]]:
    folder = os.path.join("var/lib/dkms", module, version)
    states: dict[str | None, tuple[str, str | None]] = {}
    for kernel in names_in(os.path.join(root, folder)):
        for arch in names_in(os.path.join(root, folder, kernel)):
            if kernel not in ("source", "build") and names_in(os.path.join(root, folder, kernel, arch, "module")):
                # The link is relative to the module's folder, or absolute on the host.
                ways = (f"{version}/{kernel}/{arch}", f"/{folder}/{kernel}/{arch}")
                states[kernel] = ("installed" if linked.intersection(ways) else "built", None)
    failed, error = first_build_error(text_or_none(os.path.join(root, folder, "build/make.log")) or "")
    if error:
        states[failed] = ("failed", error)
    if not states:
        states[None] = ("added", None)
    return [
        {"module": module, "version": version, "kernel": name, "state": state, "error": text}
        for name, (state, text) in sorted(states.items(), key=lambda item: kernel_key(item[0] or ""))
    ]


def first_build_error(log: str) -> tuple[str | None, str | None]:
    """``(kernel, first line that is an error)`` of a DKMS make.log; ``(kernel, None)`` of one without."""
    head = re.search(r"^DKMS.*make\.log for .+ for kernel (\S+)", log, re.MULTILINE)
    error = re.search(r"^.*(?:: error: |fatal error: |^make.*\*\*\* |^ERROR: ).*$", log, re.MULTILINE)
    return (head.group(1) if head else None), (error.group(0).strip() if error else None)
