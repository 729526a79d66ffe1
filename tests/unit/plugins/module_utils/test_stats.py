# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Medians, percentiles and slopes, on data that can tell right from wrong."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils import _stats


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=12))
def test_a_median_is_that_of_the_standard_library(values):
    before = list(values)
    assert _stats.median(values) == statistics.median(values)
    assert values == before


def test_a_median_of_nothing_is_an_error():
    with pytest.raises(IndexError):
        _stats.median([])


@pytest.mark.parametrize(("percent", "value"), [(0, 11), (1, 11), (20, 11), (20.1, 13), (50, 17), (80, 19), (81, 99), (95, 99), (100, 99)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(percent, value):
    assert _stats.percentile([99, 13, 17, 11, 19], percent) == value


def test_slopes_are_those_of_every_two_points_at_different_times():
    assert sorted(_stats.pair_slopes([(0.0, 1.0), (2.0, 5.0), (2.0, 7.0), (5.0, 4.0)])) == [-1.0, -1 / 3, 0.6, 2.0, 3.0]
    assert _stats.pair_slopes([(1.0, 5.0)]) == _stats.pair_slopes([]) == []


def test_many_points_become_the_medians_of_equal_stretches():
    points = [(float(t), t * t) for t in range(10)]
    assert _stats.thin(points, 10) == points
    assert _stats.thin(points, 4) == [(0.5, 0.5), (3.0, 9), (6.0, 36), (8.5, 72.5)]
    assert len(_stats.thin(points, 3)) == 3


def test_ties_make_an_interval_narrower():
    """By the formula: n(n-1)(2n+5)/18, less the same of each group of ties."""
    assert _stats._kendall_variance([(float(t), float(t)) for t in range(12)]) == pytest.approx(12 * 11 * 29 / 18)
    tied = [(float(t), float(max(t, 5))) for t in range(12)]
    assert _stats._kendall_variance(tied) == pytest.approx((12 * 11 * 29 - 6 * 5 * 17) / 18)


def test_the_interval_is_where_sens_ranks_are():
    points = [(float(t), float(t * t)) for t in range(10)]
    slopes = sorted(_stats.pair_slopes(points))
    reach = 1.959964 * (10 * 9 * 25 / 18) ** 0.5
    fit = _stats.theil_sen([points])
    assert (fit["slope"], fit["points"]) == (9.0, 10)
    assert (fit["low"], fit["high"]) == (slopes[round((45 - reach) / 2)], slopes[round((45 + reach) / 2)])
    narrow = _stats.theil_sen([points], z=0.0)
    assert (narrow["low"], narrow["high"]) == (slopes[22], slopes[22])


def test_points_at_one_time_have_no_slope():
    assert _stats.theil_sen([[(1.0, float(value)) for value in range(12)]]) is None


@given(st.floats(-50, 50), st.floats(-1e4, 1e4), st.integers(_stats.LEAST_POINTS, 400), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_theil_sen_finds_a_line_through_wild_points(slope, level, count, seed):
    source = random.Random(seed)
    points = [(float(t), level + slope * t) for t in range(count)]
    for place in source.sample(range(count), count // 10):
        points[place] = (points[place][0], 1e6)
    fit = _stats.theil_sen([points])
    assert fit["low"] <= fit["slope"] <= fit["high"]
    assert fit["slope"] == pytest.approx(slope, abs=max(abs(slope) * 0.05, 1e-6))


def test_theil_sens_interval_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(100):
        source = random.Random(seed)
        fit = _stats.theil_sen([[(float(t), 0.5 * t + source.gauss(0, 10)) for t in range(60)]])
        inside += fit["low"] <= 0.5 <= fit["high"]
    assert 90 <= inside <= 100


def test_theil_sen_does_not_look_across_a_jump():
    groups = [[(float(t), 5.0) for t in range(50)], [(float(t), 900.0) for t in range(50, 100)]]
    assert _stats.theil_sen(groups)["slope"] == 0
    assert _stats.theil_sen([sum(groups, [])])["high"] > 0
    assert _stats.theil_sen([[(0.0, 1.0)] * (_stats.LEAST_POINTS - 1)]) is None


def test_percentiles_and_medians():
    assert _stats.percentile([], 50) is None
    assert (_stats.percentile(range(1, 101), 95), _stats.percentile([3], 95), _stats.median([4, 1, 3, 2])) == (95, 3, 2.5)
