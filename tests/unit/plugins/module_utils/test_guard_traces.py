# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every sequence of tests/traces leads to the decisions that stand in it, and to no other."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[3]


def _player():
    spec = importlib.util.spec_from_file_location("guard_traces", TESTS / "support" / "guard_traces.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


player = _player()
NAMES = sorted(path.stem for path in player.TRACES.glob("*.yml"))
WANTED = [
    "healthy_full_hour",
    "slow_leak",
    "burst_leak",
    "trapped",
    "orphan",
    "ping_pong_reload",
    "second_tenant",
    "nvml_flapping",
    "driver_mismatch",
    "clock_back",
    "state_lost",
    "two_cards_one_lost",
]


def test_the_sequences_that_the_guard_was_built_for_are_there():
    assert set(WANTED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_trace(name):
    trace = player.load(player.TRACES / f"{name}.yml")
    decisions = player.play(trace, player.OurGuard)
    done = player.actions(decisions)
    assert [(action, rule) for _now, action, rule in done] == [(one[0], one[1]) for one in trace["expect"]]
    for (now, _action, _rule), (_a, _r, earliest, latest) in zip(done, trace["expect"]):
        assert earliest <= now <= latest, done
    assert player.reported(decisions) == sorted(trace["alerts"])
    # What is wanted is what the last action was, unless the ladder had to go on.
    assert trace["wants"] in ([action for _now, action, _rule in done] or ["nothing", "alert"])
    assert (trace["wants"] == "nothing") == (not done and not player.reported(decisions))


@pytest.mark.parametrize("name", NAMES)
def test_quiet_when_the_fault_has_ended(name):
    """Ten minutes after everything is as planned nothing is reported any more, but for a fence and lost cards."""
    trace = player.load(player.TRACES / f"{name}.yml")
    if trace["wants"] == "fence":
        pytest.skip("a fence stays until a person takes it down")
    calm = {
        "for_s": 900,
        "models": [{"name": "qwen3:14b", "vram": 11886}],
        "processes": [{"pid": 999, "mib": 12350, "kind": "runner"}],
    }
    trace = dict(trace, steps=[*trace["steps"], calm], plan={"qwen3:14b": 12600})
    end = player.play(trace, player.OurGuard)
    last = [one for now, one in end if now > end[-1][0] - 240]
    assert {one["action"] for one in last} == {"none"}, last


@pytest.mark.slow
def test_the_guide_has_the_tables_of_now():
    for path, text in player.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python tests/support/guard_traces.py --write"
