# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The state of a host beside what the roles declare for it. Changes nothing, loads nothing.

Every source is read by itself: what cannot be read says so, and judge() makes a verdict of it, never "fine".

*declared*::

    {"files": [{"path", "sha256" or "" for 'is there', "mode", "owner"}],
     "links": {path: target}, "directories": [path],
     "units": {unit: {"state": "active" | "inactive", "enabled": bool, "config": mark or "",
                      "vendor": whether its sandbox is somebody else's (optional),
                      "exposure": its own limit where it has one (optional)}},
     "ports": [port], "models": [name], "ollama_url", "plan_path", "measured_path",
     "guard": {"unit", "interval_s", "state_path", "budgets"} or {},
     "certificates": [pattern], "certificate_days": n, "backup_dir", "backup_days": n or None,
     "gpu_required": bool, "tolerance_mib": n, "unit": "ollama.service", "rootfs", "ollama_version",
     "expected_gpus": [...], "exposure": n, "driver_held": whether the driver's packages have to be held}
"""

from __future__ import annotations

import calendar
import glob
import hashlib
import json
import os
import re
import subprocess
import time
from typing import Any

from .._driver import packages as driver_packages
from .._driver import plan as driver_plan
from .._driver import problems as driver_problems
from .._driver import state as driver_state
from .._gpu import sample
from .._guard import state as guard_state
from .._host import files, listeners, paths, units
from .._host.units import Run
from .._ollama import client as ollama_client
from .._ollama import names as ollama_names

HOUR = 3600.0
SPANS = (("hour", HOUR), ("day", 24 * HOUR))
TIMEOUT_S = 20
CARD_KEYS = (
    "index",
    "name",
    "uuid",
    "state",
    "message",
    "total_mib",
    "used_mib",
    "temperature_c",
    "power_limit_w",
    "throttled",
)
LOADED_KEYS = ("name", "digest", "size", "size_vram", "context_length")


def observe(declared: dict[str, Any], run: Run = subprocess.run, now: float | None = None) -> dict[str, Any]:
    """Everything that judge() needs to know of this host. Raises DriverError for an Ollama version that is not one."""
    now = time.time() if now is None else now
    taken = sample.sample()
    certificates = sorted(path for pattern in declared["certificates"] for path in glob.glob(pattern))
    sandboxed = (unit for unit, wanted in declared["units"].items() if is_sandboxed(unit, wanted))
    ports = listeners.listeners({int(port) for port in declared["ports"]})
    return {
        "at": now,
        "driver": _driver(declared, taken),
        "packages": held_packages(run) if declared["driver_held"] else None,
        "gpus": [_card(gpu, declared["unit"]) for gpu in taken["gpus"]],
        "nvml": taken["state"],
        "files": {one["path"]: file_state(one["path"], bool(one["sha256"])) for one in declared["files"]},
        "links": {path: paths.path_state(path)["target"] for path in declared["links"]},
        "directories": {path: paths.path_state(path)["kind"] for path in declared["directories"]},
        "units": _units(list(declared["units"]), run),
        "exposure": {unit: exposure(unit, run) for unit in sandboxed},
        "listeners": {str(port): found for port, found in ports.items()},
        "ollama": _server(declared["ollama_url"]),
        "plan": _json(declared["plan_path"]),
        "measured": _json(declared["measured_path"]),
        "guard": guard(declared["guard"], now) if declared["guard"] else None,
        "certificates": [certificate(path, run, now) for path in certificates],
        "backup_age_days": newest_age_days(declared["backup_dir"], now),
    }


def _driver(declared: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    state = driver_state.observe(declared["rootfs"], taken)
    version, gpus = declared["ollama_version"] or None, declared["expected_gpus"]
    return {
        "loaded": state["loaded_version"],
        "library": state["library_version"],
        "kernel": state["running_kernel"],
        "next_kernel": state["next_kernel"],
        "flavour": state["flavour"],
        "reboot": driver_problems.reboot(state),
        "problems": driver_problems.judge(state, taken, version, gpus),
    }


def is_sandboxed(unit: str, wanted: dict[str, Any]) -> bool:
    """Whether a declared unit is a running service whose sandbox is the collection's."""
    return wanted["state"] == "active" and unit.endswith(".service") and not wanted.get("vendor")


def _card(gpu: dict[str, Any], unit: str) -> dict[str, Any]:
    others = sum(process["used_mib"] or 0 for process in gpu["processes"] or () if process["unit"] != unit)
    held = None if gpu["used_mib"] is None else max(gpu["used_mib"] - others, 0)
    return {**{key: gpu[key] for key in CARD_KEYS}, "held_mib": held, "others_mib": others}


def held_packages(run: Run) -> dict[str, Any]:
    """{version, unheld, error} of the driver's packages."""
    try:
        observed = driver_packages.observe(run=run)
    except driver_packages.PackagesError as error:
        return {"version": None, "unheld": [], "error": str(error)}
    version = driver_packages.driver_version(observed)
    names = driver_plan.holds({"modules": []}, observed, version)
    unheld = [name for name in names if not observed["packages"][name]["held"]]
    return {"version": version, "unheld": unheld, "error": None}


def file_state(path: str, content: bool) -> dict[str, Any]:
    """{kind, owner, mode, sha256} of a file; the digest only where *content* asks for it."""
    state = paths.path_state(path)
    digest = None
    if content and state["kind"] == "file":
        try:
            with open(path, "rb") as handle:
                digest = hashlib.sha256(handle.read()).hexdigest()
        except OSError:
            digest = "unreadable"
    return {"kind": state["kind"], "owner": state["owner"], "mode": state["mode"], "sha256": digest}


def _units(names: list[str], run: Run) -> dict[str, Any]:
    try:
        return units.units(names, run=run)
    except units.HostError as error:
        return {"error": str(error)}


def exposure(unit: str, run: Run = subprocess.run) -> float | None:
    """systemd's own figure for how much a unit could do, 0 (nothing) to 10; None where it does not say."""
    command = ["systemd-analyze", "security", "--no-pager", unit]
    try:
        done = run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(rb"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    return float(found.group(1)) if found else None


def _server(url: str) -> dict[str, Any]:
    client = ollama_client.Client(url, timeout=10, retries=1)
    try:
        return {
            "version": client.version(),
            "models": {ollama_names.short_name(one["name"]): one["digest"] for one in client.tags()},
            "loaded": [{key: one.get(key) for key in LOADED_KEYS} for one in client.ps()],
            "error": None,
        }
    except (ollama_client.OllamaError, KeyError, ValueError) as error:
        return {"version": None, "models": {}, "loaded": [], "error": str(error)}
    finally:
        client.close()


def _json(path: str) -> Any:
    try:
        return json.loads(files.text_or_none(path) or "")
    except ValueError:
        return None


def guard(declared: dict[str, Any], now: float) -> dict[str, Any]:
    """{age_s, fence, mode, action, rule, spent: {kind: {hour, day}}, error} of the guard's state file.

    Where the file cannot be read or understood, ``error`` says why and all else is None.
    """
    try:
        state = json.loads(files.read_text(declared["state_path"]) or "")
        history, last = guard_state.validated(state["history"]), state["last"]
        return {
            "age_s": round(now - last["at"], 1),
            "fence": history["fence"],
            "mode": history["mode"],
            "action": last["record"]["action"],
            "rule": last["record"]["rule"],
            "spent": {kind: _spent(history, kind) for kind in declared["budgets"]},
            "error": None,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        nothing = dict.fromkeys(("age_s", "fence", "mode", "action", "rule"))
        return {**nothing, "spent": {}, "error": f"{type(error).__name__}: {error}"}


def _spent(history: dict[str, Any], kind: str) -> dict[str, int]:
    """{span: how many actions of that kind it has seen}."""
    ages = [history["clock"] - at for at, one in history["spent"] if one == kind]
    return {span: sum(age < length for age in ages) for span, length in SPANS}


def certificate(path: str, run: Run = subprocess.run, now: float | None = None) -> dict[str, Any]:
    """{path, days} until a certificate ends; days None where openssl cannot read it."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", path]
    try:
        done = run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        text = done.stdout.decode("ascii", "replace").partition("notAfter=")[2].strip()
        ends = calendar.timegm(time.strptime(text.replace(" GMT", ""), "%b %d %H:%M:%S %Y"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {"path": path, "days": None}
    return {"path": path, "days": round((ends - (time.time() if now is None else now)) / 86400, 1)}


def newest_age_days(folder: str, now: float) -> float | None:
    """Days since the newest entry of a folder was changed; None for none."""
    try:
        times = [os.stat(os.path.join(folder, name)).st_mtime for name in os.listdir(folder)] if folder else []
    except OSError:
        times = []
    return round((now - max(times)) / 86400, 2) if times else None
