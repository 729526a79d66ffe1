# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One tick: take a sample, decide, do it, remember it, report it."""

from __future__ import annotations

import json
import os

from . import policy, state
from .files import drained, read_plan
from .gpus import ask_nvml, read_gpus, read_processes
from .ollama import ask_ollama, await_rest, probe, under_way
from .report import journal_record, priority, publish, say, totals, worth_saying

XID_INTERVAL_S = 60
REST_PATIENCE_S = 15  # a tick is ended by systemd after 60 s


def take_sample(config, wall, step, xids_due, nvml=None):
    """One check of everything, each source by itself; see ``_guard.policy`` for the shape."""
    settings = config["settings"]
    raw = (nvml or ask_nvml)()
    status, gpus = read_gpus(raw)
    processes = read_processes(raw, config["user"]) if status["state"] == "ok" else []
    probe(processes, settings["unit"])
    xids = {"state": "skipped", "events": []}
    if xids_due:
        from .kernel_log import read_xids

        xids = read_xids(gpus, 2 * XID_INTERVAL_S)
    return {
        "nvml": status,
        "gpus": gpus,
        "processes": processes,
        "ollama": ask_ollama(config["host"], config["port"], wall),
        "xids": xids,
        "in_flight": None,
        "drained": drained(),
        "clock_step_s": step,
    }


def think(history, sample, plan, config, now, mode):
    """(decision, history): the whole of a tick that is pure, so that traces can be played through it."""
    settings = config["settings"]
    history = policy.change_mode(history, mode)
    history = policy.remember(history, sample, plan, settings, now)
    budget = {"limits": settings["budgets"], "spent": history["spent"]}
    decision = policy.decide(history, plan, budget, now, settings)
    return decision, policy.note(history, decision, now, settings, dry_run=mode == "dry_run")


def tick(config, dry_run=False, nvml=None, clock=None, out=None):
    """Check the host, decide, act, remember, report. Returns the record that was (or would have been) logged.

    dry_run: only check and report; not even the state file is written.
    """
    clock = clock or state.clocks()
    path, mode = state.path_of(config), config["mode"]
    acts = mode == "act" and not dry_run
    before, now, step, trouble = state.parse_state(state.read(path), clock)
    if trouble and not dry_run:
        os.replace(path, os.path.join(config["state_dir"], "state.bad.json"))
    last = state.last_of(path)
    plan = read_plan(config["plan_path"])
    sample = take_sample(config, clock["wall"], step, _xids_due(last, clock["wall"]), nvml)
    decision, history = think(before, sample, plan, config, now, mode)
    if "restart" in (decision["action"], decision.get("due")):
        # A restart is due as soon as no generation is under way. Waiting for that moment is most of this tick's time.
        if acts:
            _actions().ask_for("restart", {"unit": decision["target"]["unit"], "go": False}, config, clock)
        patience = 0 if dry_run else min(config["settings"]["interval_s"] - 3, REST_PATIENCE_S)
        unit = config["settings"]["unit"]
        sample["in_flight"] = await_rest(lambda: under_way(sample["processes"], unit), patience)
        decision, history = think(before, sample, plan, config, now, mode)
    elif before["waiting"] and acts:
        _actions().withdraw(config)
    done = None
    if acts and decision["action"] in policy.ACTIONS:
        # Saved before it is done: what cannot be saved would be done again at every tick, beyond every budget.
        state.save(path, history, clock, last)
        done = _actions().carry_out(decision, config, clock)
    record = journal_record(decision, sample, plan, mode, done, trouble)
    if not dry_run:
        _leave(config, history, now, clock, last, record, sample, plan, out)
    return record


def _xids_due(last, wall):
    """Whether the kernel's log is to be read; also where the wall clock was set back."""
    at = last.get("xids_at", 0)
    return wall - at >= XID_INTERVAL_S or wall < at


def _actions():
    """What a quiet tick does not need."""
    from . import actions

    return actions


def _leave(config, history, now, clock, last, record, sample, plan, out):
    """Write what a tick leaves behind: the state file, the journal's line, status.json, metrics."""
    read = sample["xids"]["state"] != "skipped"
    summary = {
        "at": clock["wall"],
        "xids_at": clock["wall"] if read else last.get("xids_at", 0),
        "xids": sample["xids"]["state"] if read else last.get("xids", "skipped"),
        "gpus": sample["gpus"],
        "ollama": {key: sample["ollama"][key] for key in ("state", "detail", "version", "models")},
        "nvml": sample["nvml"],
        "plan": plan,
        "record": record,
        "totals": totals(last.get("totals"), record["action"]),
    }
    summary["said"], new = worth_saying(last.get("said"), record, clock["wall"])
    state.save(state.path_of(config), history, clock, summary)
    if new:
        say(f"<{priority(record)}>{json.dumps(record)}", out)
    publish(config, history, now, clock, record)
    if config["metrics"]:
        from .metrics import write_metrics

        write_metrics(config["state_dir"], history, summary, clock)
