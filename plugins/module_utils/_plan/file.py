# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""The plan as a file: written, compared with what is there, and a dry run remembered from it."""

from __future__ import annotations

import json

from .entry import ENGINE_TERMS

# What may change on a card between two runs without the written plan being another plan.
UNSETTLED_MIB = 256


def document(plan):
    """The plan as it is written to a file: stable, readable, with a line end."""
    return json.dumps(plan, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def same(old_text, plan):
    """Whether a written plan says the same as this one.

    What others hold on a card moves by a few MiB from one run to the next: that alone makes no other plan.
    """
    try:
        old = json.loads(old_text)
        before, after = _settled_part(old), _settled_part(plan)
        if json.loads(json.dumps(before)) != json.loads(json.dumps(after)):
            return False
        return all(
            abs(one["budget_mib"] - other["budget_mib"]) <= UNSETTLED_MIB
            for one, other in zip(old["gpus"], plan["gpus"])
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _settled_part(plan):
    moving = ("used_mib", "budget_mib", "headroom_mib")
    return {**plan, "gpus": [{key: value for key, value in card.items() if key not in moving} for card in plan["gpus"]]}


def remembered(old_text, model, cards, num_batch, engine_label):
    """What a dry run said for exactly this before, from the text of a written plan; None where it says nothing of it.

    So a run with nothing to do makes no CUDA context, and a card that is full with the planned model is not asked.
    """
    try:
        old = json.loads(old_text)
        entry = next(one for one in old["models"] if one["name"] == model["name"] and one["method"] == "dry_run")
        asked = {
            "architecture": model["shape"]["architecture"],
            "file_bytes": model["shape"]["file_bytes"],
            "effective_num_ctx": model["context"],
            "num_parallel": model["slots"],
            "kv_cache_type": model["kv_cache_type"],
            "flash_attention": model["flash_attention"],
            "num_batch": num_batch,
            "engine_build": engine_label,
            "gpu": [card["index"] for card in cards],
        }
        if any(entry[key] != value for key, value in asked.items()):
            return None
        each = entry["context_mib"] // len(cards) + (entry["scratch_mib"] or 0) // len(cards)
        shares = [entry["per_gpu_mib"][str(card["index"])] - each for card in cards]
        sums = {**{key: int(entry[key]) for key in ENGINE_TERMS}, "device_mib": int(entry["dry_run_mib"])}
        return {**sums, "per_card_mib": shares, "engine": engine_label}
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError):
        return None
