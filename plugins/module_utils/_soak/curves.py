# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Curves of a run for plots: few points, and yet no peak is lost. Pure."""

from __future__ import annotations


def curves(run, most=600):
    """{name: [[t, value], …]} for plots, each of at most so many points, peaks kept.

    Of memory, temperature, power, RSS and latency.
    """
    samples, made = run["samples"], {}
    for card in run["start"]["gpus"]:
        for field in ("held", "used", "temp", "w", "util"):
            cards = [(sample["t"], one) for sample in samples for one in sample["gpus"] if one["i"] == card["index"]]
            points = [(t, one[field]) for t, one in cards]
            made[f"gpu{card['index']}_{field}"] = down_sample(points, most)
    made["rss"] = down_sample([(sample["t"], sample["rss"]) for sample in samples], most)
    done = [one for one in run["requests"] if one["status"] == "ok" and one["s_per_token"] and one["kind"] == "chat"]
    made["s_per_token"] = down_sample([(request["t"], request["s_per_token"]) for request in done], most)
    made["ttft"] = down_sample([(request["t"], request["ttft"]) for request in done], most)
    made["tokens_per_s"] = down_sample(throughput(run["requests"], run["end"]["t"]), most)
    return {name: [[round(t, 1), round(value, 5)] for t, value in points] for name, points in made.items() if points}


def throughput(requests, duration_s, parts=120):
    """[(t, tokens a second)]: the tokens of each answer, spread evenly from its first token to its end."""
    width = max(duration_s / parts, 1.0)
    buckets = [0.0] * (int(duration_s / width) + 1)
    for request in requests:
        if request["status"] != "ok" or not request["tokens_out"] or request["ttft"] is None:
            continue
        began, ended = request["t"] + request["ttft"], request["t"] + request["total"]
        first, last = int(began / width), min(int(ended / width), len(buckets) - 1)
        for index in range(first, last + 1):
            overlap = min(ended, (index + 1) * width) - max(began, index * width)
            share = max(overlap, 0.0) / (ended - began) if ended > began else 1.0 / (last - first + 1)
            buckets[index] += request["tokens_out"] * share
    return [((index + 0.5) * width, tokens / width) for index, tokens in enumerate(buckets)]


def down_sample(points, most):
    """At most so many (t, value) of a curve: of each stretch its lowest and its highest, so no peak and no dip is lost.

    Points whose value is None are gaps and are left out.
    """
    points = [point for point in points if point[1] is not None]
    if len(points) <= most:
        return points
    count = max(most // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for index in range(count):
        start, stop = index * len(points) // count, (index + 1) * len(points) // count
        stretch = range(start, stop)
        kept.add(min(stretch, key=lambda place: points[place][1]))
        kept.add(max(stretch, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]
