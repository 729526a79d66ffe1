# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What is read off a run of a soak test, before any limit. Pure."""

from __future__ import annotations

from typing import Any

from .. import _stats
from .measure import NOT_ASKED

# Latencies of a busy host are noisy, and each run asks once: one false alarm in a thousand.
Z999 = 3.290527


def figures(run):
    """Everything that is read off a run: the dict ``figures`` of the report's JSON (docs/guides/soak.md)."""
    start, samples, events = run["start"], run["samples"], run["events"]
    interval, wants_gpu = start["interval_s"], bool(start["gpus"])
    duration = max(run["end"]["t"], samples[-1]["t"] if samples else 0.0)
    again = reloads(run["generations"])
    cpu_s = run["end"].get("cpu_s")
    return {
        "duration_s": round(duration, 1),
        "ended": run["end"]["reason"],
        "gpus": [_card(run, card) for card in start["gpus"]],
        "rss_start_mib": samples[0]["rss"] if samples else None,
        "rss_peak_mib": max((sample["rss"] for sample in samples if sample["rss"] is not None), default=None),
        "rss_slope": _per_hour(_stats.theil_sen(stretches(settled(samples, run), None, "rss"))),
        "requests": _requests(run["requests"]),
        "reloads": {
            "count": len(again),
            "list": again[:200],
            "contexts": sorted({one["context"] for one in run["generations"]}),
        },
        "offload_s": seconds_of(samples, lambda one: offloaded(one, wants_gpu), interval) if wants_gpu else None,
        "server": _server(samples, interval),
        "throttled_s": {reason: seconds_of(samples, _throttled_by(reason), interval) for reason in _reasons(samples)},
        "guard": [event for event in events if event["what"] == "guard"][:200],
        "xids": [event for event in events if event["what"] == "xid"][:200],
        "other_processes": [event for event in events if event["what"] == "other_process"][:50],
        "sampling": _sampling(samples, interval),
        "own_cpu_percent": _round(100 * cpu_s / duration, 2) if cpu_s and duration else None,
        "stable_s": stable_s(run, again, wants_gpu),
    }


def _card(run, card):
    """The figures of one card of the run's start."""
    samples, index = run["samples"], card["index"]
    held, others, temperatures = (_readings(samples, index, field) for field in ("held", "others", "temp"))
    ready = next((event["t"] for event in run["events"] if event["what"] == "ready"), 0.0)
    return {
        "index": index,
        "name": card["name"],
        "total_mib": card["total_mib"],
        "planned_mib": card.get("planned_mib"),
        "start_mib": next((value for t, value in held if t >= ready), held[0][1] if held else None),
        "end_mib": held[-1][1] if held else None,
        "peak_mib": max((value for _t, value in held), default=None),
        "peak_at_s": max(held, key=lambda point: point[1])[0] if held else None,
        "slope": _per_hour(_stats.theil_sen(stretches(settled(samples, run), index, "held"))),
        "others_start_mib": others[0][1] if others else None,
        "others_peak_mib": max((value for _t, value in others), default=None),
        "temperature_max_c": max((value for _t, value in temperatures), default=None),
        "lost_s": seconds_of(samples, lambda one: _state(one, index) == "lost", run["start"]["interval_s"]),
    }


def _readings(samples, index, field):
    """[(t, value)] of one card, without the samples in which it could not be read."""
    cards = [(sample["t"], card) for sample in samples for card in sample["gpus"] if card["i"] == index]
    return [(t, card[field]) for t, card in cards if card[field] is not None]


def _requests(requests):
    """The figures of what was asked and answered."""
    done = [request for request in requests if request["status"] == "ok"]
    failed = [request for request in requests if request["status"] != "ok"]
    chats = [one for one in done if one["kind"] in ("chat", "other_ctx") and one["s_per_token"]]
    kinds = sorted({request["kind"] for request in requests})
    ttft, pace = [one["ttft"] for one in chats], [one["s_per_token"] for one in chats]
    return {
        "sent": len(requests),
        "ok": len(done),
        "errors": len(failed),
        "by_kind": {kind: sum(request["kind"] == kind for request in requests) for kind in kinds},
        "tokens_in": sum(request["tokens_in"] or 0 for request in done),
        "tokens_out": sum(request["tokens_out"] or 0 for request in done),
        "tokens_in_median": _stats.median([request["tokens_in"] for request in chats if request["tokens_in"]] or [0]),
        "ttft_p50_s": _round(_stats.percentile(ttft, 50)),
        "ttft_p95_s": _round(_stats.percentile(ttft, 95)),
        "s_per_token_p50": _round(_stats.percentile(pace, 50), 5),
        "s_per_token_p95": _round(_stats.percentile(pace, 95), 5),
        "drift": drift_of([request for request in chats if request["kind"] == "chat"]),
        "loops": [_named(request) for request in requests if request["loop"]],
        "cut_by_limit": sum(request["done_reason"] == "length" for request in chats),
        "first_errors": [dict(_named(one), error=one["error"], http=one["http"]) for one in failed[:20]],
    }


def _server(samples, interval_s):
    """{away_s, restarts} of the server's process."""
    servers = [sample["server"] for sample in samples if sample["server"]]
    return {
        "away_s": seconds_of(samples, away, interval_s),
        "restarts": sum(one != other for one, other in zip(servers, servers[1:])),
    }


def _sampling(samples, interval_s):
    """How many samples were taken and missed, and how late they were."""
    late = [1000 * sample["late"] for sample in samples]
    missed = None
    if samples:
        missed = max(round((samples[-1]["t"] - samples[0]["t"]) / interval_s) + 1 - len(samples), 0)
    return {
        "samples": len(samples),
        "missed": missed,
        "late_p50_ms": _round(_stats.percentile(late, 50), 1),
        "late_p95_ms": _round(_stats.percentile(late, 95), 1),
        "late_max_ms": _round(max(late, default=None), 1),
    }


def seconds_of(samples, holds, interval_s):
    """Seconds for which something held: each sample speaks for the time up to the next, at most for two intervals."""
    total = 0.0
    for sample, after in zip(samples, [*samples[1:], None]):
        if holds(sample):
            total += min(after["t"] - sample["t"], 2 * interval_s) if after else interval_s
    return round(total, 2)


def offloaded(sample, wants_gpu):
    """Whether a model is listed that is not wholly on a card.

    size and size_vram are both 0 on a CPU alone (Ollama 0.32).
    """
    sizes = [(size, vram) for _name, size, vram, _context in sample["ps"]["models"]]
    return sample["ps"]["state"] == "ok" and any(vram < size or (wants_gpu and vram == 0) for size, vram in sizes)


def away(sample):
    """Whether the server did not answer. The first sample may come before the first question."""
    return sample["ps"]["state"] not in ("ok", NOT_ASKED)


def reloads(generations):
    """The runners that were started although their model had one before: [{t, model, context, before}]."""
    seen: dict[str, int] = {}
    found = []
    for generation in sorted(generations, key=lambda one: (one["t"], one["pid"])):
        if generation["model"] in seen:
            found.append({**generation, "before": seen[generation["model"]]})
        seen[generation["model"]] = generation["context"]
    return found


def stretches(samples, gpu, field):
    """[(t, MiB)] of one card, cut wherever the runners change: between them the level may jump, within them not."""
    groups: dict[Any, list] = {}
    for sample in samples:
        runners = tuple(sorted(tuple(runner) for runner in sample["runners"]))
        value = sample["rss"]
        if gpu is not None:
            value = next((card[field] for card in sample["gpus"] if card["i"] == gpu), None)
        if runners and value is not None:
            groups.setdefault(runners, []).append((sample["t"], value))
    return list(groups.values())


def settled(samples, run):
    """Samples after the first answer: before it come the load and the first long prompt, which takes its room once."""
    answered = [request for request in run["requests"] if request["status"] == "ok" and request["kind"] != "embed"]
    first = [request["t"] + request["total"] for request in answered]
    return [sample for sample in samples if first and sample["t"] >= min(first)]


def _round(value, digits=3):
    return None if value is None else round(value, digits)


def _named(request):
    return {key: request[key] for key in ("t", "conversation", "round", "kind")}


def _per_hour(fit):
    """A fit in MiB an hour."""
    if fit is None:
        return None
    return {**{key: round(3600 * fit[key], 2) for key in ("slope", "low", "high")}, "points": fit["points"]}


def _state(sample, index):
    return next((card["state"] for card in sample["gpus"] if card["i"] == index), None)


def _reasons(samples):
    return sorted(
        {reason for sample in samples for card in sample["gpus"] for reason in card["thr"] or ()} - {"gpu_idle"}
    )


def drift_of(chats):
    """{percent, low, high} of the median by which the seconds per token changed over the run, at 99.9 %.

    None for too few answers.
    """
    fit = _stats.theil_sen([[(request["t"], request["s_per_token"]) for request in chats]], Z999)
    if fit is None:
        return None
    span = max(request["t"] for request in chats) - min(request["t"] for request in chats)
    middle = _stats.median([request["s_per_token"] for request in chats])
    percent, low, high = (round(100 * fit[name] * span / middle, 1) for name in ("slope", "low", "high"))
    return {"percent": percent, "low": low, "high": high}


def stable_s(run, again, wants_gpu):
    """Seconds from the start to the first error, reload, offload or absence of the server; else the whole run."""
    bad = [request["t"] for request in run["requests"] if request["status"] != "ok"] + [one["t"] for one in again]
    bad += [sample["t"] for sample in run["samples"] if away(sample) or (wants_gpu and offloaded(sample, wants_gpu))]
    return round(min(bad, default=run["end"]["t"]), 1)


def _throttled_by(reason):
    """A condition on a sample: whether a card's clocks were slowed for that reason."""
    return lambda sample: any(reason in (card["thr"] or ()) for card in sample["gpus"])
