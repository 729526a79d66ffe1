# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard remembers from sample to sample, each bound from both sides."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy
from ansible_collections.gpufleet.llm.tests.unit.plugins.guard_samples import NO_PLAN, SETTINGS, UNIT, history, model, process, sample, streak

NOW = 50_000.0
HELD = sample([process(5, 9001, kind="server", ppid=1)])


def remember(seen, one, now=NOW, plan=None, **settings):
    return policy.remember(seen, one, NO_PLAN if plan is None else plan, {**SETTINGS, **settings}, now)


def test_a_sample_is_counted_and_dated_and_the_history_before_it_stays_as_it_was():
    before = history(samples=6, clock=1.0, last_sample=NOW - 15)
    kept = repr(before)
    after = remember(before, sample(in_flight=3))
    assert (after["samples"], after["clock"], after["last_sample"], after["in_flight"], after["readable"]) == (7, NOW, NOW, 3, True)
    assert repr(before) == kept
    assert remember(before, sample(nvml="error"))["readable"] is False


# --- flapping ---


def flaps(*states, drained=()):
    seen = policy.fresh()
    for number, state in enumerate(states):
        seen = remember(seen, sample(nvml=state, drained=number in drained), now=NOW + 15 * number)
    return seen["flaps"]


def test_each_change_of_what_nvml_answers_counts_for_ten_minutes():
    assert flaps("ok", "ok", "error", "no_driver", "ok", "error") == [NOW + 30, NOW + 60, NOW + 75]
    assert flaps("error", "error", "ok") == [NOW + 30]
    old = history(flaps=[NOW - 600, NOW - 599])
    assert remember(old, sample())["flaps"] == [NOW - 599]


def test_four_changes_are_flapping_and_three_are_not():
    for count, rules in ((3, set()), (4, {"nvml_flapping:nvml"})):
        seen = remember(history(flaps=[NOW - 100.0 * number for number in range(count)]), sample())
        assert set(seen["streaks"]) == rules
    assert seen["streaks"]["nvml_flapping:nvml"]["numbers"] == {"changes_in_10_min": 4}


def test_no_change_counts_that_came_while_somebody_drained_the_host():
    assert flaps("ok", "error", "ok", "error", "ok", drained=(1, 2, 3)) == []
    assert flaps("ok", "error", "ok", drained=(1,)) == []  # the driver is back with the host
    assert flaps("ok", "ok", "error", drained=(0, 1)) == [NOW + 30]  # it was well at the end of the drain
    assert flaps("ok", "error", "error", "ok", drained=(1, 2)) == []
    assert flaps("error", "ok", "ok", "error", "ok", drained=(1,)) == [NOW + 45, NOW + 60]


def test_nothing_is_done_on_a_driver_that_failed_while_drained():
    seen = {**history(streaks=streak("trapped", UNIT)), "readable": True}
    seen = remember(seen, sample(nvml="mismatch", drained=True))
    decision = policy.decide(seen, NO_PLAN, {"limits": {}, "spent": []}, NOW, SETTINGS)
    assert decision["action"] not in policy.ACTIONS


# --- streaks ---


def trapped_count(seen):
    return seen["streaks"][f"trapped:{UNIT}"]["count"]


def test_a_streak_counts_samples_in_a_row_from_its_first():
    seen = history()
    for number in range(3):
        seen = remember(seen, HELD, now=NOW + 15 * number)
        assert (trapped_count(seen), seen["streaks"][f"trapped:{UNIT}"]["since"]) == (number + 1, NOW)
    assert remember(seen, sample(), now=NOW + 45)["streaks"] == {}


def test_between_its_two_thresholds_a_streak_stays_and_none_begins():
    low = sample([process(5, 160, kind="server")])
    assert remember(history(), low)["streaks"] == {}
    seen = remember(history(streaks=streak("trapped", UNIT, count=2)), low)
    assert (trapped_count(seen), seen["streaks"][f"trapped:{UNIT}"]["numbers"]["used_mib"]) == (3, 160)


def test_an_hour_without_samples_is_no_part_of_a_streak():
    before = history(streaks=streak("trapped", UNIT, count=3))
    assert trapped_count(remember({**before, "last_sample": NOW - 60}, HELD)) == 4
    assert trapped_count(remember({**before, "last_sample": NOW - 60.1}, HELD)) == 1
    assert trapped_count(remember({**before, "last_sample": NOW - 75}, HELD, interval_s=19)) == 4
    assert trapped_count(remember({**before, "last_sample": None}, HELD)) == 4


@pytest.mark.parametrize(("kind", "takes_s"), [("unload", 30), ("end", 30), ("restart", 60), ("fence", 0)])
def test_while_an_action_takes_effect_nothing_counts(kind, takes_s):
    act = {"rung": 0, "kind": kind, "subject": "x", "at": NOW - takes_s + 0.1, "cleared": False}
    before = history(streaks=streak("trapped", UNIT, count=3), acts={"hang": act})
    if takes_s:
        assert trapped_count(remember(before, HELD)) == 0
    assert trapped_count(remember(before, HELD, now=NOW + 0.1)) == 4


# --- what was done ---


def test_an_action_has_helped_if_its_signal_is_gone_once_it_had_its_time():
    act = {"rung": 0, "kind": "restart", "subject": UNIT, "at": NOW - 60, "cleared": False}

    def after(one, now=NOW, **parts):
        return remember(history(acts={"trapped": {**act, **parts}}), one, now=now)["acts"]

    assert after(sample())["trapped"]["cleared"] is True
    assert after(sample(), now=NOW - 0.1)["trapped"]["cleared"] is False
    assert after(HELD)["trapped"]["cleared"] is False
    assert after(HELD, subject="another.service")["trapped"]["cleared"] is True
    assert after(HELD, cleared=True)["trapped"]["cleared"] is True


def test_what_helped_is_forgotten_after_an_hour_and_what_did_not_is_not():
    act = {"rung": 1, "kind": "restart", "subject": UNIT, "at": NOW - 3600, "cleared": True}
    assert remember(history(acts={"trapped": act}), HELD)["acts"] == {"trapped": act}
    assert remember(history(acts={"trapped": act}), HELD, now=NOW + 0.1)["acts"] == {}
    failed = {**act, "cleared": False}
    assert remember(history(acts={"trapped": failed}), HELD, now=NOW + 9000)["acts"] == {"trapped": failed}


def test_budgets_forget_what_is_a_day_old():
    spent = [[NOW - 86_400, "end"], [NOW - 86_399, "unload"], [NOW - 1, "restart"]]
    assert remember(history(spent=spent), sample())["spent"] == spent[1:]


# --- Xids ---


def with_xids(*events):
    return sample(xids={"state": "ok", "events": [{"at": at, "gpu": "A", "xid": xid} for at, xid in events]})


def test_an_xid_is_remembered_once_and_for_as_long_as_it_matters():
    seen = remember(history(), with_xids(("1.5", 31), ("1.5", 13), ("1.5", 31)))
    assert [(one["at"], one["xid"], one["seen"]) for one in seen["xids"]][:2] == [("1.5", 31, NOW), ("1.5", 13, NOW)]
    again = remember(seen, with_xids(("1.5", 31), ("2.5", 31)), now=NOW + 60)
    assert [(one["at"], one["xid"]) for one in again["xids"]][-1] == ("2.5", 31)
    assert len(again["xids"]) == len(seen["xids"]) + 1
    old = [{"at": "1", "gpu": "A", "xid": xid, "seen": NOW - age} for xid, age in ((31, 600), (13, 599), (79, 86_400), (46, 86_399))]
    assert [one["xid"] for one in remember(history(xids=old), sample())["xids"]] == [13, 46]
    many = [{"at": str(number), "gpu": "A", "xid": 31, "seen": NOW} for number in range(64)]
    kept = remember(history(xids=many), with_xids(("new", 31)))["xids"]
    assert (len(kept), kept[0]["at"], kept[-1]["at"]) == (64, "1", "new")


# --- models ---


def test_a_model_was_last_used_when_its_expiry_last_moved():
    seen = remember(history(), sample(models=[model("a", 8887)]))
    assert seen["models"] == {"a:latest": {"expires_at": "t1", "used": NOW}}
    seen = remember(seen, sample(models=[model("a", 8887), model("b", 4441)]), now=NOW + 15)
    assert {name: one["used"] for name, one in seen["models"].items()} == {"a:latest": NOW, "b:latest": NOW + 15}
    seen = remember(seen, sample(models=[model("a", 8887, expires_at="t2")]), now=NOW + 30)
    assert seen["models"] == {"a:latest": {"expires_at": "t2", "used": NOW + 30}}
    earlier = remember(seen, sample(models=[model("a", 8887, expires_at="t1")]), now=NOW + 40)  # another keep_alive
    assert earlier["models"]["a:latest"]["used"] == NOW + 40
    unread = remember(seen, sample(ollama="timeout"), now=NOW + 45)
    assert unread["models"] == seen["models"]


def test_an_expiry_is_not_believed_after_the_wall_clock_has_jumped_until_it_moves():
    stuck = model("a", 8887, expires_in_s=-5000.0)
    assert f"stuck_unload:{stuck['name']}" in remember(history(), sample(models=[stuck]))["streaks"]
    for step, believed in ((30, True), (30.5, False), (-30, True), (-86_400, False)):
        seen = remember(history(), sample(models=[stuck], clock_step_s=step))
        assert (seen["distrust"] == []) == believed
        assert (f"stuck_unload:{stuck['name']}" in seen["streaks"]) == believed
    seen = remember(seen, sample(models=[stuck]), now=NOW + 15)
    assert seen["distrust"] == ["a:latest|t1"]
    moved = remember(seen, sample(models=[{**stuck, "expires_at": "t2"}]), now=NOW + 30)
    assert moved["distrust"] == []
    assert f"stuck_unload:{stuck['name']}" in moved["streaks"]


# --- what was decided ---

DECISION = {"action": "restart", "rule": "trapped", "subject": UNIT, "rung": 0, "target": {"unit": UNIT}, "why": "so"}


def test_an_action_is_recorded_with_its_rung_and_its_budget():
    before = history(spent=[[1.0, "end"]], streaks=streak("trapped", UNIT, count=5), acts={"hang": {"rung": 1}}, waiting={"rule": "x", "since": 1.0})
    after = policy.note(before, DECISION, NOW, SETTINGS)
    assert after["spent"] == [[1.0, "end"], [NOW, "restart"]]
    assert after["acts"]["trapped"] == {"rung": 0, "kind": "restart", "subject": UNIT, "at": NOW, "cleared": False}
    assert after["acts"]["hang"] == {"rung": 1}
    assert (after["waiting"], after["fence"], trapped_count(after)) == (None, None, 0)
    assert trapped_count(before) == 5


def test_a_wait_is_recorded_and_costs_nothing():
    before = history(streaks=streak("trapped", UNIT, count=5))
    waits = {**DECISION, "action": "wait", "due": "restart", "waiting_since": NOW - 30}
    after = policy.note(before, waits, NOW, SETTINGS)
    assert after["waiting"] == {"rule": "trapped", "since": NOW - 30}
    assert (after["spent"], after["acts"], trapped_count(after)) == ([], {}, 5)
    assert policy.note(after, {"action": "none", "rule": None}, NOW, SETTINGS)["waiting"] is None


def test_a_fence_is_recorded_and_costs_no_budget():
    fence = {**DECISION, "action": "fence", "rung": 1, "target": {}}
    after = policy.note(history(), fence, NOW, SETTINGS)
    assert (after["fence"], after["spent"]) == ({"since": NOW, "rule": "trapped", "why": "so"}, [])
    assert (after["acts"]["trapped"]["kind"], after["watch_until"]) == ("fence", 0.0)
    dry = policy.note(history(), fence, NOW, SETTINGS, dry_run=True)
    assert (dry["fence"], dry["watch_until"], dry["watch_reason"]) == (None, NOW + 3600, "a fence would stand here")


def test_a_person_who_lifts_the_fence_gives_a_fresh_ladder_and_no_budget():
    before = history(
        fence={"since": 1.0, "rule": "x", "why": "y"},
        acts={"trapped": {}},
        waiting={"rule": "x", "since": 1.0},
        streaks=streak("trapped", UNIT),
        xids=[{}],
        spent=[[1.0, "end"]],
    )
    after = policy.unfence(before)
    assert {key: after[key] for key in ("fence", "acts", "waiting", "streaks", "xids")} == {
        "fence": None,
        "acts": {},
        "waiting": None,
        "streaks": {},
        "xids": [],
    }
    assert after["spent"] == [[1.0, "end"]]


def test_a_change_of_the_mode_starts_from_a_clean_record():
    parts = {"spent": [[0.0, "restart"]], "acts": {"trapped": {}}, "waiting": {"rule": "x", "since": 1.0}, "streaks": streak("trapped", UNIT)}
    before = history(mode="dry_run", fence={"since": 0.0, "rule": "x", "why": "y"}, watch_until=9.0, watch_reason="x", samples=7, **parts)
    after = policy.change_mode(before, "act")
    assert after == {**before, "mode": "act", "spent": [], "acts": {}, "waiting": None, "streaks": {}, "fence": None, "watch_until": 0.0, "watch_reason": None}
    assert policy.change_mode(after, "act") is after
    new = policy.change_mode({**policy.fresh(300.0, "new"), **parts}, "act")
    assert (new["mode"], new["watch_until"], new["spent"]) == ("act", 300.0, parts["spent"])
