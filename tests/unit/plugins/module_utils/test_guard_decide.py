# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard decides, each bound from both sides."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy
from ansible_collections.gpufleet.llm.plugins.module_utils._guard.policy.decide import BLIND
from ansible_collections.gpufleet.llm.tests.unit.plugins.guard_samples import NO_PLAN, SETTINGS, UNIT, history, plan, record, streak

NOW = 50_000.0
PLAN = plan(a=9001)
NAME = "a:latest"


def decide(seen, spent=(), now=NOW, the_plan=None, **settings):
    options = {**SETTINGS, **settings}
    return policy.decide(seen, PLAN if the_plan is None else the_plan, {"limits": options["budgets"], "spent": list(spent)}, now, options)


def used(**ages):
    return {f"{name}:latest": {"expires_at": "t", "used": NOW - age} for name, age in ages.items()}


def trapped(**parts):
    return history(streaks=streak("trapped", UNIT), **parts)


# --- what is believed ---


def test_a_streak_is_believed_from_its_debounce_on():
    for count, action in ((3, "none"), (4, "restart"), (5, "restart")):
        assert decide(history(streaks=streak("trapped", UNIT, count=count)))["action"] == action
    for count, action in ((1, "none"), (2, "fence")):
        assert decide(history(streaks=streak("gpu_lost", "A", count=count)))["action"] == action
    assert decide(history(streaks=streak("trapped", UNIT, count=6)), debounce=7)["action"] == "none"


def test_what_is_not_believed_yet_is_said():
    assert decide(history())["why"] == "all use is explained"
    young = {**streak("foreign", "p", count=1), **streak("free_low", "A", count=2)}
    assert decide(history(streaks=young))["why"] == "seen, but not for long enough: foreign, free_low"
    watched = {**young, **streak("trapped", UNIT, count=1), **streak("growth", "r", count=2)}
    assert decide(history(streaks=watched))["why"] == "growth seen 2 times, 4 wanted"
    assert decide(history(streaks=streak("gpu_lost", "A", count=1)))["why"] == "gpu_lost seen 1 times, 2 wanted"
    act = {"rung": 0, "kind": "restart", "subject": UNIT, "at": NOW - 59, "cleared": False}
    waits = "trapped: what was done last is given time to take effect"
    assert decide(history(streaks=streak("trapped", UNIT, count=0), acts={"trapped": act}))["why"] == waits


def test_alerts_come_in_the_order_of_the_rules_then_of_their_age_then_of_their_subject():
    seen = {
        **streak("foreign", "late", since=30.0),
        **streak("foreign", "b", since=20.0, numbers={"used_mib": 777}),
        **streak("foreign", "a", since=20.0),
        **streak("ownerless", "A", since=49_000.6),
    }
    decision = decide(history(streaks=seen))
    assert [(one["rule"], one["subject"]) for one in decision["alerts"]] == [("ownerless", "A"), ("foreign", "a"), ("foreign", "b"), ("foreign", "late")]
    assert [one["for_s"] for one in decision["alerts"]] == [999, 49_980, 49_980, 49_970]
    assert decision["alerts"][2]["numbers"] == {"used_mib": 777}
    assert (decision["action"], decision["rule"], decision["subject"], decision["target"], decision["rung"]) == ("alert", "ownerless", "A", None, None)
    assert decision["why"] == "; ".join(f"{rule}: {policy.RULES[rule]['means']}; {policy.RULES[rule]['why_not']}" for rule in ("ownerless", "foreign"))


def test_the_first_rule_that_may_act_acts():
    both = {**streak("trapped", UNIT), **streak("orphan", "p", target={"pid": 9, "start": 64})}
    decision = decide(history(streaks=both))
    assert (decision["rule"], decision["action"], decision["target"], decision["rung"]) == ("orphan", "end", {"pid": 9, "start": 64}, 0)
    unplanned = {**streak("growth", "r", target={"model": NAME, "planned": False}), **streak("leak", "r", target={"model": NAME})}
    assert decide(history(streaks=unplanned))["rule"] == "leak"


def test_a_fence_is_a_stop_and_says_since_when():
    decision = decide(trapped(fence={"since": NOW - 61.4, "rule": "trapped", "why": "so"}))
    assert (decision["action"], decision["why"]) == ("alert", "fenced since 61 s: so")


@pytest.mark.parametrize("rule", ["driver", "ollama_unreadable"])
@pytest.mark.parametrize("count", [1, 9])
def test_nothing_is_done_while_something_cannot_be_read(rule, count):
    decision = decide(history(streaks={**streak("trapped", UNIT), **streak(rule, "s", count=count)}))
    assert (decision["action"], decision["why"]) == ("alert", f"{rule}: nothing is done on a picture that cannot be read")


def test_a_lost_card_seen_once_stops_what_is_due_and_seen_twice_fences():
    assert decide(history(streaks={**streak("trapped", UNIT), **streak("gpu_lost", "A", count=1)}))["action"] == "alert"
    decision = decide(history(streaks={**streak("trapped", UNIT), **streak("gpu_lost", "A", count=2)}))
    assert (decision["action"], decision["rule"], decision["rung"], decision["target"]) == ("fence", "gpu_lost", 0, {})


@pytest.mark.parametrize("readable", [None, False])
def test_nothing_is_done_before_nvml_has_answered(readable):
    decision = decide({**trapped(), "readable": readable})
    assert (decision["action"], decision["why"]) == ("alert", "nvml: nothing is done on a picture that cannot be read")


def test_only_watching_ends_when_it_said():
    decision = decide(trapped(watch_until=NOW + 0.5, watch_reason="new here"))
    assert (decision["action"], decision["rule"], decision["why"]) == ("wait", "trapped", "trapped: only watching for 0 s more, new here")
    assert decide(trapped(watch_until=NOW + 90.6, watch_reason="x"))["why"] == "trapped: only watching for 91 s more, x"
    assert decide(trapped(watch_until=NOW))["action"] == "restart"


# --- ladders ---


def act(kind, rung, subject=UNIT, cleared=False, age=3600.0):
    return {"rung": rung, "kind": kind, "subject": subject, "at": NOW - age, "cleared": cleared}


@pytest.mark.parametrize(
    ("before", "action", "rung"),
    [
        (None, "unload", 0),
        (act("unload", 0, "r"), "restart", 1),
        (act("restart", 1, "r"), "fence", 2),
        (act("unload", 0, "r", cleared=True), "unload", 0),
        (act("restart", 1, "r", cleared=True), "restart", 1),
        (act("unload", 0, "another"), "unload", 0),
        (act("restart", 1, "another"), "restart", 1),
    ],
)
def test_the_next_rung_is_due_only_if_the_last_did_not_help_this_very_signal(before, action, rung):
    seen = history(streaks=streak("hang", "r", target={"model": NAME}), acts={"hang": before} if before else {})
    decision = decide(seen)
    assert (decision["action"], decision["rung"]) == (action, rung)


def test_what_another_rule_has_tried_is_not_this_ones_ladder():
    assert decide(trapped(acts={"hang": act("restart", 1)}))["action"] == "restart"


def test_a_ladder_without_a_fence_ends_in_a_report():
    tried = history(streaks=streak("leak", "r", target={"model": NAME}), acts={"leak": act("unload", 0, "r")})
    decision = decide(tried)
    assert (decision["action"], decision["why"]) == ("alert", "leak: tried, and its budget is spent: a person has to find the cause")


def test_only_a_stale_runner_that_is_known_is_ended():
    known = {"pid": 9, "start": 64}
    assert decide(history(streaks=streak("stale_runner", "9:64", target=known)))["target"] == known
    decision = decide(history(streaks=streak("stale_runner", "9:64")))
    assert (decision["action"], decision["rung"], decision["target"]) == ("restart", 1, {"unit": UNIT})


def test_the_restart_is_of_the_unit_of_the_settings():
    assert decide(trapped(), unit="other.service")["target"] == {"unit": "other.service"}


def test_growth_is_acted_on_only_by_a_plan_that_has_the_model():
    planned = history(streaks=streak("growth", "r", target={"model": NAME, "planned": True}), models=used(a=900))
    assert (decide(planned)["action"], decide(planned)["target"]) == ("unload", {"model": NAME})
    for seen, the_plan in ((planned, NO_PLAN), (history(streaks=streak("growth", "r", target={"model": NAME, "planned": False})), PLAN)):
        decision = decide(seen, the_plan=the_plan)
        assert (decision["action"], decision["why"]) == ("alert", "growth: no plan for this model, so not acted on")


def test_an_offload_is_acted_on_only_where_the_model_would_fit():
    fits = history(streaks=streak("cpu_offload", NAME, target={"model": NAME}), models=used(a=900))
    assert decide(fits)["action"] == "unload"
    decision = decide(history(streaks=streak("cpu_offload", NAME)))
    assert (decision["action"], decision["why"]) == ("alert", "cpu_offload: the missing part would not fit now either")


# --- budgets and pauses ---


def test_a_budget_counts_its_own_kind_within_the_hour_and_the_day():
    budget = {"limits": {"restart": {"hour": 2, "day": 3}}, "spent": [[NOW - 3599.9, "restart"]]}
    assert policy.allowed("restart", budget, NOW)
    budget["spent"].append([NOW - 10, "unload"])
    assert policy.allowed("restart", budget, NOW)
    budget["spent"].append([NOW - 10, "restart"])
    assert not policy.allowed("restart", budget, NOW)
    assert policy.allowed("restart", budget, NOW + 0.1)  # the first is an hour old now
    budget["spent"] = [[NOW - 86_399.9, "restart"], [NOW - 50_000, "restart"], [NOW - 40_000, "restart"]]
    assert not policy.allowed("restart", budget, NOW)
    assert policy.allowed("restart", budget, NOW + 0.1)  # a day old
    assert policy.allowed("fence", budget, NOW)


def test_where_a_budget_is_spent_the_next_rung_comes():
    orphan = history(streaks=streak("orphan", "p", target={"pid": 9, "start": 64}))
    ends = [[NOW - 3000, "end"], [NOW - 2000, "end"], [NOW - 1000, "end"]]
    assert decide(orphan, ends[:2])["action"] == "end"
    assert (decide(orphan, ends)["action"], decide(orphan, ends)["rung"]) == ("fence", 1)
    hang = history(streaks=streak("hang", "r", target={"model": NAME}))
    unloads = [[NOW - 3500, "unload"], [NOW - 3400, "unload"], [NOW - 3300, "unload"]]
    assert (decide(hang, unloads)["action"], decide(hang, unloads)["rung"]) == ("restart", 1)


def test_the_pause_doubles_and_is_never_longer_than_an_hour():
    def pause(*ages, now=NOW):
        return policy.cool_down("restart", {"spent": [[NOW - age, "restart"] for age in ages]}, now, SETTINGS)

    assert pause() == 0.0
    assert pause(299.5) == 0.5
    assert pause(301) == 0.0
    assert pause(700, 100) == 500.0
    assert pause(2000, 700, 100) == 1100.0
    assert pause(9000, 7000, 5000, 3000, 100) == 3500.0
    assert pause(21_600.0, 100) == 200.0  # six hours ago is out
    assert pause(21_599.0, 100) == 500.0
    assert policy.cool_down("unload", {"spent": [[NOW - 1, "restart"]]}, NOW, SETTINGS) == 0.0


def test_a_pause_delays_a_restart_and_no_end():
    decision = decide(trapped(), [[NOW - 250.4, "restart"]])
    assert (decision["action"], decision["rule"], decision["why"]) == ("wait", "trapped", "trapped: restart is cooling down for 50 s")
    assert "due" not in decision
    orphan = history(streaks=streak("orphan", "p", target={"pid": 9, "start": 64}))
    assert decide(orphan, [[NOW - 5, "end"]])["action"] == "end"


# --- waiting for generations ---


def test_a_restart_waits_for_what_is_under_way_and_no_longer_than_it_may():
    decision = decide(trapped(in_flight=2))
    assert (decision["action"], decision["due"], decision["waiting_since"]) == ("wait", "restart", NOW)
    assert (decision["target"], decision["rung"]) == ({"unit": UNIT}, 0)
    assert decision["why"] == "trapped: restart waits for 2 generations to end, 120 s at most"
    waiting = {"rule": "trapped", "since": NOW - 119.4}
    decision = decide(trapped(in_flight=1, waiting=waiting))
    assert (decision["action"], decision["waiting_since"]) == ("wait", NOW - 119.4)
    assert decision["why"] == "trapped: restart waits for 1 generation to end, 1 s at most"
    decision = decide(trapped(in_flight=1, waiting={"rule": "trapped", "since": NOW - 120}))
    assert decision["action"] == "restart"
    assert decision["why"] == f"trapped: {policy.RULES['trapped']['means']}; waited 120 s in vain for 1 generation to end"
    decision = decide(trapped(in_flight=0, waiting=waiting))
    assert (decision["action"], decision["why"]) == ("restart", f"trapped: {policy.RULES['trapped']['means']}")


def test_the_wait_of_another_rule_does_not_shorten_this_ones():
    """Else two rules in turns would cut off what runs at once."""
    decision = decide(trapped(in_flight=1, waiting={"rule": "stuck_unload", "since": NOW - 119}))
    assert (decision["action"], decision["waiting_since"]) == ("wait", NOW)
    decision = decide(trapped(in_flight=1, waiting={"rule": "stuck_unload", "since": NOW - 1000}))
    assert (decision["action"], decision["waiting_since"]) == ("wait", NOW)


def test_also_what_hangs_does_not_cut_off_what_others_generate():
    seen = history(streaks=streak("stuck_unload", NAME), in_flight=1)
    assert decide(seen)["action"] == "wait"
    assert decide({**seen, "in_flight": 0})["action"] == "restart"


@pytest.mark.parametrize(("idle", "waits"), [(29.9, True), (30.0, False), (31.0, False)])
def test_where_nobody_says_what_is_under_way_a_busy_model_counts(idle, waits):
    models = {"a:latest": {"expires_at": "t", "used": NOW - idle}, "b:latest": {"expires_at": "t", "used": NOW - 5000}}
    decision = decide(trapped(models=models))
    assert (decision["action"] == "wait") == waits
    if waits:
        assert decision["why"] == "trapped: restart waits for a:latest to rest, 120 s at most"
    busy = {"7:1": record("b:latest@d", busy=NOW - idle)}
    models = {"b:latest": {"expires_at": "t", "used": NOW - 5000}}
    assert (decide(trapped(models=models, runners=busy))["action"] == "wait") == waits


def test_an_unload_waits_for_its_own_model_only():
    models = {"a:latest": {"expires_at": "t", "used": NOW - 5000}, "b:latest": {"expires_at": "t", "used": NOW - 1}}
    leaks = history(streaks=streak("leak", "r", target={"model": "a:latest"}), models=models, in_flight=1)
    assert decide(leaks)["action"] == "unload"
    leaks = history(streaks=streak("leak", "r", target={"model": "b:latest"}), models=models, in_flight=0)
    decision = decide(leaks)
    assert (decision["action"], decision["due"], decision["why"]) == ("wait", "unload", "leak: unload waits for b:latest to rest, 120 s at most")
    assert decide(history(streaks=streak("hang", "r", target={"model": "b:latest"}), models=models))["action"] == "unload"


def test_an_orphan_is_ended_whatever_else_runs():
    models = {"a:latest": {"expires_at": "t", "used": NOW - 1}}
    assert decide(history(streaks=streak("orphan", "p", target={"pid": 9, "start": 64}), models=models, in_flight=3))["action"] == "end"


# --- which model ---


def test_a_limit_unloads_the_idle_model_that_was_used_least_recently():
    above = streak("limit", "A", target={})
    assert decide(history(streaks=above, models=used(a=60, b=900, c=31)))["target"] == {"model": "b:latest"}
    assert decide(history(streaks=above, models=used(a=900, b=900)))["target"] == {"model": "a:latest"}
    decision = decide(history(streaks=above, models=used(a=5, b=1)))
    assert (decision["action"], decision["why"]) == ("alert", "limit: no model to unload")


def test_application_errors_unload_a_busy_model_if_there_is_no_other():
    errors = streak("xid_application", UNIT)
    assert decide(history(streaks=errors, models=used(a=5, b=900)))["target"] == {"model": "b:latest"}
    decision = decide(history(streaks=errors, models=used(a=5, b=1)))
    assert (decision["action"], decision["due"], decision["target"]) == ("wait", "unload", {"model": "a:latest"})
    assert decide(history(streaks=errors))["why"] == "xid_application: no model to unload"


def test_every_rule_has_a_ladder_that_is_known_and_words():
    for name, rule in policy.RULES.items():
        assert set(rule["ladder"]) <= set(policy.ACTIONS), name
        assert list(rule["ladder"]) == sorted(rule["ladder"], key=("unload", "end", "restart", "fence").index), name
        assert rule["means"] and rule["why_not"], name
    assert set(BLIND) <= set(policy.RULES)


def test_the_thresholds_without_a_variable_of_their_own_are_these():
    """Those with one are compared with the role's defaults; a change of these is a change for users, too."""
    fine = {
        "ownerless_mib": 1024,
        "foreign_mib": 300,
        "leak_mib": 256,
        "leak_mib_per_hour": 50,
        "leak_window_s": 900,
        "context_mib": 457,
        "scratch_bytes_per_token": 4096,
        "load_grace_s": 300,
        "unload_grace_s": 10,
        "idle_s": 30,
        "settle_s": {"unload": 30, "end": 30, "restart": 60, "fence": 0},
    }
    assert {key: policy.DEFAULTS[key] for key in fine} == fine
