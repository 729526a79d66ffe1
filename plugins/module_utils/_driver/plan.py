# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What one apt transaction has to do for the driver that the settings ask for. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import refusals
from .packages import PINNING, driver_version, family, upstream
from .versions import branch, version_key

PREFERENCES = "/etc/apt/preferences.d/gpufleet-nvidia"
PREFERENCES_TEXT = """\
# gpufleet.llm, role cuda: one version for all that belongs to the driver.
Package: {names}
Pin: version {version}-*
Pin-Priority: 1001
"""
NOTHING: dict[str, Any] = {
    "installed_version": None,
    "target_version": None,
    "action": "refused",
    "problems": [],
    "install": [],
    "pin": None,
    "purge": [],
    "previous": [],
    "previous_pin": None,
    "hold": [],
    "unheld": [],
    "release": [],
    "builds": None,
    "directory": None,
    "preferences": "",
    "previous_preferences": "",
}

Offer = dict[str, list[str]]  # {package: [versions]}


def difference(
    settings: dict[str, Any],
    selection: dict[str, Any] | None,
    observed: dict[str, Any],
    offer: Callable[[], Offer],
    gpus: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What one transaction has to do; the shape is the RETURN of the module driver_plan.

    *settings* and *selection* are those of selection.py, *observed* is packages.observe(). ``offer()`` returns what
    the source has, ``{package: [versions]}``; it is asked only where something is missing. *gpus* are those of a
    sample, for the compute capability of cards whose driver runs.
    """
    found = {key: list(value) if isinstance(value, list) else value for key, value in NOTHING.items()}
    found["problems"] = refusals.platform(settings, selection, observed)
    if selection is None or found["problems"]:
        return found
    installed = driver_version(observed, selection["packages"])
    found.update(
        installed_version=installed,
        builds=selection["builds"],
        directory=selection["directory"],
        previous_preferences=preferences(selection, installed),
    )
    found["purge"], elsewhere = refusals.other_source(settings, selection, observed)
    found["problems"] = [
        *refusals.contradictions(settings, selection),
        *refusals.host(settings, selection, observed, gpus),
        *elsewhere,
    ]
    if found["problems"]:
        return found
    target = settings["version"] or _kept(settings, installed)
    if target and target == installed and _complete(selection, observed, target) and not found["purge"]:
        return {**found, **_nothing_to_do(settings, selection, observed, target)}
    return _transaction(settings, selection, observed, offer(), found, target)


def _kept(settings: dict[str, Any], installed: str | None) -> str | None:
    """The installed version where no other one is asked for."""
    return installed if branch(installed) == settings["branch"] and not settings["upgrade"] else None


def _nothing_to_do(
    settings: dict[str, Any], selection: dict[str, Any], observed: dict[str, Any], target: str
) -> dict[str, Any]:
    hold = holds(selection, observed, target) if settings["hold"] else []
    return {
        "target_version": target,
        "action": "none",
        "pin": selection["pin"],
        "preferences": preferences(selection, target),
        "hold": hold,
        "unheld": [name for name in hold if not observed["packages"][name]["held"]],
    }


def _transaction(
    settings: dict[str, Any],
    selection: dict[str, Any],
    observed: dict[str, Any],
    offered: Offer,
    found: dict[str, Any],
    target: str | None,
) -> dict[str, Any]:
    installed, packages = found["installed_version"], observed["packages"]
    target = target or _newest(offered, selection["packages"], settings["branch"])
    problems = refusals.offer(settings, selection, offered, target)
    if target is None or problems:
        return {**found, "target_version": target, "problems": problems}
    previous = family(observed, installed)
    previous_pin = next((name for name in packages if PINNING.match(name)), None)
    action = _action(selection, observed, installed, target)
    return {
        **found,
        "target_version": target,
        "preferences": preferences(selection, target),
        "action": action,
        "install": _install_list(selection, observed, offered, installed, target),
        "pin": selection["pin"],
        "previous": [f"{name}={packages[name]['version']}" for name in previous],
        "previous_pin": previous_pin,
        "release": sorted(name for name in [*previous, previous_pin] if name and packages[name]["held"]),
        "problems": refusals.step(settings, action, installed, target),
    }


def holds(selection: dict[str, Any], observed: dict[str, Any], version: str | None) -> list[str]:
    """Sorted names that have to be held: the driver's packages, the pin, and the kernel with prebuilt modules."""
    names = set(family(observed, version)) | {name for name in observed["packages"] if PINNING.match(name)}
    if selection["modules"]:
        names |= {name for name in selection["modules"] + selection["kernel"] if name in observed["packages"]}
    return sorted(names)


def _ready(observed: dict[str, Any], name: str) -> bool:
    return name in observed["packages"] and observed["packages"][name]["ok"]


def _complete(selection: dict[str, Any], observed: dict[str, Any], target: str) -> bool:
    """Whether every package of the selection is there, configured, and the driver's own have the target version."""
    packages = observed["packages"]
    plain = selection["modules"] + selection["headers"] + selection["toolkit"]
    plain += [selection["pin"]] if selection["pin"] else []
    pins = [name for name in packages if PINNING.match(name)]
    return (
        all(_ready(observed, name) and upstream(packages[name]["version"]) == target for name in selection["packages"])
        and all(_ready(observed, name) for name in plain)
        and all(any(_ready(observed, name) for name in names) for names in selection["beside"])
        and pins in ([], [selection["pin"]])
        # A half-configured package of the driver's is work to do, also where nobody asked for it by name.
        and all(packages[name]["ok"] for name in family(observed, target))
    )


def _newest(offered: Offer, names: Sequence[str], number: int) -> str | None:
    """The newest version of the branch that all packages have, else that the first one has; None for none.

    The first one's, so that the others are found missing. Debian's security archive has had newer programs and
    libraries than there was an open module for (535.309.01 and 535.261.03).
    """
    each = [{upstream(version) for version in offered.get(name, [])} for name in names]
    for versions in (set.intersection(*each), each[0]):
        found = [version for version in versions if version and branch(version) == number]
        if found:
            return max(found, key=version_key)
    return None


def preferences(selection: dict[str, Any], version: str | None) -> str:
    """APT's preferences that keep a source's packages at one version.

    "" where a pinning package does that, or nothing is to be kept. apt takes a package's newest version for what
    another one depends on, and then finds that the two do not fit.
    """
    if not selection["pin_versions"] or not version:
        return ""
    return PREFERENCES_TEXT.format(names=" ".join(selection["pin_versions"]), version=version)


def _install_list(
    selection: dict[str, Any], observed: dict[str, Any], offered: Offer, installed: str | None, target: str
) -> list[str]:
    def full(name: str) -> str | None:
        return refusals.full_version(offered, name, target)

    exact = list(selection["packages"])
    # What came with the old driver goes along, else it would hold the new one back.
    exact += [name for name in family(observed, installed) if name not in exact and full(name)]
    lines = [f"{name}={full(name)}" for name in exact]
    for names in selection["beside"]:
        chosen = next((name for name in names if name in offered), names[0])
        if chosen not in exact:
            lines.append(f"{chosen}={full(chosen)}" if full(chosen) else chosen)
    plain = selection["headers"] + selection["modules"] + selection["toolkit"]
    return lines + [name for name in plain if not _ready(observed, name)]


def _action(selection: dict[str, Any], observed: dict[str, Any], installed: str | None, target: str) -> str:
    if installed is None:
        return "install"
    if installed == target:
        other_flavour = not all(name in observed["packages"] for name in selection["packages"])
        return "change" if other_flavour else "repair"
    return "upgrade" if version_key(target) > version_key(installed) else "downgrade"
