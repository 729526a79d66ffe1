# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one sample shows: each rule's signal, its numbers, and its thresholds from both sides."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._guard.policy import signals as policy_signals
from ansible_collections.gpufleet.llm.tests.unit.plugins.guard_samples import (
    NO_PLAN,
    SETTINGS,
    UNIT,
    gpu,
    history,
    model,
    plan,
    process,
    record,
    sample,
)

NOW = 50_000.0
A = model("a", 8887)
ON_A = "a:latest@da"
# What the server explains of a runner of A on one card, in MiB.
SERVER = 8887 + 457 + 40961 * 4096 / 1048576


def key(pid):
    return f"{pid}:{pid * 7 + 1}"


def shown(one, seen=None, the_plan=None, now=NOW, **settings):
    return policy_signals.signals(seen or history(), one, NO_PLAN if the_plan is None else the_plan, {**SETTINGS, **settings}, now)


def levels(found, name):
    """(enter, stay) of a signal; None where there is none."""
    return (found[name]["enter"], found[name]["stay"]) if name in found else None


def with_runner(mib=9501, the_plan=None, models=(A,), seen=None, settings=None, card=None, **parts):
    """The signals of one runner that serves A; *seen*: parts of its record, *parts*: of its process."""
    known = record(ON_A, mib, first=NOW - 900, **(seen or {}))
    one = sample([process(7, mib, **parts)], models, [card or gpu(used=(mib or 0) + 1)])
    return shown(one, history(runners={key(7): known}), the_plan, **(settings or {}))


# --- sources ---


def test_what_cannot_be_read_is_a_signal_and_hides_what_needs_it():
    bad = sample([process(5, 9001, kind="server")], nvml="mismatch", ollama="timeout")
    bad["nvml"]["detail"], bad["ollama"]["detail"] = "580 and 570", "no answer"
    found = shown(bad)
    assert set(found) == {"driver:mismatch", "ollama_unreadable:timeout"}
    assert found["driver:mismatch"]["numbers"] == {"state": "mismatch", "detail": "580 and 570"}
    assert found["ollama_unreadable:timeout"]["numbers"] == {"detail": "no answer"}
    assert shown(sample(ollama="down"))["ollama_unreadable:down"]["numbers"] == {"detail": "down"}


def test_without_the_api_processes_and_memory_are_still_seen():
    found = shown(sample([process(5, 9001, kind="server"), process(9, 7001, ppid=1, unit="session-1.scope")], ollama="down"))
    assert set(found) == {"ollama_unreadable:down", f"orphan:{key(9)}"}


FATAL, OF_APPLICATIONS = (46, 62, 79, 119, 120, 140, 154), (13, 31, 43, 45, 68, 109)


@pytest.mark.parametrize(("xid", "lost"), [*((xid, True) for xid in FATAL), *((xid, False) for xid in (*OF_APPLICATIONS, 32, 61, 80, 155))])
def test_a_fatal_xid_is_a_lost_card(xid, lost):
    seen = history(xids=[{"at": "1", "gpu": "A", "xid": xid, "seen": NOW}])
    assert ("gpu_lost:A" in shown(sample(), seen)) == lost
    if lost:
        assert shown(sample(), seen)["gpu_lost:A"]["numbers"] == {"xid": xid}


def test_three_application_errors_are_a_reason_and_two_are_not():
    def errors(*numbers):
        return history(xids=[{"at": str(place), "gpu": "A", "xid": xid, "seen": NOW} for place, xid in enumerate(numbers)])

    name = f"xid_application:{UNIT}"
    assert name not in shown(sample(), errors(13, 31))
    assert name not in shown(sample(), errors(13, 31, 999))
    assert shown(sample(), errors(13, 79, 31, 43))[name]["numbers"] == {"xids": [13, 31, 43]}
    for xid in OF_APPLICATIONS:
        assert name in shown(sample(), errors(xid, xid, xid)), xid
    for xid in (*FATAL, 12, 14, 30, 32, 44, 69, 110):
        assert name not in shown(sample(), errors(xid, xid, xid)), xid


def test_cards_that_are_lost_want_a_reset_or_cannot_be_read():
    cards = [gpu("A", state="lost", used_mib=None, free_mib=None), gpu("B", 5, recovery="gpu_reset"), gpu("C", state="unreadable"), gpu("D", 5)]
    found = shown(sample(gpus=cards))
    assert {name for name in found if name.startswith(("gpu_lost", "driver"))} == {"gpu_lost:A", "gpu_lost:B", "driver:C"}
    assert found["gpu_lost:A"]["numbers"] == {"state": "lost", "recovery": None}
    assert found["gpu_lost:B"]["numbers"] == {"state": "ok", "recovery": "gpu_reset"}
    assert found["driver:C"]["numbers"]["state"] == "unreadable"


# --- processes ---


@pytest.mark.parametrize(
    ("parts", "orphan", "foreign"),
    [
        ({"ppid": 1, "unit": "session-1.scope"}, True, False),
        ({"ppid": 1}, True, False),
        ({"ppid": 1, "unit": None}, True, False),
        ({"ppid": 1, "unit": "session-1.scope", "uid_ok": False}, False, True),
        ({"ppid": 50, "unit": "session-1.scope"}, False, True),
        ({"ppid": 1, "unit": "session-1.scope", "kind": "other"}, False, True),
        ({"ppid": 1, "unit": "session-1.scope", "kind": "server"}, False, True),
        ({"ppid": 50}, False, False),
        ({"ppid": 50, "unit": None}, False, False),
    ],
)
def test_orphans_and_the_processes_of_others(parts, orphan, foreign):
    seen = history(runners={key(9): record(ON_A)})
    found = shown(sample([process(9, 7001, **parts)], [A]), seen)
    assert (f"orphan:{key(9)}" in found, f"foreign:{key(9)}" in found) == (orphan, foreign)
    if orphan:
        assert found[f"orphan:{key(9)}"]["target"] == {"pid": 9, "start": 64}
    if orphan or foreign:
        name = f"orphan:{key(9)}" if orphan else f"foreign:{key(9)}"
        assert found[name]["numbers"] == {"pid": 9, "used_mib": 7001, "unit": parts.get("unit", UNIT)}


@pytest.mark.parametrize(("mib", "wanted"), [(301, (True, True)), (300, (False, True)), (151, (False, True)), (150, None), (None, None)])
def test_others_count_from_a_threshold_on_and_until_half_of_it(mib, wanted):
    assert levels(shown(sample([process(9, mib, unit="x.service")])), f"foreign:{key(9)}") == wanted


# --- memory for no model ---


@pytest.mark.parametrize(("mib", "wanted"), [(301, (True, True)), (300, (False, True)), (151, (False, True)), (150, None)])
def test_what_the_server_itself_holds_is_trapped(mib, wanted):
    name = f"trapped:{UNIT}"
    assert levels(shown(sample([process(5, mib, kind="server")])), name) == wanted
    assert levels(shown(sample([process(5, mib, kind="server"), process(7, 9501)], [A]), history(runners={key(7): record(ON_A)})), name) == wanted


def test_what_is_trapped_names_its_holders():
    found = shown(sample([process(6, 202, kind="server"), process(5, 404, kind="server")]))
    assert found[f"trapped:{UNIT}"]["numbers"] == {"pids": [5, 6], "used_mib": 606, "listed": 0}
    busy = shown(sample([process(5, 404, kind="server"), process(7, 9501)], [A]), history(runners={key(7): record(ON_A)}))
    assert busy[f"trapped:{UNIT}"]["numbers"] == {"pids": [5], "used_mib": 404, "listed": 1}


def left(model=None, was="gone:latest@d", unlisted=NOW - 10, **parts):
    return record(model, first=NOW - 900, was=was, unlisted=unlisted, **parts)


def test_runners_that_no_model_is_left_for_are_trapped_once_they_had_their_time():
    one = sample([process(7, 9501), process(8, 4441)])
    name = f"trapped:{UNIT}"
    found = shown(one, history(runners={key(7): left(), key(8): left()}))
    assert found[name]["numbers"] == {"pids": [7, 8], "used_mib": 13_942, "listed": 0}
    assert name not in shown(one, history(runners={key(7): left(), key(8): left(unlisted=NOW - 9.9)}))
    assert name not in shown(one, history(runners={key(7): left(), key(8): left(unlisted=None)}))
    loads = left(was=None)
    assert name in shown(one, history(runners={key(7): left(), key(8): loads}))  # 900 s: no load takes so long
    assert name not in shown(one, history(runners={key(7): left(), key(8): {**loads, "first": NOW - 299}}))
    beside = sample([process(7, 9501), process(8, 4441, ppid=1)])
    assert shown(beside, history(runners={key(7): left(), key(8): left()}))[name]["numbers"]["pids"] == [7]


def test_where_figures_are_missing_the_cards_own_counts_if_it_is_the_units_alone():
    name = f"trapped:{UNIT}"
    unknown, known = process(5, None, kind="server"), [gpu(used=7001)]
    assert shown(sample([unknown], gpus=known))[name]["numbers"]["used_mib"] == 7001
    assert name not in shown(sample([unknown, process(9, 70, unit="x.service")], gpus=known))
    assert name not in shown(sample([unknown], gpus=[gpu(used=7001), gpu("B", 1)]))
    assert name not in shown(sample([unknown], gpus=[gpu(state="unreadable", used_mib=7001)]))
    serving = sample([unknown, process(7, 9501)], [A], [gpu(used=16_502)])
    assert name not in shown(serving, history(runners={key(7): record(ON_A)}))


# --- runners beyond the models ---


def test_a_runner_beyond_the_models_is_stale_and_ended_only_if_it_is_known_which():
    def stale(known, other=None):
        seen = history(runners={key(7): other or record(ON_A), key(8): known})
        return shown(sample([process(7, 9501), process(8, 4441)], [A]), seen).get(f"stale_runner:{key(8)}")

    found = stale(left())
    assert found["target"] == {"pid": 8, "start": 57}
    assert found["numbers"] == {"pid": 8, "used_mib": 4441, "served": "gone:latest@d", "listed": 1}
    assert stale(left(was=None))["target"] is None
    assert stale(left(was=ON_A))["target"] is None
    assert stale(left(), other=record(ON_A, sure=False))["target"] is None
    assert stale(left(sure=False))["target"] == {"pid": 8, "start": 57}
    assert stale(left(unlisted=NOW - 9.9)) is None
    assert stale(left(unlisted=NOW - 39, was=None, model=None) | {"first": NOW - 40}) is None


def test_without_a_model_nothing_is_stale_and_with_one_nothing_left_is_trapped():
    seen = history(runners={key(7): record(ON_A), key(8): left()})
    found = shown(sample([process(7, 9501), process(8, 4441)], [A]), seen)
    assert [name for name in found if name.startswith(("stale", "trapped"))] == [f"stale_runner:{key(8)}"]
    found = shown(sample([process(8, 4441)]), history(runners={key(8): left()}))
    assert [name for name in found if name.startswith(("stale", "trapped"))] == [f"trapped:{UNIT}"]


def test_with_a_model_in_host_memory_only_the_runner_that_is_left_is_stale_and_not_trapped():
    seen = history(runners={key(8): left()})
    found = shown(sample([process(8, 4441)], [model("a", 0)]), seen)
    assert [name for name in found if name.startswith(("stale", "trapped"))] == [f"stale_runner:{key(8)}"]


def test_an_orphan_is_no_stale_runner():
    seen = history(runners={key(7): record(ON_A), key(8): left()})
    found = shown(sample([process(7, 9501), process(8, 4441, ppid=1)], [A]), seen)
    assert [name for name in found if name.startswith(("stale", "orphan"))] == [f"orphan:{key(8)}"]


# --- a runner that serves a model ---


@pytest.mark.parametrize(("parts", "hangs"), [({"proc_state": "T"}, True), ({"health": "timeout"}, True), ({"health": "error"}, False), ({}, False)])
def test_a_stopped_or_silent_runner_hangs(parts, hangs):
    found = with_runner(**parts)
    assert (f"hang:{key(7)}" in found) == hangs
    if hangs:
        assert found[f"hang:{key(7)}"]["target"] == {"model": "a:latest"}
        assert found[f"hang:{key(7)}"]["numbers"] == {"pid": 7, "model": "a:latest", "proc_state": "S", "health": "ok", **parts}


@pytest.mark.parametrize(("beyond", "wanted"), [(1025, (True, True)), (1024, (False, True)), (513, (False, True)), (512, None)])
@pytest.mark.parametrize(
    ("explained", "parts"),
    [
        (SERVER, {}),
        (11_003, {"the_plan": plan(a=11_003)}),
        (12_007, {"seen": {"baseline_mib": 12_007}}),
        (12_007, {"seen": {"baseline_mib": 12_007}, "the_plan": plan(a=11_003)}),
        (11_003, {"seen": {"baseline_mib": 9_907}, "the_plan": plan(a=11_003)}),
        (SERVER, {"the_plan": plan(a=8_001)}),
    ],
)
def test_growth_is_beyond_the_largest_of_plan_server_and_baseline(explained, parts, beyond, wanted):
    assert levels(with_runner(explained + beyond, **parts), f"growth:{key(7)}") == wanted


def test_growth_says_all_that_it_was_held_against():
    found = with_runner(20_003, plan(a=11_003), seen={"baseline_mib": 9_907})[f"growth:{key(7)}"]
    assert found["numbers"] == {
        "pid": 7,
        "model": "a:latest",
        "used_mib": 20_003,
        "planned_mib": 11_003.0,
        "server_mib": round(SERVER),
        "baseline_mib": 9_907,
        "beyond_mib": 9_000,
        "plan": "ok",
    }
    assert found["target"] == {"model": "a:latest", "planned": True}
    for the_plan, word in ((NO_PLAN, "absent"), ({**NO_PLAN, "state": "invalid"}, "invalid"), (plan(b=3), "not in plan")):
        other = with_runner(20_003, the_plan)[f"growth:{key(7)}"]
        assert (other["numbers"]["plan"], other["target"]["planned"]) == (word, False)


def test_a_plan_that_is_not_valid_explains_nothing():
    broken = {**plan(a=19_001), "state": "invalid"}
    assert levels(with_runner(SERVER + 1025, broken), f"growth:{key(7)}") == (True, True)


def test_a_runner_whose_memory_is_not_known_says_nothing_of_it():
    assert with_runner(None, card=gpu(used=1)) == {}


def test_two_cards_are_two_contexts():
    known = history(runners={key(7): record(ON_A, first=NOW - 900) | {"used_mib": SERVER + 457 + 1024}})
    on_two = sample([process(7, 5003), process(7, 5003, gpu="B")], [A], [gpu("A", 5004), gpu("B", 5004)])
    assert levels(shown(on_two, known), f"growth:{key(7)}") == (False, True)


@pytest.mark.parametrize(("off", "wanted"), [(1025, (True, True)), (1024, (False, True)), (513, (False, True)), (512, None)])
def test_a_fresh_runner_that_holds_more_than_planned_is_the_plans_fault(off, wanted):
    baseline = 11_003 + off
    assert levels(with_runner(baseline, plan(a=11_003), seen={"baseline_mib": baseline}), "plan_off:a:latest") == wanted
    without = SERVER + off
    assert levels(with_runner(without, seen={"baseline_mib": without}), "plan_off:a:latest") == wanted
    assert levels(with_runner(100, plan(a=SERVER - off)), "plan_off:a:latest") == wanted


def line(count, slope, start=9_501.0):
    """[[when, MiB]] a minute apart, *slope* MiB a minute."""
    return [[NOW - 60 * (count - 1 - number), start + slope * number] for number in range(count)]


def test_a_leak_is_a_steady_growth_beyond_plan_and_server():
    trend = line(17, 20)
    found = with_runner(9_821, seen={"trend": trend})[f"leak:{key(7)}"]
    assert found["target"] == {"model": "a:latest"}
    assert (found["numbers"]["mib_per_hour"], found["numbers"]["grown_mib"], found["numbers"]["pid"]) == (1200, 320, 7)
    assert f"leak:{key(7)}" not in with_runner(9_821, plan(a=9_821), seen={"trend": trend})
    assert f"leak:{key(7)}" in with_runner(9_821, plan(a=9_820), seen={"trend": trend})
    assert f"leak:{key(7)}" in with_runner(9_821, seen={"trend": trend, "baseline_mib": 9_900})
    assert f"leak:{key(7)}" not in with_runner(9_821, seen={"trend": line(17, 0)})


def growth(trend, **settings):
    return policy_signals.steady_growth(trend, {**SETTINGS, **settings})


def test_steady_growth_needs_its_window_its_size_and_its_rate():
    assert growth(line(16, 20)) == pytest.approx(1200)  # exactly 900 s
    assert growth(line(15, 20)) is None
    assert growth(line(16, 20), leak_window_s=901) is None
    assert growth(line(17, 16)) == pytest.approx(960)  # exactly 256 MiB
    assert growth(line(17, 15.9)) is None
    assert growth(line(17, 16), leak_mib_per_hour=959) == pytest.approx(960)
    assert growth(line(17, 16), leak_mib_per_hour=960) is None
    assert growth([[NOW + 200 * number, 9_501.0 + 100 * number] for number in range(6)]) == pytest.approx(1800)
    assert growth([[NOW + 250 * number, 9_501.0 + 100 * number] for number in range(5)]) is None  # five points are none
    assert growth([]) is None


def test_a_step_is_no_slope_and_a_slope_with_noise_is_one():
    step = [[when, 9_501.0 + (400 if number > 7 else 0)] for number, (when, _mib) in enumerate(line(17, 0))]
    late = [[when, 9_501.0 + (400 if number > 14 else 0)] for number, (when, _mib) in enumerate(line(17, 0))]
    early = [[when, 9_501.0 + (400 if number > 1 else 0)] for number, (when, _mib) in enumerate(line(17, 0))]
    assert [growth(one) for one in (step, late, early)] == [None] * 3
    noisy = [[when, mib + (60 if number % 2 else -60)] for number, (when, mib) in enumerate(line(17, 20))]
    assert growth(noisy) == pytest.approx(1200, rel=0.2)


@pytest.mark.parametrize(("first", "second", "steady"), [(60, 60, True), (59, 301, False), (301, 59, False), (60, 300, True), (300, 60, True)])
def test_each_third_has_to_be_a_sixth_of_the_growth_above_the_one_before(first, second, steady):
    """Thirds at 9,000, 9,000 + first and 9,000 + first + second; the whole growth is 360 MiB."""
    thirds = (9_000, 9_000, 9_000 + first, 9_000 + first, 9_000 + first + second, 9_000 + first + second)
    trend = [[NOW + 180 * number, mib] for number, mib in enumerate(thirds)]
    trend[-1][1], trend[-2][1] = 9_360, 2 * (9_000 + first + second) - 9_360  # the median of the last third stays
    assert (growth(trend) is not None) == steady


# --- models ---


def offload(size, vram, the_plan=None, free=9_001, **settings):
    one = sample(models=[model("a", vram, size_mib=size)], gpus=[gpu(free_mib=free), gpu("B", state="lost", free_mib=None)])
    return shown(one, the_plan=the_plan, **settings).get("cpu_offload:a:latest")


def test_a_model_that_is_partly_in_host_memory():
    assert offload(8887, 8887) is None
    assert offload(8888, 8887) is None  # rounding
    found = offload(8889, 8887)
    assert found["target"] == {"model": "a:latest"}
    assert found["numbers"] == {"model": "a:latest", "size_mib": 8889, "size_vram_mib": 8887, "missing_mib": 2, "free_mib": 9_001}
    assert offload(10_000, 4_000, free=6_513)["target"] == {"model": "a:latest"}
    assert offload(10_000, 4_000, free=6_512)["target"] is None
    assert offload(10_000, 4_000, free=6_513, free_low_mib=513)["target"] is None


def test_a_model_that_is_wholly_in_host_memory_is_a_fault_only_where_it_is_planned():
    assert offload(0, 0) is None
    assert offload(0, 0, plan(b=3)) is None
    assert offload(0, 0, {**plan(a=5_001), "state": "invalid"}) is None
    found = offload(0, 0, plan(a=5_001))
    assert (found["numbers"]["missing_mib"], found["target"]) == (5_001, {"model": "a:latest"})
    assert offload(0, 0, plan(a=8_489))["target"] is None
    assert offload(9_999, 0) is None


def test_room_is_that_of_the_best_card_that_can_be_read():
    cards = [gpu("A", free_mib=100), gpu("B", free_mib=9_001), gpu("C", state="unreadable", free_mib=20_000)]
    found = shown(sample(models=[model("a", 4_000, size_mib=10_000)], gpus=cards))["cpu_offload:a:latest"]
    assert found["numbers"]["free_mib"] == 9_001
    found = shown(sample(models=[model("a", 4_000, size_mib=10_000)], gpus=cards[2:]))["cpu_offload:a:latest"]
    assert (found["numbers"]["free_mib"], found["target"]) == (0, None)


@pytest.mark.parametrize(("left_s", "stuck"), [(-1800.5, True), (-1800, False), (1801.0, False), (None, False)])
def test_a_model_long_past_its_expiry_is_stuck(left_s, stuck):
    found = shown(sample(models=[model("a", 8887, expires_in_s=left_s)]))
    assert ("stuck_unload:a:latest" in found) == stuck
    if stuck:
        assert found["stuck_unload:a:latest"]["numbers"] == {"model": "a:latest", "past_expiry_s": 1800}
    distrusted = history(distrust=["a:latest|t1"])
    assert "stuck_unload:a:latest" not in shown(sample(models=[model("a", 8887, expires_in_s=left_s)]), distrusted)


# --- a card as a whole ---


@pytest.mark.parametrize(("loose", "wanted"), [(1025, (True, True)), (1024, (False, True)), (513, (False, True)), (512, None), (-50, None)])
def test_memory_that_no_process_owns(loose, wanted):
    holders = [process(9, 301, unit=None), process(10, 202, unit=None), process(11, 99, unit=None, gpu="B")]
    found = shown(sample(holders, gpus=[gpu(used=503 + loose), gpu("B", 99)]))
    assert levels(found, "ownerless:A") == wanted
    if wanted:
        assert found["ownerless:A"]["numbers"] == {"used_mib": 503 + loose, "owned_mib": 503}
    assert "ownerless:B" not in found
    unknown = [*holders, process(12, None, unit=None)]
    assert "ownerless:A" not in shown(sample(unknown, gpus=[gpu(used=503 + loose)]))


@pytest.mark.parametrize(("free", "wanted"), [(511, (True, True)), (512, (False, True)), (1023, (False, True)), (1024, None)])
def test_little_free_memory(free, wanted):
    found = shown(sample(gpus=[gpu(free_mib=free), gpu("B", state="unreadable", free_mib=1)]))
    assert levels(found, "free_low:A") == wanted
    assert "free_low:B" not in found
    if wanted:
        assert found["free_low:A"]["numbers"] == {"free_mib": free}


@pytest.mark.parametrize(("used", "wanted"), [(20_001, (True, True)), (20_000, (False, True)), (19_001, (False, True)), (19_000, None)])
def test_a_fixed_limit(used, wanted):
    holder = [process(9, used, unit=None)]
    found = shown(sample(holder, gpus=[gpu(used=used)]), limit_mib=20_000)
    assert levels(found, "limit:A") == wanted
    if wanted:
        assert (found["limit:A"]["numbers"], found["limit:A"]["target"]) == ({"used_mib": used, "limit_mib": 20_000}, {})
    assert "limit:A" not in shown(sample(holder, gpus=[gpu(used=used)]))
