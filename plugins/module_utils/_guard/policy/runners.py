# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The runners of the unit, followed from sample to sample: which model each serves, its baseline, its trend."""

from __future__ import annotations

from ..._gpu.memory import MIB


def key_of(process):
    """A PID is used again; with its start time it is unique within a boot."""
    return f"{process['pid']}:{process['start']}"


def identity(model):
    """What tells one loaded model from another: its name and its digest."""
    return f"{model['name']}@{model['digest']}"


def is_ours(process, settings):
    """Whether the unit's cgroup holds the process (not by name: runners were called differently over the years)."""
    return process["unit"] == settings["unit"]


def grouped(sample, wanted):
    """{key: {…first entry, used_mib: sum or None, gpus: [uuid]}} of the processes for which wanted(process) is true."""
    found: dict = {}
    for process in sample["processes"]:
        if not wanted(process):
            continue
        entry = found.setdefault(key_of(process), dict(process, used_mib=0, gpus=[]))
        entry["gpus"].append(process["gpu"])
        unknown = entry["used_mib"] is None or process["used_mib"] is None
        entry["used_mib"] = None if unknown else entry["used_mib"] + process["used_mib"]
    return found


def runners_of(sample, settings):
    """``grouped()`` of everything of the unit but the server."""
    return grouped(sample, lambda process: is_ours(process, settings) and process["kind"] != "server")


def follow(known, sample, listed, settings, now):
    """{key: record} of the runners of the unit, the records carried on from *known*.

    *listed* is what /api/ps lists, None where it could not be read.
    """
    present = runners_of(sample, settings)
    busy_gpus = {gpu["uuid"] for gpu in sample["gpus"] if (gpu.get("utilisation") or 0) >= 10}
    runners = {key: _seen(known.get(key), process, busy_gpus, now) for key, process in present.items()}
    if listed is not None:
        _assign(runners, present, listed, settings)
        for record in runners.values():
            if record["model"] is None:
                record["unlisted"] = now if record["unlisted"] is None else record["unlisted"]
            else:
                record["unlisted"] = None
            _learn(record, record["busy"] == now, settings, now)
    return runners


def _seen(before, process, busy_gpus, now):
    """The record of a runner that is there now; busy where it used CPU time or its card computed."""
    record = dict(before) if before else _new_runner(process, now)
    record["used_mib"] = process["used_mib"]
    cpu = process["cpu_s"]
    if before and cpu is not None and before["cpu_s"] is not None:
        working = cpu - before["cpu_s"] > 0.05 * max(now - before["seen"], 1.0)
    else:
        working = before is None
    if working or busy_gpus & set(process["gpus"]):
        record["busy"] = now
    record["cpu_s"] = cpu
    record["seen"] = now
    return record


def _new_runner(process, now):
    return {
        "pid": process["pid"],
        "first": now,
        "seen": now,
        "busy": now,
        "cpu_s": None,
        "used_mib": process["used_mib"],
        "model": None,
        "was": None,
        "context": None,
        "unlisted": None,
        "sure": False,
        "baseline_mib": None,
        "trend": [],
    }


def _assign(runners, present, listed, settings):
    """Determine which runner serves which listed model: as before where that still holds, else by size.

    /api/ps names no PID. `sure` is false where two candidates were too close to tell apart.
    """
    free = {identity(model): model for model in listed if model["size_vram_mib"] > 0}
    open_runners = []
    for key, record in runners.items():
        held = record["model"]
        if held in free:
            _serve(record, held, free.pop(held), record["sure"])
        else:
            record["model"] = None
            open_runners.append(key)
    # A runner never changes its model, so those that are new come first; the others only if models are left over.
    new_ones = [key for key in open_runners if runners[key]["was"] is None or not runners[key]["sure"]]
    for candidates, certain in ((new_ones, True), (open_runners, False)):
        while free and candidates:
            key, name, clear = _closest(candidates, free, runners, present, settings)
            _serve(runners[key], name, free.pop(name), certain and clear)
            open_runners.remove(key)
            if candidates is not open_runners:
                candidates.remove(key)


def _closest(candidates, free, runners, present, settings):
    """(runner, model, whether no other pair comes close): the pair whose sizes agree best."""
    pairs = sorted(
        (_distance(runners[key], len(present[key]["gpus"]), model, settings), key, name)
        for key in candidates
        for name, model in free.items()
    )
    best, key, name = pairs[0]
    rivals = [pair for pair in pairs[1:] if (pair[1] == key) != (pair[2] == name) and pair[0] - best < 256]
    return key, name, best < 2048 and not rivals


def _serve(record, name, model, sure):
    if record["model"] != name or record["context"] != model["context_length"]:
        record["baseline_mib"] = None
        record["trend"] = []
    record.update(model=name, was=name, context=model["context_length"], sure=sure)


def _distance(record, gpus, model, settings):
    if record["used_mib"] is None:
        return 1e9
    return abs(record["used_mib"] - by_server(model, gpus, settings))


def by_server(model, gpus, settings):
    """MiB that the server's own layout explains: size_vram, a CUDA context per card, the scratch of its context."""
    scratch = (model["context_length"] or 0) * settings["scratch_bytes_per_token"] / MIB
    return model["size_vram_mib"] + settings["context_mib"] * max(gpus, 1) + scratch


def _learn(record, busy, settings, now):
    """Baseline: the first sample after the load in which the runner rests. Trend: one point a minute."""
    if record["model"] is None or record["used_mib"] is None:
        record["trend"] = []
        return
    if record["baseline_mib"] is None and not busy and now - record["first"] >= settings["interval_s"]:
        record["baseline_mib"] = record["used_mib"]
    trend = record["trend"]
    if not trend or now - trend[-1][0] >= 55:
        points = int(settings["leak_window_s"] / 60) + 2
        record["trend"] = (trend + [[round(now, 1), record["used_mib"]]])[-points:]


def is_loading(record, settings, now, age_s):
    """A runner that /api/ps never listed is loading, until the server itself would give up on it."""
    seen_for = min(now - record["first"], age_s if age_s is not None else 0)
    return record["was"] is None and seen_for < settings["load_grace_s"]


def in_use(name, history, settings, now):
    """Whether a model worked within idle_s: its expiry moved, its runner used CPU time, or its card computed."""
    if now - history["models"].get(name, {"used": now})["used"] < settings["idle_s"]:
        return True
    runners = [one for one in history["runners"].values() if (one["model"] or "").rpartition("@")[0] == name]
    return any(now - record["busy"] < settings["idle_s"] for record in runners)
