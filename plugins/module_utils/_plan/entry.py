# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One model alone on the cards: its settings as the server takes them, its terms, its place.

A *model* is ``{"name", "num_ctx": int | None, "num_parallel", "kv_cache_type", "flash_attention", "num_batch": int |
None, "header": a header of _plan.header}``. ``settle()`` adds what the server makes of these settings.
"""

from __future__ import annotations

from . import formula, server_rules
from .cards import offers_mib, usable_mib
from .shape import describe

# What the engine itself allocates on the cards.
ENGINE_TERMS = ("weights_mib", "kv_mib", "compute_mib")

# The terms of a plan's entry, in its order.
TERMS = ("weights_mib", "kv_mib", "compute_mib", "context_mib", "scratch_mib")

# A dry run and a formula that differ by more than this are reported: the formula is out of date.
AGREEMENT = 0.02


def settle(model, cards):
    """A model with its shape and what the server makes of its settings.

    Adds {shape, context, capped_by, slots, problems: [sentence, …]}. VramError for settings that the server refuses.
    """
    shape = model.get("shape") or describe(model["header"])
    server_rules.check_settings(shape, model["name"], model["kv_cache_type"], model["flash_attention"])
    trained, asked = shape["context_length"], model["num_ctx"]
    context, capped_by = server_rules.effective_context(asked, trained, usable_mib(cards))
    slots, problems = model["num_parallel"], []
    if capped_by == "trained" and asked:
        problems.append(
            f"num_ctx={asked} exceeds the model's trained context of {context:,}; Ollama would cap it silently."
            f" Set num_ctx ≤ {context} or use a GGUF with YaRN metadata."
        )
    if shape["architecture"] in server_rules.ONE_SLOT and slots > 1:
        problems.append(
            f"num_parallel={slots} is more than the one slot that Ollama gives to the architecture"
            f" {shape['architecture']}. Set num_parallel to 1."
        )
        slots = 1
    return {**model, "shape": shape, "context": context, "capped_by": capped_by, "slots": slots, "problems": problems}


def batch_of(model, free_mib):
    """num_batch of a settled model on cards with so much free memory."""
    if model["num_batch"]:
        return model["num_batch"]
    context, slots = model["context"], model["slots"]
    return server_rules.automatic_batch(model["shape"], context, slots, free_mib, model["flash_attention"])


def predict(model, num_batch, build):
    """The formula's terms of a settled model on one card."""
    settings = (model["context"], model["slots"], model["kv_cache_type"], num_batch, model["flash_attention"])
    return formula.predict(model["shape"], *settings, build)


def engine_mib(part):
    """What the engine takes of the cards: a dry run's own sum, cut to whole MiB once, else its three terms added."""
    return part["device_mib"] if part.get("device_mib") else sum(part[key] or 0 for key in ENGINE_TERMS)


def alone(model, cards, budgets, build, dry_run):
    """(the plan's entry of one settled model alone on the cards, warnings).

    budgets: {index of a card: MiB}. dry_run: as make() takes it. A dry run that says that the engine does not load
    the model adds a sentence to the model's problems.
    """
    per_card, terms = _by_formula(model, cards, budgets, build)
    by_formula, engine, warnings = terms, f"b{build}", []
    dry = None
    if dry_run is not None and not model["shape"]["incomplete"]:
        dry, warnings = _dry(model, [card for card in cards if card["index"] in per_card], terms["num_batch"], dry_run)
    if dry is not None:
        terms, engine = _with_dry_run(terms, dry), dry["engine"]
        per_card = _shares_of_dry_run(per_card, by_formula, dry)
        warnings += _disagreement(model, by_formula, dry)
    elif model["shape"]["incomplete"]:
        warnings.append(
            f"Model {model['name']} cannot be planned, because only a part of it was read:"
            f" {model['shape']['incomplete']}. That part takes {terms['total_mib']:,} MiB by formula. Name a file or"
            " URL beside which all parts are."
        )
    elif not terms["known"]:
        reasons = "; ".join(sorted(set(model["shape"]["unknown"].values())))
        warnings.append(
            f"Model {model['name']} is planned by the server's dry run only: {reasons}. By formula it takes at least"
            f" {terms['total_mib']:,} MiB. Plan again with method dry_run on a host with the engine."
        )
    if model["shape"]["extra_bytes"]:
        warnings.append(
            f"Model {model['name']} has a projector or adapter: its weights are counted, its working memory is not."
        )
    sums = {
        "formula_mib": engine_mib(by_formula) if by_formula["known"] else None,
        "dry_run_mib": engine_mib(dry) if dry else None,
    }
    outcome = {**sums, "method": "dry_run" if dry else "formula", "engine_build": engine}
    return _entry(model, terms, per_card, {**outcome, "fits": _fits(cards, budgets, per_card, terms)}), warnings


def _entry(model, terms, per_card, outcome):
    shape = model["shape"]
    return {
        "name": model["name"],
        **{key: terms[key] for key in (*TERMS, "total_mib", "host_mib")},
        "num_ctx": model["num_ctx"],
        "effective_num_ctx": model["context"],
        "capped_by": model["capped_by"],
        "num_parallel": model["slots"],
        "kv_cache_type": model["kv_cache_type"],
        "flash_attention": model["flash_attention"],
        "num_batch": terms["num_batch"],
        "architecture": shape["architecture"],
        "trained_context": shape["context_length"],
        "file_bytes": shape["file_bytes"],
        "gpu": sorted(per_card),
        "per_gpu_mib": {str(index): share for index, share in sorted(per_card.items())},
        **outcome,
    }


def _fits(cards, budgets, per_card, terms):
    """True, False, or None where the formula knows too little; without cards there is no budget to exceed."""
    if not cards:
        return True
    if any(share > budgets[index] for index, share in per_card.items()):
        return False
    return True if terms["known"] else None


def _by_formula(model, cards, budgets, build):
    """({card: MiB}, the formula's terms with num_batch): on the card with the most room, or dealt out over all."""
    best = max(cards, key=lambda card: (budgets[card["index"]], -card["index"])) if cards else None
    shape, context, slots = model["shape"], model["context"], model["slots"]
    if len(cards) < 2 or server_rules.stays_on_one(shape, context, slots, offers_mib(best)):
        batch = batch_of(model, offers_mib(best) if best else 0)
        terms = {**predict(model, batch, build), "num_batch": batch}
        return ({best["index"]: terms["total_mib"]} if best else {}), terms
    free = [offers_mib(card) for card in cards]
    batch = batch_of(model, sum(free))
    settings = (context, slots, model["kv_cache_type"], batch)
    shares = formula.split(shape, *settings, free, model["flash_attention"], build)
    per_card = {card["index"]: share for card, share in zip(cards, shares) if share}
    return per_card, {**_on_each(predict(model, batch, build), len(per_card)), "num_batch": batch}


def _on_each(terms, count):
    """Terms of a model on several cards: compute buffer, context and scratch are there once on each."""
    each = ("compute_mib", "context_mib", "scratch_mib")
    made = {**terms, **{key: None if terms[key] is None else terms[key] * count for key in each}}
    return {**made, "total_mib": sum(made[key] or 0 for key in TERMS)}


def _dry(model, cards, num_batch, dry_run):
    """(what the dry run said or None, warnings)."""
    dry = dry_run(model, cards, num_batch)
    if "refused" not in dry:
        return dry, []
    if dry.get("loads") is False:
        model["problems"].append(
            f"{dry['refused']} Its load would fail the same way. Change its settings, or plan with method=formula if"
            " you know better."
        )
    return None, [f"Model {model['name']} was planned by formula: {dry['refused']}"]


def _with_dry_run(terms, dry):
    """The formula's terms with a dry run's weights, KV and compute in their place."""
    made = {**terms, **{key: dry[key] for key in ENGINE_TERMS}, "known": True}
    return {**made, "total_mib": engine_mib(dry) + (made["context_mib"] or 0) + (made["scratch_mib"] or 0)}


def _shares_of_dry_run(per_card, terms, dry):
    if not per_card or len(dry["per_card_mib"]) != len(per_card):
        return per_card
    extra = terms["context_mib"] // len(per_card) + (terms["scratch_mib"] or 0) // len(per_card)
    return {index: share + extra for index, share in zip(sorted(per_card), dry["per_card_mib"])}


def _disagreement(model, by_formula, dry):
    predicted, seen = engine_mib(by_formula), engine_mib(dry)
    if not by_formula["known"] or abs(predicted - seen) <= AGREEMENT * seen:
        return []
    return [
        f"Model {model['name']}: the formula says {predicted:,} MiB and the server's dry run {seen:,} MiB,"
        f" {abs(predicted - seen) / seen:.1%} apart; the formula is out of date for the architecture"
        f" {model['shape']['architecture']} on {dry['engine']}. The dry run counts."
    ]
