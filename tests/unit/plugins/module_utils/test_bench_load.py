# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(REPO))

from bench import load as bench_load  # noqa: E402

TAKEN = json.loads((REPO / "tests/measurements/plan_load.json").read_text(encoding="utf-8"))


def test_what_was_taken_last_agrees_and_is_what_the_page_shows():
    page = (REPO / "docs/measurements/plan_load.md").read_text(encoding="utf-8")
    assert bench_load.faults(TAKEN) == [] and len(TAKEN) == len(bench_load.SETTINGS) and {row["cards"] for row in TAKEN} == {1, 2}
    assert all(bench_load.line(row) in page for row in TAKEN)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"size_vram_mib": TAKEN[0]["size_vram_mib"] + 2, "size_mib": TAKEN[0]["size_mib"] + 2}, "the dry run said"),
        ({"size_mib": TAKEN[0]["size_mib"] + 400}, "all of it on the card"),
        ({"size_vram_mib": 0.0, "size_mib": 0.0}, "all of it on the card"),
        ({"context_length": 4096}, "runs 4096 tokens"),
        ({"held_mib": [TAKEN[0]["planned_by_card_mib"][0] - 3]}, "the cards hold"),
    ],
)
def test_a_difference_is_a_fault(wrong, told):
    assert any(told in one for one in bench_load.faults([{**TAKEN[0], **wrong}]))
