# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The commands for people: status, explain, unfence."""

from __future__ import annotations

import json
import os

from . import policy, state
from .act import become
from .files import GuardError, write_text
from .report import publish, totals


def status_text(config, clock):
    """What `vram-guard status` prints."""
    path = state.path_of(config)
    text = state.read(path)
    if text is None:
        return "vram-guard has not run yet: `systemctl status vram-guard.timer` says when it will."
    history, now, _step, trouble = state.parse_state(text, clock)
    last = state.last_of(path)
    if trouble or not last:
        reason = trouble or "it has nothing of the last tick"
        return f"The state file cannot be used: {reason}; the next tick starts a new one."
    record, settings = last["record"], config["settings"]
    mode = "acting" if config["mode"] == "act" else "dry run: it only says what it would do"
    version = last["ollama"]["version"] or ""
    lines = [
        f"vram-guard, {mode}; last ran {clock['wall'] - last['at']:.0f} s ago",
        f"sources    nvml {last['nvml']['state']}, ollama {last['ollama']['state']} {version},"
        f" plan {record['plan']}, kernel log {last['xids']}",
        *("", *_gpu_table(last["gpus"])),
        *("", *_model_table(last, history, settings)),
        *("", f"decision   {record['action']}: {record['why']}"),
        *(f"  {one['rule']:<18}for {one['for_s']} s: {json.dumps(one['numbers'])}" for one in record["alerts"]),
        *_fence_lines(history["fence"], now),
        *_budget_lines(history, settings, now),
    ]
    counts = ", ".join(f"{kind} {count}" for kind, count in totals(last.get("totals"), None).items())
    lines.append(f"so far     {counts}; what a dry run would have done is counted")
    return "\n".join(lines)


def _gpu_table(gpus):
    yield f"{'GPU':<44}{'total':>9}{'used':>9}{'free':>9}  MiB"
    for gpu in gpus:
        ok = gpu["state"] == "ok"
        shown = [gpu["total_mib"], gpu["used_mib"], gpu["free_mib"]] if ok else [gpu["state"], "?", "?"]
        yield f"{gpu['uuid']:<44}" + "".join(f"{value:>9}" for value in shown)


def _model_table(last, history, settings):
    yield f"{'model':<44}{'planned':>9}{'server':>9}{'measured':>9}{'beyond':>9}  MiB"
    runners = {(runner["model"] or "").rpartition("@")[0]: runner for runner in history["runners"].values()}
    for model in last["ollama"]["models"]:
        planned = last["plan"]["models"].get(model["name"])
        runner = runners.get(model["name"], {})
        measured = runner.get("used_mib")
        server = round(policy.by_server(model, 1, settings))
        explained = max(server, planned or 0, runner.get("baseline_mib") or 0)
        beyond = None if measured is None else max(0, round(measured - explained))
        cells = [None if planned is None else round(planned), server, measured, beyond]
        yield f"{model['name']:<44}" + "".join(f"{'-' if cell is None else cell:>9}" for cell in cells)
    if not last["ollama"]["models"]:
        yield "none is loaded"


def _fence_lines(fence, now):
    if fence:
        lasted = round(now - fence["since"])
        yield f"FENCED     for {lasted} s: {fence['why']}; `vram-guard unfence` when the cause is removed"


def _budget_lines(history, settings, now):
    for kind, left in state.budget_left(history, settings, now).items():
        limits = settings["budgets"][kind]
        hour, day = (f"{left[span]} of {limits[span]} left this {span}" for span in ("hour", "day"))
        yield f"budget     {kind:<8} {hour}, {day}"


def rules_text(settings):
    """What `vram-guard explain` prints: the rule table, with this host's thresholds."""
    lines = []
    for name, rule in policy.RULES.items():
        count = rule.get("debounce", settings["debounce"])
        ladder = " → ".join(rule["ladder"]) or "only reported"
        lines.append(f"{name} ({ladder}; after {count} sample{'s' if count > 1 else ''} in a row)")
        lines.append(f"    {rule['means']}.")
        lines.append(f"    {rule['why_not']}.")
    lines.append("")
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines)


def lift_fence(config, clock):
    """Remove the fence; root, or the guard's own user, which the calling process is from then on, for good."""
    path = state.path_of(config)
    text = state.read(path)
    history, now, _step, trouble = state.parse_state(text, clock)
    if text is None or trouble:
        reason = trouble or "vram-guard has not run yet"
        raise GuardError(f"There is no state file to change ({reason}); the next tick starts a new one.")
    if not history["fence"]:
        return "There was no fence."
    history = dict(policy.unfence(history), clock=now)
    last = json.loads(text)["last"]
    # Root in a folder of somebody else's could be led astray by a link; as that user it can do no harm.
    owner = os.stat(config["state_dir"])
    become(owner.st_uid, owner.st_gid)
    write_text(path, state.dump_state(history, clock, last))
    publish(config, history, now, clock, last["record"])
    return "The fence is removed; the next tick checks again, with a fresh ladder and what is left of the budgets."
