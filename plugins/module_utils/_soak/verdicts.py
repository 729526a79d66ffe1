# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a soak test's measure means: a verdict for each of its limits. Pure."""

from __future__ import annotations

from typing import Any

from .._stats import LEAST_POINTS
from .figures import figures
from .measure import SoakError

#: Limits of the verdicts. None: reported, not judged.
LIMITS: dict[str, Any] = {
    "peak_over_plan_mib": 256,  # models_plan_tolerance_mib
    "slope_mib_per_hour": 0,  # the fit's whole interval has to be above
    "rise_mib": 32,  # beyond the plan's scratch: less than this over the whole run cannot be distinguished from noise
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


def limits_with(changes):
    """LIMITS with changes; SoakError for one that there is not, or that is no number."""
    unknown = set(changes) - set(LIMITS)
    if unknown:
        raise SoakError(f"There is no limit {', '.join(sorted(unknown))}; there are {', '.join(sorted(LIMITS))}.")
    for key, value in changes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise SoakError(
                f"The limit {key} is {value!r}; a number from 0, or null (reported, not judged) was wanted."
            )
    return {**LIMITS, **changes}


def judge(run, changes=None):
    """{"verdict": pass | fail, "verdicts": [...], "figures", "limits"}.

    A verdict: {"name", "state": "pass" | "fail" | "unknown" | "off", "found", "wanted", "text": what it means}.
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
        _counted(
            "loops", len(seen["requests"]["loops"]), limits["loops"], "answers that repeat themselves without an end"
        ),
        *[_others(card, limits["others_rise_mib"], seen, len(seen["gpus"])) for card in seen["gpus"]],
        _counted(
            "guard",
            len(_acts(seen["guard"])),
            limits["guard_actions"],
            "decisions of the VRAM guard to act",
            _said(_acts(seen["guard"]), "rule"),
        ),
        _thermal(seen["throttled_s"], limits["thermal_s"], bool(seen["gpus"])),
        _counted(
            "xids", len(seen["xids"]), limits["xids"], "faults of a GPU in the kernel's log", _said(seen["xids"], "xid")
        ),
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
    return "reported only" if limit is None else f"at most {limit:,g}{unit}" if limit else "none"


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
    text = f"{ok} of {sent} requests answered in {seen['duration_s']:,.0f} s, {ended};"
    text += f" {seen['requests']['tokens_in_median']:,.0f} tokens in, at the median."
    return _verdict("load", state, f"{ok} answers, {ended}", "answers, to the end", text)


def _peak(card, limit, count):
    name, peak, planned = f"memory peak{_on(card, count)}", card["peak_mib"], card["planned_mib"]
    if peak is None:
        return _verdict(name, "unknown", "not read", "a reading", "The card's memory could not be read.")
    if planned is None:
        text = "There is no serving plan on this host to hold it against."
        return _verdict(name, "unknown", f"{peak:,} MiB", "a plan", text)
    over = peak - planned
    state = "off" if limit is None else "fail" if over > limit else "pass"
    text = f"Start {card['start_mib']:,}, peak {peak:,} MiB at {card['peak_at_s']:,.0f} s; the plan has {planned:,}."
    return _verdict(
        name,
        state,
        f"{peak:,} MiB ({over:+,})",
        f"plan {planned:,} + {limit}" if limit is not None else "reported only",
        text,
    )


def scratch_mib(plan):
    """What the plan lets grow while a server works: the f16 scratch of a quantized cache, of all its models."""
    return sum(model.get("scratch_mib") or 0 for model in plan.get("models", ()))


def _slope(card, limits, plan, duration_s, count):
    name, fit = f"memory slope{_on(card, count)}", card["slope"]
    if fit is None:
        text = f"No runner was there for {LEAST_POINTS} samples after the first answer."
        return _verdict(name, "unknown", "too few points", "a steady runner", text)
    if limits["slope_mib_per_hour"] is None:
        return _verdict(name, "off", f"{fit['slope']:,.1f} MiB/h", "reported only")
    rise = fit["slope"] * duration_s / 3600
    room = limits["rise_mib"] + scratch_mib(plan) if limits["rise_mib"] is not None else 0
    grows = fit["low"] > limits["slope_mib_per_hour"] and rise > room
    found = f"{fit['slope']:,.1f} MiB/h [{fit['low']:,.1f}, {fit['high']:,.1f}]"
    text = "It grows. " if grows else ""
    text += f"Over this run that is {rise:,.0f} MiB; up to {room:,.0f} may be a first long prompt and noise."
    return _verdict(name, "fail" if grows else "pass", found, "indistinguishable from 0", text)


def _reloads(seen, limit):
    text = "Each model kept its runner."
    if seen["count"]:
        changed = [one for one in seen["list"] if one["before"] != one["context"]]
        pairs = sorted({f"{one['before']:,} to {one['context']:,}" for one in changed})
        contexts = f"; context {', '.join(pairs)}." if pairs else ", with the same context."
        text = f"A runner was ended and its model loaded again {seen['count']} times{contexts}"
    state = "off" if limit is None else "fail" if seen["count"] > limit else "pass"
    return _verdict("reloads", state, str(seen["count"]), _at_most(limit), text)


def _offload(seconds, limit):
    if seconds is None:
        return _verdict("CPU offload", "unknown", "no GPU", "a GPU", "Without a GPU everything is computed on the CPU.")
    state = "off" if limit is None else "fail" if seconds > limit else "pass"
    text = (
        f"For {seconds:,.0f} s a model was computed in part, or all of it, on the CPU."
        if seconds
        else "Every loaded model was wholly on the card at every check."
    )
    return _verdict("CPU offload", state, f"{seconds:,.0f} s", _at_most(limit, " s"), text)


def _errors(seen, limit):
    first = seen["first_errors"][0] if seen["first_errors"] else None
    text = f"First at {first['t']:,.0f} s: {first['error'][:200]}" if first else "Every request was answered."
    state = "off" if limit is None else "fail" if seen["errors"] > limit else "pass"
    return _verdict("errors", state, str(seen["errors"]), _at_most(limit), text)


def _server(seen, limit):
    state = "off" if limit is None else "fail" if seen["away_s"] > limit or seen["restarts"] else "pass"
    text = "It answered at every check."
    if state == "fail":
        text = f"It did not answer for {seen['away_s']:,.0f} s and was started again {seen['restarts']} times."
    return _verdict(
        "server", state, f"{seen['away_s']:,.0f} s away, {seen['restarts']} restarts", "there all the time", text
    )


def _drift(drift, limit):
    if drift is None:
        text = f"Fewer than {LEAST_POINTS} chats were answered."
        return _verdict("latency drift", "unknown", "too few answers", f"{LEAST_POINTS} chats", text)
    found = f"{drift['percent']:+.1f} % [{drift['low']:+.1f}, {drift['high']:+.1f}]"
    if limit is None:
        return _verdict("latency drift", "off", found, "reported only")
    slower = drift["low"] > limit
    text = "Seconds per token did not grow by more than could be chance and the limit."
    if slower:
        text = "Seconds per token grew over the run."
    return _verdict("latency drift", "fail" if slower else "pass", found, f"at most {limit:g} %", text)


def _others(card, limit, seen, count):
    name, peak = f"others{_on(card, count)}", card["others_peak_mib"]
    if peak is None:
        return _verdict(name, "unknown", "not read", "a reading", "The processes of the card could not be read.")
    rise = peak - card["others_start_mib"]
    state = "off" if limit is None else "fail" if rise > limit else "pass"
    text = "Nobody else took memory of the card."
    if state == "fail":
        who = ", ".join(sorted({f"{event['comm']} ({event['mib']:,} MiB)" for event in seen["other_processes"]}))
        text = f"Others took {rise:,} MiB of the card while the test ran: {who or 'unnamed'}."
    return _verdict(name, state, f"{rise:+,} MiB", _at_most(limit, " MiB"), text)


def _thermal(throttled, limit, has_gpu):
    if not has_gpu:
        return _verdict("thermal", "unknown", "no GPU", "a GPU")
    hot = {reason: seconds for reason, seconds in throttled.items() if reason in THERMAL and seconds}
    worst = max(hot.values(), default=0)
    state = "off" if limit is None else "fail" if worst > limit else "pass"
    slowed = [f"{reason} {seconds:,.0f} s" for reason, seconds in sorted(throttled.items()) if seconds]
    text = ", ".join(slowed) or "Nothing slowed the clocks."
    return _verdict("thermal", state, f"{worst:,.0f} s", _at_most(limit, " s"), text)


def _lost(card, count):
    lost = card["lost_s"]
    text = "The card answered at every check."
    if lost:
        text = f"The card was lost for {lost:,.0f} s: this host has to be rebooted."
    return _verdict(
        f"card{_on(card, count)}", "fail" if lost else "pass", f"{lost:,.0f} s lost", "there all the time", text
    )


def _sampling(seen, limit):
    if not seen["samples"]:
        return _verdict("sampling", "fail", "no sample", "samples", "Nothing was measured.")
    share = 100 * seen["missed"] / (seen["samples"] + seen["missed"])
    state = "off" if limit is None else "fail" if share > limit else "pass"
    text = f"{seen['samples']:,} samples, late by {seen['late_p50_ms']:g} ms at the median,"
    text += f" {seen['late_p95_ms']:g} at p95, {seen['late_max_ms']:g} at most."
    wanted = f"at most {limit:g} %" if limit is not None else "reported only"
    return _verdict("sampling", state, f"{share:.1f} % missed", wanted, text)
