# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""A verdict about one thing of a host: the shape that the report shows (as in ``_soak``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Verdict = dict[str, Any]


def verdict(name: str, state: str, found: Any, wanted: str, text: str = "") -> Verdict:
    """{"name", "state": "pass" | "fail" | "unknown" | "off", "found", "wanted", "text"}."""
    return {"name": name, "state": state, "found": found, "wanted": wanted, "text": text}


def no_problems(name: str, problems: Sequence[str], found: str, wanted: str) -> Verdict:
    """A verdict that fails where there is a problem, and says each; *problems* are sentences without their stop."""
    if not problems:
        return verdict(name, "pass", found, wanted)
    return verdict(name, "fail", "; ".join(problems), wanted, " ".join(f"{problem}." for problem in problems))


def outcome(verdicts: Sequence[Verdict]) -> str:
    """The word for all verdicts: "fail" where one has failed, else "pass"."""
    return "fail" if any(one["state"] == "fail" for one in verdicts) else "pass"
