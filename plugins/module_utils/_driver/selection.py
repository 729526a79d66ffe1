# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Which packages make the driver that the settings ask for.

The tables of names are roles/cuda/files/packages/<distribution>.yml::

    nvidia_repo | distro:
      directories: {version_id: folder of the repository}
      branches: {version_id: [branches that there are]}    # absent: the index of the source tells
      sets:                          # the first whose `below` is above the branch, or that has none
        - below: 590
          packages: {open: [...], proprietary: [...]}   # of the driver's own version; the first one tells it
          modules: {open: [...], proprietary: [...]}    # prebuilt modules: of the kernel's version
          beside: [[a, b]]           # of each list the first that the source has, whatever its version
      pin: name of the pinning package, {pin} is a branch or a version
      pin_versions: [...]            # patterns of APT's preferences, for a source that has no such package
      headers: [...]                 # what DKMS builds against, as meta-packages
      builds: true                   # the module is built on the host
      marks: [...]                   # packages that no other source has
      kernel: [...]                  # held together with prebuilt modules
      enable: what to do where the source has no such package

Settings: ``{"source", "branch": int, "version": str or "", "flavour", "toolkit": "13-0" or "", "upgrade": bool,
"downgrade": bool, "remove_other": bool, "hold": bool, "gpu_required": bool, "ollama_version": str or None}``.
"""

from __future__ import annotations

from typing import Any


def select(
    settings: dict[str, Any], distribution: dict[str, str], table: dict[str, Any] | None
) -> dict[str, Any] | None:
    """``{"packages", "modules", "beside", "pin", "headers", "toolkit", "builds", "directory", …}``, names filled in.

    *table* is a distribution's file. None where it has no such source, or no packages of the branch.
    """
    source = (table or {}).get(settings["source"])
    if table is None or not source:
        return None
    branch, flavour = settings["branch"], settings["flavour"]
    chosen = next((one for one in source["sets"] if branch < one.get("below", branch + 1)), None)
    if chosen is None:
        return None

    def named(names: list[str]) -> list[str]:
        return [name.format(branch=branch) for name in names]

    return {
        "packages": named(chosen["packages"][flavour]),
        "modules": named(chosen.get("modules", {}).get(flavour, [])),
        "beside": [named(names) for names in chosen.get("beside", [])],
        "pin": source["pin"].format(pin=settings["version"] or branch) if source.get("pin") else None,
        "pin_versions": source.get("pin_versions", []),
        "headers": source.get("headers", []),
        "toolkit": [f"cuda-toolkit-{settings['toolkit']}"] if settings.get("toolkit") else [],
        "builds": source.get("builds", True),
        "directory": source.get("directories", {}).get(distribution["version_id"]),
        "branches": source.get("branches", {}).get(distribution["version_id"]),
        "marks": source.get("marks", []),
        "kernel": source.get("kernel", []),
        "enable": source.get("enable", ""),
        "others": {name: other.get("marks", []) for name, other in table.items() if name != settings["source"]},
    }
