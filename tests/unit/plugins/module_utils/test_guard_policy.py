# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds of the guard's policy whatever it sees."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy as guard_policy
from ansible_collections.gpufleet.llm.plugins.module_utils._guard import state, tick
from ansible_collections.gpufleet.llm.plugins.module_utils._guard.policy import signals

DEFAULTS = guard_policy.DEFAULTS
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
stories = st.lists(
    st.tuples(samples, st.integers(1, 14), st.sampled_from([15, 15, 15, 40, 900])),
    min_size=1,
    max_size=10,
)
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def run(story, plan=..., options=None, mode="act"):
    """[(now, sample, decision)], each tick through the state file's text; without a word of it the plan is PLAN."""
    plan = PLAN if plan is ... else plan
    options = DEFAULTS if options is None else options
    clock = {"wall": 1_800_000_000.0, "mono": 100.0, "boot": "b"}
    text = state.dump_state(dict(guard_policy.fresh(), mode=mode), clock, {})
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


@few
@given(stories)
def test_never_acts_on_what_it_cannot_read(story):
    for _now, sample, decision in run(story):
        unreadable = (
            sample["nvml"]["state"] != "ok" or sample["ollama"]["state"] != "ok" or any(gpu["state"] != "ok" or gpu["recovery"] for gpu in sample["gpus"])
        )
        if unreadable:
            assert decision["action"] not in TOUCHES_OLLAMA


@few
@given(stories)
def test_never_exceeds_a_budget(story):
    tight = dict(
        DEFAULTS,
        debounce=2,
        cool_down_s=15,
        budgets={"unload": {"hour": 2, "day": 3}, "end": {"hour": 1, "day": 2}, "restart": {"hour": 1, "day": 2}},
    )
    done = [(now, one["action"]) for now, _sample, one in run(story, options=tight) if one["action"] in TOUCHES_OLLAMA]
    for kind, limit in tight["budgets"].items():
        times = [now for now, what in done if what == kind]
        for start in times:
            assert sum(1 for when in times if start <= when < start + 3600) <= limit["hour"]
            assert sum(1 for when in times if start <= when < start + 86400) <= limit["day"]


@few
@given(stories)
def test_a_restart_cuts_off_no_generation_before_its_bound(story):
    """Whatever else is seen: with something under way a restart was due for drain_s, tick by tick, before it comes."""
    due = None
    for now, sample, decision in run(story):
        if decision.get("due") == "restart" and (due is None or due[1] != decision["rule"]):
            due = (now, decision["rule"])
        elif decision["action"] == "restart" and sample["in_flight"]:
            assert due is not None
            assert now - due[0] >= DEFAULTS["drain_s"]
        if decision.get("due") != "restart":
            due = None


@few
@given(stories)
def test_a_fence_stops_everything(story):
    fenced = False
    for _now, _sample, decision in run(story):
        if fenced:
            assert decision["action"] in ("none", "alert")
        fenced = fenced or decision["action"] == "fence"


@few
@given(stories)
def test_every_action_has_a_target_and_a_reason_that_was_told(story):
    for _now, _sample, decision in run(story):
        json.dumps(decision)
        assert decision["why"]
        if decision["action"] in guard_policy.ACTIONS:
            assert decision["rule"] in {alert["rule"] for alert in decision["alerts"]}
            wanted = {"unload": {"model"}, "end": {"pid", "start"}, "restart": {"unit"}, "fence": set()}[decision["action"]]
            assert set(decision["target"]) == wanted
        if decision["action"] == "end":
            assert decision["rule"] in ("orphan", "stale_runner")


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
    assert dry[-1] == "wait"  # it goes on telling what would be due


def test_a_change_of_mode_starts_with_clean_books():
    history = dict(guard_policy.fresh(), mode="dry_run", spent=[[0.0, "restart"]], fence={"since": 0.0, "rule": "x", "why": "y"})
    changed = guard_policy.change_mode(history, "act")
    assert (changed["spent"], changed["fence"], changed["mode"]) == ([], None, "act")
    assert guard_policy.change_mode(changed, "act") is changed


def test_steady_growth_tells_a_slope_from_a_step():
    options = dict(DEFAULTS)
    slope = [[60.0 * minute, 12000 + 20 * minute] for minute in range(17)]
    step = [[60.0 * minute, 12000 + (400 if minute > 7 else 0)] for minute in range(17)]
    assert round(signals.steady_growth(slope, options)) == 1200
    assert signals.steady_growth(step, options) is None
    assert signals.steady_growth(slope[:10], options) is None
    noisy = [[when, value + (60 if index % 2 else -60)] for index, (when, value) in enumerate(slope)]
    assert signals.steady_growth(noisy, options) > 1000


def test_the_pause_between_actions_doubles():
    budget = {"limits": {}, "spent": [[0.0, "restart"]]}
    assert guard_policy.cool_down("restart", budget, 100.0, DEFAULTS) == 200.0
    budget["spent"].append([300.0, "restart"])
    assert guard_policy.cool_down("restart", budget, 400.0, DEFAULTS) == 500.0
    assert guard_policy.cool_down("unload", budget, 400.0, DEFAULTS) == 0.0
