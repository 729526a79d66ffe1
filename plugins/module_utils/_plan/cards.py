# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""The cards that a plan is for: as read or as given, and what each offers."""

from __future__ import annotations

import re

# Where a card's reserve of driver and firmware is not given: that of an RTX 4090 (NVML, driver 580).
DEFAULT_RESERVED_MIB = 354


class PlanError(Exception):
    """Input that cannot be planned; the text is fit for an operator."""


def given(cards):
    """Cards as a user gives them, in order; PlanError for what cannot be a card."""
    made = []
    for index, card in enumerate(cards):
        label = card.get("name") or f"GPU {index}"
        total, used = card.get("total_mib"), card.get("used_mib") or 0
        reserved = DEFAULT_RESERVED_MIB if card.get("reserved_mib") is None else card["reserved_mib"]
        if not total or total < 256 or total > 1 << 24:
            raise PlanError(
                f"gpus[{index}] ({label}): total_mib={total} is no card's memory; wanted is MiB, such as 24564 for an "
                "RTX 4090."
            )
        if reserved < 0 or used < 0 or reserved + used > total:
            raise PlanError(
                f"gpus[{index}] ({label}): reserved_mib={reserved} and used_mib={used} do not go into "
                f"total_mib={total}."
            )
        made.append(
            {
                "index": index,
                "uuid": card.get("uuid"),
                "name": card.get("name"),
                "total_mib": total,
                "reserved_mib": reserved,
                "used_mib": used,
                "compute_capability": card.get("compute_capability"),
            }
        )
    return made


def read(sample, own_unit="ollama.service"):
    """Cards from a sample of _nvml. What processes of own_unit hold is not counted as held by others.

    PlanError where a card's memory could not be read: nothing can be planned against an unknown card.
    """
    if sample["state"] != "ok" or not sample["gpus"]:
        raise PlanError(
            f"No GPU could be read: {sample['message'] or 'it has none.'} To plan for hardware that is not here, "
            "give gpus (total_mib and name of each card)."
        )
    made = []
    for gpu in sample["gpus"]:
        if gpu["state"] != "ok" or gpu["total_mib"] is None or gpu["used_mib"] is None:
            raise PlanError(
                f"GPU {gpu['index']} ({short_name(gpu['name']) or 'unnamed'}) cannot be planned with: "
                f"{gpu['message'] or 'its memory could not be read.'}"
                " Mend it, or give gpus with the cards that are to be used."
            )
        others = gpu["used_mib"]
        own = [process for process in gpu["processes"] or [] if process["unit"] == own_unit]
        if own and all(process["used_mib"] is not None for process in own):
            others -= sum(process["used_mib"] for process in own)
        elif own and len(own) == len(gpu["processes"]):
            others = 0  # the driver does not tell shares, but nobody else is there
        reserved = gpu["reserved_mib"]
        if reserved is None:  # NVML's first structure: used includes the reserve
            reserved = min(max(others, 0), DEFAULT_RESERVED_MIB)
            others -= reserved
        made.append(
            {
                **{key: gpu[key] for key in ("index", "uuid", "name", "total_mib", "compute_capability")},
                "free_mib": gpu["free_mib"],
                "reserved_mib": reserved,
                "used_mib": max(others, 0),
            }
        )
    return made


def short_name(name):
    """'NVIDIA GeForce RTX 4090' -> 'RTX 4090'."""
    return re.sub(r"\b(NVIDIA|GeForce)\s+", "", name or "").strip()


def label(card):
    """How a sentence names a card."""
    name = short_name(card["name"])
    return f"GPU {card['index']} ({name})" if name else f"GPU {card['index']}"


def offers_mib(card):
    """What a card has for us before the reserve: Ollama's 'free' where nothing of ours is loaded."""
    return max(card["total_mib"] - card["reserved_mib"] - card["used_mib"], 0)


def usable_mib(cards):
    """What the server counts as the cards' total memory, all together."""
    return sum(card["total_mib"] - card["reserved_mib"] for card in cards)
