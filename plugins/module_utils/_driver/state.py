# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The NVIDIA driver of a host: what is loaded, what is on disk for every kernel, what the library is.

``observe()`` reads files below ``root`` (a made-up tree in tests) and asks modinfo. It changes nothing.

What ``observe`` returns::

    {
      "distribution": {"id": "debian", "version_id": "12", "pretty_name": "Debian GNU/Linux 12 (bookworm)"},
      "running_kernel": "6.1.0-50-amd64" | None,
      "next_kernel": str | None,       # the newest installed one, which a boot loader starts by default
      "loaded_version": "580.126.09" | None,
      "library_version": "580.126.09" | None,      # of libnvidia-ml.so.1, what new processes get
      "flavour": "open" | "proprietary" | None,    # of the loaded module, else of the one on disk
      "kernels": [{
        "kernel": str, "running": bool, "next": bool,
        "bootable": bool,              # its image, or where no image can be seen its modules, are there
        "path": str | None,            # of the module nvidia on disk; None: there is none
        "version": str | None,         # of this module; None with a path: it could not be read, and `error` says why
        "module": "nvidia" | "nvidia-current" | "nvidia-current-open" | None,   # Debian renames it
        "flavour": "open" | "proprietary" | None, "signed": bool | None, "error": str | None,
      }],
      "dkms": [{"module": str, "version": str, "kernel": str | None,
                "state": "added" | "built" | "installed" | "failed", "error": str | None}],
      "secure_boot": bool | None, "nouveau_loaded": bool,
    }
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from .._host.distribution import distribution
from .._host.files import names_in, text_or_none
from .._host.units import Run
from . import dkms, kernels
from .versions import version_key

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "lib64")
LOADED = re.compile(r"^NVRM version:.*?Kernel Module(?: for \S+)?\s+(\S+)", re.MULTILINE)


def observe(
    root: str = "/", taken: dict[str, Any] | None = None, run: Run = subprocess.run, kernel: str | None = None
) -> dict[str, Any]:
    """What this file's docstring shows. *taken* is a sample of _gpu; *kernel* overrides uname's release."""
    taken = taken or {}
    running = kernel or kernels.running_kernel(root)
    images = kernels.installed_kernels(root, running)
    newest = max((name for name, image in images.items() if image), key=kernels.kernel_key, default=running)
    modules = [
        dict(kernels.module_on_disk(root, name, run), running=name == running, next=name == newest, bootable=image)
        for name, image in images.items()
    ]
    loaded = read_loaded(root)
    on_disk = next((module["flavour"] for module in modules if module["running"]), None)
    return {
        # A tree that holds only what the kernel shows has no os-release; then the one of this system counts.
        "distribution": distribution(root, "/"),
        "running_kernel": running,
        "next_kernel": newest,
        # NVML asks the module itself; the files are for when NVML cannot.
        "loaded_version": taken.get("driver_version") or loaded[0],
        "library_version": library_version(root, taken.get("nvml_version")),
        "flavour": loaded[1] or on_disk,
        "kernels": sorted(modules, key=lambda module: kernels.kernel_key(module["kernel"])),
        "dkms": dkms.read(root),
        "secure_boot": secure_boot(root, run),
        "nouveau_loaded": os.path.isdir(os.path.join(root, "sys/module/nouveau")),
    }


def read_loaded(root: str) -> tuple[str | None, str | None]:
    """``(version, flavour)`` of the loaded module, each None when there is none."""
    text = text_or_none(os.path.join(root, "proc/driver/nvidia/version")) or ""
    version = (text_or_none(os.path.join(root, "sys/module/nvidia/version")) or "").strip() or None
    named = LOADED.search(text)
    flavour = None
    if text:
        flavour = "open" if "Open Kernel Module" in text else "proprietary"
    return version or (named.group(1) if named else None), flavour


def library_version(root: str, nvml_version: str | None = None) -> str | None:
    """Version of libnvidia-ml: NVML's own answer, else the file's name.

    NVML answers "13.580.126.09", CUDA's major number and the version.
    """
    if nvml_version and nvml_version.count(".") >= 2:
        return nvml_version.partition(".")[2]
    versions = [
        name[len("libnvidia-ml.so.") :]
        for folder in LIBRARY_FOLDERS
        for name in names_in(os.path.join(root, folder))
        if re.fullmatch(r"libnvidia-ml\.so\.\d{2,}(\.\d+)+", name)
    ]
    return max(versions, key=version_key, default=None)


def secure_boot(root: str, run: Run = subprocess.run) -> bool | None:
    """True or False; None when the firmware has EFI but does not say."""
    try:
        with open(os.path.join(root, SECURE_BOOT), "rb") as handle:
            value = handle.read(5)  # four bytes of attributes, then the value
        if len(value) == 5:
            return value[4] == 1
    except OSError:
        pass
    if not os.path.isdir(os.path.join(root, "sys/firmware/efi")):
        return False
    try:
        done = run(
            ["mokutil", "--sb-state"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"SecureBoot (enabled|disabled)", done.stdout)
    return found.group(1) == "enabled" if found else None
