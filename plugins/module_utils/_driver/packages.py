# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Which packages make the driver that is wanted, and what stands between a host and them.

``wanted()`` reads a table of package names, ``observe()`` the host, ``difference()`` compares the two and says what one
apt transaction has to do. None of them changes anything. The tables are roles/cuda/files/packages/<distribution>.yml::

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

Wishes: ``{"source", "branch": int, "version": str or "", "flavour", "toolkit": "13-0" or "", "upgrade": bool,
"downgrade": bool, "remove_other": bool, "hold": bool, "gpu_required": bool, "ollama_version": str or None}``.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess

from . import state

# Packages that belong to a driver when they have its version; a toolkit's do not.
FAMILY = re.compile(r"^(lib)?(nvidia|nvcuvid|nvoptix|cuda)|^libcuda|^firmware-nvidia|^linux-modules-nvidia|^xserver-xorg-video-nvidia")
PINNING = re.compile(r"^nvidia-driver-pinning-")
DRIVER_VERSION = re.compile(r"^\d{3}\.\d+(\.\d+)?$")
# CUDA's major number and the oldest branch that runs it (NVIDIA's minor version compatibility).
TOOLKITS = {12: 525, 13: 580}
# The open modules want Turing. Its first PCI device number is 0x1e02, all before are older (NVIDIA's list of supported chips).
FIRST_TURING_ID = 0x1E00
OPEN_CAPABILITY = "7.5"
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")
FOREIGN = re.compile(r"/compute/cuda/repos/|nvidia\.com")
OUR_SOURCE = "etc/apt/sources.list.d/gpufleet-nvidia.sources"
PREFERENCES = "/etc/apt/preferences.d/gpufleet-nvidia"


class PackagesError(Exception):
    """The host or its source could not be read; the text is fit for an operator."""


# ---- the wish --------------------------------------------------------------------------------------------------------


def wanted(wishes, distribution, table):
    """``{"packages", "modules", "beside", "pin", "headers", "toolkit", "builds", "directory", …}`` with names filled in.

    ``table`` is a distribution's file; None where it has no such source.
    """
    source = (table or {}).get(wishes["source"])
    if not source:
        return None
    branch, flavour = wishes["branch"], wishes["flavour"]
    chosen = next((one for one in source["sets"] if branch < one.get("below", branch + 1)), None)
    if chosen is None:
        return None

    def named(names):
        return [name.format(branch=branch) for name in names]

    return {
        "packages": named(chosen["packages"][flavour]),
        "modules": named(chosen.get("modules", {}).get(flavour, [])),
        "beside": [named(names) for names in chosen.get("beside", [])],
        "pin": source["pin"].format(pin=wishes["version"] or branch) if source.get("pin") else None,
        "pin_versions": source.get("pin_versions", []),
        "headers": source.get("headers", []),
        "toolkit": [f"cuda-toolkit-{wishes['toolkit']}"] if wishes.get("toolkit") else [],
        "builds": source.get("builds", True),
        "directory": source.get("directories", {}).get(distribution["version_id"]),
        "branches": source.get("branches", {}).get(distribution["version_id"]),
        "marks": source.get("marks", []),
        "kernel": source.get("kernel", []),
        "enable": source.get("enable", ""),
        "others": {name: other.get("marks", []) for name, other in table.items() if name != wishes["source"]},
    }


def upstream(version):
    """The driver's version in a package's: 580.95.05 of "1:580.95.05-0ubuntu1"; None where there is none."""
    bare = re.sub(r"^\d+:", "", version or "").partition("-")[0].partition("+")[0]
    return bare if DRIVER_VERSION.match(bare) else None


# ---- the host --------------------------------------------------------------------------------------------------------


def observe(root="/", run=subprocess.run, hardware="/"):
    """``{"distribution", "packages", "cards", "sources", "secure_boot"}`` of a host.

    packages: ``{name: {"version", "ok": configured, "held", "maintainer"}}`` of what dpkg knows and has not removed.
    cards: PCI device numbers of NVIDIA's display controllers, None where the bus cannot be seen.
    sources: APT's files, other than the role's own, that name a repository of NVIDIA's.
    ``hardware`` is the folder below which /sys of the host is seen.
    """
    return {
        "distribution": state.distribution(root),
        "packages": parse_dpkg(_asked(["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${db:Status-Abbrev}\\t${Maintainer}\\n"], run)),
        "cards": cards(hardware),
        "sources": foreign_sources(root),
        "secure_boot": state.secure_boot(hardware, run),
    }


def _asked(command, run):
    try:
        done = run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackagesError(f"`{command[0]}` could not be asked ({error}); wanted is a host with dpkg and apt.") from error
    if done.returncode:
        raise PackagesError(f"`{command[0]}` answered {done.returncode} ({done.stderr.strip()}); repair dpkg first: `dpkg --configure -a`.")
    return done.stdout


def parse_dpkg(text):
    """The packages of a dpkg-query answer; what is removed, with or without its settings, is left out."""
    found = {}
    for line in text.splitlines():
        name, version, status, maintainer = (line.split("\t") + ["", "", ""])[:4]
        if len(status) >= 2 and status[1] not in "nc":
            found[name] = {"version": version, "ok": status[1] == "i" and status[2:3] in ("", " "), "held": status[0] == "h", "maintainer": maintainer}
    return found


def cards(root="/"):
    """``[0x2684, …]`` of the PCI bus, None where it cannot be seen (a container without /sys)."""
    folder = os.path.join(root, "sys/bus/pci/devices")
    if not os.path.isdir(folder):
        return None
    found = []
    for device in sorted(os.listdir(folder)):
        vendor, kind, number = ((state.read(folder, os.path.join(device, name)) or "").strip() for name in ("vendor", "class", "device"))
        if vendor == NVIDIA_VENDOR and kind[:6] in DISPLAY_CLASSES:
            found.append(int(number, 16))
    return found


def foreign_sources(root="/"):
    """Files of APT's that name a repository of NVIDIA's and are not the role's."""
    found = []
    for pattern in ("etc/apt/sources.list", "etc/apt/sources.list.d/*.list", "etc/apt/sources.list.d/*.sources"):
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            short = os.path.relpath(path, root)
            lines = [line for line in (state.read(root, short) or "").splitlines() if not line.lstrip().startswith("#")]
            if short != OUR_SOURCE and any("/compute/cuda/repos/" in line for line in lines):
                found.append("/" + short)
    return found


def driver_version(observed, names=()):
    """The version of the driver that is installed: of the first of ``names`` that is there, else of most of its packages."""
    for name in names:
        version = upstream(observed["packages"].get(name, {}).get("version"))
        if version:
            return version
    versions = [upstream(package["version"]) for name, package in observed["packages"].items() if FAMILY.match(name) and not PINNING.match(name)]
    versions = [version for version in versions if version]
    return max(versions, key=versions.count) if versions else None


def family(observed, version):
    """Names of the installed packages that came with a driver of this version, sorted."""
    return sorted(
        name
        for name, package in observed["packages"].items()
        if version and FAMILY.match(name) and not PINNING.match(name) and upstream(package["version"]) == version
    )


def parse_index(text):
    """``{package: [versions]}`` of an APT index (the file Packages)."""
    found = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.+)$", stanza, re.MULTILINE))
        if len(fields) == 2:
            found.setdefault(fields["Package"], []).append(fields["Version"].strip())
    return found


def parse_madison(text):
    """The same of `apt-cache madison`."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 3 and "Packages" in cells[2]:
            found.setdefault(cells[0], []).append(cells[1])
    return found


def ask_apt(wish, run=subprocess.run):
    """What apt's own lists offer of the packages that a wish names, ``{package: [versions]}``."""
    names = wish["packages"] + wish["modules"] + wish["headers"] + wish["toolkit"] + [name for names in wish["beside"] for name in names]
    return parse_madison(_asked(["apt-cache", "madison", *names], run))


# ---- the difference --------------------------------------------------------------------------------------------------


def difference(wishes, wish, observed, offer, gpus=()):
    """What one transaction has to do; the shape is the RETURN of the module driver_plan.

    ``offer()`` returns what the source has, ``{package: [versions]}``; it is asked only where something is missing.
    ``gpus`` are _nvml's, for the compute capability of cards whose driver runs.
    """
    found = _empty()
    found["problems"] = list(_platform(wishes, wish, observed))
    if found["problems"]:
        return found
    installed = driver_version(observed, wish["packages"])
    found.update(installed_version=installed, builds=wish["builds"], directory=wish["directory"], back_preferences=preferences(wish, installed))
    found["problems"] += _wish_problems(wishes, wish) + _host_problems(wishes, wish, observed, gpus)
    found["purge"], other = _other_source(wishes, wish, observed)
    found["problems"] += other
    if found["problems"]:
        return found
    target = wishes["version"] or (installed if state.branch(installed) == wishes["branch"] and not wishes["upgrade"] else None)
    if target and target == installed and _complete(wish, observed, target) and not found["purge"]:
        found.update(target_version=target, action="none", pin=wish["pin"], preferences=preferences(wish, target))
        found["hold"] = holds(wish, observed, target) if wishes["hold"] else []
        found["unheld"] = [name for name in found["hold"] if not observed["packages"][name]["held"]]
        return found
    offered = offer()
    target = target or _newest(offered, wish["packages"], wishes["branch"])
    found["target_version"] = target
    found["problems"] += _offer_problems(wishes, wish, offered, target)
    if found["problems"]:
        return found
    found["preferences"] = preferences(wish, target)
    found["action"] = _action(wish, observed, installed, target)
    found["install"], found["pin"] = _install_list(wish, observed, offered, installed, target), wish["pin"]
    found["back"] = [f"{name}={observed['packages'][name]['version']}" for name in family(observed, installed)]
    found["back_pin"] = next((name for name in observed["packages"] if PINNING.match(name)), None)
    found["release"] = sorted(name for name in [*family(observed, installed), found["back_pin"]] if name and observed["packages"][name]["held"])
    found["problems"] += _step_problems(wishes, found, installed)
    return found


def _empty():
    return {
        "installed_version": None, "target_version": None, "action": "refused", "problems": [], "install": [], "pin": None, "purge": [],
        "back": [], "back_pin": None, "hold": [], "unheld": [], "release": [], "builds": None, "directory": None,
        "preferences": "", "back_preferences": "",
    }  # fmt: skip


def holds(wish, observed, version):
    """Names that have to be held, sorted: the driver's packages, the pin, and the kernel where prebuilt modules go with it."""
    names = set(family(observed, version)) | {name for name in observed["packages"] if PINNING.match(name)}
    if wish["modules"]:
        names |= {name for name in wish["modules"] + wish["kernel"] if name in observed["packages"]}
    return sorted(names)


def _ready(observed, name):
    return name in observed["packages"] and observed["packages"][name]["ok"]


def _complete(wish, observed, target):
    versioned = all(_ready(observed, name) and upstream(observed["packages"][name]["version"]) == target for name in wish["packages"])
    plain = all(_ready(observed, name) for name in wish["modules"] + wish["headers"] + wish["toolkit"] + ([wish["pin"]] if wish["pin"] else []))
    pins = [name for name in observed["packages"] if PINNING.match(name)]
    beside = all(any(_ready(observed, name) for name in names) for names in wish["beside"])
    # A half-configured package of the driver's is work to do, also where nobody asked for it by name.
    return versioned and plain and beside and pins in ([], [wish["pin"]]) and all(observed["packages"][name]["ok"] for name in family(observed, target))


def _newest(offered, names, branch):
    """The newest version of the branch that all packages have, else that the first one has, so that the others are found missing.

    Debian's security archive has had newer programs and libraries than there was an open module for (535.309.01 and 535.261.03).
    """
    each = [{upstream(version) for version in offered.get(name, [])} for name in names]
    for versions in (set.intersection(*each), each[0]):
        found = [version for version in versions if version and state.branch(version) == branch]
        if found:
            return max(found, key=state.version_key)
    return None


def preferences(wish, version):
    """APT's preferences that keep a source's packages at one version; "" where a pinning package does, or nothing is to be kept.

    apt takes a package's newest version for what another one depends on, and then finds that the two do not fit.
    """
    if not wish["pin_versions"] or not version:
        return ""
    names = " ".join(wish["pin_versions"])
    return f"# gpufleet.llm, role cuda: one version for all that belongs to the driver.\nPackage: {names}\nPin: version {version}-*\nPin-Priority: 1001\n"


def _full(offered, name, target):
    """The package version of a driver version, the highest revision; None where the source has none."""
    versions = [version for version in offered.get(name, []) if upstream(version) == target]
    return max(versions, key=state.version_key, default=None)


def _install_list(wish, observed, offered, installed, target):
    exact = list(wish["packages"])
    # What came with the old driver goes along, else it would hold the new one back.
    exact += [name for name in family(observed, installed) if name not in exact and _full(offered, name, target)]
    lines = [f"{name}={_full(offered, name, target)}" for name in exact]
    for names in wish["beside"]:
        chosen = next((name for name in names if name in offered), names[0])
        full = _full(offered, chosen, target)
        if chosen not in exact:
            lines.append(f"{chosen}={full}" if full else chosen)
    lines += [name for name in wish["headers"] + wish["modules"] + wish["toolkit"] if not _ready(observed, name)]
    return lines


def _action(wish, observed, installed, target):
    if installed is None:
        return "install"
    if installed == target:
        other_flavour = not all(name in observed["packages"] for name in wish["packages"])
        return "change" if other_flavour else "repair"
    return "upgrade" if state.version_key(target) > state.version_key(installed) else "downgrade"


# ---- what is refused, before anything is changed ---------------------------------------------------------------------


def _problem(code, message):
    return {"code": code, "message": message}


def _platform(wishes, wish, observed):
    told = " ".join(part or "?" for part in (observed["distribution"]["id"], observed["distribution"]["version_id"]))
    if wish is None or (wishes["source"] == "nvidia_repo" and not wish["directory"]):
        yield _problem(
            "no_such_source",
            f"cuda_driver_source is {wishes['source']} and this host runs {told}, for which no packages of that source are known. "
            f"Set cuda_driver_source to none and install the driver by your own means.",
        )


def _wish_problems(wishes, wish):
    found = []
    branch, version = wishes["branch"], wishes["version"]
    if version and state.branch(version) != branch:
        found.append(
            _problem(
                "version_not_of_branch",
                f"cuda_driver_version is {version} and cuda_driver_branch is {branch}; wanted is a version of that branch. "
                f"Set cuda_driver_branch to {state.branch(version)}, or name a version of {branch}.",
            )
        )
    if wish["branches"] and branch not in wish["branches"]:
        has = " and ".join(str(number) for number in wish["branches"])
        found.append(
            _problem(
                "branch_not_in_source",
                f"cuda_driver_branch is {branch}; the distribution itself has {has} only. "
                f"Set cuda_driver_source to nvidia_repo, or cuda_driver_branch to {wish['branches'][-1]}.",
            )
        )
    if wishes["toolkit"]:
        major = int(wishes["toolkit"].partition("-")[0])
        needs = TOOLKITS.get(major)
        if needs is None or branch < needs:
            why = f"wants driver branch {needs} or newer" if needs else "is none that this release knows (12 or 13)"
            found.append(
                _problem(
                    "toolkit_too_new",
                    f"cuda_toolkit is {wishes['toolkit']}: CUDA {major} {why}, and cuda_driver_branch is {branch}. "
                    f"Set a newer cuda_driver_branch or an older cuda_toolkit; Ollama itself needs none.",
                )
            )
    serves = state.ollama_serves(version or f"{branch}.0", wishes["ollama_version"])
    if wishes["gpu_required"] and serves["ok"] is False:
        found.append(
            _problem(
                "branch_too_old",
                f"cuda_driver_branch is {branch}; Ollama {wishes['ollama_version'] or '0.30 and later'} wants {serves['minimum']} or newer and would "
                f"serve from the CPU without saying so. Set cuda_driver_branch to 580.",
            )
        )
    return found


def _host_problems(wishes, wish, observed, gpus):
    found = []
    old = [f"{number:04x}" for number in observed["cards"] or [] if number < FIRST_TURING_ID]
    old += [gpu["name"] for gpu in gpus if gpu.get("compute_capability") and state.version_key(gpu["compute_capability"]) < state.version_key(OPEN_CAPABILITY)]
    if wishes["flavour"] == "open" and old:
        found.append(
            _problem(
                "open_on_old_card",
                f"cuda_driver_flavour is open, and this host has a card from before Turing ({', '.join(old)}), which the open modules do not drive. "
                f"Set cuda_driver_flavour to proprietary and cuda_driver_branch to 580, the last one for such cards.",
            )
        )
    if observed["cards"] == [] and wishes["gpu_required"]:
        found.append(
            _problem(
                "no_card",
                "No display controller of NVIDIA's is on this host's PCI bus; a driver would drive nothing. "
                "Look for an unseated card, or set cuda_driver_source to none and ollama_gpu_required to false.",
            )
        )
    if observed["secure_boot"] and wish["builds"] and not wishes.get("signed_module"):
        found.append(
            _problem(
                "secure_boot",
                "Secure Boot is on and this source builds the module on the host, which the firmware would not load unsigned. Take a source with "
                "signed modules (Ubuntu: cuda_driver_source=distro), or switch Secure Boot off in the firmware, or enrol DKMS's key by hand: "
                "`mokutil --import /var/lib/dkms/mok.pub`, then confirm at the console on the next boot, and set cuda_module_signed to true.",
            )
        )
    return found


def _other_source(wishes, wish, observed):
    """``(packages to remove, problems)``: one source a host."""
    marks = [name for names in wish["others"].values() for name in names]
    if wishes["source"] == "distro":
        theirs = [name for name in marks if name in observed["packages"]]
        # Names are shared on Ubuntu; the revision tells.
        theirs += [
            name
            for name, package in observed["packages"].items()
            if FAMILY.match(name)
            and upstream(package["version"])
            and observed["distribution"]["id"] == "ubuntu"
            and re.search(r"-\dubuntu1$", package["version"])
        ]
    else:
        theirs = [name for name in marks if name in observed["packages"]]
        theirs += [name for name in observed["packages"] if re.match(r"^(linux-modules-nvidia-|nvidia-(headless|utils|compute-utils)-.*-server)", name)]
    files = observed["sources"]
    if not theirs and not files:
        return [], []
    if wishes["remove_other"]:
        version = driver_version(observed, theirs)
        return (sorted(set(theirs) | set(family(observed, version))) if theirs else []), []
    seen = [f"packages {', '.join(sorted(set(theirs))[:4])}" if theirs else "", f"the APT source {', '.join(files)}" if files else ""]
    return [], [
        _problem(
            "two_sources",
            f"cuda_driver_source is {wishes['source']}, and this host has a driver or a source from elsewhere: {' and '.join(part for part in seen if part)}. "
            f"Two sources of one driver break each other. Remove the other one, or set cuda_remove_other_source to true and let this role do it.",
        )
    ]


def _offer_problems(wishes, wish, offered, target):
    first = wish["packages"][0]
    has = sorted({upstream(version) for version in offered.get(first, []) if upstream(version)}, key=state.version_key)
    told = f"it has {', '.join(has)}" if has else f"it has no package {first} at all. {wish['enable']}".strip()
    asked = f"cuda_driver_version {wishes['version']}" if wishes["version"] else f"cuda_driver_branch {wishes['branch']}"
    if target is None or target not in has:
        return [_problem("branch_not_in_source", f"{asked} is not in the source {wishes['source']}; {told}. Name one of these, or correct cuda_repo_url.")]
    missing = [name for name in wish["packages"] if not _full(offered, name, target)]
    missing += [name for name in wish["modules"] + wish["toolkit"] + ([wish["pin"]] if wish["pin"] else []) if name not in offered]
    if missing:
        code = "toolkit_not_in_source" if wish["toolkit"] and wish["toolkit"][0] in missing else "package_not_in_source"
        return [
            _problem(
                code, f"The source {wishes['source']} has no {', '.join(missing)} for driver {target}. Choose another cuda_driver_version or cuda_toolkit."
            )
        ]
    return []


def _step_problems(wishes, found, installed):
    target = found["target_version"]
    if found["action"] in ("upgrade", "downgrade", "change") and not wishes["upgrade"]:
        what = f"{installed} to {target}" if installed != target else f"{target}, another flavour"
        yield _problem(
            "upgrade_not_asked",
            f"A driver is installed, and the inventory wants another: {what}. A driver is not replaced under a running host by the way. "
            f"Run playbooks/upgrade_driver.yml, which takes one host after the other, or set cuda_driver_upgrade to true for this run.",
        )
    elif found["action"] == "downgrade" and not wishes["downgrade"]:
        yield _problem(
            "downgrade_not_asked",
            f"Driver {installed} is installed and {target} is wanted, which is older. Set cuda_driver_downgrade to true if you mean it, or cuda_driver_version "
            f"to {installed} or newer.",
        )
