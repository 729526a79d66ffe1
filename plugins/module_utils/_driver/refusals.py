# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What speaks against a driver on a host, before anything is changed: ``[{"code", "message"}]``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .packages import FAMILY, driver_version, family, upstream
from .versions import branch as branch_of
from .versions import ollama_serves, version_key

# CUDA's major number and the oldest branch that runs it (NVIDIA's minor version compatibility).
TOOLKITS = {12: 525, 13: 580}
# The open modules want Turing. Its first PCI device number is 0x1e02, all before are older (NVIDIA's supported chips).
FIRST_TURING_ID = 0x1E00
OPEN_CAPABILITY = "7.5"

# Packages that only the distribution's own driver has.
DISTRIBUTIONS_OWN = re.compile(r"^(linux-modules-nvidia-|nvidia-(headless|utils|compute-utils)-.*-server)")
# Names are shared on Ubuntu; the revision tells NVIDIA's.
NVIDIAS_REVISION = re.compile(r"-\dubuntu1$")

Problem = dict[str, str]


def _problem(code: str, message: str) -> Problem:
    return {"code": code, "message": message}


def platform(settings: dict[str, Any], selection: dict[str, Any] | None, observed: dict[str, Any]) -> list[Problem]:
    """Whether the source has packages for this host's distribution at all."""
    if selection is not None and (settings["source"] != "nvidia_repo" or selection["directory"]):
        return []
    runs = " ".join(part or "?" for part in (observed["distribution"]["id"], observed["distribution"]["version_id"]))
    return [
        _problem(
            "no_such_source",
            f"cuda_driver_source is {settings['source']} and this host runs {runs}, for which no packages of that "
            f"source are known. Set cuda_driver_source to none and install the driver by your own means.",
        )
    ]


def contradictions(settings: dict[str, Any], selection: dict[str, Any]) -> Iterator[Problem]:
    """Settings that contradict each other or the source's table."""
    branch, version = settings["branch"], settings["version"]
    if version and branch_of(version) != branch:
        yield _problem(
            "version_not_of_branch",
            f"cuda_driver_version is {version} and cuda_driver_branch is {branch}; wanted is a version of that branch. "
            f"Set cuda_driver_branch to {branch_of(version)}, or name a version of {branch}.",
        )
    if selection["branches"] and branch not in selection["branches"]:
        has = " and ".join(str(number) for number in selection["branches"])
        yield _problem(
            "branch_not_in_source",
            f"cuda_driver_branch is {branch}; the distribution itself has {has} only. "
            f"Set cuda_driver_source to nvidia_repo, or cuda_driver_branch to {selection['branches'][-1]}.",
        )
    if settings["toolkit"]:
        yield from _toolkit(settings["toolkit"], branch)
    ollama = settings["ollama_version"]
    serves = ollama_serves(version or f"{branch}.0", ollama)
    if settings["gpu_required"] and serves["ok"] is False:
        yield _problem(
            "branch_too_old",
            f"cuda_driver_branch is {branch}; Ollama {ollama or '0.30 and later'} wants {serves['minimum']} or newer "
            f"and would serve from the CPU without saying so. Set cuda_driver_branch to 580.",
        )


def _toolkit(toolkit: str, branch: int) -> Iterator[Problem]:
    major = int(toolkit.partition("-")[0])
    needs = TOOLKITS.get(major)
    if needs is None or branch < needs:
        why = f"wants driver branch {needs} or newer" if needs else "is not one that this release knows (12 or 13)"
        yield _problem(
            "toolkit_too_new",
            f"cuda_toolkit is {toolkit}: CUDA {major} {why}, and cuda_driver_branch is {branch}. "
            f"Set a newer cuda_driver_branch or an older cuda_toolkit; Ollama itself needs no toolkit.",
        )


def host(
    settings: dict[str, Any],
    selection: dict[str, Any],
    observed: dict[str, Any],
    gpus: Sequence[dict[str, Any]],
) -> Iterator[Problem]:
    """Cards and firmware that the driver does not fit."""
    old = [f"{number:04x}" for number in observed["cards"] or [] if number < FIRST_TURING_ID]
    old += [
        gpu["name"]
        for gpu in gpus
        if gpu.get("compute_capability") and version_key(gpu["compute_capability"]) < version_key(OPEN_CAPABILITY)
    ]
    if settings["flavour"] == "open" and old:
        yield _problem(
            "open_on_old_card",
            f"cuda_driver_flavour is open, and this host has a card from before Turing ({', '.join(old)}), which the "
            f"open modules do not drive. Set cuda_driver_flavour to proprietary and cuda_driver_branch to 580, the "
            f"last one for such cards.",
        )
    if observed["cards"] == [] and settings["gpu_required"]:
        yield _problem(
            "no_card",
            "No display controller of NVIDIA's is on this host's PCI bus; a driver would drive nothing. "
            "Search for an unseated card, or set cuda_driver_source to none and ollama_gpu_required to false.",
        )
    if observed["secure_boot"] and selection["builds"] and not settings.get("signed_module"):
        yield _problem(
            "secure_boot",
            "Secure Boot is on and this source builds the module on the host, which the firmware would not load "
            "unsigned. Take a source with signed modules (Ubuntu: cuda_driver_source=distro), or switch Secure Boot "
            "off in the firmware, or enrol DKMS's key by hand: `mokutil --import /var/lib/dkms/mok.pub`, then confirm "
            "at the console on the next boot, and set cuda_module_signed to true.",
        )


def other_source(
    settings: dict[str, Any], selection: dict[str, Any], observed: dict[str, Any]
) -> tuple[list[str], list[Problem]]:
    """``(packages to remove, problems)``: one source a host."""
    names, files = _names_of_other_source(settings, selection, observed), observed["sources"]
    if settings["remove_other"]:
        version = driver_version(observed, names)
        return (sorted(set(names) | set(family(observed, version))) if names else []), []
    if not names and not files:
        return [], []
    found = [f"packages {', '.join(sorted(set(names))[:4])}"] if names else []
    found += [f"the APT source {', '.join(files)}"] if files else []
    return [], [
        _problem(
            "two_sources",
            f"cuda_driver_source is {settings['source']}, and this host has a driver or a source from elsewhere: "
            f"{' and '.join(found)}. Two sources of one driver break each other. Remove the other one, or set "
            f"cuda_remove_other_source to true and let this role do it.",
        )
    ]


def _names_of_other_source(settings: dict[str, Any], selection: dict[str, Any], observed: dict[str, Any]) -> list[str]:
    packages = observed["packages"]
    marks = [name for names in selection["others"].values() for name in names if name in packages]
    if settings["source"] != "distro":
        return marks + [name for name in packages if DISTRIBUTIONS_OWN.match(name)]
    if observed["distribution"]["id"] != "ubuntu":
        return marks
    return marks + [
        name
        for name, package in packages.items()
        if FAMILY.match(name) and upstream(package["version"]) and NVIDIAS_REVISION.search(package["version"])
    ]


def offer(
    settings: dict[str, Any], selection: dict[str, Any], offered: dict[str, list[str]], target: str | None
) -> list[Problem]:
    """What the source does not have."""
    first = selection["packages"][0]
    has = sorted({found for found in map(upstream, offered.get(first, [])) if found}, key=version_key)
    if target is None or target not in has:
        lists = f"it has {', '.join(has)}"
        reason = lists if has else f"it has no package {first} at all. {selection['enable']}".strip()
        branch, version = settings["branch"], settings["version"]
        asked = f"cuda_driver_version {version}" if version else f"cuda_driver_branch {branch}"
        return [
            _problem(
                "branch_not_in_source",
                f"{asked} is not in the source {settings['source']}; {reason}. "
                f"Name one of these, or correct cuda_repo_url.",
            )
        ]
    plain = selection["modules"] + selection["toolkit"] + ([selection["pin"]] if selection["pin"] else [])
    missing = [name for name in selection["packages"] if not full_version(offered, name, target)]
    missing += [name for name in plain if name not in offered]
    if not missing:
        return []
    of_toolkit = selection["toolkit"] and selection["toolkit"][0] in missing
    return [
        _problem(
            "toolkit_not_in_source" if of_toolkit else "package_not_in_source",
            f"The source {settings['source']} has no {', '.join(missing)} for driver {target}. "
            f"Choose another cuda_driver_version or cuda_toolkit.",
        )
    ]


def full_version(offered: dict[str, list[str]], name: str, target: str) -> str | None:
    """The package version of a driver version, the highest revision; None where the source has none."""
    versions = [version for version in offered.get(name, []) if upstream(version) == target]
    return max(versions, key=version_key, default=None)


def step(settings: dict[str, Any], action: str, installed: str | None, target: str) -> list[Problem]:
    """Steps that need a word of the operator's."""
    if action in ("upgrade", "downgrade", "change") and not settings["upgrade"]:
        what = f"{installed} to {target}" if installed != target else f"{target}, another flavour"
        return [
            _problem(
                "upgrade_not_asked",
                f"A driver is installed, and the inventory wants another: {what}. A driver is not replaced under a "
                f"running host by the way. Run playbooks/upgrade_driver.yml, which takes one host after the other, or "
                f"set cuda_driver_upgrade to true for this run.",
            )
        ]
    if action == "downgrade" and not settings["downgrade"]:
        return [
            _problem(
                "downgrade_not_asked",
                f"Driver {installed} is installed and {target} is wanted, which is older. Set cuda_driver_downgrade "
                f"to true if you mean it, or cuda_driver_version to {installed} or newer.",
            )
        ]
    return []
