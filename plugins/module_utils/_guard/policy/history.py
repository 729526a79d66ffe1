# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the guard remembers from sample to sample: streaks per signal, a record per runner and model, what was done."""

from __future__ import annotations

from .rules import ACTIONS, DAY, HOUR, XID_APPLICATION
from .runners import follow
from .signals import signals


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


def remember(history, sample, plan, settings, now):
    """The history with this sample folded in: streaks per signal, a record per runner and model."""
    new = dict(history)
    nvml_ok = sample["nvml"]["state"] == "ok"
    listed = sample["ollama"]["models"] if sample["ollama"]["state"] == "ok" else None
    gap = history["last_sample"] is not None and now - history["last_sample"] > 4 * settings["interval_s"]
    new["clock"] = now
    new["last_sample"] = now
    new["samples"] = history["samples"] + 1
    new["readable"], new["flaps"] = _readable(history, nvml_ok, bool(sample.get("drained")), now)
    new["in_flight"] = sample.get("in_flight")
    new["xids"] = _xids(history["xids"], sample["xids"]["events"], now)
    new["spent"] = [entry for entry in history["spent"] if now - entry[0] < DAY]
    if listed is not None:
        new["models"], new["distrust"] = _models(history, listed, sample, now)
    if nvml_ok:
        new["runners"] = follow(history["runners"], sample, listed, settings, now)
    found = signals(new, sample, plan, settings, now)
    new["streaks"] = _streaks({} if gap else history["streaks"], found, now)
    new["acts"] = _clear_acts(history["acts"], found, settings, now)
    if settling(new["acts"], settings, now):
        # The host is changing because of us: nothing that is seen meanwhile counts towards the next action.
        new["streaks"] = {key: dict(streak, count=0) for key, streak in new["streaks"].items()}
    return new


def _readable(history, nvml_ok, drained, now):
    """(whether NVML answered, changes of that within ten minutes).

    Who drains a host may replace its driver: no change into a drained sample counts, and none out of one that failed.
    None stands for that failure.
    """
    flaps = [when for when in history["flaps"] if now - when < 600]
    if drained:
        return (True if nvml_ok else None), flaps
    if history["readable"] is not None and history["readable"] != nvml_ok:
        flaps.append(now)
    return nvml_ok, flaps


def _xids(known, events, now):
    """Xids of the last ten minutes (application) or of the last day (fatal), each once, on the guard's clock."""
    kept = [entry for entry in known if now - entry["seen"] < (600 if entry["xid"] in XID_APPLICATION else DAY)]
    have = {(entry["at"], entry["gpu"], entry["xid"]) for entry in known}
    for event in events:
        if (event["at"], event["gpu"], event["xid"]) not in have:
            kept.append({"at": event["at"], "gpu": event["gpu"], "xid": event["xid"], "seen": now})
    return kept[-64:]


def _models(history, listed, sample, now):
    """({name: {expires_at, used}}, ["name|expiry"]) of the loaded models.

    used: when it last was. The second part names the expiries that a jump of the wall clock made worthless.
    """
    models = {}
    for model in listed:
        before = history["models"].get(model["name"])
        same = before is not None and before["expires_at"] == model["expires_at"]
        models[model["name"]] = {"expires_at": model["expires_at"], "used": before["used"] if same else now}
    current = {f"{model['name']}|{model['expires_at']}" for model in listed}
    distrust = current if abs(sample.get("clock_step_s") or 0) > 30 else current & set(history["distrust"])
    return models, sorted(distrust)


def _streaks(before, found, now):
    """How many samples in a row each signal has held; one without it, or one that could not be read, ends it."""
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
    """Mark what helped: the signal was gone once the action had had time to work. Forget it after a quiet hour."""
    kept = {}
    for rule, act in acts.items():
        if now - act["at"] > HOUR and act["cleared"]:
            continue
        settled = now - act["at"] >= settings["settle_s"][act["kind"]]
        gone = f"{rule}:{act['subject']}" not in found
        kept[rule] = dict(act, cleared=act["cleared"] or (settled and gone))
    return kept


def settling(acts, settings, now):
    """Whether what was done last still needs time to take effect."""
    return any(now - act["at"] < settings["settle_s"][act["kind"]] for act in acts.values())


def note(history, decision, now, settings, dry_run=False):
    """The history with the decision recorded: budget spent (also for what failed), ladder, fence.

    A dry run records it as if it had been done, so that the journal shows what act mode would do; it sets no fence,
    and a change of the mode starts from a clean record (``change_mode``).
    """
    new = dict(history)
    action = decision["action"]
    waits = "waiting_since" in decision
    new["waiting"] = {"rule": decision["rule"], "since": decision["waiting_since"]} if waits else None
    if action not in ACTIONS:
        return new
    act = {"rung": decision["rung"], "kind": action, "subject": decision["subject"], "at": now, "cleared": False}
    new["acts"] = dict(history["acts"], **{decision["rule"]: act})
    new["streaks"] = {key: dict(streak, count=0) for key, streak in history["streaks"].items()}
    if action == "fence":
        if not dry_run:
            new["fence"] = {"since": now, "rule": decision["rule"], "why": decision["why"]}
        else:
            # Written once an hour, not once a tick.
            new["watch_until"] = now + HOUR
            new["watch_reason"] = "a fence would stand here"
    else:
        new["spent"] = history["spent"] + [[now, action]]
    return new


def change_mode(history, mode):
    """The history in that mode. What a dry run recorded was not done, so a change starts from a clean record."""
    if history["mode"] == mode:
        return history
    if history["mode"] is None:
        return dict(history, mode=mode)
    clean: dict = {"acts": {}, "spent": [], "waiting": None, "fence": None, "streaks": {}}
    return dict(history, mode=mode, **clean, watch_until=0.0, watch_reason=None)


def unfence(history):
    """The history after a person has removed the cause: no fence, a fresh ladder; the budgets stay as spent."""
    return dict(history, fence=None, acts={}, waiting=None, streaks={}, xids=[])
