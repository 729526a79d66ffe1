# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The packages of a host that belong to a driver, and what else decides which driver it can have. Changes nothing."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from .._host.distribution import distribution
from .._host.files import names_in, text_or_none
from .._host.units import Run
from .state import secure_boot

# Packages that belong to a driver when they have its version; a toolkit's do not.
FAMILY = re.compile(
    r"^(lib)?(nvidia|nvcuvid|nvoptix|cuda)|^libcuda|^firmware-nvidia|^linux-modules-nvidia|^xserver-xorg-video-nvidia"
)
PINNING = re.compile(r"^nvidia-driver-pinning-")
DRIVER_VERSION = re.compile(r"^\d{3}\.\d+(\.\d+)?$")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")
DPKG_FORMAT = "${Package}\\t${Version}\\t${db:Status-Abbrev}\\t${Maintainer}\\n"
APT_SOURCES = ("etc/apt/sources.list", "etc/apt/sources.list.d/*.list", "etc/apt/sources.list.d/*.sources")
OUR_SOURCE = "etc/apt/sources.list.d/gpufleet-nvidia.sources"


class PackagesError(Exception):
    """The host or its source could not be read; the text is fit for an operator."""


def observe(root: str = "/", run: Run = subprocess.run, hardware: str = "/") -> dict[str, Any]:
    """``{"distribution", "packages", "cards", "sources", "secure_boot"}`` of a host.

    packages: ``{name: {"version", "ok": configured, "held", "maintainer"}}`` of what dpkg knows and has not removed.
    cards: PCI device numbers of NVIDIA's display controllers, None where the bus cannot be seen.
    sources: APT's files, other than the role's own, that name a repository of NVIDIA's.
    *hardware* is the folder below which /sys of the host is seen. Raises PackagesError.
    """
    return {
        "distribution": distribution(root),
        "packages": parse_dpkg(ask(["dpkg-query", "-W", "-f", DPKG_FORMAT], run)),
        "cards": cards(hardware),
        "sources": foreign_sources(root),
        "secure_boot": secure_boot(hardware, run),
    }


def ask(command: list[str], run: Run) -> str:
    """What a program of dpkg's or apt's says. Raises PackagesError."""
    try:
        done = run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackagesError(f"`{command[0]}` failed ({error}); wanted is a host with dpkg and apt.") from error
    if done.returncode:
        raise PackagesError(
            f"`{command[0]}` answered {done.returncode} ({done.stderr.strip()}); "
            f"repair dpkg first: `dpkg --configure -a`."
        )
    return done.stdout


def parse_dpkg(text: str) -> dict[str, dict[str, Any]]:
    """The packages of a dpkg-query answer; what is removed, with or without its settings, is left out."""
    found = {}
    for line in text.splitlines():
        name, version, status, maintainer = (line.split("\t") + ["", "", ""])[:4]
        if len(status) >= 2 and status[1] not in "nc":
            configured = status[1] == "i" and status[2:3] in ("", " ")
            found[name] = {"version": version, "ok": configured, "held": status[0] == "h", "maintainer": maintainer}
    return found


def cards(root: str = "/") -> list[int] | None:
    """``[0x2684, …]`` of the PCI bus, None where it cannot be seen (a container without /sys)."""
    folder = os.path.join(root, "sys/bus/pci/devices")
    if not os.path.isdir(folder):
        return None
    found = []
    for device in names_in(folder):
        texts = (text_or_none(os.path.join(folder, device, name)) or "" for name in ("vendor", "class", "device"))
        vendor, kind, number = (text.strip() for text in texts)
        if vendor == NVIDIA_VENDOR and kind[:6] in DISPLAY_CLASSES:
            found.append(int(number, 16))
    return found


def foreign_sources(root: str = "/") -> list[str]:
    """Files of APT's that name a repository of NVIDIA's and are not the role's."""
    found = []
    for path in (path for pattern in APT_SOURCES for path in sorted(glob.glob(os.path.join(root, pattern)))):
        short = os.path.relpath(path, root)
        lines = [line for line in (text_or_none(path) or "").splitlines() if not line.lstrip().startswith("#")]
        if short != OUR_SOURCE and any("/compute/cuda/repos/" in line for line in lines):
            found.append("/" + short)
    return found


def driver_version(observed: dict[str, Any], names: Sequence[str] = ()) -> str | None:
    """The version of the installed driver: of the first of *names* that is there, else of most of its packages."""
    packages = observed["packages"]
    for name in names:
        version = upstream(packages.get(name, {}).get("version"))
        if version:
            return version
    members = (name for name in packages if FAMILY.match(name) and not PINNING.match(name))
    versions = [version for version in (upstream(packages[name]["version"]) for name in members) if version]
    return max(versions, key=versions.count) if versions else None


def family(observed: dict[str, Any], version: str | None) -> list[str]:
    """Names of the installed packages that came with a driver of this version, sorted."""
    return sorted(
        name
        for name, package in observed["packages"].items()
        if version and FAMILY.match(name) and not PINNING.match(name) and upstream(package["version"]) == version
    )


def upstream(version: str | None) -> str | None:
    """The driver's version in a package's: 580.95.05 of "1:580.95.05-0ubuntu1"; None where there is none."""
    bare = re.sub(r"^\d+:", "", version or "").partition("-")[0].partition("+")[0]
    return bare if DRIVER_VERSION.match(bare) else None
