# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What is to be done now: the first believed signal that may act takes the next rung of its ladder."""

from __future__ import annotations

from .history import settling
from .rules import DAY, HOUR, RULES, debounce_of
from .runners import in_use

# What cannot be read while one of these holds is no ground for an action.
BLIND = ("driver", "gpu_lost", "ollama_unreadable")


def held(history, settings):
    """The streaks that have lasted long enough to be believed, in the order of RULES."""
    order = list(RULES)
    streaks = [one for one in history["streaks"].values() if one["count"] >= debounce_of(one["rule"], settings)]
    return sorted(streaks, key=lambda one: (order.index(one["rule"]), one["since"], one["subject"]))


def allowed(kind, budget, now):
    """Whether one more action of this kind stays within the hour's and the day's budget."""
    limits = budget["limits"].get(kind)
    if limits is None:
        return True
    hour = sum(1 for when, what in budget["spent"] if what == kind and now - when < HOUR)
    day = sum(1 for when, what in budget["spent"] if what == kind and now - when < DAY)
    return hour < limits["hour"] and day < limits["day"]


def cool_down(kind, budget, now, settings):
    """Seconds until the next action of this kind may come: the wait doubles with each one of the last six hours."""
    recent = [when for when, what in budget["spent"] if what == kind and now - when < 6 * HOUR]
    if not recent:
        return 0.0
    wait = min(settings["cool_down_s"] * 2 ** (len(recent) - 1), HOUR)
    return max(0.0, max(recent) + wait - now)


def decide(history, plan, budget, now, settings):
    """{action, rule, subject, target, why, rung, alerts}: the one thing to do now.

    action: "none" | "alert" (only report) | "wait" (something is due but must wait) | "unload" | "end" |
    "restart" | "fence". A wait for generations to end also has waiting_since and due, the action that waits.
    """
    believed = held(history, settings)
    quiet = _quiet(believed, now)
    if history["fence"]:
        lasted = round(now - history["fence"]["since"])
        return dict(quiet, why=f"fenced since {lasted} s: {history['fence']['why']}")
    if not believed:
        return dict(quiet, why=_why_not_yet(history, settings, now))
    lost = [streak for streak in believed if streak["rule"] == "gpu_lost"]
    if lost:
        return _act(quiet, lost[0], "fence", 0, {}, "a GPU is lost or asks for a reset: only a person can help")
    broken = [streak for streak in history["streaks"].values() if streak["rule"] in BLIND]
    if broken or history["readable"] is not True:
        what = broken[0]["rule"] if broken else "nvml"
        return dict(quiet, why=f"{what}: nothing is done on a picture that cannot be read")
    reasons = []
    for streak in believed:
        answer = _consider(history, plan, streak, budget, now, settings, quiet)
        if answer["action"] != "alert":
            return answer
        reasons.append(answer["why"])
    return dict(quiet, why="; ".join(dict.fromkeys(reasons)))


def _quiet(believed, now):
    """The decision that changes nothing: every believed signal is reported."""
    alerts = [
        {
            "rule": streak["rule"],
            "subject": streak["subject"],
            "for_s": round(now - streak["since"]),
            "numbers": streak["numbers"],
        }
        for streak in believed
    ]
    first = alerts[0] if alerts else {"rule": None, "subject": None}
    return {
        "action": "alert" if alerts else "none",
        "rule": first["rule"],
        "subject": first["subject"],
        "target": None,
        "rung": None,
        "alerts": alerts,
    }


def _why_not_yet(history, settings, now):
    """Why nothing that was seen is believed yet."""
    watching = [streak for streak in history["streaks"].values() if RULES[streak["rule"]]["ladder"]]
    if watching:
        worst = max(watching, key=lambda streak: streak["count"])
        if settling(history["acts"], settings, now):
            return f"{worst['rule']}: what was done last is given time to take effect"
        return f"{worst['rule']} seen {worst['count']} times, {debounce_of(worst['rule'], settings)} wanted"
    young = sorted({streak["rule"] for streak in history["streaks"].values()})
    return f"seen, but not for long enough: {', '.join(young)}" if young else "all use is explained"


def _act(quiet, streak, action, rung, target, why):
    rule, subject = streak["rule"], streak["subject"]
    return dict(quiet, action=action, rule=rule, subject=subject, target=target, rung=rung, why=why)


def _consider(history, plan, streak, budget, now, settings, quiet):
    """What this one signal asks for: the next rung of its ladder, if it may be taken now."""
    name, rule = streak["rule"], RULES[streak["rule"]]
    reported = dict(quiet, rule=name, subject=streak["subject"])
    refusal = _only_reported(plan, streak)
    if refusal:
        return dict(reported, why=refusal)
    if now < history["watch_until"]:
        left = round(history["watch_until"] - now)
        return dict(reported, action="wait", why=f"{name}: only watching for {left} s more, {history['watch_reason']}")
    for rung in range(_next_rung(history["acts"].get(name), streak), len(rule["ladder"])):
        kind = rule["ladder"][rung]
        if kind == "fence":
            why = f"{name}: what was tried did not help, or its budget is spent"
            return _act(quiet, streak, "fence", rung, {}, why)
        if (kind == "end" and "pid" not in (streak["target"] or {})) or not allowed(kind, budget, now):
            continue
        pause = cool_down(kind, budget, now, settings)
        if pause and kind != "end":
            return dict(reported, action="wait", why=f"{name}: {kind} is cooling down for {round(pause)} s")
        chosen = _target(kind, streak, history, settings, now)
        if chosen is None:
            return dict(reported, why=f"{name}: no model to unload")
        return _when_idle(history, streak, kind, rung, chosen, settings, now, quiet)
    return dict(reported, why=f"{name}: tried, and its budget is spent: a person has to find the cause")


def _only_reported(plan, streak):
    """Why this signal is never acted on, None where it may be."""
    name, rule, target = streak["rule"], RULES[streak["rule"]], streak["target"] or {}
    if not rule["ladder"]:
        return f"{name}: {rule['means']}; {rule['why_not']}"
    if rule.get("needs_plan") and not (plan["state"] == "ok" and target.get("planned")):
        return f"{name}: no plan for this model, so not acted on"
    if name == "cpu_offload" and not target:
        return "cpu_offload: the missing part would not fit now either"
    return None


def _next_rung(act, streak):
    """The first rung; the next one if the last action did not clear this very signal; the same one if it came back."""
    if act is None:
        return 0
    if act["cleared"] or act["subject"] != streak["subject"]:
        return act["rung"]
    return act["rung"] + 1


def _target(kind, streak, history, settings, now):
    """{unit} | {pid, start} | {model} that the action is about; None where there is no model to unload."""
    if kind == "restart":
        return {"unit": settings["unit"]}
    target = streak["target"] or {}
    if kind == "end":
        return {"pid": target["pid"], "start": target["start"]}
    if "model" in target:
        return {"model": target["model"]}
    # A rule about a card, not about a model: the one that has been used least recently.
    models = sorted(history["models"], key=lambda name: (history["models"][name]["used"], name))
    idle = [name for name in models if not in_use(name, history, settings, now)]
    if streak["rule"] == "limit":
        return {"model": idle[0]} if idle else None
    return {"model": (idle or models)[0]} if models else None


def _when_idle(history, streak, kind, rung, target, settings, now, quiet):
    """Wait for running generations, but not for ever; those that hang are the reason, not a reason to wait.

    An unload is itself a drain (the server lets running generations end), so its wait is a courtesy: for a
    rest of idle_s. A restart cuts off what runs, so it waits for the moment in which nothing is under way.
    """
    name = streak["rule"]
    reason = f"{name}: {RULES[name]['means']}"
    what = _awaited(history, streak, kind, target, settings, now)
    if not what:
        return _act(quiet, streak, kind, rung, target, reason)
    waiting = history["waiting"]
    since = waiting["since"] if waiting and waiting["rule"] == name else now
    if now - since < settings["drain_s"]:
        left = round(settings["drain_s"] - (now - since))
        why = f"{name}: {kind} waits for {what}, {left} s at most"
        return dict(_act(quiet, streak, "wait", rung, target, why), waiting_since=since, due=kind)
    return _act(quiet, streak, kind, rung, target, f"{reason}; waited {settings['drain_s']} s in vain for {what}")


def _awaited(history, streak, kind, target, settings, now):
    """What an action has to wait for, in words; None where it may come at once."""
    under_way = history["in_flight"] if kind == "restart" else None
    if under_way is not None:
        return f"{under_way} generation{'s' if under_way != 1 else ''} to end" if under_way > 0 else None
    if kind not in ("unload", "restart") or streak["rule"] in ("hang", "stuck_unload"):
        return None
    names = [target["model"]] if kind == "unload" else list(history["models"])
    busy = [name for name in names if in_use(name, history, settings, now)]
    return f"{', '.join(busy)} to rest" if busy else None
