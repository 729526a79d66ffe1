# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Play the sequences of tests/traces through the guard's policy, and through the guard of the web.

    python tests/support/guard_traces.py            print the table of rules and the table of traces
    python tests/support/guard_traces.py --write    write them into docs/guides/vram_guard.md and docs/measurements/vram_guard_traces.md
    python tests/support/guard_traces.py NAME       print every decision of one trace

A trace is a YAML file; tests/traces/README.md says what may stand in it. Every tick goes the whole way
that it goes on a host: state file text → parse_state → think → dump_state → text.
"""

from __future__ import annotations

import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1] / ".collections"))

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy as guard_policy  # noqa: E402
from ansible_collections.gpufleet.llm.plugins.module_utils._guard import state, tick

TRACES = HERE.parent / "traces"
DOCS = HERE.parents[1] / "docs"
RULES_PAGE = DOCS / "guides" / "vram_guard.md"
TRACES_PAGE = DOCS / "measurements" / "vram_guard_traces.md"
WALL = 1_800_000_000.0  # any day will do
USABLE_MIB = 24564 - 354
UNTIL_LIMIT_S = 7200


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def all_traces():
    """{name: trace}"""
    return {path.stem: load(path) for path in sorted(TRACES.glob("*.yml"))}


def value_at(spec, elapsed, tick):
    """A number; {from, per_min} grows; {cycle: […]} takes turns tick by tick."""
    if not isinstance(spec, dict):
        return spec
    if "cycle" in spec:
        return spec["cycle"][tick % len(spec["cycle"])]
    grown = spec["from"] + spec["per_min"] * elapsed / 60
    return round(min(grown, spec.get("to", grown)))


class World:
    """What the steps of a trace say, turned into samples."""

    def __init__(self, trace):
        self.trace = trace
        self.cards = trace.get("cards", ["A"])
        self.cpu = {}
        self.touched = {}
        self.seen = {}

    def sample(self, step, now, elapsed, tick, clock_step):
        nvml = value_at(step.get("nvml", "ok"), elapsed, tick)
        processes = self._processes(step, now, elapsed, tick)
        gpus = []
        for card in self.cards:
            facts = (step.get("gpus") or {}).get(card, {})
            known = [one["used_mib"] or 0 for one in processes if one["gpu"] == card]
            used = value_at(facts.get("used", sum(known) + facts.get("loose", 1)), elapsed, tick)
            state = facts.get("state", "ok")
            gpus.append(
                {
                    "uuid": card,
                    "pci": None,
                    "state": state,
                    "total_mib": 24564 if state == "ok" else None,
                    "used_mib": used if state == "ok" else None,
                    "free_mib": max(0, USABLE_MIB - used) if state == "ok" else None,
                    "utilisation": facts.get("load", 0),
                    "recovery": facts.get("recovery"),
                }
            )
        readable = nvml == "ok"
        events = step.get("xids", []) if elapsed == 0 else []
        return {
            "nvml": {"state": nvml, "detail": ""},
            "gpus": gpus if readable else [],
            "processes": processes if readable else [],
            "ollama": self._ollama(step, now, elapsed, tick),
            "xids": {
                "state": "ok",
                "events": [{"at": f"{now}.{index}", "gpu": "A", "xid": xid} for index, xid in enumerate(events)],
            },
            "in_flight": sum(bool(one.get("busy")) for one in step.get("processes", [])),
            "drained": bool(step.get("drained")),
            "clock_step_s": clock_step,
        }

    def _processes(self, step, now, elapsed, tick):
        found = []
        for one in step.get("processes", []):
            pid = value_at(one["pid"], elapsed, tick)
            busy = one.get("busy", False)
            self.cpu[pid] = self.cpu.get(pid, 0.0) + (12.0 if busy else 0.0)
            first = self.seen.setdefault(pid, now)
            for card in one.get("cards", [one.get("card", self.cards[0])]):
                found.append(
                    {
                        "pid": pid,
                        "start": pid * 7,
                        "gpu": card,
                        "used_mib": value_at(one["mib"], elapsed, tick),
                        "unit": one.get("unit", "ollama.service"),
                        "kind": one.get("kind", "runner"),
                        "uid_ok": one.get("uid_ok", True),
                        "ppid": one.get("ppid", 50),
                        "age_s": now - first + one.get("age", 0),
                        "cpu_s": self.cpu[pid],
                        "proc_state": one.get("state", "S"),
                        "health": one.get("health", "ok"),
                    }
                )
        return found

    def _ollama(self, step, now, elapsed, tick):
        state = value_at(step.get("ollama", "ok"), elapsed, tick)
        models = []
        for one in step.get("models", []) if state == "ok" else []:
            name = one["name"]
            if one.get("busy") or name not in self.touched:
                self.touched[name] = now
            past = one.get("expired_s")
            models.append(
                {
                    "name": name,
                    "digest": one.get("digest", "d1"),
                    "size_mib": one.get("size", one["vram"]),
                    "size_vram_mib": one["vram"],
                    "context_length": one.get("ctx", 40960),
                    "expires_at": "past" if past is not None else f"after {self.touched[name]}",
                    "expires_in_s": -(past + elapsed) if past is not None else 86400.0 - (now - self.touched[name]),
                }
            )
        return {"state": state, "detail": "", "version": "0.32.15", "models": models}


def plan_of(trace):
    models = trace.get("plan", {})
    if models is None:
        return {"state": "absent", "detail": "", "models": {}}
    return {"state": "ok", "detail": "", "models": {name: float(size) for name, size in models.items()}}


def settings_of(trace):
    return dict(guard_policy.DEFAULTS, **trace.get("settings", {}))


def play(trace, guard):
    """[(second, decision)] of a guard: a function (text, sample, plan, clock, settings) -> (text, decision).

    A step lasts `for_s`, or `until` an action of that kind was taken.
    """
    world = World(trace)
    settings = settings_of(trace)
    plan = plan_of(trace)
    interval = settings["interval_s"]
    text = guard.start(trace, settings)
    now, wall_shift, boot = 0, 0.0, "boot-1"
    decisions = []
    for step in trace["steps"]:
        wall_shift += step.get("clock_jump_s", 0)
        jump = float(step.get("clock_jump_s", 0))
        if step.get("reboot"):
            boot += "+"
        if step.get("state") == "lost":
            text = guard.lost(text)
        elif step.get("state") == "damaged":
            text = guard.damaged(text)
        elapsed, tick, over = 0, 0, False
        while not over:
            clock = {"wall": WALL + now + wall_shift, "mono": 1000.0 + now, "boot": boot}
            sample = world.sample(step, now, elapsed, tick, jump if elapsed == 0 else 0.0)
            text, decision = guard.tick(text, sample, plan, clock, settings)
            decisions.append((now, decision))
            now += interval
            elapsed += interval
            tick += 1
            if "until" in step:
                over = decision["action"] in guard.cures(step["until"]) or elapsed >= UNTIL_LIMIT_S
            else:
                over = elapsed >= step["for_s"]
        now += step.get("pause_s", 0)
    return decisions


class OurGuard:
    """The policy of the collection, in act mode, through its own state file text."""

    @staticmethod
    def lost(text):
        return None

    @staticmethod
    def damaged(text):
        return text[: len(text) // 2]

    @staticmethod
    def cures(until):
        return (until,)

    @staticmethod
    def start(trace, settings):
        if trace.get("new"):
            return None
        history = dict(guard_policy.fresh(), mode="act")
        return state.dump_state(history, {"wall": WALL - 15, "mono": 985.0, "boot": "boot-1"}, {})

    @staticmethod
    def tick(text, sample, plan, clock, settings):
        history, now, step, _trouble = state.parse_state(text, clock)
        sample = dict(sample, clock_step_s=step)
        decision, history = tick.think(history, sample, plan, {"settings": settings}, now, "act")
        return state.dump_state(history, clock, {}), decision


class GuardOfTheWeb:
    """What scripts of the web do, by their own text and no more:

    once a minute `nvidia-smi` is asked what the first card uses; what cannot be read counts as 0; above
    20 GB the server is restarted. (That cron starts another endless copy every minute is left out: it would
    multiply each figure.)
    """

    LIMIT_MIB = 20 * 1024

    @staticmethod
    def lost(text):
        return text  # it keeps no state

    damaged = lost

    @staticmethod
    def cures(until):
        return () if until == "fence" else (until, "restart")

    @staticmethod
    def start(trace, settings):
        return 0

    @classmethod
    def tick(cls, text, sample, plan, clock, settings):
        due = text % max(1, round(60 / settings["interval_s"])) == 0
        used = 0
        if sample["nvml"]["state"] == "ok" and sample["gpus"] and sample["gpus"][0]["used_mib"]:
            used = sample["gpus"][0]["used_mib"]
        return text + 1, {"action": "restart" if due and used > cls.LIMIT_MIB else "none", "rule": None, "alerts": []}


def actions(decisions):
    """[(second, action, rule)] of what changes something."""
    return [(now, one["action"], one["rule"]) for now, one in decisions if one["action"] in guard_policy.ACTIONS]


def reported(decisions):
    """The rules that were reported."""
    return sorted({alert["rule"] for _now, one in decisions for alert in one["alerts"]})


def comparison():
    """Rows for the table of the docs: [(name, about, wants, ours, web)]."""
    rows = []
    for name, trace in all_traces().items():
        mine = actions(play(trace, OurGuard))
        theirs = actions(play(trace, GuardOfTheWeb))
        rows.append((name, trace, mine, theirs))
    return rows


CURES = ("unload", "end", "restart")


def judged(wants, theirs):
    """(needless restarts, missed) of the guard of the web on a trace."""
    if wants in CURES:
        return max(0, len(theirs) - 1), not theirs
    return len(theirs), wants != "nothing"


def table():
    """Markdown of both tables."""
    lines = [
        "| trace | what happens | wanted | vram-guard does | guard of the web: restarts, needless ones | misses it |",
        "|---|---|---|---|---|---|",
    ]
    needless_sum = missed_sum = 0
    for name, trace, mine, theirs in comparison():
        needless, missed = judged(trace["wants"], theirs)
        needless_sum += needless
        missed_sum += missed
        ours = ", ".join(f"{action} at {now} s" for now, action, _rule in mine) or "alert" * (trace["wants"] == "alert") or "nothing"
        cells = [name, trace["about"].strip(), trace["wants"], ours, f"{len(theirs)}, {needless}", "yes" if missed else ""]
        lines.append(f"| {' | '.join(cells)} |")
    faults = sum(1 for trace in all_traces().values() if trace["wants"] != "nothing")
    lines.append(f"| **sum** | | | | **{needless_sum} needless** | **{missed_sum} of {faults}** |")
    return "\n".join(lines)


def rules_table():
    lines = ["| rule | means | is answered by | and not |", "|---|---|---|---|"]
    for name, rule in guard_policy.RULES.items():
        lines.append(f"| `{name}` | {rule['means']} | {' → '.join(rule['ladder']) or 'an alert'} | {rule['why_not']} |")
    return "\n".join(lines)


def filled(text, mark, body):
    """The page with the generated part between its marks renewed."""
    start, end = f"<!-- {mark}: generated by tests/support/guard_traces.py -->", f"<!-- end of {mark} -->"
    head, _start, rest = text.partition(start)
    return f"{head}{start}\n{body}\n{end}{rest.partition(end)[2]}"


def pages():
    """{path: text as it has to be} of the two pages with a generated part."""
    return {
        RULES_PAGE: filled(RULES_PAGE.read_text(encoding="utf-8"), "rules", rules_table()),
        TRACES_PAGE: filled(TRACES_PAGE.read_text(encoding="utf-8"), "traces", table()),
    }


def main(argv):
    if argv == ["--write"]:
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
        return
    if argv:
        for now, one in play(load(TRACES / f"{argv[0]}.yml"), OurGuard):
            print(f"{now:6} {one['action']:8} {one['why']}")
        return
    print(rules_table(), table(), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
