# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which runner serves which model, what it rested at, and how it grew, each bound from both sides."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._guard.policy import runners
from ansible_collections.gpufleet.llm.tests.unit.plugins.guard_samples import SETTINGS, gpu, history, model, process, record, sample

NOW = 50_000.0
A, B = model("a", 8887), model("b", 4441)
# What the server explains of a runner of A or B on one card: its model, a CUDA context, the scratch of 40,961 tokens.
EXPLAINED = 457 + 40961 * 4096 / 1048576


def follow(processes, models, known=None, now=NOW, gpus=None, **settings):
    listed = None if models is None else list(models)
    return runners.follow(known or {}, sample(processes, models or (), gpus), listed, {**SETTINGS, **settings}, now)


def key(pid):
    return f"{pid}:{pid * 7 + 1}"


def test_what_the_server_explains():
    assert runners.by_server(A, 1, SETTINGS) == pytest.approx(8887 + EXPLAINED)
    assert runners.by_server(A, 2, SETTINGS) == pytest.approx(8887 + EXPLAINED + 457)
    assert runners.by_server(A, 0, SETTINGS) == pytest.approx(8887 + EXPLAINED)
    assert runners.by_server({**A, "context_length": None}, 1, SETTINGS) == 8887 + 457
    assert runners.by_server(A, 1, {**SETTINGS, "context_mib": 300, "scratch_bytes_per_token": 0}) == 9187


def test_a_process_on_two_cards_is_one_that_holds_both_shares():
    on_two = [process(7, 5003), process(7, 4001, gpu="B"), process(8, None), process(8, 70, gpu="B"), process(9, 70), process(9, None, gpu="B")]
    found = runners.grouped(sample(on_two), lambda one: True)
    assert {name: (one["used_mib"], one["gpus"]) for name, one in found.items()} == {
        key(7): (9004, ["A", "B"]),
        key(8): (None, ["A", "B"]),
        key(9): (None, ["A", "B"]),
    }
    assert set(runners.grouped(sample(on_two), lambda one: one["pid"] == 8)) == {key(8)}


def test_runners_are_the_units_processes_but_its_server():
    processes = [process(7, 1), process(8, 1, kind="other"), process(9, 1, kind="server"), process(10, 1, unit="session-1.scope")]
    assert set(runners.runners_of(sample(processes), SETTINGS)) == {key(7), key(8)}
    assert set(runners.runners_of(sample(processes), {**SETTINGS, "unit": "session-1.scope"})) == {key(10)}


# --- which model ---


def served(found):
    return {name: (one["model"], one["sure"]) for name, one in found.items()}


def test_models_go_to_the_runners_whose_sizes_agree():
    found = follow([process(7, 4900), process(8, 9500)], [A, B])
    assert served(found) == {key(7): ("b:latest@db", True), key(8): ("a:latest@da", True)}
    assert (found[key(8)]["was"], found[key(8)]["context"], found[key(8)]["pid"]) == ("a:latest@da", 40961, 8)


def test_two_models_of_about_one_size_are_told_apart_by_chance_and_it_is_known():
    near = model("c", 8887 + 255)
    found = follow([process(7, round(8887 + EXPLAINED)), process(8, round(8887 + 255 + EXPLAINED))], [A, near])
    assert {one["model"] for one in found.values()} == {"a:latest@da", "c:latest@dc"}
    assert not found[key(7)]["sure"]
    far = model("c", 8887 + 257)
    found = follow([process(7, round(8887 + EXPLAINED)), process(8, round(8887 + 257 + EXPLAINED))], [A, far])
    assert served(found) == {key(7): ("a:latest@da", True), key(8): ("c:latest@dc", True)}


@pytest.mark.parametrize(("off", "sure"), [(2047, True), (2049, False), (-2047, True), (-2049, False)])
def test_a_runner_far_from_its_models_size_is_not_sure(off, sure):
    found = follow([process(7, 8887 + EXPLAINED + off)], [A])
    assert served(found) == {key(7): ("a:latest@da", sure)}


def test_a_runner_whose_memory_is_not_known_is_not_sure():
    assert served(follow([process(7, None)], [A])) == {key(7): ("a:latest@da", False)}


def test_a_runner_keeps_its_model_whatever_it_holds():
    known = follow([process(7, 4900), process(8, 9500)], [A, B])
    found = follow([process(7, 9500), process(8, 4900)], [A, B], known, NOW + 15)
    assert served(found) == served(known)


def test_a_model_that_left_leaves_its_runner_without_one_and_the_new_runner_gets_the_new_model():
    known = follow([process(8, 9500)], [A])
    found = follow([process(8, 9500), process(9, 4900)], [B], known, NOW + 15)
    assert served(found) == {key(8): (None, True), key(9): ("b:latest@db", True)}
    assert (found[key(8)]["was"], found[key(8)]["unlisted"], found[key(9)]["unlisted"]) == ("a:latest@da", NOW + 15, None)
    later = follow([process(8, 9500), process(9, 4900)], [B], found, NOW + 30)
    assert later[key(8)]["unlisted"] == NOW + 15
    back = follow([process(8, 9500), process(9, 4900)], [A, B], later, NOW + 45)
    assert (back[key(8)]["model"], back[key(8)]["unlisted"]) == ("a:latest@da", None)


def test_a_runner_that_served_another_is_taken_only_if_no_new_one_is_left_and_is_not_sure():
    known = follow([process(8, 9500)], [A])
    found = follow([process(8, 9500)], [B], known, NOW + 15)
    assert served(found) == {key(8): ("b:latest@db", False)}
    # One that was a guess is as good as a new one.
    guess = {key(8): {**known[key(8)], "sure": False}}
    assert served(follow([process(8, 4900)], [B], guess, NOW + 15)) == {key(8): ("b:latest@db", True)}


def test_a_model_in_host_memory_has_no_runner_on_a_card():
    assert served(follow([process(7, 4900)], [{**A, "size_vram_mib": 0}])) == {key(7): (None, False)}
    assert served(follow([process(7, 4900)], [])) == {key(7): (None, False)}
    assert served(follow([process(7, 459)], [{**A, "size_vram_mib": 1, "context_length": 0}])) == {key(7): ("a:latest@da", True)}


def test_more_models_than_runners_leave_the_worst_match_out():
    assert served(follow([process(7, 9500)], [A, B])) == {key(7): ("a:latest@da", True)}


def test_while_the_api_is_not_read_nothing_is_assigned_and_nothing_is_learned():
    known = follow([process(7, 9500)], [A])
    found = follow([process(7, 9600), process(8, 70)], None, known, NOW + 60)
    assert served(found) == {key(7): ("a:latest@da", True), key(8): (None, False)}
    assert (found[key(7)]["used_mib"], found[key(7)]["trend"]) == (9600, known[key(7)]["trend"])
    assert found[key(8)]["unlisted"] is None


# --- busy or at rest ---


@pytest.mark.parametrize(("cpu", "busy"), [(12.5 + 0.76, True), (12.5 + 0.75, False), (12.5, False), (None, False)])
def test_five_per_cent_of_a_core_is_work(cpu, busy):
    known = follow([process(7, 9500)], [A])
    found = follow([process(7, 9500, cpu_s=cpu)], [A], known, NOW + 15)
    assert (found[key(7)]["busy"] == NOW + 15) == busy
    assert (found[key(7)]["seen"], found[key(7)]["first"], found[key(7)]["cpu_s"]) == (NOW + 15, NOW, cpu)


def test_two_samples_at_once_divide_by_a_second():
    known = follow([process(7, 9500)], [A])
    assert follow([process(7, 9500, cpu_s=12.54)], [A], known, NOW + 0.1)[key(7)]["busy"] == NOW
    assert follow([process(7, 9500, cpu_s=12.56)], [A], known, NOW + 0.1)[key(7)]["busy"] == NOW + 0.1


@pytest.mark.parametrize(("load", "busy"), [(9, False), (10, True), (None, False)])
def test_a_card_that_computes_makes_its_runners_busy(load, busy):
    known = follow([process(7, 9500), process(8, 4900, gpu="B")], [A, B])
    cards = [gpu("A", 9501, utilisation=load), gpu("B", 4901)]
    found = follow([process(7, 9500), process(8, 4900, gpu="B")], [A, B], known, NOW + 15, cards)
    assert (found[key(7)]["busy"] == NOW + 15) == busy
    assert found[key(8)]["busy"] == NOW


def test_a_new_runner_is_busy():
    assert follow([process(7, 9500)], [A])[key(7)]["busy"] == NOW


# --- baseline and trend ---


def test_the_baseline_is_what_it_held_when_it_first_rested():
    seen = follow([process(7, 9500)], [A])
    assert seen[key(7)]["baseline_mib"] is None
    seen = follow([process(7, 9511, cpu_s=99.0)], [A], seen, NOW + 15)
    assert seen[key(7)]["baseline_mib"] is None  # it works
    assert follow([process(7, 9521, cpu_s=99.0)], [A], follow([process(7, 9500)], [A]), NOW + 14.9)[key(7)]["baseline_mib"] is None
    seen = follow([process(7, 9521, cpu_s=99.0)], [A], seen, NOW + 30)
    assert seen[key(7)]["baseline_mib"] == 9521
    seen = follow([process(7, 9777, cpu_s=99.0)], [A], seen, NOW + 45)
    assert seen[key(7)]["baseline_mib"] == 9521
    early = follow([process(7, 9500)], [A], interval_s=20)
    assert follow([process(7, 9521)], [A], early, NOW + 19, interval_s=20)[key(7)]["baseline_mib"] is None
    assert follow([process(7, 9521)], [A], early, NOW + 20, interval_s=20)[key(7)]["baseline_mib"] == 9521


def test_another_context_is_another_baseline():
    known = {key(7): record("a:latest@da", 9500, first=NOW - 900, cpu_s=12.5, baseline_mib=9400, trend=[[NOW - 60, 9400]])}
    same = follow([process(7, 9500)], [A], known)[key(7)]
    assert (same["baseline_mib"], same["trend"]) == (9400, [[NOW - 60, 9400], [NOW, 9500]])
    other = follow([process(7, 9500)], [{**A, "context_length": 8193}], known)[key(7)]
    assert (other["context"], other["trend"]) == (8193, [[NOW, 9500]])
    assert other["baseline_mib"] == 9500  # it rests


def test_a_point_a_minute_and_no_more_than_the_window_needs():
    seen = follow([process(7, 9500)], [A])
    assert seen[key(7)]["trend"] == [[NOW, 9500]]
    assert follow([process(7, 9501)], [A], seen, NOW + 54.9)[key(7)]["trend"] == [[NOW, 9500]]
    assert follow([process(7, 9501)], [A], seen, NOW + 55.04)[key(7)]["trend"] == [[NOW, 9500], [NOW + 55.0, 9501]]
    for number in range(1, 40):
        seen = follow([process(7, 9500 + number)], [A], seen, NOW + 60 * number)
    assert [mib for _when, mib in seen[key(7)]["trend"]] == list(range(9500 + 23, 9540))  # 900 s are 15 minutes, and two more
    for number in range(40, 60):
        seen = follow([process(7, 9500 + number)], [A], seen, NOW + 60 * number, leak_window_s=200)
    assert [mib for _when, mib in seen[key(7)]["trend"]] == list(range(9500 + 55, 9560))


def test_what_serves_no_model_or_holds_nobody_knows_what_has_no_trend():
    seen = follow([process(7, 9500)], [A])
    assert follow([process(7, 9500)], [], seen, NOW + 60)[key(7)]["trend"] == []
    assert follow([process(7, None)], [A], seen, NOW + 60)[key(7)]["trend"] == []
    assert follow([process(7, None)], [A], seen, NOW + 60)[key(7)]["baseline_mib"] is None


# --- loading, in use ---


@pytest.mark.parametrize(
    ("first", "age", "was", "loading"),
    [
        (NOW - 299.9, 4001.0, None, True),
        (NOW - 300.0, 4001.0, None, False),
        (NOW - 5000, 299.9, None, True),
        (NOW - 5000, None, None, True),
        (NOW - 1, 1.0, "a:latest@da", False),
    ],
)
def test_a_runner_that_was_never_listed_loads_until_the_server_would_give_up(first, age, was, loading):
    assert runners.is_loading(record(first=first, was=was), SETTINGS, NOW, age) == loading


def test_in_use_is_by_the_whole_name():
    seen = history(models={"a:latest": {"expires_at": "t", "used": 0.0}}, runners={"7": record("a:latest@d@x", busy=NOW - 29.9)})
    assert not runners.in_use("a:latest", seen, SETTINGS, NOW)
    assert runners.in_use("a:latest", {**seen, "runners": {"7": record("a:latest@d", busy=NOW - 29.9)}}, SETTINGS, NOW)
    assert not runners.in_use("a:latest", {**seen, "runners": {"7": record(None, busy=NOW)}}, SETTINGS, NOW)
    assert runners.in_use("unknown", seen, SETTINGS, NOW)
