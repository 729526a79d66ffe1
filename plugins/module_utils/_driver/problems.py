# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What is wrong with the driver that a host has, and whether a reboot is due and safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .versions import ollama_serves, version_key

Problems = Iterator[dict[str, str]]

SUPPORTED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}


def reboot(observed: dict[str, Any]) -> dict[str, Any]:
    """``{"needed": bool, "reason": str or None, "safe": bool, "blocked_by": str or None}``.

    Compares loaded, on disk for the running kernel, and library. ``safe`` is the gate: the kernel that will boot
    has a module, of the version that the library needs. A host without any driver has nothing to lose by a reboot.
    """
    reason, blocked = _reason(observed), _blocked(observed)
    return {"needed": reason is not None, "reason": reason, "safe": blocked is None, "blocked_by": blocked}


def _reason(observed: dict[str, Any]) -> str | None:
    """Why a reboot is needed; None where it is not. A module that is not on disk is no reason: a reboot brings none."""
    loaded, library = observed["loaded_version"], observed["library_version"]
    running, coming = _kernel(observed, "running"), _kernel(observed, "next")
    disk = running["version"] if running else None
    if loaded and disk and loaded != disk:
        return f"The loaded module is {loaded}, the one on disk for the running kernel is {disk}."
    if loaded and library and loaded != library:
        return f"The loaded module is {loaded}, the library is {library}."
    if not loaded and observed["nouveau_loaded"] and disk:
        return f"nouveau holds the card; the module nvidia {disk} can load after a reboot without it."
    if not loaded and not (running and running["path"]) and coming and coming["version"]:
        return (
            f"The running kernel {observed['running_kernel']} has no module nvidia, "
            f"{coming['kernel']}, which boots next, has {coming['version']}."
        )
    return None


def _blocked(observed: dict[str, Any]) -> str | None:
    """Why a reboot would lose the GPU, or might; None where it would not."""
    library, coming = observed["library_version"], _kernel(observed, "next")
    # Without a kernel on disk this is a container: its host decides what boots.
    if not (observed["loaded_version"] or library) or not any(kernel["bootable"] for kernel in observed["kernels"]):
        return None
    if coming is None:
        return None
    kernel = f"Kernel {coming['kernel']}, which boots next,"
    if coming["path"] is None:
        builds = (entry for entry in observed["dkms"] if entry["kernel"] in (coming["kernel"], None))
        failed = [entry for entry in builds if entry["state"] == "failed"]
        because = f" DKMS failed to build {failed[-1]['version']}: {failed[-1]['error']}." if failed else ""
        return (
            f"{kernel} has no module nvidia on disk: a reboot would lose the GPU.{because} "
            f"Build the module for it first, or boot another kernel."
        )
    if coming["version"] is None:
        return (
            f"{kernel} has a module nvidia that could not be read ({coming['error'] or 'it names no version'}), "
            f"so a reboot might lose the GPU. Correct that first, or boot another kernel."
        )
    if library and coming["version"] != library:
        return (
            f"{kernel} has module {coming['version']} on disk, but the library is {library}: "
            f"after a reboot no process could use the GPU. Bring both to one version first."
        )
    if observed["secure_boot"] and coming["signed"] is False:
        return (
            f"Secure Boot is on and the module of kernel {coming['kernel']} is not signed: "
            f"it would not load after a reboot."
        )
    return None


def _kernel(observed: dict[str, Any], key: str) -> dict[str, Any] | None:
    return next((kernel for kernel in observed["kernels"] if kernel[key]), None)


def judge(
    observed: dict[str, Any],
    taken: dict[str, Any],
    ollama_version: str | None = None,
    expected_gpus: Sequence[dict[str, Any]] = (),
) -> list[dict[str, str]]:
    """Problems of the host, ``[{"code", "message", "stops"}]``, worst first; [] for a host that serves.

    Codes: platform, no_library, not_loaded, mismatch, no_permission, no_gpu, error, gpu_lost, gpu_error,
    driver_too_old, gpus_differ, nouveau, reboot_needed, reboot_blocked. ``stops`` says which hosts must not go on:
    "always" any, "gpu" those that need a GPU, "never" none: it is left to the operator.
    ``expected_gpus`` is ``[{"name": part of the name, "count": int}]``; [] expects nothing in particular.
    """
    state = taken["state"]
    problems = [
        *_platform(observed["distribution"]),
        *_no_sample(observed, taken, state),
        *(_problem(f"gpu_{gpu['state']}", gpu["message"]) for gpu in taken["gpus"] if gpu["state"] != "ok"),
        *_too_old(observed, taken, ollama_version),
        *_differing(expected_gpus, taken["gpus"], state),
    ]
    if observed["nouveau_loaded"]:
        text = "The module nouveau is loaded; blacklist it, renew the initramfs and reboot, or it may hold the card."
        problems.append(_problem("nouveau", text))
    wanted = reboot(observed)
    if wanted["needed"]:
        text = f"{wanted['reason']} The host has to be rebooted, or the modules reloaded."
        problems.append(_problem("reboot_needed", text))
    if not wanted["safe"]:
        problems.append(_problem("reboot_blocked", wanted["blocked_by"]))
    return problems


STOPS = {
    "platform": "always",
    "gpus_differ": "always",
    "nouveau": "never",
    "reboot_needed": "never",
    "reboot_blocked": "never",
}


def _problem(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message, "stops": STOPS.get(code, "gpu")}


def _no_sample(observed: dict[str, Any], taken: dict[str, Any], state: str) -> Problems:
    if state != "ok":
        code = {"no_driver": "not_loaded"}.get(state, state)
        yield _problem(code, " ".join([taken["message"], *_why_not_loaded(observed, state)]))


def _platform(distribution: dict[str, str]) -> Problems:
    known, version = SUPPORTED.get(distribution["id"]), distribution["version_id"]
    if known is None or version not in known:
        runs = " ".join(part for part in (distribution["id"], version) if part) or "an unknown system"
        yield _problem(
            "platform",
            f"This host runs {runs}; wanted is Debian 12 or 13, or Ubuntu 22.04, 24.04 or 26.04. "
            f"Install one of these, or leave this host out of the play.",
        )


def _why_not_loaded(observed: dict[str, Any], state: str) -> Iterator[str]:
    """What is known about why the module is not there, or not of the library's version."""
    if state == "mismatch" and observed["loaded_version"] and observed["library_version"] != observed["loaded_version"]:
        yield f"Loaded is {observed['loaded_version']}, the library is {observed['library_version']}."
    if state != "no_driver":
        return
    running = _kernel(observed, "running")
    if observed["nouveau_loaded"]:
        yield "nouveau is loaded."
    if running and not running["path"] and any(kernel["path"] for kernel in observed["kernels"]):
        yield f"The running kernel {running['kernel']} has no module on disk."
    if observed["secure_boot"] and running and running["signed"] is False:
        yield "Secure Boot is on and the module is not signed."
    for entry in observed["dkms"]:
        if entry["state"] == "failed":
            yield f"DKMS failed to build {entry['version']}: {entry['error']}."


def _too_old(observed: dict[str, Any], taken: dict[str, Any], ollama_version: str | None) -> Problems:
    version = observed["loaded_version"] or observed["library_version"]
    capabilities = [gpu["compute_capability"] for gpu in taken["gpus"] if gpu["compute_capability"]]
    oldest = min(capabilities, key=version_key, default=None)
    serves = ollama_serves(version, ollama_version, oldest)
    if serves["ok"] is False:
        yield _problem(
            "driver_too_old",
            f"The NVIDIA driver is {version}; Ollama {ollama_version or '0.30 and later'} wants {serves['minimum']} "
            f"or newer and would serve from the CPU without saying so. Install branch 580.",
        )


def _differing(expected_gpus: Sequence[dict[str, Any]], gpus: Sequence[dict[str, Any]], state: str) -> Problems:
    if not expected_gpus or state not in ("ok", "no_gpu"):
        return
    left = [gpu["name"] or f"GPU {gpu['index']} ({gpu['state']})" for gpu in gpus if gpu["state"] == "ok"]
    found = ", ".join(f"{left.count(name)} x {name}" for name in sorted(set(left))) or "none"
    wanted = ", ".join(f"{entry['count']} x {entry['name']}" for entry in expected_gpus)
    matches = []
    for entry in expected_gpus:
        hits = [name for name in left if entry["name"].lower() in name.lower()]
        left = [name for name in left if name not in hits]
        matches.append(len(hits) == entry["count"])
    if left or not all(matches):
        yield _problem(
            "gpus_differ",
            f"GPUs found: {found}; the inventory wants {wanted}. "
            f"Search for a lost or unseated card, or correct cuda_expected_gpus.",
        )
