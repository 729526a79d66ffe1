# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a measure means: healthy runs pass, each fault fails the verdict that names it, and arithmetic holds its promises."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._soak import answers, curves, figures, measure, verdicts
from ansible_collections.gpufleet.llm.tests.unit.plugins import soak_runs

PLANNED = soak_runs.PLANNED


def failed(run, limits=None):
    return [verdict["name"] for verdict in verdicts.judge(run, limits)["verdicts"] if verdict["state"] == "fail"]


# --- verdicts ---


def test_a_healthy_run_passes_every_verdict():
    judged = verdicts.judge(soak_runs.run())
    assert judged["verdict"] == "pass"
    assert {verdict["state"] for verdict in judged["verdicts"]} == {"pass"}
    seen = judged["figures"]
    assert seen["gpus"][0]["start_mib"] == seen["gpus"][0]["peak_mib"] == PLANNED
    assert seen["gpus"][0]["slope"]["slope"] == 0 and seen["stable_s"] == 600
    assert seen["requests"]["tokens_in_median"] == 8000


HOT = {"thr": lambda t: ["hw_thermal_slowdown"] if 100 <= t < 110 else []}
FAULTS = {
    "one sample over the plan": ({"held": lambda t: PLANNED + (257 if t == 300 else 0)}, ["memory peak"]),
    "a leak of a MiB a second": ({"held": lambda t: PLANNED - 2000 + t}, ["memory slope"]),
    "a leak beyond the plan": ({"held": lambda t: PLANNED + t}, ["memory peak", "memory slope"]),
    "another context, there and back": ({"runner": lambda t: (100, 40960) if t < 200 else (101, 8192) if t < 300 else (102, 40960)}, ["reloads"]),
    "half on the CPU": ({"ps": lambda t: (15384, 6957) if 100 <= t < 130 else (11885, 11885)}, ["CPU offload"]),
    "all on the CPU": ({"ps": lambda t: (0, 0) if 100 <= t < 130 else (11885, 11885)}, ["CPU offload"]),
    "an error": ({"status": lambda t: "error" if t == 103 else "ok"}, ["errors"]),
    "the server away": ({"ps_state": lambda t: "down" if 50 <= t < 60 else "ok"}, ["server"]),
    "the server started anew": ({"server": lambda t: 50 if t < 100 else 51}, ["server"]),
    "slower and slower": ({"s_per_token": lambda t: 0.017 * (1 + t / 300)}, ["latency drift"]),
    "endless thoughts": ({"loop": lambda t: {"at": 10, "period": 7} if t == 103 else None}, ["loops"]),
    "a second tenant": ({"others": lambda t: 6144 if t > 100 else 0}, ["others"]),
    "the guard acts": ({"events": [{"t": 5.0, "what": "guard", "action": "restart", "rule": "trapped"}]}, ["guard"]),
    "heat": (HOT, ["thermal"]),
    "an Xid": ({"events": [{"t": 5.0, "what": "xid", "xid": 31, "gpu": "GPU-0"}]}, ["xids"]),
    "the card lost": ({"card": lambda t: "lost" if t > 500 else "ok"}, ["card"]),
    "cut off": ({"reason": "cut"}, ["load"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_the_verdict_that_names_it_and_no_other(fault):
    changes, names = FAULTS[fault]
    assert failed(soak_runs.run(**changes)) == names


@pytest.mark.parametrize("fault", FAULTS)
def test_a_limit_of_none_tells_and_does_not_judge(fault):
    off = dict.fromkeys(verdicts.LIMITS)
    if "server" not in fault and fault not in ("the card lost", "cut off"):  # these have no limit: they are never well
        assert failed(soak_runs.run(**FAULTS[fault][0]), off) == []


def test_figures_are_exact():
    seen = figures.figures(soak_runs.run(ps=lambda t: (15384, 6957) if 100 <= t < 130 else (11885, 11885)))
    assert seen["offload_s"] == 30
    seen = figures.figures(soak_runs.run(runner=lambda t: (100 + t // 60, 40960 if t // 60 % 2 else 8192)))
    assert seen["reloads"]["count"] == 9 and seen["reloads"]["contexts"] == [8192, 40960]
    assert figures.figures(soak_runs.run(**HOT))["throttled_s"] == {"hw_thermal_slowdown": 10}
    assert figures.figures(soak_runs.run(ps_state=lambda t: "down" if 50 <= t < 60 else "ok"))["stable_s"] == 50


def test_a_model_that_is_loaded_for_the_first_time_is_no_reload():
    made = soak_runs.run()
    made["generations"].append({"t": 300.0, "pid": 7, "start": 7, "model": "embedding", "context": 2048})
    assert figures.figures(made)["reloads"]["count"] == 0


@pytest.mark.parametrize("mib_per_hour", [150, 400, 3840])
def test_a_leak_of_a_staircase_is_found_within_ten_per_cent_also_over_a_restart(mib_per_hour):
    step = mib_per_hour * 10 / 3600  # a request every ten seconds
    fit = figures.figures(soak_runs.run(1800, held=lambda t: 9000 + int(t // 10 * step)))["gpus"][0]["slope"]
    assert fit["slope"] == pytest.approx(mib_per_hour, rel=0.1) and fit["low"] > 0
    again = soak_runs.run(1800, held=lambda t: 9000 + int(t % 900 // 10 * step), runner=lambda t: (100 + t // 900, 40960))
    assert figures.figures(again)["gpus"][0]["slope"]["slope"] == pytest.approx(mib_per_hour, rel=0.1)


def test_one_step_at_the_first_long_prompt_is_no_leak():
    for when in (30, 300, 570):
        assert failed(soak_runs.run(held=lambda t, when=when: PLANNED - 200 + (180 if t > when else 0))) == []


def test_the_scratch_of_the_plan_may_grow():
    made = soak_runs.run(held=lambda t: PLANNED - 150 + t // 4)
    assert failed(made) == ["memory slope"]
    made["start"]["plan"]["models"][0]["scratch_mib"] = 160
    assert failed(made) == []


def test_no_false_alarm_in_noise():
    """Readings and latencies of a healthy, busy host: 30 runs, none of them red."""
    for seed in range(30):
        source = random.Random(seed)
        noise, slow = [source.gauss(0, 8) for _t in range(120)], [source.lognormvariate(0, 0.5) for _t in range(120)]
        made = soak_runs.run(120, held=lambda t, n=noise: round(PLANNED + n[t]), pace_s=4, s_per_token=lambda t, s=slow: 0.02 * s[t])
        assert failed(made) == [], seed


def test_without_a_gpu_what_needs_one_is_unknown_and_does_not_count():
    judged = verdicts.judge(soak_runs.run(cards=0))
    assert judged["verdict"] == "pass"
    assert {verdict["name"] for verdict in judged["verdicts"] if verdict["state"] == "unknown"} == {"CPU offload", "thermal"}
    assert judged["figures"]["rss_peak_mib"] == 902


def test_without_a_plan_the_peak_is_unknown():
    made = soak_runs.run()
    made["start"]["gpus"][0]["planned_mib"], made["start"]["plan"] = None, None
    states = {verdict["name"]: verdict["state"] for verdict in verdicts.judge(made)["verdicts"]}
    assert states["memory peak"] == "unknown"


def test_a_run_that_answered_nothing_is_red():
    assert "load" in failed(soak_runs.run(status=lambda t: "error"))


def test_samples_that_are_missing_are_counted():
    made = soak_runs.run()
    made["samples"] = [sample for sample in made["samples"] if not 100 <= sample["t"] < 200]
    assert failed(made) == ["sampling"] and figures.figures(made)["sampling"]["missed"] == 100


@pytest.mark.parametrize(
    ("limits", "says"), [({"reload": 1}, "no limit reload"), ({"reloads": -1}, "-1"), ({"reloads": "2"}, "'2'"), ({"loops": True}, "True")]
)
def test_a_limit_that_is_none_is_refused(limits, says):
    with pytest.raises(measure.SoakError, match=says):
        verdicts.limits_with(limits)


# --- the file ---


def test_a_run_comes_back_from_its_lines():
    made = soak_runs.run(30)
    assert measure.parse(soak_runs.lines(made)) == made


def test_a_run_that_was_killed_is_one_all_the_same():
    made = soak_runs.run(30)
    text = soak_runs.lines(dict(made, end=None))
    back = measure.parse([*text[:-1], text[-1][:20]])
    assert back["end"]["reason"] == "cut" and back["end"]["t"] == 29
    assert "load" in failed(back)


@pytest.mark.parametrize("text", [[], ["{}"], ['{"k": "start", "schema": 9}'], ["no", "json", '{"k": "start", "schema": 1}']])
def test_what_is_no_run_is_refused(text):
    with pytest.raises(measure.SoakError):
        measure.parse(text)


# --- curves and loops ---


@given(st.lists(st.one_of(st.none(), st.integers(0, 30000)), max_size=3000), st.integers(4, 200))
@settings(max_examples=80, deadline=None)
def test_down_sampling_keeps_every_extreme_and_invents_nothing(values, most):
    points = list(enumerate(values))
    kept = curves.down_sample(points, most)
    known = [point for point in points if point[1] is not None]
    assert len(kept) <= most and set(kept) <= set(known)
    assert kept == sorted(kept)
    if known:
        assert max(value for _t, value in kept) == max(value for _t, value in known)
        assert min(value for _t, value in kept) == min(value for _t, value in known)
        assert (kept[0], kept[-1]) == (known[0], known[-1])


def test_down_sampling_keeps_a_peak_of_one_sample_in_eight_hours():
    points = [(t, 12000 + (4000 if t == 17777 else t % 7)) for t in range(28800)]
    assert (17777, 16000) in curves.down_sample(points, 400)


@pytest.mark.parametrize(
    "turn", ["no. ", "Wait, let me count the boxes again. ", "x", "a much longer thought that comes again and again, word by word, until nobody listens. "]
)
def test_a_loop_is_found_with_its_period(turn):
    text = "First a sensible beginning. " + turn * (4000 // len(turn))
    found = answers.loop_of(text)
    assert found["period"] == len(turn)
    assert 0 <= found["at"] < len(text)


@given(
    st.lists(st.sampled_from(["the", "boxes", "are", "seven", "but", "maybe", "then", "count", "again", "so"]), min_size=5, max_size=600), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_ordinary_words_are_no_loop(words, seed):
    random.Random(seed).shuffle(words)
    text = " ".join(f"{word} {place}" for place, word in enumerate(words))
    assert answers.loop_of(text) is None


def test_a_short_repetition_and_one_that_ended_are_no_loop():
    assert answers.loop_of("ha " * 50) is None
    assert answers.loop_of("ha " * 500 + "but then it came to an end, with an answer of forty-two boxes that are all full and in their place." * 1) is None


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 20), st.floats(0, 50), st.integers(1, 900)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_throughput_adds_up_to_all_tokens(answers):
    requests = [{"t": t, "ttft": ttft, "total": ttft + rest, "tokens_out": tokens, "status": "ok"} for t, ttft, rest, tokens in answers]
    points = curves.throughput(requests, 600.0)
    width = points[1][0] - points[0][0]
    assert sum(value * width for _t, value in points) == pytest.approx(sum(tokens for *_rest, tokens in answers), rel=1e-6, abs=1e-6)


def test_curves_are_bounded_and_keep_the_peak():
    made = soak_runs.run(3000, held=lambda t: PLANNED + (999 if t == 1234 else 0))
    drawn = curves.curves(made, 100)
    assert [1234.0, PLANNED + 999] in drawn["gpu0_held"]
    assert all(len(points) <= 120 for points in drawn.values())
