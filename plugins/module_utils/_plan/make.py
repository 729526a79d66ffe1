# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The serving plan: which model goes on which card, what is left, and what to change where it does not fit.

Pure: headers, settings and cards in, the plan out. Reading headers and cards, running the dry run and writing
files is done by the module ``gpu_capacity``.
"""

from __future__ import annotations

from .cards import PlanError, offers_mib
from .compute import NEWEST_MEASURED_BUILD
from .entry import alone, settle
from .suggest import does_not_fit, offer, suggestions

SCHEMA = 1


def make(models, cards, reserve_mib=1024, max_loaded_models=1, build=None, dry_run=None):
    """The plan of these models (see _plan.entry) on these cards (see _plan.cards).

    cards: [] plans a host that serves from its CPU: nothing is held against a budget.
    build: the engine's build for the formula, None for the newest measured.
    dry_run: None, or ``f(settled model, its cards, num_batch)`` that answers as _plan.dry_run.run() does.

    Raises PlanError or VramError for input that the servers refuse.
    """
    build = build or NEWEST_MEASURED_BUILD
    _refuse_doubles([model["name"] for model in models])
    budgets = {card["index"]: max(offers_mib(card) - reserve_mib, 0) for card in cards}
    settled = [settle(model, cards) for model in models]
    entries, warnings = [], []
    for model in settled:
        entry, noted = alone(model, cards, budgets, build, dry_run)
        entries.append(entry)
        warnings += noted
    residents, planned, crowded = _house(entries, budgets, max_loaded_models)
    suggested, errors = [], []
    for model, entry in zip(settled, entries):
        if entry["fits"] is False:
            found = suggestions(model, cards, reserve_mib, build)
            suggested += found
            errors.append(does_not_fit(entry, cards, reserve_mib, found))
    if crowded and not errors:
        suggested.append(_one_at_a_time(entries))
        errors.append(_too_many(residents, entries, cards, reserve_mib))
    undecided = any(entry["fits"] is None for entry in entries)
    return {
        "schema": SCHEMA,
        "fits": False if errors else None if undecided else True,
        "method": _one({entry["method"] for entry in entries}),
        "engine_build": _one({entry["engine_build"] for entry in entries}),
        "reserve_mib": reserve_mib,
        "max_loaded_models": max_loaded_models,
        "models": entries,
        "gpus": [_planned_card(card, budgets[card["index"]], planned[card["index"]]) for card in cards],
        "suggestions": suggested,
        "errors": errors,
        "problems": [f"Model {model['name']}: {problem}" for model in settled for problem in model["problems"]],
        "warnings": warnings,
    }


def _refuse_doubles(names):
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise PlanError(
            f"Model {doubled[0]} is declared {names.count(doubled[0])} times; its settings can only be one."
            " Declare it once."
        )


def _planned_card(card, budget_mib, planned_mib):
    return {
        **{key: card[key] for key in ("index", "uuid", "name", "total_mib", "reserved_mib", "used_mib")},
        "budget_mib": budget_mib,
        "planned_mib": planned_mib,
        "headroom_mib": budget_mib - planned_mib,
    }


def _one_at_a_time(entries):
    largest = max(entry["total_mib"] for entry in entries)
    return {"model": None, "change": "ollama_max_loaded_models=1", "total_mib": largest, "fits": True}


def _too_many(residents, entries, cards, reserve_mib):
    together = sum(entry["total_mib"] for entry in entries if entry["name"] in residents)
    return (
        f"Models {' and '.join(residents)}, loaded together, need {together:,} MiB; {offer(cards, reserve_mib)}."
        " Set ollama_max_loaded_models=1 (each fits alone), or declare smaller settings for one of them."
    )


def _one(values):
    """The one value of all models, 'mixed' where they differ."""
    return values.pop() if len(values) == 1 else "mixed" if values else None


def _house(entries, budgets, max_loaded_models):
    """(names of the models that may be loaded at once, {card: MiB that the plan takes there}, whether they crowd).

    The largest max_loaded_models models are housed, largest first, each whole on the card with the most room left;
    a model that was split stays as it is. A smaller model in the place of a larger one fits wherever that did. Each
    entry's ``gpu`` is set to where it was put.
    """
    largest_first = sorted(entries, key=lambda entry: -entry["total_mib"])
    residents = largest_first[: max(max_loaded_models, 1)]
    planned = dict.fromkeys(budgets, 0)
    crowded = False
    for entry in residents:
        share = dict(zip(entry["gpu"], entry["per_gpu_mib"].values()))
        if len(share) == 1:
            (need,) = share.values()
            card = max(budgets, key=lambda index: (budgets[index] - planned[index], -index))
            crowded = crowded or (entry["fits"] is not False and planned[card] + need > budgets[card])
            share = {card: need}
            entry["gpu"], entry["per_gpu_mib"] = [card], {str(card): need}
        for index, need in share.items():
            crowded = crowded or (
                len(share) > 1 and entry["fits"] is not False and planned[index] + need > budgets[index]
            )
            planned[index] += need
    return [entry["name"] for entry in residents], planned, crowded
