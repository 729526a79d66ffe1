# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Order statistics of small samples. Pure; imports only what the arithmetic needs.

``statistics`` of the standard library is not used: its import costs a tick of the VRAM guard more than the tick may.
"""

from __future__ import annotations

import math

# Fewer points than this say nothing about a slope.
LEAST_POINTS = 10
# Theil-Sen compares every pair: so many block medians are 45,000 pairs, 0.1 s of plain Python.
MOST_POINTS = 300
Z95 = 1.959964


def median(values):
    """The middle of the values; the mean of the two middle ones for an even number. IndexError for no value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(values, percent):
    """The smallest value that so many per cent of them do not exceed (nearest rank); None for no value."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)] if ordered else None


def pair_slopes(points):
    """The slopes between every two of the (t, value) whose t differ; *points* in the order of t."""
    return [
        (later - value) / (when - t)
        for index, (t, value) in enumerate(points)
        for when, later in points[index + 1 :]
        if when > t
    ]


def thin(points, most):
    """At most so many (t, value): medians of stretches of equally many points."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    parts = [points[start:stop] for start, stop in zip(edges, edges[1:]) if stop > start]
    return [(median([t for t, _value in part]), median([value for _t, value in part])) for part in parts]


def theil_sen(groups, z=Z95):
    """{slope, low, high, points} per second: Sen's slope over the pairs within each group, and its interval.

    The median of all pairwise slopes bears 29 % of wild points; the interval (95 % unless *z* says otherwise) is
    Sen's, from the variance of Kendall's S with ties (Sen 1968; Gilbert 1987, ch. 16). Groups are stretches of
    (t, value) between which the level may jump. None for fewer than LEAST_POINTS points in every group.
    """
    groups = [sorted(group) for group in groups if len(group) >= LEAST_POINTS]
    if not groups:
        return None
    share = max(MOST_POINTS // len(groups), LEAST_POINTS)
    groups = [thin(group, share) for group in groups]
    slopes = sorted(slope for group in groups for slope in pair_slopes(group))
    if not slopes:
        return None
    reach = z * math.sqrt(max(sum(_kendall_variance(group) for group in groups), 0.0))
    last = len(slopes) - 1
    low = slopes[min(max(round((len(slopes) - reach) / 2), 0), last)]
    high = slopes[min(max(round((len(slopes) + reach) / 2), 0), last)]
    return {"slope": median(slopes), "low": low, "high": high, "points": sum(len(group) for group in groups)}


def _kendall_variance(group):
    """The variance of Kendall's S of (t, value), with ties among the values."""
    count = len(group)
    ties: dict[float, int] = {}
    for _t, value in group:
        ties[value] = ties.get(value, 0) + 1
    return (count * (count - 1) * (2 * count + 5) - sum(n * (n - 1) * (2 * n + 5) for n in ties.values())) / 18
