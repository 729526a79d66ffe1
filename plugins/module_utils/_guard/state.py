# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The state file: what the guard remembers from one process to the next, read as data that may be anything."""

from __future__ import annotations

import json
import os
import time

from .._host.files import read_text
from . import policy
from .files import SIZE_LIMIT, GuardError, is_kind, write_text

STATE_VERSION = 2


def path_of(config):
    """The state file of a configuration."""
    return os.path.join(config["state_dir"], "state.json")


def clocks():
    """{wall, mono, boot}: wall clock, seconds since boot (suspend included), and which boot that was."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            boot = handle.read().strip()
    except OSError:
        boot = ""
    return {"wall": time.time(), "mono": time.clock_gettime(time.CLOCK_BOOTTIME), "boot": boot}


def read(path):
    """The state file's text, None where there is none.

    OSError where it is there and cannot be read: a guard that took that for none would begin with fresh budgets.
    """
    return read_text(path, SIZE_LIMIT)


def parse_state(text, clock):
    """(history, now, clock step in s, trouble): the history as of now, on the guard's own clock.

    The guard's clock counts on by the boot clock within a boot and by the wall clock across one, so a
    wall clock that is set back or forward moves no budget and no cool-down. What cannot be trusted (not
    ours, damaged, from the future) is not obeyed: a fresh history comes instead, and an hour of only watching,
    after which no budget of the lost one can be exceeded. trouble is None or says so.
    """
    if text is None:
        return policy.fresh(policy.DEFAULTS["load_grace_s"], "the guard is new here"), 0.0, 0.0, None
    try:
        history, written = _parsed(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return _lost(f"the state file was damaged ({error})")
    step = 0.0
    if written["boot"] == clock["boot"]:
        elapsed = clock["mono"] - written["mono"]
        step = (clock["wall"] - written["wall"]) - elapsed
    else:
        elapsed = clock["wall"] - written["wall"]
        # PIDs, streaks and half-done ladders of another boot say nothing about this one.
        history.update(streaks={}, runners={}, models={}, waiting=None, acts={}, distrust=[], last_sample=None)
        if -300 < elapsed < 0:
            elapsed = 0.0  # a clock that is a little behind after a reboot
    if elapsed < 0:
        return _lost("the state file is from the future")
    return history, history["clock"] + elapsed, step, None


def _parsed(text):
    """(history, {wall, mono, boot} of its writing) of a state file; ValueError, KeyError or TypeError for others."""
    state = json.loads(text)
    if state["version"] != STATE_VERSION:
        raise ValueError(f"version {state['version']}, {STATE_VERSION} was wanted")
    history, written = validated(state["history"]), state["written"]
    _check(written, {"wall": float, "mono": float, "boot": str}, "written")
    return history, written


def _lost(reason):
    return policy.fresh(policy.HOUR, reason), 0.0, 0.0, reason


# The types of a history, and of what the policy reads below it. A tuple: that type, or None.
_TOP = {
    "clock": float,
    "mode": (str,),
    "samples": int,
    "readable": (bool,),
    "flaps": list,
    "last_sample": (float,),
    "streaks": dict,
    "runners": dict,
    "models": dict,
    "distrust": list,
    "xids": list,
    "acts": dict,
    "spent": list,
    "in_flight": (int,),
    "waiting": (dict,),
    "fence": (dict,),
    "watch_until": float,
    "watch_reason": (str,),
}
_RECORDS = {
    "runners": {
        "pid": int,
        "first": float,
        "seen": float,
        "busy": float,
        "sure": bool,
        "trend": list,
        "cpu_s": (float,),
        "used_mib": (float,),
        "model": (str,),
        "was": (str,),
        "context": (int,),
        "unlisted": (float,),
        "baseline_mib": (float,),
    },
    "models": {"expires_at": str, "used": float},
    "streaks": {"rule": str, "subject": str, "count": int, "since": float, "numbers": dict, "target": (dict,)},
    "acts": {"rung": int, "kind": str, "subject": str, "at": float, "cleared": bool},
}
_FENCE = {"since": float, "rule": str, "why": str}
_WAITING = {"since": float, "rule": str}
_XID = {"at": str, "gpu": str, "xid": int, "seen": float}


def _check(record, fields, name):
    """ValueError unless the record has these fields, of these types, and no others."""
    if not isinstance(record, dict) or set(record) != set(fields):
        raise ValueError(f"{name} has other keys than {', '.join(sorted(fields))}")
    for field, kind in fields.items():
        if not _fits(record[field], kind):
            raise ValueError(f"{name}.{field} is {record[field]!r}")


def _fits(value, kind):
    if isinstance(kind, tuple):
        return value is None or is_kind(value, kind[0])
    return is_kind(value, kind)


def validated(history):
    """The history if every part is what the policy expects; ValueError otherwise."""
    _check(history, _TOP, "history")
    for part, fields in _RECORDS.items():
        for name, record in history[part].items():
            _check(record, fields, f"{part}.{name}")
    for part, fields in (("fence", _FENCE), ("waiting", _WAITING)):
        if history[part] is not None:
            _check(history[part], fields, part)
    for entry in history["xids"]:
        _check(entry, _XID, "xids")
    _check_points(history)
    _check_names(history)
    return history


def _check_points(history):
    """ValueError unless trends, flaps and what was spent are lists of what they are to be."""
    for record in history["runners"].values():
        if not all(_is_list_of(point, float, float) for point in record["trend"]):
            raise ValueError("a trend has something else than [when, MiB]")
    if not all(is_kind(when, float) for when in history["flaps"]):
        raise ValueError("flaps has something else than times")
    for entry in history["spent"]:
        if not _is_list_of(entry, float, str) or entry[1] not in policy.ACTIONS or entry[0] > history["clock"]:
            raise ValueError(f"spent has {entry!r}")


def _is_list_of(value, *kinds):
    return isinstance(value, list) and len(value) == len(kinds) and all(map(is_kind, value, kinds))


def _check_names(history):
    """ValueError for a rule or an action that there is not."""
    for streak in history["streaks"].values():
        if streak["rule"] not in policy.RULES:
            raise ValueError(f"rule {streak['rule']} is unknown")
    for rule, act in history["acts"].items():
        if rule not in policy.RULES or act["kind"] not in policy.ACTIONS:
            raise ValueError(f"act {rule} is unknown")


def dump_state(history, clock, last):
    """Text of the state file."""
    state = {"version": STATE_VERSION, "written": clock, "history": history, "last": last}
    return json.dumps(state, separators=(",", ":"))


def save(path, history, clock, last):
    """Write the state file. GuardError where that cannot be: a guard without it does nothing."""
    try:
        write_text(path, dump_state(history, clock, last))
    except OSError as error:
        raise GuardError(
            f"{path} cannot be written ({error}); without its state file the guard does nothing."
            " Make room or repair the file system there."
        ) from error


def last_of(path):
    """What the last tick left for people and metrics; {} where that cannot be read (it decides nothing)."""
    try:
        last = json.loads(read(path) or "{}").get("last")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return last if isinstance(last, dict) else {}


def budget_left(history, settings, now):
    """{kind: {hour, day}}: how many actions may still be taken."""
    left = {}
    for kind, limits in settings["budgets"].items():
        ages = [now - when for when, what in history["spent"] if what == kind]
        left[kind] = {
            "hour": max(0, limits["hour"] - sum(1 for age in ages if age < policy.HOUR)),
            "day": max(0, limits["day"] - sum(1 for age in ages if age < policy.DAY)),
        }
    return left
