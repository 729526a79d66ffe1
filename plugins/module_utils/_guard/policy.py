# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the VRAM guard thinks: pure functions, no clock, no file, no network.

One tick is three calls, each returning a new value and changing nothing::

    history  = remember(history, sample, plan, settings, now)   # fold what was seen into streaks
    decision = decide(history, plan, budget, now, settings)     # what, if anything, is to be done
    history  = note(history, decision, now, settings)           # book what was done (or would have been)

``now`` is seconds on the guard's own clock, which never goes back (``_guard.program.advance`` makes it).

A *sample* is what one look at the host found::

    {"nvml":   {"state": "ok" | any other word, "detail": str},
     "gpus":   [{"uuid", "state": "ok" | "lost" | "unreadable", "total_mib", "used_mib", "free_mib",
                 "utilisation": percent or None, "recovery": text or None}],
     "processes": [{"pid", "start", "gpu", "used_mib": int or None, "unit", "kind", "uid_ok", "ppid",
                    "age_s", "cpu_s", "proc_state", "health"}],        one entry per GPU and process
     "ollama": {"state": "ok" | "down" | "timeout" | "error", "detail": str,
                "models": [{"name", "digest", "size_mib", "size_vram_mib", "context_length",
                            "expires_at": str, "expires_in_s": float}]},
     "xids":   {"state": "ok" | "skipped" | "unreadable", "events": [{"at": wall clock, "gpu", "xid"}]},
     "in_flight": generations under way now, None where that was not asked or not said,
     "clock_step_s": how far the wall clock jumped against the boot clock since the last sample}

``kind`` of a process: "server" (ollama serve), "runner" (its child, by program name), "other".
A *plan* is ``{"state": "ok" | "absent" | "invalid", "models": {name: MiB}}``.
A *budget* is ``{"limits": {kind: {"hour": n, "day": n}}, "spent": [[when, kind], …]}``.

Where the rules come from: docs/guides/vram_guard.md, which is generated from RULES, and for the reasons
Ollama's scheduler (server/sched.go: a runner is killed on unload and up to 5 s are given to its
VRAM; llm/llama_server.go: size_vram leaves out the CUDA context).
"""

from __future__ import annotations

HOUR = 3600.0
DAY = 24 * HOUR

DEFAULTS = {
    "interval_s": 15,
    "debounce": 4,  # samples in a row
    "growth_mib": 1024,  # beyond what plan, server and baseline explain
    "trapped_mib": 300,
    "ownerless_mib": 1024,
    "foreign_mib": 300,
    "free_low_mib": 512,
    "limit_mib": None,
    "leak_mib": 256,
    "leak_mib_per_hour": 50,
    "leak_window_s": 900,
    "context_mib": 457,  # what Ollama itself assumes for a CUDA context (llm/llama_server.go)
    "scratch_bytes_per_token": 4096,  # f16 scratch of a quantised KV cache, measured on Qwen3-14B
    "load_grace_s": 300,  # OLLAMA_LOAD_TIMEOUT
    "unload_grace_s": 10,  # Ollama waits up to 5 s for the memory of a runner that it ended
    "stuck_s": 1800,
    "idle_s": 30,
    "drain_s": 120,
    "settle_s": {"unload": 30, "end": 30, "restart": 60, "fence": 0},
    "cool_down_s": 300,
    "budgets": {
        "unload": {"hour": 3, "day": 24},
        "end": {"hour": 3, "day": 12},
        "restart": {"hour": 2, "day": 4},
    },
    "unit": "ollama.service",
}

# In the order in which they are looked at: the first that may act, acts. `ladder` is what is
# tried, one rung after the other, while the signal stays; () only tells.
# `means` is the sentence for people; `why_not` says what the rule deliberately does not do.
RULES = {
    "driver": {
        "ladder": (),
        "means": "NVML cannot be used: no driver, no library, a mismatch of the two, or no permission",
        "why_not": "a restart of the server mends no driver",
    },
    "nvml_flapping": {
        "ladder": (),
        "debounce": 1,
        "means": "NVML answers, fails, answers again",
        "why_not": "half of the picture is no ground for an action",
    },
    "gpu_lost": {
        "ladder": ("fence",),
        "debounce": 2,
        "means": "a GPU is lost, or NVML or an Xid asks for a reset or a reboot",
        "why_not": "no unload and no restart: calls to a lost GPU may block, and only a reset or reboot helps",
    },
    "ollama_unreadable": {
        "ladder": (),
        "means": "the Ollama API does not answer or answers nonsense",
        "why_not": "systemd restarts a server that died; one that cannot be read is not judged",
    },
    "orphan": {
        "ladder": ("end", "fence"),
        "means": "a runner of Ollama whose server is gone (its parent is init) still holds VRAM",
        "why_not": "the server is left alone; a second server that somebody runs is only reported",
    },
    "stale_runner": {
        "ladder": ("end", "restart", "fence"),
        "means": "the unit has more runners on the GPU than /api/ps has models, and none is loading",
        "why_not": "a runner is ended only if it is known which one is stale; otherwise the restart is next",
    },
    "trapped": {
        "ladder": ("restart", "fence"),
        "means": "the unit holds VRAM for no model: /api/ps is empty, or the server itself holds it (ollama#16336)",
        "why_not": "an unload cannot help: there is nothing to name",
    },
    "hang": {
        "ladder": ("unload", "restart", "fence"),
        "means": "a runner is stopped or its health port is silent while the server answers",
        "why_not": "a busy runner answers its health port, so a long generation is no hang",
    },
    "stuck_unload": {
        "ladder": ("restart", "fence"),
        "means": 'a model is long past its expiry ("Stopping…" in `ollama ps`) and does not go',
        "why_not": "a generation longer than keep_alive looks the same, so the bound is long",
    },
    "growth": {
        "ladder": ("unload", "restart", "fence"),
        "needs_plan": True,
        "means": "a runner holds more than plan, server and its own baseline explain",
        "why_not": "without a plan for the model it is only reported",
    },
    "xid_application": {
        "ladder": ("unload",),
        "debounce": 1,
        "means": "three Xids of the application class within ten minutes",
        "why_not": "the GPU is healthy; a fresh runner is enough",
    },
    "leak": {
        "ladder": ("unload",),
        "debounce": 1,
        "means": "a runner grew steadily for a quarter of an hour, beyond plan and server",
        "why_not": "never restarted for: one step at the first long prompt is normal",
    },
    "limit": {
        "ladder": ("unload",),
        "means": "more is used on a GPU than vram_guard_limit_mib",
        "why_not": "idle models are unloaded; the server is not restarted, since it would load them again",
    },
    "cpu_offload": {
        "ladder": ("unload",),
        "means": "a model lies in host memory, partly (size_vram < size) or wholly (planned, and size_vram = 0), though it would fit now",
        "why_not": "where it would not fit it is only reported: the plan or a neighbour is the cause",
    },
    "plan_off": {
        "ladder": (),
        "means": "a freshly loaded runner already holds more than planned",
        "why_not": "it would load the same again: the plan or the settings are to be mended",
    },
    "ownerless": {
        "ladder": (),
        "means": "VRAM is used that no process owns",
        "why_not": "no restart frees it; a reload of the driver or a reboot may",
    },
    "free_low": {
        "ladder": (),
        "means": "little VRAM is free though all of it is explained",
        "why_not": "that is how it was configured",
    },
    "foreign": {
        "ladder": (),
        "means": "processes that are not Ollama's use the GPU",
        "why_not": "they are somebody's",
    },
}

DRIVER_STATES = ("no_library", "no_driver", "mismatch", "no_permission")

# The first row is NVIDIA's device plugin's list of errors that leave the GPU healthy; the second
# says by its text that it wants a reset, or that the GPU is gone (79).
XID_APPLICATION = (13, 31, 43, 45, 68, 109)
XID_FATAL = (46, 62, 79, 119, 120, 140, 154)


class PolicyError(Exception):
    """A state or a setting that cannot be worked with; the text is fit for an operator."""


def fresh(grace_s=0.0, reason=None):
    """A history of a guard that has seen nothing; it only watches for grace_s."""
    return {
        "clock": 0.0,
        "mode": None,
        "samples": 0,
        "readable": None,
        "flaps": [],
        "last_sample": None,
        "streaks": {},
        "runners": {},
        "models": {},
        "distrust": [],
        "xids": [],
        "acts": {},
        "spent": [],
        "in_flight": None,
        "waiting": None,
        "fence": None,
        "watch_until": grace_s,
        "watch_reason": reason,
    }


# --- what is seen ---------------------------------------------------------------------------


def remember(history, sample, plan, settings, now):
    """The history with this sample folded in: streaks per signal, a record per runner and model."""
    new = dict(history)
    nvml_ok = sample["nvml"]["state"] == "ok"
    ollama_ok = sample["ollama"]["state"] == "ok"
    gap = history["last_sample"] is not None and now - history["last_sample"] > 4 * settings["interval_s"]
    new["clock"] = now
    new["last_sample"] = now
    new["samples"] = history["samples"] + 1
    new["flaps"] = [when for when in history["flaps"] if now - when < 600]
    if history["readable"] is not None and history["readable"] != nvml_ok:
        new["flaps"] = new["flaps"] + [now]
    new["readable"] = nvml_ok
    new["in_flight"] = sample.get("in_flight")
    new["xids"] = _xids(history["xids"], sample["xids"]["events"], now)
    new["spent"] = [entry for entry in history["spent"] if now - entry[0] < DAY]
    listed = sample["ollama"]["models"] if ollama_ok else None
    if listed is not None:
        new["models"], new["distrust"] = _models(history, listed, sample, now)
    if nvml_ok:
        new["runners"] = _runners(history["runners"], sample, listed, plan, settings, now)
    found = signals(new, sample, plan, settings, now)
    new["streaks"] = _streaks({} if gap else history["streaks"], found, now)
    new["acts"] = _clear_acts(history["acts"], found, settings, now)
    settling = _settling(new["acts"], settings, now)
    if settling:
        # The host is changing because of us: nothing that is seen meanwhile counts towards the next action.
        new["streaks"] = {key: dict(streak, count=0) for key, streak in new["streaks"].items()}
    return new


def _xids(known, events, now):
    """Xids of the last ten minutes (application) or of the last day (fatal), each once, on the guard's clock."""
    kept = [entry for entry in known if now - entry["seen"] < (600 if entry["xid"] in XID_APPLICATION else DAY)]
    have = {(entry["at"], entry["gpu"], entry["xid"]) for entry in known}
    for event in events:
        if (event["at"], event["gpu"], event["xid"]) not in have:
            kept.append({"at": event["at"], "gpu": event["gpu"], "xid": event["xid"], "seen": now})
    return kept[-64:]


def _models(history, listed, sample, now):
    """Per loaded model when it was last used, and the expiries that a jump of the wall clock made worthless."""
    models = {}
    for model in listed:
        before = history["models"].get(model["name"])
        same = before is not None and before["expires_at"] == model["expires_at"]
        models[model["name"]] = {"expires_at": model["expires_at"], "used": before["used"] if same else now}
    current = {f"{model['name']}|{model['expires_at']}" for model in listed}
    distrust = current if abs(sample.get("clock_step_s") or 0) > 30 else current & set(history["distrust"])
    return models, sorted(distrust)


def key_of(process):
    """A PID is used again; with its start time it is unique within a boot."""
    return f"{process['pid']}:{process['start']}"


def is_ours(process, settings):
    """Whether the unit's cgroup holds the process (not by name: runners were called differently over the years)."""
    return process["unit"] == settings["unit"]


def grouped(sample, wanted):
    """{key: {…first entry, used_mib: sum or None, gpus: [uuid]}} of the processes for which wanted(process) is true."""
    found = {}
    for process in sample["processes"]:
        if not wanted(process):
            continue
        entry = found.setdefault(key_of(process), dict(process, used_mib=0, gpus=[]))
        entry["gpus"].append(process["gpu"])
        unknown = entry["used_mib"] is None or process["used_mib"] is None
        entry["used_mib"] = None if unknown else entry["used_mib"] + process["used_mib"]
    return found


def _runners(known, sample, listed, plan, settings, now):
    """Record per runner of the unit: when seen first, which model it serves, its baseline and its trend."""
    present = grouped(sample, lambda process: is_ours(process, settings) and process["kind"] != "server")
    busy_gpus = {gpu["uuid"] for gpu in sample["gpus"] if (gpu.get("utilisation") or 0) >= 10}
    runners = {}
    for key, process in present.items():
        before = known.get(key)
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
        runners[key] = record
    if listed is not None:
        _assign(runners, present, listed, settings)
        for record in runners.values():
            if record["model"] is None:
                record["unlisted"] = now if record["unlisted"] is None else record["unlisted"]
            else:
                record["unlisted"] = None
            _learn(record, record["busy"] == now, settings, now)
    return runners


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
    """Say which runner serves which listed model: as before where that still holds, else by size.

    /api/ps names no PID. `sure` is false where two candidates were too close to tell apart.
    """
    on_gpu = {f"{model['name']}@{model['digest']}": model for model in listed if model["size_vram_mib"] > 0}
    free = dict(on_gpu)
    open_runners = []
    for key, record in runners.items():
        held = record["model"]
        if held in free:
            model = free.pop(held)
            _serve(record, held, model, record["sure"])
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
    pairs = sorted((_distance(runners[key], len(present[key]["gpus"]), model, settings), key, name) for key in candidates for name, model in free.items())
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
    scratch = (model["context_length"] or 0) * settings["scratch_bytes_per_token"] / 1048576
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


def signals(history, sample, plan, settings, now):
    """{"rule:subject": {rule, subject, enter, stay, numbers, target}} that this sample shows.

    Readability comes first: what cannot be read gives a signal of its own and hides those that need it.
    """
    found = {}

    def see(rule, subject, numbers, enter=True, stay=True, target=None):
        if enter or stay:
            found[f"{rule}:{subject}"] = {
                "rule": rule,
                "subject": str(subject),
                "enter": bool(enter),
                "stay": bool(stay),
                "numbers": numbers,
                "target": target,
            }

    nvml, ollama = sample["nvml"], sample["ollama"]
    for xid in history["xids"]:
        if xid["xid"] in XID_FATAL:
            see("gpu_lost", xid["gpu"], {"xid": xid["xid"]})
    recent = [entry["xid"] for entry in history["xids"] if entry["xid"] in XID_APPLICATION]
    if len(recent) >= 3:
        see("xid_application", settings["unit"], {"xids": recent})
    if len(history["flaps"]) >= 4:
        see("nvml_flapping", "nvml", {"changes_in_10_min": len(history["flaps"])})
    if ollama["state"] != "ok":
        see("ollama_unreadable", ollama["state"], {"detail": ollama.get("detail") or ollama["state"]})
    if nvml["state"] != "ok":
        see("driver", nvml["state"], {"state": nvml["state"], "detail": nvml.get("detail") or ""})
        return found
    for gpu in sample["gpus"]:
        if gpu["state"] == "lost" or gpu.get("recovery"):
            see("gpu_lost", gpu["uuid"], {"state": gpu["state"], "recovery": gpu.get("recovery")})
        elif gpu["state"] != "ok":
            see("driver", gpu["uuid"], {"state": gpu["state"], "detail": "this GPU could not be read"})
    _see_processes(see, sample, settings)
    if ollama["state"] == "ok":
        _see_runners(see, history, sample, plan, settings, now)
        _see_models(see, history, sample, plan, settings)
    _see_devices(see, sample, settings)
    return found


def _see_processes(see, sample, settings):
    """Orphans, and the processes of others."""
    for key, process in grouped(sample, lambda one: not is_ours(one, settings) or one["kind"] == "runner").items():
        orphan = process["kind"] == "runner" and process["ppid"] == 1
        numbers = {"pid": process["pid"], "used_mib": process["used_mib"], "unit": process["unit"]}
        if orphan and process["uid_ok"]:
            see("orphan", key, numbers, target={"pid": process["pid"], "start": process["start"]})
        elif not is_ours(process, settings) and process["unit"] is not None:
            used = process["used_mib"]
            see("foreign", key, numbers, *_over(used, settings["foreign_mib"], settings["foreign_mib"] / 2))


def _over(value, enter, leave):
    """(above the threshold to enter, above the threshold to leave); None is neither."""
    return (False, False) if value is None else (value > enter, value > leave)


def is_loading(record, settings, now, age_s):
    """A runner that /api/ps never listed is loading, until the server itself would give up on it."""
    return record["was"] is None and min(now - record["first"], age_s if age_s is not None else 0) < settings["load_grace_s"]


def _see_runners(see, history, sample, plan, settings, now):
    listed = sample["ollama"]["models"]
    names = {f"{model['name']}@{model['digest']}": model for model in listed}
    present = grouped(sample, lambda process: is_ours(process, settings) and process["kind"] != "server")
    orphans = {key for key, one in present.items() if one["kind"] == "runner" and one["ppid"] == 1 and one["uid_ok"]}
    whole = grouped(sample, lambda process: is_ours(process, settings))
    left = []
    for key, process in present.items():
        record = history["runners"][key]
        if record["model"] in names:
            _see_one_runner(see, key, record, process, names[record["model"]], plan, settings, now)
        elif key not in orphans and not is_loading(record, settings, now, process["age_s"]):
            since = now if record["unlisted"] is None else record["unlisted"]
            if now - since >= settings["unload_grace_s"]:
                left.append((key, record, process))
    # The server itself computes nothing on a card: what it holds (ollama#16336 shows it so) is never explained.
    holders = [one for one in whole.values() if one["kind"] == "server"]
    if not listed and len(left) + len(orphans) == len(present):
        holders += [process for _key, _record, process in left]
    if holders:
        sizes = [one["used_mib"] for one in holders]
        # Where per-process figures are missing, the card's own figure counts if nobody else is on it.
        value = sum(sizes) if None not in sizes else _alone(sample, settings) if not listed else None
        numbers = {"pids": sorted(one["pid"] for one in holders), "used_mib": value, "listed": len(listed)}
        see("trapped", settings["unit"], numbers, *_over(value, settings["trapped_mib"], settings["trapped_mib"] / 2))
    if not listed:
        return
    for key, record, process in left:
        certain = (
            record["was"] is not None
            and record["was"] not in names
            and all(history["runners"][other]["sure"] for other in present if history["runners"][other]["model"] in names)
        )
        numbers = {"pid": process["pid"], "used_mib": process["used_mib"], "served": record["was"], "listed": len(listed)}
        target = {"pid": process["pid"], "start": process["start"]} if certain else None
        see("stale_runner", key, numbers, target=target)


def _alone(sample, settings):
    """Used MiB of the only GPU where every process on it is the unit's; None where that cannot be said."""
    if len(sample["gpus"]) != 1 or sample["gpus"][0]["state"] != "ok":
        return None
    if any(not is_ours(process, settings) for process in sample["processes"]):
        return None
    return sample["gpus"][0]["used_mib"]


def _see_one_runner(see, key, record, process, model, plan, settings, now):
    name = model["name"]
    if process["proc_state"] == "T" or process["health"] == "timeout":
        numbers = {"pid": process["pid"], "model": name, "proc_state": process["proc_state"], "health": process["health"]}
        see("hang", key, numbers, target={"model": name})
    used = record["used_mib"]
    if used is None:
        return
    planned = plan["models"].get(name) if plan["state"] == "ok" else None
    server = by_server(model, len(process["gpus"]), settings)
    paper = max(server, planned or 0)
    explained = max(paper, record["baseline_mib"] or 0)
    numbers = {
        "pid": process["pid"],
        "model": name,
        "used_mib": used,
        "planned_mib": planned,
        "server_mib": round(server),
        "baseline_mib": record["baseline_mib"],
        "beyond_mib": round(used - explained),
        "plan": plan["state"] if planned is None and plan["state"] != "ok" else "ok" if planned is not None else "not in plan",
    }
    see(
        "growth",
        key,
        numbers,
        *_over(used - explained, settings["growth_mib"], settings["growth_mib"] / 2),
        target={"model": name, "planned": planned is not None},
    )
    off = None if record["baseline_mib"] is None else record["baseline_mib"] - paper
    see("plan_off", name, numbers, *_over(off, settings["growth_mib"], settings["growth_mib"] / 2))
    if planned is not None:
        see("plan_off", name, numbers, *_over(server - planned, settings["growth_mib"], settings["growth_mib"] / 2))
    rate = steady_growth(record["trend"], settings)
    if rate is not None and used > paper:
        numbers = dict(numbers, mib_per_hour=round(rate), grown_mib=round(used - record["trend"][0][1]))
        see("leak", key, numbers, target={"model": name})


def steady_growth(trend, settings):
    """MiB per hour (Theil-Sen) if the points grow steadily over the whole window, else None.

    Steadily: each third's median is above the one before by at least a sixth of the whole growth, so
    that one step (a first long prompt) is no trend.
    """
    if len(trend) < 6 or trend[-1][0] - trend[0][0] < settings["leak_window_s"]:
        return None
    grown = trend[-1][1] - trend[0][1]
    if grown < settings["leak_mib"]:
        return None
    third = len(trend) // 3
    values = [value for _when, value in trend]
    medians = [_median(values[:third]), _median(values[third:-third]), _median(values[-third:])]
    if min(medians[1] - medians[0], medians[2] - medians[1]) < grown / 6:
        return None
    slopes = [(later[1] - earlier[1]) / (later[0] - earlier[0]) for index, earlier in enumerate(trend) for later in trend[index + 1 :] if later[0] > earlier[0]]
    rate = _median(slopes) * HOUR
    return rate if rate > settings["leak_mib_per_hour"] else None


def _median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _see_models(see, history, sample, plan, settings):
    room = max((gpu["free_mib"] for gpu in sample["gpus"] if gpu["state"] == "ok"), default=0)
    for model in sample["ollama"]["models"]:
        name = model["name"]
        missing = model["size_mib"] - model["size_vram_mib"]
        if not model["size_vram_mib"]:
            # Wholly in host memory: a fault only where the plan gives it a card. The server says 0 of 0 then (measured).
            missing = plan["models"].get(name, 0) if plan["state"] == "ok" else 0
        if missing > 1:
            fits = room > missing + settings["free_low_mib"]
            see(
                "cpu_offload",
                name,
                {"model": name, "size_mib": model["size_mib"], "size_vram_mib": model["size_vram_mib"], "missing_mib": round(missing), "free_mib": room},
                target={"model": name} if fits else None,
            )
        trusted = f"{name}|{model['expires_at']}" not in history["distrust"]
        if trusted and model["expires_in_s"] is not None and -model["expires_in_s"] > settings["stuck_s"]:
            see("stuck_unload", name, {"model": name, "past_expiry_s": round(-model["expires_in_s"])})


def _see_devices(see, sample, settings):
    for gpu in sample["gpus"]:
        if gpu["state"] != "ok":
            continue
        uuid = gpu["uuid"]
        sizes = [process["used_mib"] for process in sample["processes"] if process["gpu"] == uuid]
        if None not in sizes:
            loose = gpu["used_mib"] - sum(sizes)
            see(
                "ownerless",
                uuid,
                {"used_mib": gpu["used_mib"], "owned_mib": sum(sizes)},
                *_over(loose, settings["ownerless_mib"], settings["ownerless_mib"] / 2),
            )
        low = settings["free_low_mib"]
        see("free_low", uuid, {"free_mib": gpu["free_mib"]}, gpu["free_mib"] < low, gpu["free_mib"] < 2 * low)
        if settings["limit_mib"]:
            numbers = {"used_mib": gpu["used_mib"], "limit_mib": settings["limit_mib"]}
            see("limit", uuid, numbers, *_over(gpu["used_mib"], settings["limit_mib"], settings["limit_mib"] * 0.95), target={})


def _streaks(before, found, now):
    """How many samples in a row each signal has held; a sample without it, or one that could not be read, ends it."""
    streaks = {}
    for key, signal in found.items():
        old = before.get(key)
        if signal["enter"] or (old is not None and signal["stay"]):
            streaks[key] = {
                "rule": signal["rule"],
                "subject": signal["subject"],
                "count": old["count"] + 1 if old else 1,
                "since": old["since"] if old else now,
                "numbers": signal["numbers"],
                "target": signal["target"],
            }
    return streaks


def _clear_acts(acts, found, settings, now):
    """Mark what helped: the signal was gone in a sample after the action had time to work. Forget after a quiet hour."""
    kept = {}
    for rule, act in acts.items():
        if now - act["at"] > HOUR and act["cleared"]:
            continue
        settled = now - act["at"] >= settings["settle_s"][act["kind"]]
        gone = f"{rule}:{act['subject']}" not in found
        kept[rule] = dict(act, cleared=True) if settled and gone and not act["cleared"] else act
    return kept


def _settling(acts, settings, now):
    return any(now - act["at"] < settings["settle_s"][act["kind"]] for act in acts.values())


# --- what is decided ------------------------------------------------------------------------


def held(history, settings):
    """The streaks that have lasted long enough to be believed, in the order of RULES."""
    order = list(RULES)
    streaks = [streak for streak in history["streaks"].values() if streak["count"] >= RULES[streak["rule"]].get("debounce", settings["debounce"])]
    return sorted(streaks, key=lambda streak: (order.index(streak["rule"]), streak["since"], streak["subject"]))


def allowed(kind, budget, now):
    """Whether one more action of this kind stays within the hour's and the day's budget."""
    limits = budget["limits"].get(kind)
    if limits is None:
        return True
    hour = sum(1 for when, what in budget["spent"] if what == kind and now - when < HOUR)
    day = sum(1 for when, what in budget["spent"] if what == kind and now - when < DAY)
    return hour < limits["hour"] and day < limits["day"]


def cool_down(kind, budget, now, settings):
    """Seconds that still have to pass before the next action of this kind: the wait doubles with each of the last hours."""
    recent = [when for when, what in budget["spent"] if what == kind and now - when < 6 * HOUR]
    if not recent:
        return 0.0
    wait = min(settings["cool_down_s"] * 2 ** (len(recent) - 1), HOUR)
    return max(0.0, max(recent) + wait - now)


def decide(history, plan, budget, now, settings):
    """{action, rule, subject, target, why, rung, alerts, signals}: the one thing to do now.

    action: "none" | "alert" (only tell) | "wait" (something is due but must wait) | "unload" | "end" |
    "restart" | "fence".
    """
    believed = held(history, settings)
    alerts = [
        {
            "rule": streak["rule"],
            "subject": streak["subject"],
            "for_s": round(now - streak["since"]),
            "numbers": streak["numbers"],
        }
        for streak in believed
    ]
    quiet = {
        "action": "alert" if alerts else "none",
        "rule": None,
        "subject": None,
        "target": None,
        "rung": None,
        "alerts": alerts,
    }
    if alerts:
        quiet.update(rule=alerts[0]["rule"], subject=alerts[0]["subject"])
    if history["fence"]:
        return dict(quiet, why=f"fenced since {round(now - history['fence']['since'])} s: {history['fence']['why']}")
    if not believed:
        watching = [streak for streak in history["streaks"].values() if RULES[streak["rule"]]["ladder"]]
        if watching:
            worst = max(watching, key=lambda streak: streak["count"])
            if _settling(history["acts"], settings, now):
                return dict(quiet, why=f"{worst['rule']}: what was done last is given time to take effect")
            return dict(quiet, why=f"{worst['rule']} seen {worst['count']} times, {RULES[worst['rule']].get('debounce', settings['debounce'])} wanted")
        young = sorted({streak["rule"] for streak in history["streaks"].values()})
        return dict(quiet, why=f"seen, but not for long enough: {', '.join(young)}" if young else "all use is explained")
    lost = [streak for streak in believed if streak["rule"] == "gpu_lost"]
    if lost:
        return _act(quiet, lost[0], "fence", 0, {}, "a GPU is lost or asks for a reset: only a person can help")
    broken = [streak for streak in history["streaks"].values() if streak["rule"] in ("driver", "gpu_lost", "ollama_unreadable")]
    if broken or history["readable"] is not True:
        what = broken[0]["rule"] if broken else "nvml"
        return dict(quiet, why=f"{what}: nothing is done on a picture that cannot be read")
    reasons = []
    for streak in believed:
        answer = _consider(history, plan, streak, budget, now, settings, quiet)
        if answer["action"] not in ("alert",):
            return answer
        reasons.append(answer["why"])
    return dict(quiet, why="; ".join(dict.fromkeys(reasons)))


def _act(quiet, streak, action, rung, target, why):
    return dict(quiet, action=action, rule=streak["rule"], subject=streak["subject"], target=target, rung=rung, why=why)


def _consider(history, plan, streak, budget, now, settings, quiet):
    """What this one signal asks for: the next rung of its ladder, if it may be taken now."""
    rule = RULES[streak["rule"]]
    told = dict(quiet, rule=streak["rule"], subject=streak["subject"])
    if not rule["ladder"]:
        return dict(told, why=f"{streak['rule']}: {rule['means']}; {rule['why_not']}")
    target = streak["target"] or {}
    if rule.get("needs_plan") and not (plan["state"] == "ok" and target.get("planned")):
        return dict(told, why=f"{streak['rule']}: no plan for this model, so not acted on")
    if streak["rule"] == "cpu_offload" and not target:
        return dict(told, why="cpu_offload: the missing part would not fit now either")
    if now < history["watch_until"]:
        left = round(history["watch_until"] - now)
        return dict(told, action="wait", why=f"{streak['rule']}: only watching for {left} s more, {history['watch_reason']}")
    rung = _next_rung(history["acts"].get(streak["rule"]), streak)
    while rung < len(rule["ladder"]):
        kind = rule["ladder"][rung]
        if kind == "end" and "pid" not in target:
            rung += 1
            continue
        if kind == "fence":
            return _act(quiet, streak, "fence", rung, {}, f"{streak['rule']}: what was tried did not help, or its budget is spent")
        if not allowed(kind, budget, now):
            rung += 1
            continue
        pause = cool_down(kind, budget, now, settings)
        if pause and kind != "end":
            return dict(told, action="wait", why=f"{streak['rule']}: {kind} is cooling down for {round(pause)} s")
        chosen = _target(kind, streak, history, settings, now)
        if chosen is None:
            return dict(told, why=f"{streak['rule']}: no model to unload")
        return _when_idle(history, streak, kind, rung, chosen, settings, now, quiet)
    return dict(told, why=f"{streak['rule']}: tried, and its budget is spent: for a person to look at")


def _next_rung(act, streak):
    """The first rung; the next one if the last action did not make this very signal go; the same one if it came back."""
    if act is None:
        return 0
    if act["cleared"] or act["subject"] != streak["subject"]:
        return act["rung"]
    return act["rung"] + 1


def _target(kind, streak, history, settings, now):
    if kind == "restart":
        return {"unit": settings["unit"]}
    target = streak["target"] or {}
    if kind == "end":
        return {"pid": target["pid"], "start": target["start"]}
    if "model" in target:
        return {"model": target["model"]}
    # A rule about a card, not about a model: the one that has been used least recently.
    models = sorted(history["models"], key=lambda name: (history["models"][name]["used"], name))
    idle = [name for name in models if not _in_use(name, history, settings, now)]
    if streak["rule"] == "limit":
        return {"model": idle[0]} if idle else None
    return {"model": (idle or models)[0]} if models else None


def _in_use(name, history, settings, now):
    """Whether a model worked within idle_s: its expiry moved, its runner used CPU time, or its card computed."""
    if now - history["models"].get(name, {"used": now})["used"] < settings["idle_s"]:
        return True
    return any(now - record["busy"] < settings["idle_s"] for record in history["runners"].values() if (record["model"] or "").rpartition("@")[0] == name)


def _when_idle(history, streak, kind, rung, target, settings, now, quiet):
    """Wait for running generations, but not for ever; those that hang are the reason, not a reason to wait.

    An unload is itself a drain (the server lets running generations end), so its wait is a courtesy: for a
    rest of idle_s. A restart cuts off what runs, so it waits for the moment in which nothing is under way.
    """
    reason = f"{streak['rule']}: {RULES[streak['rule']]['means']}"
    under_way = history["in_flight"] if kind == "restart" else None
    names = [target["model"]] if kind == "unload" else list(history["models"])
    busy = [name for name in names if _in_use(name, history, settings, now)]
    if under_way is not None:
        waits, what = under_way > 0, f"{under_way} generation{'s' if under_way != 1 else ''} to end"
    else:
        waits, what = kind in ("unload", "restart") and busy and streak["rule"] not in ("hang", "stuck_unload"), f"{', '.join(busy)} to rest"
    if waits:
        waiting = history["waiting"]
        since = waiting["since"] if waiting and waiting["rule"] == streak["rule"] else now
        if now - since < settings["drain_s"]:
            left = round(settings["drain_s"] - (now - since))
            why = f"{streak['rule']}: {kind} waits for {what}, {left} s at most"
            return dict(_act(quiet, streak, "wait", rung, target, why), waiting_since=since, due=kind)
        reason += f"; waited {settings['drain_s']} s in vain for {what}"
    return _act(quiet, streak, kind, rung, target, reason)


ACTIONS = ("unload", "end", "restart", "fence")


def note(history, decision, now, settings, dry_run=False):
    """The history with the decision booked: budget spent (also for what failed), ladder, fence.

    In a dry run the books are kept as if it had been done, so that the journal shows what act mode would
    do; a fence is not put up, and changing the mode starts with clean books (`change_mode`).
    """
    new = dict(history)
    action = decision["action"]
    new["waiting"] = {"rule": decision["rule"], "since": decision["waiting_since"]} if "waiting_since" in decision else None
    if action not in ACTIONS:
        return new
    act = {"rung": decision["rung"], "kind": action, "subject": decision["subject"], "at": now, "cleared": False}
    new["acts"] = dict(history["acts"], **{decision["rule"]: act})
    new["streaks"] = {key: dict(streak, count=0) for key, streak in history["streaks"].items()}
    if action == "fence":
        if not dry_run:
            new["fence"] = {"since": now, "rule": decision["rule"], "why": decision["why"]}
        else:
            # Said once an hour, not once a tick.
            new["watch_until"] = now + HOUR
            new["watch_reason"] = "a fence would stand here"
    else:
        new["spent"] = history["spent"] + [[now, action]]
    return new


def change_mode(history, mode):
    """Books of a dry run are not those of act mode: a change of mode starts with clean ones."""
    if history["mode"] == mode:
        return history
    if history["mode"] is None:
        return dict(history, mode=mode)
    return dict(history, mode=mode, acts={}, spent=[], waiting=None, fence=None, streaks={}, watch_until=0.0, watch_reason=None)


def unfence(history):
    """The history after a person has looked: no fence, a fresh ladder; the budgets stay as spent."""
    return dict(history, fence=None, acts={}, waiting=None, streaks={}, xids=[])
