# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Is a host still what was made of it? One look at everything, then verdicts; nothing is changed, nothing is loaded.

``observe(wants)`` reads the host, ``judge(seen, wants)`` makes verdicts of it (shape: ``_soak.verdicts``), and ``across(hosts)``,
on the controller, finds the host that differs from the others. Every source is read by itself: what cannot be read is a
verdict, never a traceback and never "fine".

*wants*::

    {"files": [{"path", "sha256" or "" for 'is there', "mode", "owner"}], "links": {path: target}, "directories": [path],
     "units": {unit: {"state": "active" | "inactive", "enabled": bool, "config": mark or "", "vendor": whether its sandbox is somebody
     else's (optional), "exposure": its own limit where it has one (optional)}}, "ports": [port], "models": [name],
     "ollama_url", "plan_path", "measured_path", "guard": {"unit", "interval_s", "state_path", "budgets"} or {},
     "certificates": [pattern], "certificate_days": n, "backup_dir", "backup_days": n or None, "gpu_required": bool,
     "tolerance_mib": n, "unit": "ollama.service", "rootfs", "ollama_version", "expected_gpus": [...], "exposure": n,
     "driver_held": bool}    # whether the driver's packages have to be held
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import subprocess
import time

from .._driver import packages as driver_packages
from .._driver import state as driver_state
from .._gpu import sample
from .._guard import state as guard_state
from .._host import listeners, paths, units
from .._ollama import client as ollama_client
from .._ollama import names as ollama_names

LOOPBACK = ("127.", "::1", "::ffff:127.")
HOUR = 3600.0


# --- looking --------------------------------------------------------------------------------------------------------


def observe(wants, run=subprocess.run, now=None):
    """Everything that judge() wants to know of this host."""
    now = time.time() if now is None else now
    taken = sample.sample()
    driver = driver_state.observe(wants["rootfs"], taken)
    return {
        "at": now,
        "driver": {
            "loaded": driver["loaded_version"],
            "library": driver["library_version"],
            "kernel": driver["running_kernel"],
            "next_kernel": driver["next_kernel"],
            "flavour": driver["flavour"],
            "reboot": driver_state.reboot(driver),
            "problems": driver_state.judge(driver, taken, wants["ollama_version"] or None, wants["expected_gpus"]),
        },
        "packages": _held(run) if wants["driver_held"] else None,
        "gpus": [_card(gpu, wants["unit"]) for gpu in taken["gpus"]],
        "nvml": taken["state"],
        "files": {one["path"]: file_state(one["path"], bool(one["sha256"])) for one in wants["files"]},
        "links": {path: paths.path_state(path)["target"] for path in wants["links"]},
        "directories": {path: paths.path_state(path)["kind"] for path in wants["directories"]},
        "units": _units(list(wants["units"]), run),
        "exposure": {unit: exposure(unit, run) for unit, wish in wants["units"].items() if _sandboxed(unit, wish)},
        "listeners": {str(port): found for port, found in listeners.listeners({int(port) for port in wants["ports"]}).items()},
        "ollama": _server(wants["ollama_url"]),
        "plan": _json(wants["plan_path"]),
        "measured": _json(wants["measured_path"]),
        "guard": _guard_state(wants["guard"], now) if wants["guard"] else None,
        "certificates": [certificate(path, run, now) for pattern in wants["certificates"] for path in sorted(glob.glob(pattern))],
        "backup_age_days": newest_age_days(wants["backup_dir"], now),
    }


def _sandboxed(unit, wish):
    return wish["state"] == "active" and unit.endswith(".service") and not wish.get("vendor")


def _card(gpu, unit):
    others = [process["used_mib"] or 0 for process in gpu["processes"] or () if process["unit"] != unit]
    keys = ("index", "name", "uuid", "state", "message", "total_mib", "used_mib", "temperature_c", "power_limit_w", "throttled")
    held = None if gpu["used_mib"] is None else max(gpu["used_mib"] - sum(others), 0)
    return {**{key: gpu[key] for key in keys}, "held_mib": held, "others_mib": sum(others)}


def _held(run):
    """{version, unheld, error} of the driver's packages."""
    try:
        seen = driver_packages.observe(run=run)
    except driver_packages.PackagesError as error:
        return {"version": None, "unheld": [], "error": str(error)}
    version = driver_packages.driver_version(seen)
    names = driver_packages.holds({"modules": []}, seen, version)
    return {"version": version, "unheld": [name for name in names if not seen["packages"][name]["held"]], "error": None}


def file_state(path, content):
    """{kind, owner, mode, sha256} of a file; the digest only where it is asked for."""
    state = paths.path_state(path)
    digest = None
    if content and state["kind"] == "file":
        try:
            with open(path, "rb") as handle:
                digest = hashlib.sha256(handle.read()).hexdigest()
        except OSError:
            digest = "unreadable"
    return {"kind": state["kind"], "owner": state["owner"], "mode": state["mode"], "sha256": digest}


def _units(names, run):
    try:
        return units.units(names, run=run)
    except units.HostError as error:
        return {"error": str(error)}


def exposure(unit, run=subprocess.run):
    """systemd's own figure for how much a unit could do, 0 (nothing) to 10; None where it does not say."""
    try:
        done = run(["systemd-analyze", "security", "--no-pager", unit], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(rb"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    return float(found.group(1)) if found else None


def _server(url):
    client = ollama_client.Client(url, timeout=10, retries=1)
    try:
        keys = ("name", "digest", "size", "size_vram", "context_length")
        return {
            "version": client.version(),
            "models": {ollama_names.short_name(one["name"]): one["digest"] for one in client.tags()},
            "loaded": [{key: one.get(key) for key in keys} for one in client.ps()],
            "error": None,
        }
    except (ollama_client.OllamaError, KeyError, ValueError) as error:
        return {"version": None, "models": {}, "loaded": [], "error": str(error)}
    finally:
        client.close()


def _json(path):
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def _guard_state(guard, now):
    """{age_s, fence, mode, action, rule, spent: {kind: {hour, day}}, error} of the guard's state file."""
    try:
        state = json.loads(guard_state.read(guard["state_path"]) or "")
        history, last = guard_state.validated(state["history"]), state["last"]
        clock = history["clock"]
        spent = {kind: {span: sum(one == kind and clock - at < length for at, one in history["spent"]) for span, length in SPANS} for kind in guard["budgets"]}
        return {
            "age_s": round(now - last["at"], 1), "fence": history["fence"], "mode": history["mode"], "action": last["record"]["action"],
            "rule": last["record"]["rule"], "spent": spent, "error": None,
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"age_s": None, "fence": None, "mode": None, "action": None, "rule": None, "spent": {}, "error": f"{type(error).__name__}: {error}"}


SPANS = (("hour", HOUR), ("day", 24 * HOUR))


def certificate(path, run=subprocess.run, now=None):
    """{path, days} until a certificate ends; days None where openssl cannot read it."""
    days = None
    try:
        done = run(["openssl", "x509", "-noout", "-enddate", "-in", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
        text = done.stdout.decode("ascii", "replace").partition("notAfter=")[2].strip()
        ends = time.mktime(time.strptime(text.replace(" GMT", ""), "%b %d %H:%M:%S %Y")) - time.timezone
        days = round((ends - (time.time() if now is None else now)) / 86400, 1)
    except (OSError, subprocess.SubprocessError, ValueError):
        pass
    return {"path": path, "days": days}


def newest_age_days(folder, now):
    """Days since the newest entry of a folder was changed; None for none."""
    try:
        times = [os.stat(os.path.join(folder, name)).st_mtime for name in os.listdir(folder)] if folder else []
    except OSError:
        times = []
    return round((now - max(times)) / 86400, 2) if times else None


# --- judging --------------------------------------------------------------------------------------------------------


def _verdict(name, state, found, wanted, text=""):
    return {"name": name, "state": state, "found": found, "wanted": wanted, "text": text}


def _all_well(name, problems, found, wanted):
    """A verdict that fails when there is a problem, and says each."""
    return _verdict(name, "fail" if problems else "pass", "; ".join(problems) if problems else found, wanted, " ".join(f"{one}." for one in problems))


def judge(host, seen, wants):
    """{"host", "verdict", "verdicts", "facts", "digests"} of what was seen."""
    verdicts = [
        _driver_verdict(seen, wants),
        _reboot(seen["driver"]["reboot"]),
        _holds(seen["packages"]),
        _cards(seen, wants),
        _models(seen, wants),
        _memory(seen, wants),
        _unit_verdict(seen, wants),
        _exposed(seen, wants),
        _sandbox(seen, wants),
        _guarded(seen["guard"], wants),
        _certificates(seen["certificates"], wants),
        _backups(seen["backup_age_days"], wants),
        _drift(seen, wants),
    ]
    failed = any(verdict["state"] == "fail" for verdict in verdicts)
    return {"host": host, "verdict": "fail" if failed else "pass", "verdicts": verdicts, "facts": facts(seen), "digests": seen["ollama"]["models"]}


def facts(seen):
    """What a reader wants to know of a host besides: {label: text}."""
    driver, server = seen["driver"], seen["ollama"]
    cards = ", ".join(f"{card['index']}: {card['name']}, {card['used_mib'] or 0:,} of {card['total_mib'] or 0:,} MiB used" for card in seen["gpus"])
    loaded = ", ".join(f"{one['name']} {round((one['size_vram'] or 0) / 2**20):,} MiB, {one['context_length']} tokens" for one in server["loaded"])
    return {
        "driver": f"{driver['loaded'] or 'none'} loaded, library {driver['library'] or 'none'}, {driver['flavour'] or 'unknown'} module",
        "kernel": f"{driver['kernel']}, next {driver['next_kernel'] or 'not known'}",
        "cards": cards or f"none ({seen['nvml']})",
        "Ollama": server["version"] or str(server["error"]),
        "loaded": loaded or "nothing",
        "models": ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(server["models"].items())) or "none",
        "exposure": ", ".join(f"{unit} {'not known' if value is None else value}" for unit, value in seen["exposure"].items()) or "none",
        "guard": "none" if seen["guard"] is None else f"{seen['guard']['mode']}, last {seen['guard']['action']}",
    }


REBOOT_CODES = ("reboot_needed", "reboot_blocked")
# Without a GPU that is required these are no problems.
GPU_CODES = ("no_library", "not_loaded", "mismatch", "no_permission", "no_gpu", "error", "driver_too_old")


def _driver_verdict(seen, wants):
    driver = seen["driver"]
    left_out = REBOOT_CODES + (() if wants["gpu_required"] else GPU_CODES)
    problems = [one["message"].rstrip(".") for one in driver["problems"] if one["code"] not in left_out and not one["code"].startswith("gpu_")]
    return _all_well("driver", problems, f"{driver['loaded'] or 'none'}", "loaded, library and card agree")


def _reboot(reboot):
    problems = [reboot["blocked_by"].rstrip(".")] if not reboot["safe"] else []
    problems += [reboot["reason"].rstrip(".")] if reboot["needed"] and reboot["reason"] else []
    return _all_well("next reboot", problems, "keeps the GPU, not needed", "safe, and not due")


def _holds(packages):
    if packages is None:
        return _verdict("holds", "off", "not asked for", "held", "The driver's packages are somebody else's, or are not to be held.")
    problems = [packages["error"].rstrip(".")] if packages["error"] else []
    problems += ["no driver is installed"] if not packages["error"] and packages["version"] is None else []
    problems += [f"{', '.join(packages['unheld'])} would be upgraded with the rest"] if packages["unheld"] else []
    return _all_well("holds", problems, f"{packages['version']} is held", "the driver's packages are held")


def _cards(seen, wants):
    problems = [(card["message"] or f"GPU {card['index']} is {card['state']}").rstrip(".") for card in seen["gpus"] if card["state"] != "ok"]
    if wants["gpu_required"] and not seen["gpus"] and seen["nvml"] == "ok":
        problems.append("no card")
    return _all_well("cards", problems, ", ".join(str(card["name"]) for card in seen["gpus"]) or "none", "each answers")


def _models(seen, wants):
    server = seen["ollama"]
    if server["error"]:
        return _verdict("models", "fail", "the server does not answer", "each declared", server["error"])
    wanted = [ollama_names.short_name(name) for name in wants["models"]]
    problems = [f"{name} is not there" for name in wanted if name not in server["models"]]
    partly = [one for one in server["loaded"] if wants["gpu_required"] and not 0 < (one["size"] or 0) <= (one["size_vram"] or 0)]
    problems += [f"{one['name']} is computed on the CPU, in part or wholly" for one in partly]
    planned = {ollama_names.short_name(model["name"]): model for model in (seen["plan"] or {}).get("models", ())}
    for one in server["loaded"]:
        plan = planned.get(ollama_names.short_name(one["name"]))
        if plan and one["context_length"] and plan["effective_num_ctx"] != one["context_length"]:
            problems.append(f"{one['name']} runs with {one['context_length']} tokens, the plan has {plan['effective_num_ctx']}")
        if one["digest"] and one["digest"] not in server["models"].values():
            problems.append(f"{one['name']} is loaded from weights that the store has no more")
    return _all_well("models", problems, f"{len(wanted)} declared, {len(server['loaded'])} loaded", "as declared, wholly on the card")


def _memory(seen, wants):
    plan = seen["plan"]
    if not seen["gpus"]:
        return _verdict("memory", "unknown", "no GPU", "the plan")
    if plan is None:
        return _verdict("memory", "fail" if wants["models"] else "unknown", "no plan", "the plan", f"{wants['plan_path']} is not there, or is none.")
    planned = {gpu["index"]: gpu["planned_mib"] for gpu in plan["gpus"]}
    problems, found = [], []
    for card in seen["gpus"]:
        held, room = card["held_mib"], planned.get(card["index"], 0)
        if held is None:
            problems.append(f"the memory of GPU {card['index']} could not be read")
            continue
        found.append(f"{held:,} of {room:,} MiB planned")
        if held > room + wants["tolerance_mib"]:
            problems.append(f"GPU {card['index']} holds {held:,} MiB for the server, the plan has {room:,}")
        budget = next((gpu["budget_mib"] for gpu in plan["gpus"] if gpu["index"] == card["index"]), None)
        if budget is not None and card["others_mib"] and room + card["others_mib"] > budget + wants["tolerance_mib"]:
            problems.append(f"others hold {card['others_mib']:,} MiB of GPU {card['index']}, which leaves no room for the plan's {room:,}")
    return _all_well("memory", problems, ", ".join(found), f"plan + {wants['tolerance_mib']} MiB")


def _unit_verdict(seen, wants):
    if "error" in seen["units"]:
        return _verdict("units", "fail", "not read", "as declared", seen["units"]["error"])
    problems = []
    for unit, wish in wants["units"].items():
        state = seen["units"].get(unit)
        if state is None or state["load_state"] != "loaded":
            problems.append(f"{unit} is {state['load_state'] if state else 'not-found'}")
            continue
        if wish["state"] == "active" and state["active_state"] != "active":
            problems.append(f"{unit} is {state['active_state']}")
        if state["active_state"] == "failed" and wish["state"] != "active":
            problems.append(f"{unit} has failed")
        if wish["enabled"] and state["unit_file_state"] != "enabled":
            problems.append(f"{unit} is {state['unit_file_state'] or 'not enabled'}")
        if wish["config"] and state["active_state"] == "active" and state["config"] != wish["config"]:
            problems.append(f"{unit} runs with other settings than the inventory's")
        if state["need_daemon_reload"]:
            problems.append(f"systemd has not read {unit} since it was changed")
    return _all_well("units", problems, f"{len(wants['units'])} as declared", "running, enabled, with the inventory's settings")


def _exposed(seen, wants):
    problems = [
        f"port {port} listens on {one['address']} ({one['command'] or 'unknown'})"
        for port, found in sorted(seen["listeners"].items())
        for one in found
        if not one["address"].startswith(LOOPBACK)
    ]
    return _all_well("ports", problems, f"{', '.join(str(port) for port in wants['ports'])} on loopback", "loopback only")


def _sandbox(seen, wants):
    problems = [
        f"{unit} has an exposure of {value}"
        for unit, value in seen["exposure"].items()
        if value is not None and value > wants["units"].get(unit, {}).get("exposure", wants["exposure"])
    ]
    worst = max((value for value in seen["exposure"].values() if value is not None), default=None)
    return _all_well("sandbox", problems, "not known" if worst is None else f"at most {worst}", f"at most {wants['exposure']}")


def _guarded(guard, wants):
    if guard is None:
        return _verdict("guard", "unknown", "none", "none", "This host has no guard.")
    if guard["error"]:
        return _verdict("guard", "fail", "no books", "a guard that ticks", f"{wants['guard']['state_path']} cannot be read: {guard['error']}.")
    problems = []
    if guard["age_s"] > 3 * wants["guard"]["interval_s"] + 30:
        problems.append(f"it looked {guard['age_s']:,.0f} s ago for the last time")
    if guard["fence"]:
        problems.append(f"it has given up ({guard['fence']['rule']}) and waits for a person")
    elif guard["action"] not in (None, "none", "ok", "wait", "hold"):
        problems.append(f"it wants to {guard['action']} for {guard['rule']}")
    for kind, spans in guard["spent"].items():
        problems += [f"its budget of {kind} for the {span} is spent" for span, spent in spans.items() if spent >= wants["guard"]["budgets"][kind][span] > 0]
    hours = {kind: budget["hour"] for kind, budget in wants["guard"]["budgets"].items()}
    budget = ", ".join(f"{kind} {hours[kind] - spans['hour']} of {hours[kind]}" for kind, spans in guard["spent"].items())
    return _all_well("guard", problems, f"{guard['mode']}; left this hour: {budget}", "ticks, no fence, budget left")


def _certificates(found, wants):
    if not found:
        return _verdict("certificates", "unknown", "none", f"{wants['certificate_days']} days", "No certificate was looked for, or none is there.")
    problems = [f"{one['path']} cannot be read" for one in found if one["days"] is None]
    problems += [f"{one['path']} ends in {one['days']:g} days" for one in found if one["days"] is not None and one["days"] < wants["certificate_days"]]
    least = min((one["days"] for one in found if one["days"] is not None), default=0)
    return _all_well("certificates", problems, f"{least:g} days left", f"at least {wants['certificate_days']} days")


def _backups(age, wants):
    found = "none" if age is None else f"{age:g} days old"
    limit = wants["backup_days"]
    if limit is None or not wants["backup_dir"]:
        return _verdict("backups", "off", found, "told only")
    return _all_well("backups", [] if age is not None and age <= limit else [f"the newest backup is {found}"], found, f"at most {limit} days old")


def _drift(seen, wants):
    problems = []
    for one in wants["files"]:
        state = seen["files"][one["path"]]
        if state["kind"] != "file":
            problems.append(f"{one['path']} is {state['kind']}")
        elif one["sha256"] and state["sha256"] != one["sha256"]:
            problems.append(f"{one['path']} was changed")
        elif (one["mode"] and state["mode"] != one["mode"]) or (one["owner"] and state["owner"] != one["owner"]):
            problems.append(f"{one['path']} is {state['mode']} {state['owner']}, {one['mode']} {one['owner']} was wanted")
    astray = [(path, target) for path, target in wants["links"].items() if seen["links"][path] != target]
    problems += [f"{path} leads to {seen['links'][path]}, {target} was wanted" for path, target in astray]
    problems += [f"{path} is {kind}" for path, kind in seen["directories"].items() if kind not in ("directory", "link")]
    return _all_well("managed files", problems, f"{len(wants['files'])} files as written", "as the roles wrote them")


def across(hosts):
    """The hosts with a verdict more: whether a model of one name has one digest everywhere. The odd one out is named."""
    holders: dict = {}
    for host in hosts:
        for name, digest in host["digests"].items():
            holders.setdefault(name, {}).setdefault(digest, []).append(host["host"])
    made = []
    for host in hosts:
        problems = []
        for name, digest in sorted(host["digests"].items()):
            count = len(holders[name][digest])
            most = max(len(found) for found in holders[name].values())
            if len(holders[name]) > 1 and (count < most or sum(len(found) == most for found in holders[name].values()) > 1):
                problems.append(f"{name} is {digest[:12]} here and another elsewhere")
        shared = sum(sum(len(found) for found in holders[name].values()) > 1 for name in host["digests"])
        verdict = _all_well("digests", problems, f"{shared} shared with other hosts, equal", "equal on all hosts")
        failed = host["verdict"] == "fail" or bool(problems)
        made.append({**host, "verdict": "fail" if failed else "pass", "verdicts": [*host["verdicts"], verdict]})
    return made
