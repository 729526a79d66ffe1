# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds of the guard's policy whatever it sees."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy, state, tick
from ansible_collections.gpufleet.llm.tests.unit.plugins import guard_samples as parts

DEFAULTS = policy.DEFAULTS
PLAN = {"state": "ok", "detail": "", "models": {"a:latest": 9000.0, "b:latest": 5000.0}}
NO_PLAN = {"state": "absent", "detail": "", "models": {}}
TOUCHES_OLLAMA = ("unload", "end", "restart")

processes = st.builds(
    lambda pid, gpu, mib, unit, kind, ppid, uid_ok, state, health: {
        "pid": pid,
        "start": pid,
        "gpu": gpu,
        "used_mib": mib,
        "unit": unit,
        "kind": kind,
        "uid_ok": uid_ok,
        "ppid": ppid,
        "age_s": 4000.0,
        "cpu_s": 1.0,
        "proc_state": state,
        "health": health,
    },
    pid=st.integers(100, 103),
    gpu=st.sampled_from(["A", "B"]),
    mib=st.one_of(st.none(), st.sampled_from([200, 5400, 9500, 16000])),
    unit=st.sampled_from(["ollama.service", "ollama.service", "session-1.scope", None]),
    kind=st.sampled_from(["runner", "runner", "server", "other"]),
    ppid=st.sampled_from([1, 50, None]),
    uid_ok=st.booleans(),
    state=st.sampled_from(["S", "S", "T", None]),
    health=st.sampled_from(["ok", "timeout", None]),
)
models = st.builds(
    lambda name, digest, vram, size, expired: {
        "name": name,
        "digest": digest,
        "size_mib": vram + size,
        "size_vram_mib": vram,
        "context_length": 40960,
        "expires_at": f"t{expired}",
        "expires_in_s": float(-expired),
    },
    name=st.sampled_from(["a:latest", "b:latest", "unplanned:latest"]),
    digest=st.sampled_from(["d1", "d2"]),
    vram=st.sampled_from([0, 4900, 8900]),
    size=st.sampled_from([0, 3000]),
    expired=st.sampled_from([-300, 100, 4000]),
)
gpus = st.builds(
    lambda uuid, state, used, recovery: {
        "uuid": uuid,
        "pci": None,
        "state": state,
        "total_mib": 24564,
        "used_mib": used if state == "ok" else None,
        "free_mib": 24210 - used if state == "ok" else None,
        "utilisation": 0,
        "recovery": recovery,
    },
    uuid=st.sampled_from(["A", "B"]),
    state=st.sampled_from(["ok", "ok", "ok", "ok", "lost", "unreadable"]),
    used=st.integers(0, 24210),
    recovery=st.sampled_from([None, None, None, "gpu_reset"]),
)
samples = st.builds(
    lambda nvml, ollama, cards, running, listed, xids, in_flight: {
        "nvml": {"state": nvml, "detail": ""},
        "gpus": cards if nvml == "ok" else [],
        "processes": [one for one in running if nvml == "ok"],
        "ollama": {"state": ollama, "detail": "", "models": listed if ollama == "ok" else []},
        "xids": {"state": "ok", "events": [{"at": str(xid), "gpu": "A", "xid": xid} for xid in xids]},
        "in_flight": in_flight,
        "clock_step_s": 0.0,
    },
    nvml=st.sampled_from(["ok"] * 8 + ["mismatch", "error", "no_driver"]),
    ollama=st.sampled_from(["ok"] * 8 + ["down", "timeout", "error"]),
    cards=st.lists(gpus, min_size=1, max_size=2, unique_by=lambda gpu: gpu["uuid"]),
    running=st.lists(processes, max_size=3, unique_by=lambda one: (one["pid"], one["gpu"])),
    listed=st.lists(models, max_size=2, unique_by=lambda model: model["name"]),
    xids=st.lists(st.sampled_from([13, 31, 79]), max_size=1),
    in_flight=st.sampled_from([None, 0, 0, 2]),
)
random_stories = st.lists(
    st.tuples(samples, st.integers(1, 14), st.sampled_from([15, 15, 15, 40, 900])),
    min_size=1,
    max_size=10,
)


def fault(name, in_flight):
    """A sample of one fault by itself, complete and as a host would show it."""
    qwen, runner = parts.model("a", 8887), parts.process(100, 9501)
    ollama = [parts.process(101, 3001, kind="server", ppid=1)]
    shown = {
        "healthy": parts.sample([runner], [qwen]),
        "trapped": parts.sample(ollama),
        "trapped_beside": parts.sample([runner, *ollama], [qwen]),
        "stuck": parts.sample([runner], [{**qwen, "expires_in_s": -4001.0}]),
        "trapped_and_stuck": parts.sample([runner, *ollama], [{**qwen, "expires_in_s": -4001.0}]),
        "hang": parts.sample([{**runner, "health": "timeout"}], [qwen]),
        "growth": parts.sample([{**runner, "used_mib": 16_003}], [qwen]),
        "orphan": parts.sample([parts.process(102, 7001, ppid=1, unit="session-1.scope")]),
        "stale": parts.sample([runner, parts.process(103, 4441)], [qwen]),
        "errors": parts.sample([runner], [qwen], xids={"state": "ok", "events": [{"at": str(n), "gpu": "A", "xid": 31} for n in range(3)]}),
        "lost": parts.sample([runner], [qwen], [parts.gpu(state="lost", used_mib=None, free_mib=None)]),
        "unread": parts.sample(nvml="mismatch"),
        "down": parts.sample([runner], ollama="down"),
    }
    return {**shown[name], "in_flight": in_flight}


# What a host shows, one fault after the other, most of them long enough to be believed.
FAULTS = ["trapped", "trapped_beside", "stuck"] * 2
FAULTS += ["trapped_and_stuck", "hang", "growth", "orphan", "stale", "errors", "healthy", "lost", "unread", "down"]
fault_stories = st.lists(
    st.tuples(
        st.builds(fault, st.sampled_from(FAULTS), st.sampled_from([0, 2, 2, 2, None])),
        st.sampled_from([1, 3, 4, 5, 9, 14, 25]),
        st.sampled_from([15, 15, 15, 15, 61, 900]),
    ),
    min_size=2,
    max_size=9,
)
stories = st.one_of(random_stories, fault_stories, fault_stories)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def run(story, plan=..., options=None, mode="act"):
    """[(now, sample, decision)], each tick through the state file's text; without a word of it the plan is PLAN."""
    plan = PLAN if plan is ... else plan
    options = DEFAULTS if options is None else options
    clock = {"wall": 1_800_000_000.0, "mono": 100.0, "boot": "b"}
    text = state.dump_state(dict(policy.fresh(), mode=mode), clock, {})
    seen = []
    for sample, times, pace in story:
        for _turn in range(times):
            clock = dict(clock, wall=clock["wall"] + pace, mono=clock["mono"] + pace)
            history, now, _step, trouble = state.parse_state(text, clock)
            assert trouble is None
            decision, history = tick.think(history, sample, plan, {"settings": options}, now, mode)
            text = state.dump_state(history, clock, {})
            seen.append((now, sample, decision))
    return seen


def holds(check, edges, which=stories):
    """Run a property over the *edges*, stories made to come to its point, and over others.

    A Counter of what all of them came to, which the caller holds against its least.
    """
    ran = Counter()
    for story in edges:
        check(story, ran)

    @few
    @given(which)
    def over(story):
        check(story, ran)

    over()
    return ran


def unreadable(sample):
    """Whether a source or a card of a sample could not be read, or a card asks for a reset."""
    sources = (sample["nvml"]["state"], sample["ollama"]["state"])
    return sources != ("ok", "ok") or any(gpu["state"] != "ok" or gpu["recovery"] for gpu in sample["gpus"])


def test_never_acts_on_what_it_cannot_read():
    def check(story, ran):
        for _now, sample, decision in run(story):
            if unreadable(sample):
                ran["unreadable"] += 1
                ran["believed"] += any(policy.RULES[one["rule"]]["ladder"] for one in decision["alerts"])
                assert decision["action"] not in TOUCHES_OLLAMA

    edges = [[(fault("trapped", 0), 4, 15), (fault(name, 0), 9, 15)] for name in ("unread", "down", "lost")]
    ran = holds(check, edges)
    assert ran["unreadable"] >= 50 and ran["believed"] >= 5, ran


TIGHT = dict(
    DEFAULTS,
    debounce=2,
    cool_down_s=15,
    settle_s={"unload": 15, "end": 15, "restart": 15, "fence": 0},
    budgets={"unload": {"hour": 2, "day": 3}, "end": {"hour": 2, "day": 3}, "restart": {"hour": 2, "day": 3}},
)


# A fault that each action is the first answer to.
ANSWERED_BY = {"unload": "hang", "end": "orphan", "restart": "trapped"}


def returning(name, pauses):
    """A fault that is gone once it was answered, and comes back after each of these pauses in seconds."""
    once = [(fault(name, 0), TIGHT["debounce"], 15), (fault("healthy", 0), 3, 15)]
    return [step for pause in pauses for step in (*once, (fault("healthy", 0), 1, pause))]


returning_stories = st.builds(
    returning,
    st.sampled_from(list(ANSWERED_BY.values())),
    st.lists(st.sampled_from([600, 2700, 4200, 4200]), min_size=4, max_size=9),
)


def test_never_exceeds_a_budget():
    def check(story, ran):
        done = [(now, one["action"]) for now, _sample, one in run(story, options=TIGHT) if one["action"] in TOUCHES_OLLAMA]
        for kind, limit in TIGHT["budgets"].items():
            times = [now for now, what in done if what == kind]
            hours = [sum(1 for when in times if start <= when < start + 3600) for start in times]
            days = [sum(1 for when in times if start <= when < start + 86400) for start in times]
            assert max(hours, default=0) <= limit["hour"]
            assert max(days, default=0) <= limit["day"]
            ran[f"hour of {kind}"] += limit["hour"] in hours
            ran[f"day of {kind}"] += limit["day"] in days

    edges = [returning(name, pauses) for name in ANSWERED_BY.values() for pauses in ([600] * 4, [4200] * 5, [2700] * 6)]
    ran = holds(check, edges, st.one_of(stories, returning_stories))
    assert min(ran[f"{span} of {kind}"] for span in ("hour", "day") for kind in TIGHT["budgets"]) >= 1, ran


def test_a_restart_cuts_off_no_generation_before_its_bound():
    """Whatever else is seen: with something under way a restart was due for drain_s, tick by tick, before it comes."""

    def check(story, ran):
        due = None
        for now, sample, decision in run(story):
            if decision.get("due") == "restart" and (due is None or due[1] != decision["rule"]):
                due = (now, decision["rule"])
            elif decision["action"] == "restart" and sample["in_flight"]:
                ran["cut off"] += 1
                assert due is not None and due[1] == decision["rule"]
                assert now - due[0] >= DEFAULTS["drain_s"]
            if decision.get("due") != "restart":
                ran["waited, then none"] += due is not None and decision["action"] != "restart"
                due = None

    long_chat, short_chat = (fault("trapped_beside", 2), 14, 15), (fault("trapped_beside", 2), 6, 15)
    other = (fault("stuck", 2), 5, 15)
    both = [(fault("stuck", 2), 8, 15), (fault("trapped_and_stuck", 2), 25, 15)]
    healthy = (fault("healthy", 2), 1, 15)
    edges = [[long_chat], [other, long_chat], [short_chat, other, long_chat], [short_chat, healthy, long_chat], both]
    ran = holds(check, edges)
    assert ran["cut off"] >= 3 and ran["waited, then none"] >= 1, ran


def test_a_fence_stops_everything():
    def check(story, ran):
        fenced = False
        for _now, _sample, decision in run(story):
            if fenced:
                ran["fenced"] += 1
                assert decision["action"] in ("none", "alert")
            fenced = fenced or decision["action"] == "fence"

    assert holds(check, [[(fault("lost", 0), 2, 15), (fault("trapped", 0), 14, 15)]])["fenced"] >= 14


def test_every_action_has_a_target_and_a_reason_that_was_reported():
    def check(story, ran):
        for _now, _sample, decision in run(story):
            json.dumps(decision)
            assert decision["why"]
            ran[decision["action"]] += 1
            if decision["action"] in policy.ACTIONS:
                assert decision["rule"] in {alert["rule"] for alert in decision["alerts"]}
                wanted = {"unload": {"model"}, "end": {"pid", "start"}, "restart": {"unit"}, "fence": set()}[decision["action"]]
                assert set(decision["target"]) == wanted
            if decision["action"] == "end":
                assert decision["rule"] in ("orphan", "stale_runner")

    edges = [[(fault(name, 2), 25, 15)] for name in ("hang", "orphan", "stale", "trapped", "growth", "errors", "lost")]
    ran = holds(check, edges)
    assert set(ran) == {"none", "alert", "wait", *policy.ACTIONS}, ran


@few
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(-400, 900), st.booleans(), st.integers(1, 60)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([PLAN, NO_PLAN]),
)
def test_never_restarts_while_plan_and_server_explain_the_use(parts, plan):
    """Any order of loads, chats and unloads, each runner within a GiB of what explains it."""
    story = []
    for which, extra, busy, times in parts:
        listed, running = [], []
        for bit, (name, base, vram) in enumerate((("a:latest", 100, 8400), ("b:latest", 200, 4400))):
            if which & (1 << bit):
                # A model that is loaded again is a new process.
                pid = base + (len(story) if not story or not (story[-1][3] & (1 << bit)) else story[-1][4][bit])
                listed.append(
                    {
                        "name": name,
                        "digest": "d",
                        "size_mib": vram,
                        "size_vram_mib": vram,
                        "context_length": 8192,
                        "expires_at": f"{len(story)}{busy}",
                        "expires_in_s": 300.0,
                    }
                )
                running.append({"pid": pid, "start": pid, "gpu": "A", "used_mib": vram + 457 + 32 + extra, "unit": "ollama.service"})
        pids = [next((one["pid"] - base for one in running if one["pid"] // 100 == base // 100), 0) for base in (100, 200)]
        for one in running:
            one.update(kind="runner", uid_ok=True, ppid=50, age_s=50.0, cpu_s=1.0, proc_state="S", health="ok")
        used = sum(one["used_mib"] for one in running) + 1
        card = {"uuid": "A", "pci": None, "state": "ok", "total_mib": 24564, "used_mib": used, "free_mib": 24210 - used}
        sample = {
            "nvml": {"state": "ok", "detail": ""},
            "gpus": [dict(card, utilisation=99 if busy else 0, recovery=None)],
            "processes": running,
            "ollama": {"state": "ok", "detail": "", "models": listed},
            "xids": {"state": "ok", "events": []},
            "clock_step_s": 0.0,
        }
        story.append((sample, times, 15, which, pids))
    decisions = run([part[:3] for part in story], plan=plan)
    # A steady growth is worth an unload before it leaves the tolerance; nothing else is worth anything here.
    done = {(one["action"], one["rule"]) for _now, _sample, one in decisions if one["action"] not in ("none", "alert", "wait")}
    assert done <= {("unload", "leak")}
    assert not [alert for _now, _sample, one in decisions for alert in one["alerts"] if alert["rule"] in ("growth", "trapped", "orphan")]


def test_a_dry_run_decides_as_act_mode_does_and_puts_up_no_fence():
    stuck = {
        "nvml": {"state": "ok", "detail": ""},
        "gpus": [
            {
                "uuid": "A",
                "pci": None,
                "state": "ok",
                "total_mib": 24564,
                "used_mib": 9001,
                "free_mib": 15209,
                "utilisation": 0,
                "recovery": None,
            }
        ],
        "processes": [
            {
                "pid": 5,
                "start": 5,
                "gpu": "A",
                "used_mib": 9000,
                "unit": "ollama.service",
                "kind": "server",
                "uid_ok": True,
                "ppid": 1,
            }
            | {"age_s": 9e3, "cpu_s": 1.0, "proc_state": "S", "health": None}
        ],
        "ollama": {"state": "ok", "detail": "", "models": []},
        "xids": {"state": "ok", "events": []},
        "clock_step_s": 0.0,
    }
    acting = [one["action"] for _now, _sample, one in run([(stuck, 40, 15)])]
    dry = [one["action"] for _now, _sample, one in run([(stuck, 40, 15)], mode="dry_run")]
    assert acting.count("restart") == dry.count("restart") == 1
    assert acting.index("fence") == dry.index("fence")
    assert dry[-1] == "wait"  # it goes on reporting what would be due
