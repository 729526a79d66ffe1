# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Verdicts about a host: its state, as observe() returns it, beside what the roles declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._ollama.names import short_name
from .verdict import Verdict, no_problems, outcome, verdict

LOOPBACK = ("127.", "::1", "::ffff:127.")
# These have a verdict of their own.
REBOOT_CODES = ("reboot_needed", "reboot_blocked")
# Actions of the guard that change nothing.
QUIET = (None, "none", "ok", "wait", "hold")

State = dict[str, Any]
Declared = dict[str, Any]


def judge(host: str, state: State, declared: Declared) -> dict[str, Any]:
    """{"host", "verdict", "verdicts", "facts", "digests"} of a host; *declared* as in observe.py."""
    verdicts = [
        driver(state["driver"], declared),
        next_reboot(state["driver"]["reboot"]),
        holds(state["packages"]),
        cards(state, declared),
        models(state, declared),
        memory(state, declared),
        units(state["units"], declared),
        ports(state["listeners"], declared),
        sandbox(state["exposure"], declared),
        guard(state["guard"], declared),
        certificates(state["certificates"], declared),
        backups(state["backup_age_days"], declared),
        managed_files(state, declared),
    ]
    return {
        "host": host,
        "verdict": outcome(verdicts),
        "verdicts": verdicts,
        "facts": facts(state),
        "digests": state["ollama"]["models"],
    }


def facts(state: State) -> dict[str, str]:
    """What a reader wants to know of a host besides: {label: text}."""
    of_driver, server, of_guard = state["driver"], state["ollama"], state["guard"]
    memory_used = (
        f"{card['index']}: {card['name']}, {card['used_mib'] or 0:,} of {card['total_mib'] or 0:,} MiB used"
        for card in state["gpus"]
    )
    loaded = (
        f"{one['name']} {round((one['size_vram'] or 0) / 2**20):,} MiB, {one['context_length']} tokens"
        for one in server["loaded"]
    )
    digests = (f"{name} {digest[:12]}" for name, digest in sorted(server["models"].items()))
    exposed = (f"{unit} {'not known' if value is None else value}" for unit, value in state["exposure"].items())
    return {
        "driver": (
            f"{of_driver['loaded'] or 'none'} loaded, library {of_driver['library'] or 'none'}, "
            f"{of_driver['flavour'] or 'unknown'} module"
        ),
        "kernel": f"{of_driver['kernel']}, next {of_driver['next_kernel'] or 'not known'}",
        "cards": ", ".join(memory_used) or f"none ({state['nvml']})",
        "Ollama": server["version"] or str(server["error"]),
        "loaded": ", ".join(loaded) or "nothing",
        "models": ", ".join(digests) or "none",
        "exposure": ", ".join(exposed) or "none",
        "guard": "none" if of_guard is None else f"{of_guard['mode']}, last {of_guard['action']}",
    }


def _sentence(text: str) -> str:
    """A text as no_problems() takes it: without its stop."""
    return text.rstrip(".")


def driver(state: State, declared: Declared) -> Verdict:
    """Lost and broken cards are cards()'s, reboots next_reboot()'s."""
    problems = [
        _sentence(one["message"])
        for one in state["problems"]
        if one["code"] not in REBOOT_CODES
        and not one["code"].startswith("gpu_")
        and (declared["gpu_required"] or one["stops"] != "gpu")
    ]
    return no_problems("driver", problems, state["loaded"] or "none", "loaded, library and card agree")


def next_reboot(reboot: dict[str, Any]) -> Verdict:
    problems = [] if reboot["safe"] else [_sentence(reboot["blocked_by"])]
    problems += [_sentence(reboot["reason"])] if reboot["needed"] and reboot["reason"] else []
    return no_problems("next reboot", problems, "keeps the GPU, not needed", "safe, and not due")


def holds(packages: dict[str, Any] | None) -> Verdict:
    if packages is None:
        text = "The driver's packages are somebody else's, or are not to be held."
        return verdict("holds", "off", "not asked for", "held", text)
    problems = []
    if packages["error"]:
        problems.append(_sentence(packages["error"]))
    elif packages["version"] is None:
        problems.append("no driver is installed")
    if packages["unheld"]:
        problems.append(f"{', '.join(packages['unheld'])} would be upgraded with the rest")
    return no_problems("holds", problems, f"{packages['version']} is held", "the driver's packages are held")


def cards(state: State, declared: Declared) -> Verdict:
    broken = (card for card in state["gpus"] if card["state"] != "ok")
    problems = [_sentence(card["message"] or f"GPU {card['index']} is {card['state']}") for card in broken]
    if declared["gpu_required"] and not state["gpus"] and state["nvml"] == "ok":
        problems.append("no card")
    names = ", ".join(str(card["name"]) for card in state["gpus"])
    return no_problems("cards", problems, names or "none", "each answers")


def models(state: State, declared: Declared) -> Verdict:
    server = state["ollama"]
    if server["error"]:
        return verdict("models", "fail", "the server does not answer", "each declared", server["error"])
    wanted = [short_name(name) for name in declared["models"]]
    planned = {short_name(model["name"]): model for model in (state["plan"] or {}).get("models", ())}
    problems = [f"{name} is not there" for name in wanted if name not in server["models"]]
    for one in server["loaded"]:
        problems += _of_loaded(one, planned.get(short_name(one["name"])), server["models"], declared["gpu_required"])
    found = f"{len(wanted)} declared, {len(server['loaded'])} loaded"
    return no_problems("models", problems, found, "as declared, wholly on the card")


def _of_loaded(
    model: dict[str, Any], planned: dict[str, Any] | None, digests: dict[str, str], gpu_required: bool
) -> Iterator[str]:
    name, context = model["name"], model["context_length"]
    if gpu_required and not 0 < (model["size"] or 0) <= (model["size_vram"] or 0):
        yield f"{name} is computed on the CPU, in part or wholly"
    if planned and context and planned["effective_num_ctx"] != context:
        yield f"{name} runs with {context} tokens, the plan has {planned['effective_num_ctx']}"
    if model["digest"] and model["digest"] not in digests.values():
        yield f"{name} is loaded from weights that the store has no more"


def memory(state: State, declared: Declared) -> Verdict:
    plan, tolerance = state["plan"], declared["tolerance_mib"]
    if not state["gpus"]:
        return verdict("memory", "unknown", "no GPU", "the plan")
    if plan is None:
        text = f"{declared['plan_path']} is not there, or is not a plan."
        return verdict("memory", "fail" if declared["models"] else "unknown", "no plan", "the plan", text)
    planned = {gpu["index"]: gpu for gpu in plan["gpus"]}
    problems, found = [], []
    for card in state["gpus"]:
        held, of_plan = card["held_mib"], planned.get(card["index"], {"planned_mib": 0, "budget_mib": None})
        if held is None:
            problems.append(f"the memory of GPU {card['index']} could not be read")
            continue
        found.append(f"{held:,} of {of_plan['planned_mib']:,} MiB planned")
        problems += _of_card(card, of_plan, tolerance)
    return no_problems("memory", problems, ", ".join(found), f"plan + {tolerance} MiB")


def _of_card(card: dict[str, Any], planned: dict[str, Any], tolerance: int) -> Iterator[str]:
    number, held, others = card["index"], card["held_mib"], card["others_mib"]
    room, budget = planned["planned_mib"], planned["budget_mib"]
    if held > room + tolerance:
        yield f"GPU {number} holds {held:,} MiB for the server, the plan has {room:,}"
    if budget is not None and others and room + others > budget + tolerance:
        yield f"others hold {others:,} MiB of GPU {number}, which leaves no room for the plan's {room:,}"


def units(state: dict[str, Any], declared: Declared) -> Verdict:
    if "error" in state:
        return verdict("units", "fail", "not read", "as declared", state["error"])
    wanted = declared["units"]
    problems = [problem for unit in wanted for problem in _of_unit(unit, state.get(unit), wanted[unit])]
    found, text = f"{len(wanted)} as declared", "running, enabled, with the inventory's settings"
    return no_problems("units", problems, found, text)


def _of_unit(unit: str, state: dict[str, Any] | None, wanted: dict[str, Any]) -> Iterator[str]:
    if state is None or state["load_state"] != "loaded":
        yield f"{unit} is {state['load_state'] if state else 'not-found'}"
        return
    active = state["active_state"]
    if wanted["state"] == "active" and active != "active":
        yield f"{unit} is {active}"
    if wanted["state"] != "active" and active == "failed":
        yield f"{unit} has failed"
    if wanted["enabled"] and state["unit_file_state"] != "enabled":
        yield f"{unit} is {state['unit_file_state'] or 'not enabled'}"
    if wanted["config"] and active == "active" and state["config"] != wanted["config"]:
        yield f"{unit} runs with other settings than the inventory's"
    if state["need_daemon_reload"]:
        yield f"systemd has not read {unit} since it was changed"


def ports(listeners: dict[str, list[dict[str, Any]]], declared: Declared) -> Verdict:
    problems = [
        f"port {port} listens on {one['address']} ({one['command'] or 'unknown'})"
        for port, found in sorted(listeners.items())
        for one in found
        if not one["address"].startswith(LOOPBACK)
    ]
    found = f"{', '.join(str(port) for port in declared['ports'])} on loopback"
    return no_problems("ports", problems, found, "loopback only")


def sandbox(exposure: dict[str, float | None], declared: Declared) -> Verdict:
    known = {unit: value for unit, value in exposure.items() if value is not None}
    limit, wanted = declared["exposure"], declared["units"]
    problems = [
        f"{unit} has an exposure of {value}"
        for unit, value in known.items()
        if value > wanted.get(unit, {}).get("exposure", limit)
    ]
    found = f"at most {max(known.values())}" if known else "not known"
    return no_problems("sandbox", problems, found, f"at most {limit}")


def guard(state: dict[str, Any] | None, declared: Declared) -> Verdict:
    if state is None:
        return verdict("guard", "unknown", "none", "none", "This host has no guard.")
    wanted = declared["guard"]
    if state["error"]:
        text = f"{wanted['state_path']} cannot be read: {state['error']}."
        return verdict("guard", "fail", "no state file", "a guard that ticks", text)
    left = (
        f"{kind} {wanted['budgets'][kind]['hour'] - spans['hour']} of {wanted['budgets'][kind]['hour']}"
        for kind, spans in state["spent"].items()
    )
    found = f"{state['mode']}; left this hour: {', '.join(left)}"
    return no_problems("guard", list(_of_guard(state, wanted)), found, "ticks, no fence, budget left")


def _of_guard(state: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    if state["age_s"] > 3 * wanted["interval_s"] + 30:
        yield f"its last tick was {state['age_s']:,.0f} s ago"
    if state["fence"]:
        yield f"it has given up ({state['fence']['rule']}) and waits for a person"
    elif state["action"] not in QUIET:
        yield f"it wants to {state['action']} for {state['rule']}"
    for kind, spans in state["spent"].items():
        for span, spent in spans.items():
            if spent >= wanted["budgets"][kind][span] > 0:
                yield f"its budget of {kind} for the {span} is spent"


def certificates(found: list[dict[str, Any]], declared: Declared) -> Verdict:
    limit = declared["certificate_days"]
    if not found:
        text = "No certificate was searched for, or none is there."
        return verdict("certificates", "unknown", "none", f"{limit} days", text)
    read = [one for one in found if one["days"] is not None]
    problems = [f"{one['path']} cannot be read" for one in found if one["days"] is None]
    problems += [f"{one['path']} ends in {one['days']:g} days" for one in read if one["days"] < limit]
    least = min((one["days"] for one in read), default=0)
    return no_problems("certificates", problems, f"{least:g} days left", f"at least {limit} days")


def backups(age: float | None, declared: Declared) -> Verdict:
    found, limit = "none" if age is None else f"{age:g} days old", declared["backup_days"]
    if limit is None or not declared["backup_dir"]:
        return verdict("backups", "off", found, "not judged")
    problems = [] if age is not None and age <= limit else [f"the newest backup is {found}"]
    return no_problems("backups", problems, found, f"at most {limit} days old")


def managed_files(state: State, declared: Declared) -> Verdict:
    problems = [problem for one in declared["files"] for problem in _of_file(one, state["files"][one["path"]])]
    astray = ((path, target) for path, target in declared["links"].items() if state["links"][path] != target)
    problems += [f"{path} leads to {state['links'][path]}, {target} was wanted" for path, target in astray]
    kinds = state["directories"].items()
    problems += [f"{path} is {kind}" for path, kind in kinds if kind not in ("directory", "link")]
    found = f"{len(declared['files'])} files as written"
    return no_problems("managed files", problems, found, "as the roles wrote them")


def _of_file(wanted: dict[str, Any], state: dict[str, Any]) -> Iterator[str]:
    path, mode, owner = wanted["path"], wanted["mode"], wanted["owner"]
    if state["kind"] != "file":
        yield f"{path} is {state['kind']}"
    elif wanted["sha256"] and state["sha256"] != wanted["sha256"]:
        yield f"{path} was changed"
    elif (mode and state["mode"] != mode) or (owner and state["owner"] != owner):
        yield f"{path} is {state['mode']} {state['owner']}, {mode} {owner} was wanted"
