# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What one sample shows: a signal for each rule and subject, with the numbers behind it."""

from __future__ import annotations

from .rules import HOUR, XID_APPLICATION, XID_FATAL
from .runners import by_server, grouped, identity, is_loading, is_ours, runners_of


def signals(history, sample, plan, settings, now):
    """{"rule:subject": {rule, subject, enter, stay, numbers, target}} that this sample shows.

    enter: above the threshold that begins a streak; stay: above the lower one that ends it. Readability comes first:
    what cannot be read gives a signal of its own and hides those that need it.
    """
    seen = list(_of_sources(history, sample, settings))
    if sample["nvml"]["state"] == "ok":
        seen += _of_gpus(sample)
        seen += _of_other_processes(sample, settings)
        if sample["ollama"]["state"] == "ok":
            seen += _of_runners(history, sample, plan, settings, now)
            seen += _of_models(history, sample, plan, settings)
        seen += _of_memory(sample, settings)
    return {f"{one['rule']}:{one['subject']}": one for one in seen if one["enter"] or one["stay"]}


def _signal(rule, subject, numbers, enter=True, stay=True, target=None):
    return {
        "rule": rule,
        "subject": str(subject),
        "enter": bool(enter),
        "stay": bool(stay),
        "numbers": numbers,
        "target": target,
    }


def _over(value, enter, leave) -> tuple[bool, bool]:
    """(above the threshold to enter, above the threshold to leave); None is neither."""
    return (False, False) if value is None else (value > enter, value > leave)


def _of_sources(history, sample, settings):
    """The kernel's log, NVML as a whole, and the Ollama API."""
    nvml, ollama = sample["nvml"], sample["ollama"]
    for xid in history["xids"]:
        if xid["xid"] in XID_FATAL:
            yield _signal("gpu_lost", xid["gpu"], {"xid": xid["xid"]})
    recent = [entry["xid"] for entry in history["xids"] if entry["xid"] in XID_APPLICATION]
    if len(recent) >= 3:
        yield _signal("xid_application", settings["unit"], {"xids": recent})
    if len(history["flaps"]) >= 4:
        yield _signal("nvml_flapping", "nvml", {"changes_in_10_min": len(history["flaps"])})
    if ollama["state"] != "ok":
        yield _signal("ollama_unreadable", ollama["state"], {"detail": ollama.get("detail") or ollama["state"]})
    if nvml["state"] != "ok":
        yield _signal("driver", nvml["state"], {"state": nvml["state"], "detail": nvml["detail"]})


def _of_gpus(sample):
    for gpu in sample["gpus"]:
        if gpu["state"] == "lost" or gpu.get("recovery"):
            yield _signal("gpu_lost", gpu["uuid"], {"state": gpu["state"], "recovery": gpu.get("recovery")})
        elif gpu["state"] != "ok":
            yield _signal("driver", gpu["uuid"], {"state": gpu["state"], "detail": "this GPU could not be read"})


def _of_other_processes(sample, settings):
    """Orphans, and the processes of others."""
    for key, process in grouped(sample, lambda one: not is_ours(one, settings) or one["kind"] == "runner").items():
        numbers = {"pid": process["pid"], "used_mib": process["used_mib"], "unit": process["unit"]}
        if _is_orphan(process):
            yield _signal("orphan", key, numbers, target={"pid": process["pid"], "start": process["start"]})
        elif not is_ours(process, settings) and process["unit"] is not None:
            levels = _over(process["used_mib"], settings["foreign_mib"], settings["foreign_mib"] / 2)
            yield _signal("foreign", key, numbers, *levels)


def _is_orphan(process):
    """A runner of the server's user whose parent is init: its server is gone."""
    return process["kind"] == "runner" and process["ppid"] == 1 and process["uid_ok"]


def _of_runners(history, sample, plan, settings, now):
    """What the runners of the unit hold, each beside its model; and what is held for no model."""
    listed = sample["ollama"]["models"]
    names = {identity(model): model for model in listed}
    present = runners_of(sample, settings)
    orphans = {key for key, process in present.items() if _is_orphan(process)}
    left = []
    for key, process in present.items():
        record = history["runners"][key]
        if record["model"] in names:
            yield from _of_one_runner(key, record, process, names[record["model"]], plan, settings)
        elif key not in orphans and _is_left(record, process, settings, now):
            left.append((key, record, process))
    yield from _trapped(sample, [process for _key, _record, process in left], len(present) - len(orphans), settings)
    if listed:
        yield from _stale(history, left, present, names)


def _is_left(record, process, settings, now):
    """Whether a runner without a model is neither loading nor being unloaded."""
    if is_loading(record, settings, now, process["age_s"]):
        return False
    since = now if record["unlisted"] is None else record["unlisted"]
    return now - since >= settings["unload_grace_s"]


def _trapped(sample, left, runners, settings):
    """What the unit holds for no model: by its server, and by the runners *left* where none of its *runners* has one.

    The server itself computes nothing on a card: what it holds (ollama#16336 shows it so) is never explained.
    """
    listed = sample["ollama"]["models"]
    own = grouped(sample, lambda process: is_ours(process, settings))
    holders = [one for one in own.values() if one["kind"] == "server"]
    if not listed and len(left) == runners:
        holders += left
    if not holders:
        return
    sizes = [one["used_mib"] for one in holders]
    if None not in sizes:
        value = sum(sizes)
    else:
        # Where per-process figures are missing, the card's own figure counts if nobody else is on it.
        value = None if listed else _alone(sample, settings)
    numbers = {"pids": sorted(one["pid"] for one in holders), "used_mib": value, "listed": len(listed)}
    yield _signal(
        "trapped", settings["unit"], numbers, *_over(value, settings["trapped_mib"], settings["trapped_mib"] / 2)
    )


def _alone(sample, settings):
    """Used MiB of the only GPU where every process on it is the unit's; None where that cannot be said."""
    if len(sample["gpus"]) != 1 or sample["gpus"][0]["state"] != "ok":
        return None
    if any(not is_ours(process, settings) for process in sample["processes"]):
        return None
    return sample["gpus"][0]["used_mib"]


def _stale(history, left, present, names):
    """Runners beyond the listed models. Only one that is known not to serve any of them has a target."""
    records = [history["runners"][key] for key in present]
    all_sure = all(record["sure"] for record in records if record["model"] in names)
    for key, record, process in left:
        certain = all_sure and record["was"] is not None and record["was"] not in names
        numbers = {
            "pid": process["pid"],
            "used_mib": process["used_mib"],
            "served": record["was"],
            "listed": len(names),
        }
        target = {"pid": process["pid"], "start": process["start"]} if certain else None
        yield _signal("stale_runner", key, numbers, target=target)


def _of_one_runner(key, record, process, model, plan, settings):
    """What a runner that serves a model holds, beside plan, server and its own baseline."""
    name = model["name"]
    if process["proc_state"] == "T" or process["health"] == "timeout":
        state = {"pid": process["pid"], "model": name, "proc_state": process["proc_state"], "health": process["health"]}
        yield _signal("hang", key, state, target={"model": name})
    used, baseline = record["used_mib"], record["baseline_mib"]
    if used is None:
        return
    planned = plan["models"].get(name) if plan["state"] == "ok" else None
    server = by_server(model, len(process["gpus"]), settings)
    paper = max(server, planned or 0)
    beyond = used - max(paper, baseline or 0)
    numbers = {
        "pid": process["pid"],
        "model": name,
        "used_mib": used,
        "planned_mib": planned,
        "server_mib": round(server),
        "baseline_mib": baseline,
        "beyond_mib": round(beyond),
        "plan": _plan_word(plan, planned),
    }
    high, low = settings["growth_mib"], settings["growth_mib"] / 2
    target = {"model": name, "planned": planned is not None}
    yield _signal("growth", key, numbers, *_over(beyond, high, low), target=target)
    yield _signal("plan_off", name, numbers, *_over(None if baseline is None else baseline - paper, high, low))
    if planned is not None:
        yield _signal("plan_off", name, numbers, *_over(server - planned, high, low))
    rate = steady_growth(record["trend"], settings)
    if rate is not None and used > paper:
        grown = {"mib_per_hour": round(rate), "grown_mib": round(used - record["trend"][0][1])}
        yield _signal("leak", key, {**numbers, **grown}, target={"model": name})


def _plan_word(plan, planned):
    if planned is not None:
        return "ok"
    return "not in plan" if plan["state"] == "ok" else plan["state"]


def steady_growth(trend, settings):
    """MiB per hour (Theil-Sen) if the points [[when, MiB]] grow steadily over the whole window, else None.

    Steadily: each third's median is above the one before by at least a sixth of the whole growth, so
    that one step (a first long prompt) is no trend.
    """
    if len(trend) < 6 or trend[-1][0] - trend[0][0] < settings["leak_window_s"]:
        return None
    grown = trend[-1][1] - trend[0][1]
    if grown < settings["leak_mib"]:
        return None
    from ... import _stats

    third = len(trend) // 3
    values = [value for _when, value in trend]
    medians = [_stats.median(part) for part in (values[:third], values[third:-third], values[-third:])]
    if min(medians[1] - medians[0], medians[2] - medians[1]) < grown / 6:
        return None
    rate = _stats.median(_stats.pair_slopes(trend)) * HOUR
    return rate if rate > settings["leak_mib_per_hour"] else None


def _of_models(history, sample, plan, settings):
    """Models in host memory, and models that do not go."""
    room = max((gpu["free_mib"] for gpu in sample["gpus"] if gpu["state"] == "ok"), default=0)
    for model in sample["ollama"]["models"]:
        name, size, size_vram = model["name"], model["size_mib"], model["size_vram_mib"]
        missing = size - size_vram
        if not size_vram:
            # Wholly in host memory: a fault only where the plan gives it a card. The server says 0 of 0 (measured).
            missing = plan["models"].get(name, 0) if plan["state"] == "ok" else 0
        if missing > 1:
            sizes = {"size_mib": size, "size_vram_mib": size_vram, "missing_mib": round(missing), "free_mib": room}
            fits = room > missing + settings["free_low_mib"]
            yield _signal("cpu_offload", name, {"model": name, **sizes}, target={"model": name} if fits else None)
        trusted = f"{name}|{model['expires_at']}" not in history["distrust"]
        if trusted and model["expires_in_s"] is not None and -model["expires_in_s"] > settings["stuck_s"]:
            yield _signal("stuck_unload", name, {"model": name, "past_expiry_s": round(-model["expires_in_s"])})


def _of_memory(sample, settings):
    """Each card's memory as a whole: what nobody owns, what is left, what is above a fixed limit."""
    high, low, limit = settings["ownerless_mib"], settings["free_low_mib"], settings["limit_mib"]
    for gpu in sample["gpus"]:
        if gpu["state"] != "ok":
            continue
        uuid, used, free = gpu["uuid"], gpu["used_mib"], gpu["free_mib"]
        sizes = [process["used_mib"] for process in sample["processes"] if process["gpu"] == uuid]
        if None not in sizes:
            numbers = {"used_mib": used, "owned_mib": sum(sizes)}
            yield _signal("ownerless", uuid, numbers, *_over(used - sum(sizes), high, high / 2))
        yield _signal("free_low", uuid, {"free_mib": free}, free < low, free < 2 * low)
        if limit:
            yield _signal("limit", uuid, {"used_mib": used, "limit_mib": limit}, *_over(used, limit, limit * 0.95), {})
