# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a soak test's measure means: figures, verdicts against limits, curves that keep their peaks. Pure.

A *run* is what ``parse()`` makes of the program's JSON lines::

    {"start":    {"schema", "host", "at": wall clock, "load", "target", "model", "interval_s", "gpus": [...], "plan", "versions"},
     "samples":  [SAMPLE, …], "requests": [REQUEST, …], "generations": [GENERATION, …], "events": [EVENT, …],
     "end":      {"t", "reason": "done" | "stopped" | "failed" | "cut", "detail", "cpu_s"}}

``t`` is seconds since the start, by a clock that never goes back. A SAMPLE::

    {"t", "late": s after its time,
     "gpus": [{"i", "state", "used", "held", "others": MiB, "temp", "w", "util", "thr": [reasons]}],
     "rss": MiB of the unit's processes, "runners": [[pid, start], …], "server": pid | None,
     "ps": {"state": "ok" | other, "models": [[name, size MiB, size_vram MiB, context], …]}}

``held`` is what the card holds for the server: used less what other units' processes own, so memory that no process
owns any more (trapped) counts as the server's. A REQUEST::

    {"t", "conversation", "round", "kind", "status": "ok" | "error", "error": str, "http": int | None, "ttft": s, "total": s,
     "tokens_in", "tokens_out", "s_per_token", "load_s", "done_reason", "loop": {"at", "period"} | None}

A GENERATION is a runner that was seen: ``{"t", "pid", "start", "model": digest, "context": tokens of all slots}``; the
second of one model in a run is a reload. An EVENT: ``{"t", "what": "ready" | "xid" | "guard" | "other_process", …}``;
ready: the model was loaded, the start value of the table is what is held then.
"""

from __future__ import annotations

import json
import math
from typing import Any

SCHEMA = 1

#: Limits of the verdicts. None: told, not judged.
LIMITS: dict[str, Any] = {
    "peak_over_plan_mib": 256,  # models_plan_tolerance_mib
    "slope_mib_per_hour": 0,  # the fit's whole interval has to be above
    "rise_mib": 32,  # beyond the plan's scratch: less than this over the whole run is no growth that could be told from noise
    "reloads": 0,
    "offload_s": 0,
    "errors": 0,
    "server_away_s": 0,
    "latency_drift_percent": 25,
    "loops": 0,
    "others_rise_mib": 300,  # the guard's foreign_mib
    "guard_actions": 0,
    "thermal_s": 0,
    "xids": 0,
    "samples_missed_percent": 5,
}

THERMAL = frozenset(("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"))

NOT_ASKED = "not asked"

# A runner that has been seen for less than this tells nothing of a slope.
LEAST_POINTS = 10
# Theil-Sen looks at every pair: so many block medians are 45,000 pairs, 0.1 s of plain Python.
MOST_POINTS = 300
Z95 = 1.959964
# Latencies of a busy host are noisy, and each run asks once: one false alarm in a thousand.
Z999 = 3.290527


class VerdictError(Exception):
    """A run that cannot be judged; the text is for an operator."""


# --- the run --------------------------------------------------------------------------------------------------------


def parse(lines) -> dict[str, Any]:
    """The run of its JSON lines; a last line that was cut off is left out. Raises VerdictError."""
    run: dict[str, Any] = {"start": None, "samples": [], "requests": [], "generations": [], "events": [], "end": None}
    places = {"sample": "samples", "request": "requests", "generation": "generations", "event": "events"}
    bad = 0
    for line in lines:
        try:
            entry = json.loads(line)
            kind = entry.pop("k")
        except (ValueError, KeyError, AttributeError):
            bad += bool(line.strip())
            continue
        if kind in places:
            run[places[kind]].append(entry)
        elif kind in ("start", "end"):
            run[kind] = entry
    if run["start"] is None:
        raise VerdictError("This is no measure of a soak test: it has no line of kind start. Give the file that the run left, unchanged.")
    if run["start"].get("schema") != SCHEMA:
        raise VerdictError(f"This measure is of schema {run['start'].get('schema')}; {SCHEMA} was wanted. Judge it with the collection that made it.")
    if bad > 1:
        raise VerdictError(f"{bad} lines of this measure are damaged; one, the last, may be. Run again.")
    if run["end"] is None:
        last = run["samples"][-1]["t"] if run["samples"] else 0.0
        run["end"] = {"t": last, "reason": "cut", "detail": "the program did not come to its end: it was killed, or the host went away", "cpu_s": None}
    return run


# --- arithmetic -----------------------------------------------------------------------------------------------------


def median(values):
    """Middle of the values; mean of the two middle ones for an even number."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(values, percent):
    """The value that so many per cent of them do not exceed (nearest rank); None for none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)] if ordered else None


def thin(points, most):
    """At most so many (t, value): medians of stretches of equally many points."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    parts = [points[start:stop] for start, stop in zip(edges, edges[1:]) if stop > start]
    return [(median([t for t, _value in part]), median([value for _t, value in part])) for part in parts]


def theil_sen(groups, z=Z95):
    """{slope, low, high, points} per second: Sen's slope over pairs within each group, and its interval of z sigmas (95 %).

    The median of all pairwise slopes bears 29 % of wild points; the interval is Sen's, from the variance of Kendall's S
    with ties (Sen 1968; Gilbert 1987, ch. 16). Groups are stretches between which the level may jump. None for fewer
    than LEAST_POINTS points in every group.
    """
    groups = [sorted(group) for group in groups if len(group) >= LEAST_POINTS]
    if not groups:
        return None
    share = max(MOST_POINTS // len(groups), LEAST_POINTS)
    groups = [thin(group, share) for group in groups]
    slopes, variance = [], 0.0
    for group in groups:
        for index, (t, value) in enumerate(group):
            slopes += [(later - value) / (when - t) for when, later in group[index + 1 :] if when > t]
        count = len(group)
        ties: dict[float, int] = {}
        for _t, value in group:
            ties[value] = ties.get(value, 0) + 1
        variance += (count * (count - 1) * (2 * count + 5) - sum(n * (n - 1) * (2 * n + 5) for n in ties.values())) / 18
    if not slopes:
        return None
    slopes.sort()
    reach = z * math.sqrt(max(variance, 0.0))
    last = len(slopes) - 1
    low = slopes[min(max(round((len(slopes) - reach) / 2), 0), last)]
    high = slopes[min(max(round((len(slopes) + reach) / 2), 0), last)]
    return {"slope": median(slopes), "low": low, "high": high, "points": sum(len(group) for group in groups)}


def down_sample(points, most):
    """At most so many (t, value) of a curve: of each stretch its lowest and its highest, so no peak and no dip is lost.

    Points whose value is None are gaps and are left out.
    """
    points = [point for point in points if point[1] is not None]
    if len(points) <= most:
        return points
    count = max(most // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for index in range(count):
        start, stop = index * len(points) // count, (index + 1) * len(points) // count
        stretch = range(start, stop)
        kept.add(min(stretch, key=lambda place: points[place][1]))
        kept.add(max(stretch, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]


def loop_of(text, least_chars=400, least_turns=6):
    """{at, period} in characters where a text's end repeats itself, None where it does not.

    The end of a text that is at least six times the same, and 400 characters of it, is no thought any more.
    """
    tail = text[-8 * least_chars :][::-1]
    if len(tail) < least_chars:
        return None
    # The failure function of Knuth, Morris and Pratt: the shortest period of each prefix of the reversed tail.
    fail = [0] * len(tail)
    best, length = None, 0
    for place in range(1, len(tail)):
        while length and tail[place] != tail[length]:
            length = fail[length - 1]
        if tail[place] == tail[length]:
            length += 1
        fail[place] = length
        period, size = place + 1 - length, place + 1
        if size >= least_chars and size >= least_turns * period:
            best = (size, period)
    return {"at": len(text) - best[0], "period": best[1]} if best else None


# --- figures --------------------------------------------------------------------------------------------------------


def seconds_of(samples, holds, interval_s):
    """Seconds for which something held: each sample speaks for the time up to the next, at most for two intervals."""
    total = 0.0
    for sample, after in zip(samples, [*samples[1:], None]):
        if holds(sample):
            total += min(after["t"] - sample["t"], 2 * interval_s) if after else interval_s
    return round(total, 2)


def offloaded(sample, wants_gpu):
    """Whether a model is listed that is not wholly on a card. size and size_vram are both 0 on a CPU alone (Ollama 0.32)."""
    return sample["ps"]["state"] == "ok" and any(vram < size or (wants_gpu and vram == 0) for _name, size, vram, _context in sample["ps"]["models"])


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
        value = next((card[field] for card in sample["gpus"] if card["i"] == gpu), None) if gpu is not None else sample["rss"]
        if runners and value is not None:
            groups.setdefault(runners, []).append((sample["t"], value))
    return list(groups.values())


def settled(samples, run):
    """Samples after the first answer: what came before is loading and the first long prompt, which takes its room once."""
    first = [request["t"] + request["total"] for request in run["requests"] if request["status"] == "ok" and request["kind"] != "embed"]
    return [sample for sample in samples if first and sample["t"] >= min(first)]


def figures(run):
    """Everything that is read off a run, before any limit: the dict ``figures`` of the report's JSON."""
    start, samples, requests = run["start"], run["samples"], run["requests"]
    interval, wants_gpu = start["interval_s"], bool(start["gpus"])
    duration = max(run["end"]["t"], samples[-1]["t"] if samples else 0.0)
    done = [request for request in requests if request["status"] == "ok"]
    chats = [request for request in done if request["kind"] in ("chat", "other_ctx") and request["s_per_token"]]
    ready = next((event["t"] for event in run["events"] if event["what"] == "ready"), 0.0)
    cards = []
    for card in start["gpus"]:
        held = [(sample["t"], one["held"]) for sample in samples for one in sample["gpus"] if one["i"] == card["index"] and one["held"] is not None]
        others = [one["others"] for sample in samples for one in sample["gpus"] if one["i"] == card["index"] and one["others"] is not None]
        fit = theil_sen(stretches(settled(samples, run), card["index"], "held"))
        temps = [one["temp"] for sample in samples for one in sample["gpus"] if one["i"] == card["index"] and one["temp"] is not None]
        cards.append(
            {
                "index": card["index"],
                "name": card["name"],
                "total_mib": card["total_mib"],
                "planned_mib": card.get("planned_mib"),
                "start_mib": next((value for t, value in held if t >= ready), held[0][1] if held else None),
                "end_mib": held[-1][1] if held else None,
                "peak_mib": max((value for _t, value in held), default=None),
                "peak_at_s": max(held, key=lambda point: point[1])[0] if held else None,
                "slope": _per_hour(fit),
                "others_start_mib": others[0] if others else None,
                "others_peak_mib": max(others, default=None),
                "temperature_max_c": max(temps, default=None),
                "lost_s": seconds_of(samples, lambda sample, index=card["index"]: _state(sample, index) == "lost", interval),
            }
        )
    late = [sample["late"] for sample in samples]
    servers = [sample["server"] for sample in samples if sample["server"]]
    drift = drift_of([request for request in chats if request["kind"] == "chat"])
    again = reloads(run["generations"])
    missed = max(round((samples[-1]["t"] - samples[0]["t"]) / interval) + 1 - len(samples), 0) if samples else None
    return {
        "duration_s": round(duration, 1),
        "ended": run["end"]["reason"],
        "gpus": cards,
        "rss_start_mib": samples[0]["rss"] if samples else None,
        "rss_peak_mib": max((sample["rss"] for sample in samples if sample["rss"] is not None), default=None),
        "rss_slope": _per_hour(theil_sen(stretches(settled(samples, run), None, "rss"))),
        "requests": {
            "sent": len(requests),
            "ok": len(done),
            "errors": len(requests) - len(done),
            "by_kind": {kind: sum(request["kind"] == kind for request in requests) for kind in sorted({request["kind"] for request in requests})},
            "tokens_in": sum(request["tokens_in"] or 0 for request in done),
            "tokens_out": sum(request["tokens_out"] or 0 for request in done),
            "tokens_in_median": median([request["tokens_in"] for request in chats if request["tokens_in"]] or [0]),
            "ttft_p50_s": _round(percentile([request["ttft"] for request in chats], 50)),
            "ttft_p95_s": _round(percentile([request["ttft"] for request in chats], 95)),
            "s_per_token_p50": _round(percentile([request["s_per_token"] for request in chats], 50), 5),
            "s_per_token_p95": _round(percentile([request["s_per_token"] for request in chats], 95), 5),
            "drift": drift,
            "loops": [_named(request) for request in requests if request["loop"]],
            "cut_by_limit": sum(request["done_reason"] == "length" for request in chats),
            "first_errors": [dict(_named(request), error=request["error"], http=request["http"]) for request in requests if request["status"] != "ok"][:20],
        },
        "reloads": {"count": len(again), "list": again[:200], "contexts": sorted({one["context"] for one in run["generations"]})},
        "offload_s": seconds_of(samples, lambda sample: offloaded(sample, wants_gpu), interval) if wants_gpu else None,
        "server": {
            "away_s": seconds_of(samples, away, interval),
            "restarts": sum(one != other for one, other in zip(servers, servers[1:])),
        },
        "throttled_s": {reason: seconds_of(samples, lambda sample, reason=reason: _throttled(sample, reason), interval) for reason in _reasons(samples)},
        "guard": [event for event in run["events"] if event["what"] == "guard"][:200],
        "xids": [event for event in run["events"] if event["what"] == "xid"][:200],
        "other_processes": [event for event in run["events"] if event["what"] == "other_process"][:50],
        "sampling": {
            "samples": len(samples),
            "missed": missed,
            "late_p50_ms": _round(1000 * percentile(late, 50), 1) if late else None,
            "late_p95_ms": _round(1000 * percentile(late, 95), 1) if late else None,
            "late_max_ms": _round(1000 * max(late), 1) if late else None,
        },
        "own_cpu_percent": _round(100 * run["end"]["cpu_s"] / duration, 2) if run["end"].get("cpu_s") and duration else None,
        "stable_s": stable_s(run, again, wants_gpu),
    }


def _round(value, digits=3):
    return None if value is None else round(value, digits)


def _named(request):
    return {key: request[key] for key in ("t", "conversation", "round", "kind")}


def _per_hour(fit):
    """A fit in MiB an hour."""
    return None if fit is None else {**{key: round(3600 * fit[key], 2) for key in ("slope", "low", "high")}, "points": fit["points"]}


def _state(sample, index):
    return next((card["state"] for card in sample["gpus"] if card["i"] == index), None)


def _reasons(samples):
    return sorted({reason for sample in samples for card in sample["gpus"] for reason in card["thr"] or ()} - {"gpu_idle"})


def _throttled(sample, reason):
    return any(reason in (card["thr"] or ()) for card in sample["gpus"])


def drift_of(chats):
    """{percent, low, high} by which the seconds per token changed over the run, from its median; None for too few answers.

    The interval is one of 99.9 %.
    """
    fit = theil_sen([[(request["t"], request["s_per_token"]) for request in chats]], Z999)
    if fit is None:
        return None
    span = max(request["t"] for request in chats) - min(request["t"] for request in chats)
    middle = median([request["s_per_token"] for request in chats])
    return {key: round(100 * fit[name] * span / middle, 1) for key, name in (("percent", "slope"), ("low", "low"), ("high", "high"))}


def stable_s(run, again, wants_gpu):
    """Seconds from the start up to the first error, reload, offload or absence of the server; the whole run where there was none."""
    bad = [request["t"] for request in run["requests"] if request["status"] != "ok"] + [one["t"] for one in again]
    bad += [sample["t"] for sample in run["samples"] if away(sample) or (wants_gpu and offloaded(sample, wants_gpu))]
    return round(min(bad, default=run["end"]["t"]), 1)


# --- verdicts -------------------------------------------------------------------------------------------------------


def limits_with(changes):
    """LIMITS with changes; VerdictError for one that there is not, or that is no number."""
    unknown = set(changes) - set(LIMITS)
    if unknown:
        raise VerdictError(f"There is no limit {', '.join(sorted(unknown))}; there are {', '.join(sorted(LIMITS))}.")
    for key, value in changes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise VerdictError(f"The limit {key} is {value!r}; a number from 0, or null for 'told, not judged', was wanted.")
    return {**LIMITS, **changes}


def judge(run, changes=None):
    """{"verdict": pass | fail, "verdicts": [...], "figures", "limits"}.

    A verdict: {"name", "state": "pass" | "fail" | "unknown" | "off", "found": str, "wanted": str, "text": what it means}.
    unknown: it could not be measured (no GPU, no plan, too few points) and does not count.
    """
    limits = limits_with(changes or {})
    seen = figures(run)
    plan = run["start"].get("plan") or {}
    verdicts = [
        _load(seen),
        *[_peak(card, limits["peak_over_plan_mib"], len(seen["gpus"])) for card in seen["gpus"]],
        *[_slope(card, limits, plan, seen["duration_s"], len(seen["gpus"])) for card in seen["gpus"]],
        _reloads(seen["reloads"], limits["reloads"]),
        _offload(seen["offload_s"], limits["offload_s"]),
        _errors(seen["requests"], limits["errors"]),
        _server(seen["server"], limits["server_away_s"]),
        _drift(seen["requests"]["drift"], limits["latency_drift_percent"]),
        _counted("loops", len(seen["requests"]["loops"]), limits["loops"], "answers that repeat themselves without an end"),
        *[_others(card, limits["others_rise_mib"], seen, len(seen["gpus"])) for card in seen["gpus"]],
        _counted("guard", len(_acts(seen["guard"])), limits["guard_actions"], "decisions of the VRAM guard to act", _said(_acts(seen["guard"]), "rule")),
        _thermal(seen["throttled_s"], limits["thermal_s"], bool(seen["gpus"])),
        _counted("xids", len(seen["xids"]), limits["xids"], "faults of a GPU in the kernel's log", _said(seen["xids"], "xid")),
        *[_lost(card, len(seen["gpus"])) for card in seen["gpus"]],
        _sampling(seen["sampling"], limits["samples_missed_percent"]),
    ]
    failed = [verdict for verdict in verdicts if verdict["state"] == "fail"]
    return {"verdict": "fail" if failed else "pass", "verdicts": verdicts, "figures": seen, "limits": limits}


def _verdict(name, state, found, wanted, text=""):
    return {"name": name, "state": state, "found": found, "wanted": wanted, "text": text}


def _counted(name, count, limit, what, said=""):
    state = "off" if limit is None else "fail" if count > limit else "pass"
    return _verdict(name, state, f"{count}", _at_most(limit), f"{count} {what}{said}." if count else f"No {what}.")


def _at_most(limit, unit=""):
    return "told only" if limit is None else f"at most {limit:,g}{unit}" if limit else "none"


def _on(card, count):
    return f" GPU {card['index']}" if count > 1 else ""


def _acts(guard):
    return [event for event in guard if event.get("action") not in (None, "none", "ok", "wait", "hold")]


def _said(events, key):
    return ": " + ", ".join(sorted({str(event.get(key)) for event in events})) if events else ""


def _load(seen):
    sent, ok = seen["requests"]["sent"], seen["requests"]["ok"]
    ended = {"done": "to its end", "stopped": "stopped early", "failed": "broken off", "cut": "cut off"}[seen["ended"]]
    state = "pass" if ok and seen["ended"] in ("done", "stopped") else "fail"
    text = f"{ok} of {sent} requests answered in {seen['duration_s']:,.0f} s, {ended}; {seen['requests']['tokens_in_median']:,.0f} tokens in, at the median."
    return _verdict("load", state, f"{ok} answers, {ended}", "answers, to the end", text)


def _peak(card, limit, count):
    name, peak, planned = f"memory peak{_on(card, count)}", card["peak_mib"], card["planned_mib"]
    if peak is None:
        return _verdict(name, "unknown", "not read", "a reading", "The card's memory could not be read.")
    if planned is None:
        return _verdict(name, "unknown", f"{peak:,} MiB", "a plan", "There is no serving plan on this host to hold it against.")
    over = peak - planned
    state = "off" if limit is None else "fail" if over > limit else "pass"
    text = f"Start {card['start_mib']:,}, peak {peak:,} MiB at {card['peak_at_s']:,.0f} s; the plan has {planned:,}."
    return _verdict(name, state, f"{peak:,} MiB ({over:+,})", f"plan {planned:,} + {limit}" if limit is not None else "told only", text)


def scratch_mib(plan):
    """What the plan lets grow while a server works: the f16 scratch of a quantised cache, of all its models."""
    return sum(model.get("scratch_mib") or 0 for model in plan.get("models", ()))


def _slope(card, limits, plan, duration_s, count):
    name, fit = f"memory slope{_on(card, count)}", card["slope"]
    if fit is None:
        return _verdict(name, "unknown", "too few points", "a steady runner", f"No runner was there for {LEAST_POINTS} samples after the first answer.")
    if limits["slope_mib_per_hour"] is None:
        return _verdict(name, "off", f"{fit['slope']:,.1f} MiB/h", "told only")
    rise = fit["slope"] * duration_s / 3600
    room = limits["rise_mib"] + scratch_mib(plan) if limits["rise_mib"] is not None else 0
    grows = fit["low"] > limits["slope_mib_per_hour"] and rise > room
    found = f"{fit['slope']:,.1f} MiB/h [{fit['low']:,.1f}, {fit['high']:,.1f}]"
    text = f"Over this run that is {rise:,.0f} MiB; {room:,.0f} is what cannot be told from a first long prompt and noise."
    return _verdict(name, "fail" if grows else "pass", found, "indistinguishable from 0", ("It grows. " if grows else "") + text)


def _reloads(seen, limit):
    text = "Each model kept its runner."
    if seen["count"]:
        pairs = sorted({f"{one['before']:,} to {one['context']:,}" for one in seen["list"] if one["before"] != one["context"]})
        text = f"A runner was ended and its model loaded anew {seen['count']} times" + (
            f"; context {', '.join(pairs)}." if pairs else ", with the same context."
        )
    state = "off" if limit is None else "fail" if seen["count"] > limit else "pass"
    return _verdict("reloads", state, str(seen["count"]), _at_most(limit), text)


def _offload(seconds, limit):
    if seconds is None:
        return _verdict("CPU offload", "unknown", "no GPU", "a GPU", "Without a GPU everything is computed on the CPU.")
    state = "off" if limit is None else "fail" if seconds > limit else "pass"
    text = (
        f"For {seconds:,.0f} s a model was computed in part, or all of it, on the CPU."
        if seconds
        else "Every loaded model was wholly on the card at every look."
    )
    return _verdict("CPU offload", state, f"{seconds:,.0f} s", _at_most(limit, " s"), text)


def _errors(seen, limit):
    first = seen["first_errors"][0] if seen["first_errors"] else None
    text = f"First at {first['t']:,.0f} s: {first['error'][:200]}" if first else "Every request was answered."
    state = "off" if limit is None else "fail" if seen["errors"] > limit else "pass"
    return _verdict("errors", state, str(seen["errors"]), _at_most(limit), text)


def _server(seen, limit):
    state = "off" if limit is None else "fail" if seen["away_s"] > limit or seen["restarts"] else "pass"
    text = f"It did not answer for {seen['away_s']:,.0f} s and was started anew {seen['restarts']} times." if state == "fail" else "It answered at every look."
    return _verdict("server", state, f"{seen['away_s']:,.0f} s away, {seen['restarts']} restarts", "there all the time", text)


def _drift(drift, limit):
    if drift is None:
        return _verdict("latency drift", "unknown", "too few answers", f"{LEAST_POINTS} chats", f"Fewer than {LEAST_POINTS} chats were answered.")
    found = f"{drift['percent']:+.1f} % [{drift['low']:+.1f}, {drift['high']:+.1f}]"
    if limit is None:
        return _verdict("latency drift", "off", found, "told only")
    slower = drift["low"] > limit
    text = "Seconds per token grew over the run." if slower else "Seconds per token did not grow by more than could be chance and the limit."
    return _verdict("latency drift", "fail" if slower else "pass", found, f"at most {limit:g} %", text)


def _others(card, limit, seen, count):
    name, peak = f"others{_on(card, count)}", card["others_peak_mib"]
    if peak is None:
        return _verdict(name, "unknown", "not read", "a reading", "The processes of the card could not be read.")
    rise = peak - card["others_start_mib"]
    state = "off" if limit is None else "fail" if rise > limit else "pass"
    who = ", ".join(sorted({f"{event['comm']} ({event['mib']:,} MiB)" for event in seen["other_processes"]})) if rise else ""
    text = f"Others took {rise:,} MiB of the card while the test ran: {who or 'unnamed'}." if state == "fail" else "Nobody else took memory of the card."
    return _verdict(name, state, f"{rise:+,} MiB", _at_most(limit, " MiB"), text)


def _thermal(throttled, limit, has_gpu):
    if not has_gpu:
        return _verdict("thermal", "unknown", "no GPU", "a GPU")
    hot = {reason: seconds for reason, seconds in throttled.items() if reason in THERMAL and seconds}
    worst = max(hot.values(), default=0)
    state = "off" if limit is None else "fail" if worst > limit else "pass"
    text = ", ".join(f"{reason} {seconds:,.0f} s" for reason, seconds in sorted(throttled.items()) if seconds) or "Nothing slowed the clocks."
    return _verdict("thermal", state, f"{worst:,.0f} s", _at_most(limit, " s"), text)


def _lost(card, count):
    lost = card["lost_s"]
    text = f"The card was lost for {lost:,.0f} s: this host has to be rebooted." if lost else "The card answered at every look."
    return _verdict(f"card{_on(card, count)}", "fail" if lost else "pass", f"{lost:,.0f} s lost", "there all the time", text)


def _sampling(seen, limit):
    if not seen["samples"]:
        return _verdict("sampling", "fail", "no sample", "samples", "Nothing was measured.")
    share = 100 * seen["missed"] / (seen["samples"] + seen["missed"])
    state = "off" if limit is None else "fail" if share > limit else "pass"
    text = f"{seen['samples']:,} samples, late by {seen['late_p50_ms']:g} ms at the median, {seen['late_p95_ms']:g} at p95, {seen['late_max_ms']:g} at most."
    return _verdict("sampling", state, f"{share:.1f} % missed", f"at most {limit:g} %" if limit is not None else "told only", text)


# --- curves ---------------------------------------------------------------------------------------------------------


def curves(run, most=600):
    """{name: [[t, value], …]} for plots, each at most so many points, peaks kept: of memory, temperature, power, RSS and latency."""
    samples, made = run["samples"], {}
    for card in run["start"]["gpus"]:
        for field in ("held", "used", "temp", "w", "util"):
            points = [(sample["t"], one[field]) for sample in samples for one in sample["gpus"] if one["i"] == card["index"]]
            made[f"gpu{card['index']}_{field}"] = down_sample(points, most)
    made["rss"] = down_sample([(sample["t"], sample["rss"]) for sample in samples], most)
    done = [request for request in run["requests"] if request["status"] == "ok" and request["s_per_token"] and request["kind"] == "chat"]
    made["s_per_token"] = down_sample([(request["t"], request["s_per_token"]) for request in done], most)
    made["ttft"] = down_sample([(request["t"], request["ttft"]) for request in done], most)
    made["tokens_per_s"] = down_sample(throughput(run["requests"], run["end"]["t"]), most)
    return {name: [[round(t, 1), round(value, 5)] for t, value in points] for name, points in made.items() if points}


def throughput(requests, duration_s, parts=120):
    """[(t, tokens a second)]: the tokens of each answer are spread evenly over the time from its first token to its end."""
    width = max(duration_s / parts, 1.0)
    buckets = [0.0] * (int(duration_s / width) + 1)
    for request in requests:
        if request["status"] != "ok" or not request["tokens_out"] or request["ttft"] is None:
            continue
        began, ended = request["t"] + request["ttft"], request["t"] + request["total"]
        first, last = int(began / width), min(int(ended / width), len(buckets) - 1)
        for index in range(first, last + 1):
            overlap = min(ended, (index + 1) * width) - max(began, index * width)
            buckets[index] += request["tokens_out"] * (max(overlap, 0.0) / (ended - began) if ended > began else 1.0 / (last - first + 1))
    return [((index + 0.5) * width, tokens / width) for index, tokens in enumerate(buckets)]
