# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The digests of models that several hosts share: are they equal? Runs on the controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .verdict import no_problems, outcome

Holders = dict[str, dict[str, int]]


def across(hosts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The hosts, as judge() returns them, with one more verdict: a model of one name has one digest everywhere.

    The host whose digest fewest have is named; where no digest is in the majority, all are.
    """
    holders = _holders(hosts)
    made = []
    for host in hosts:
        problems = [
            f"{name} is {digest[:12]} here and another elsewhere"
            for name, digest in sorted(host["digests"].items())
            if _odd(digest, holders[name])
        ]
        shared = sum(sum(holders[name].values()) > 1 for name in host["digests"])
        found = f"{shared} shared with other hosts, equal"
        verdicts = [*host["verdicts"], no_problems("digests", problems, found, "equal on all hosts")]
        made.append({**host, "verdict": outcome(verdicts), "verdicts": verdicts})
    return made


def _holders(hosts: Sequence[dict[str, Any]]) -> Holders:
    """{model: {digest: number of hosts that have it}}."""
    counts: Holders = {}
    for host in hosts:
        for name, digest in host["digests"].items():
            of_model = counts.setdefault(name, {})
            of_model[digest] = of_model.get(digest, 0) + 1
    return counts


def _odd(digest: str, counts: dict[str, int]) -> bool:
    """Whether others have another digest, and this one is not that of the majority alone."""
    most = max(counts.values())
    majorities = [one for one, count in counts.items() if count == most]
    return len(counts) > 1 and majorities != [digest]
