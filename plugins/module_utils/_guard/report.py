# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a tick reports: a line in the journal, and files that other programs read."""

from __future__ import annotations

import json
import os
import sys

from . import policy
from .files import write_text
from .state import budget_left

STATUS_VERSION = 1  # of status.json


def say(text, out=None):
    """One line to the journal or the terminal, at once."""
    stream = out or sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def totals(before, action):
    """{kind: number of actions so far} with this one."""
    counts = {kind: int((before or {}).get(kind, 0)) for kind in policy.ACTIONS}
    if action in counts:
        counts[action] += 1
    return counts


def worth_saying(said, record, wall):
    """({what, at}, whether): a line when the decision changes, for each action, and once an hour."""
    keys = ("action", "rule", "subject", "plan", "nvml", "ollama")
    what = [record[key] for key in keys]
    recent = said and said.get("what") == what and 0 <= wall - said.get("at", 0) < policy.HOUR
    if recent and record["action"] not in policy.ACTIONS:
        return said, False
    return {"what": what, "at": wall}, True


def journal_record(decision, sample, plan, mode, done, trouble):
    """One flat-ish dict: the decision, and the numbers that led to it."""
    record = {
        "action": decision["action"],
        "mode": mode,
        "rule": decision["rule"],
        "subject": decision["subject"],
        "target": decision["target"],
        "why": decision["why"],
        "nvml": sample["nvml"]["state"],
        "ollama": sample["ollama"]["state"],
        "plan": "no plan" if plan["state"] == "absent" else plan["state"],
        "gpus": [{key: gpu[key] for key in ("uuid", "state", "used_mib", "free_mib")} for gpu in sample["gpus"]],
        "models": [{key: model[key] for key in ("name", "size_vram_mib")} for model in sample["ollama"]["models"]],
        "alerts": decision["alerts"],
    }
    if decision.get("due"):
        record["due"] = decision["due"]
    if decision["action"] in policy.ACTIONS:
        record["done"] = done if mode == "act" else "dry run: not done"
    if trouble:
        record["trouble"] = trouble
    return record


def priority(record):
    """syslog priority of a line: 2 critical, 4 warning, 5 notice (LogLevelMax of the unit lets these through)."""
    if record["action"] == "fence":
        return 2
    return 5 if record["action"] == "none" else 4


def draining(record):
    """Whether a restart waits for running generations."""
    return record["action"] == "wait" and record.get("due") == "restart"


def publish(config, history, now, clock, record):
    """What other programs read (docs/guides/vram_guard.md, "What others can read"): status.json, and a file that is
    there while fenced.
    """
    folder = config["state_dir"]
    fence = history["fence"]
    status = {
        "version": STATUS_VERSION,
        "at": round(clock["wall"], 3),
        "mode": config["mode"],
        "fenced": fence is not None,
        "fence": None,
        "draining": draining(record),
        "budget_left": budget_left(history, config["settings"], now),
        "decision": record,
    }
    if fence is not None:
        since = round(clock["wall"] - (now - fence["since"]), 3)
        status["fence"] = {"rule": fence["rule"], "why": fence["why"], "since": since}
    write_text(os.path.join(folder, "status.json"), json.dumps(status))
    flag = os.path.join(folder, "fenced")
    if fence is not None:
        write_text(flag, f"{fence['why']}\n")
    elif os.path.lexists(flag):
        os.unlink(flag)
