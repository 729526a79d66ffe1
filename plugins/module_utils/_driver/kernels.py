# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The kernels of a host, and the NVIDIA module that each of them would load."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from .._host.files import names_in, text_or_none
from .._host.units import Run

# Debian's own packages call the module nvidia-current or nvidia-current-open and map it by modprobe.d.
MODULE = re.compile(r"(?:^|/)(nvidia|nvidia-current|nvidia-current-open)\.ko(?:\.(?:xz|zst|gz))?$")
TIMEOUT_S = 60  # it may have a hundred MiB to unpack


def running_kernel(root: str) -> str:
    """Release of the running kernel, as the tree below *root* or else this system says."""
    return (text_or_none(os.path.join(root, "proc/sys/kernel/osrelease")) or "").strip() or os.uname().release


def installed_kernels(root: str, running: str) -> dict[str, bool]:
    """``{release: whether an image to boot is there}`` of the kernels with modules, and of the running one.

    Where no image can be seen at all (a container, an image kept elsewhere) every kernel with modules counts.
    """
    folder = os.path.join(root, "lib/modules")
    found: dict[str, bool] = {}
    for name in names_in(folder):
        has_modules = os.path.exists(os.path.join(folder, name, "modules.dep"))
        images = (f"boot/vmlinuz-{name}", f"lib/modules/{name}/vmlinuz")
        image = any(os.path.exists(os.path.join(root, path)) for path in images)
        if has_modules or image:
            found[name] = image
    if not any(found.values()):
        found = dict.fromkeys(found, True)
    # A folder that a removed kernel left behind cannot be booted.
    found = {name: image for name, image in found.items() if image or name == running}
    if running:
        found.setdefault(running, False)
    return found


def kernel_key(release: str) -> list[tuple[int, int, str]]:
    """Sorts kernel releases as their packages do: numbers by value (6.1.0-9 before 6.1.0-50)."""
    parts = re.findall(r"\d+|[a-z]+", release.lower())
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def module_on_disk(root: str, kernel: str, run: Run = subprocess.run) -> dict[str, Any]:
    """One entry of ``kernels``: the module that modprobe would take for this kernel, by modules.dep."""
    found = _listed_module(root, kernel)
    if found is None:
        return {"kernel": kernel, **dict.fromkeys(("version", "path", "module", "flavour", "signed", "error"))}
    path, name = found
    fields, error = modinfo(path, run)
    return {
        "kernel": kernel,
        "version": fields.get("version"),
        "path": os.path.join("/", os.path.relpath(path, root)),
        "module": name,
        "flavour": _flavour(fields.get("license")),
        "signed": None if error else "signer" in fields or "sig_id" in fields,
        "error": error,
    }


def _listed_module(root: str, kernel: str) -> tuple[str, str] | None:
    """(path, name of the module) of the first NVIDIA module that modules.dep lists and that is there."""
    folder = os.path.join("lib/modules", kernel)
    for line in (text_or_none(os.path.join(root, folder, "modules.dep")) or "").splitlines():
        listed = line.partition(":")[0].strip()
        match = MODULE.search(listed)
        path = os.path.join(root, listed[1:] if listed.startswith("/") else os.path.join(folder, listed))
        # Listed, but gone: depmod has not run since.
        if match and os.path.exists(path):
            return path, match.group(1)
    return None


def _flavour(license_text: str | None) -> str | None:
    """The open modules are "Dual MIT/GPL", the proprietary one is "NVIDIA"."""
    if not license_text:
        return None
    return "proprietary" if license_text == "NVIDIA" else "open"


def modinfo(path: str, run: Run = subprocess.run) -> tuple[dict[str, str], str | None]:
    """``({version, license, signer, …}, None)`` of a kernel module file; ``({}, why)`` where it cannot be read.

    Asks the program modinfo of the package kmod, which every host has that loads modules.
    """
    try:
        done = run(
            ["modinfo", path], capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return {}, "modinfo of the package kmod is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, f"modinfo failed: {error}"
    if done.returncode != 0:
        return {}, f"modinfo answered {done.returncode}: {' '.join(done.stderr.split())[-200:] or 'no text'}"
    fields: dict[str, str] = {}
    for line in done.stdout.splitlines():
        key, _colon, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields, None
