# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The serving plan: which model goes on which card, what is left, and what to change where it does not fit.

Pure: headers, settings and cards in, the plan out. Reading headers and cards, running the dry run and writing
files is done by the module ``gpu_capacity``.

A *wish* is ``{"name", "num_ctx": int | None, "num_parallel", "kv_cache_type", "flash_attention", "num_batch": int |
None, "header": a header of _gguf}``. A *card* is ``{"index", "uuid", "name", "total_mib", "reserved_mib",
"used_mib", "compute_capability"}`` where used_mib is what others hold: not the runners that the plan is for; a card
that was read also has ``free_mib``, what is free right now.
"""

from __future__ import annotations

import json
import re

from . import formula as plan_formula

SCHEMA = 1

# Contexts that a suggestion may name, besides the model's own length.
CONTEXTS = (262144, 131072, 65536, 40960, 32768, 16384, 8192, 4096)

# What the engine itself allocates on the cards.
ENGINE_TERMS = ("weights_mib", "kv_mib", "compute_mib")

# A dry run and a formula that differ by more than this are reported: the formula is out of date.
AGREEMENT = 0.02

# Where a card's reserve of driver and firmware is not given: that of an RTX 4090 (NVML, driver 580).
DEFAULT_RESERVED_MIB = 354

# What may change on a card between two runs without the written plan being another plan.
UNSETTLED_MIB = 256

QUANTISED_ENOUGH = frozenset(
    [
        "q4_k",
        "q4_0",
        "q4_1",
        "q3_k",
        "q2_k",
        "iq4_nl",
        "iq4_xs",
        "iq3_s",
        "iq3_xxs",
        "iq2_s",
        "iq2_xs",
        "iq2_xxs",
        "iq1_s",
        "iq1_m",
        "mxfp4",
        "nvfp4",
    ]
)


class PlanError(Exception):
    """Input that cannot be planned; the text is fit for an operator."""


# --- cards ---


def cards_given(given):
    """Cards as a user gives them, in order; PlanError for what cannot be a card."""
    made = []
    for index, card in enumerate(given):
        label = card.get("name") or f"GPU {index}"
        total, used = card.get("total_mib"), card.get("used_mib") or 0
        reserved = DEFAULT_RESERVED_MIB if card.get("reserved_mib") is None else card["reserved_mib"]
        if not total or total < 256 or total > 1 << 24:
            raise PlanError(f"gpus[{index}] ({label}): total_mib={total} is no card's memory; wanted is MiB, such as 24564 for an RTX 4090.")
        if reserved < 0 or used < 0 or reserved + used > total:
            raise PlanError(f"gpus[{index}] ({label}): reserved_mib={reserved} and used_mib={used} do not go into total_mib={total}.")
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


def cards_read(sample, own_unit="ollama.service"):
    """Cards from a sample of _nvml. What processes of own_unit hold is not counted as held by others.

    PlanError where a card's memory could not be read: a plan against an unknown card is none.
    """
    if sample["state"] != "ok" or not sample["gpus"]:
        raise PlanError(
            f"No GPU could be read: {sample['message'] or 'there is none.'} To plan for hardware that is not here, give gpus (total_mib and name of each card)."
        )
    made = []
    for gpu in sample["gpus"]:
        if gpu["state"] != "ok" or gpu["total_mib"] is None or gpu["used_mib"] is None:
            raise PlanError(
                f"GPU {gpu['index']} ({short_name(gpu['name']) or 'unnamed'}) cannot be planned with: {gpu['message'] or 'its memory could not be read.'}"
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


# --- one model ---


def settle(wish, cards):
    """A wish with its shape and what the server makes of its settings: {…, shape, context, capped_by, slots, problems}."""
    shape = wish.get("shape") or plan_formula.describe(wish["header"])
    plan_formula.check_settings(shape, wish["name"], wish["kv_cache_type"], wish["flash_attention"])
    context, capped_by = plan_formula.effective_context(wish["num_ctx"], shape["context_length"], usable_mib(cards))
    slots, problems = wish["num_parallel"], []
    if capped_by == "trained" and wish["num_ctx"]:
        problems.append(
            f"num_ctx={wish['num_ctx']} exceeds the model's trained context of {context:,}; Ollama would cap it silently."
            f" Set num_ctx ≤ {context} or use a GGUF with YaRN metadata."
        )
    if shape["architecture"] in plan_formula.ONE_SLOT and slots > 1:
        problems.append(f"num_parallel={slots} is more than the one slot that Ollama gives to the architecture {shape['architecture']}. Set num_parallel to 1.")
        slots = 1
    return {**wish, "shape": shape, "context": context, "capped_by": capped_by, "slots": slots, "problems": problems}


def batch_of(wish, free_mib):
    """num_batch of a settled wish on cards with so much free memory."""
    return wish["num_batch"] or plan_formula.automatic_batch(wish["shape"], wish["context"], wish["slots"], free_mib, wish["flash_attention"])


def predict_on(wish, card, build):
    """The formula's terms of a settled wish on one card, and the num_batch that goes with it."""
    batch = batch_of(wish, offers_mib(card) if card else 0)
    terms = plan_formula.predict(wish["shape"], wish["context"], wish["slots"], wish["kv_cache_type"], batch, wish["flash_attention"], build)
    return {**terms, "num_batch": batch}


def measured(terms, dry):
    """The formula's terms with weights, KV and compute of a dry run ({weights_mib, kv_mib, compute_mib, device_mib}) in their place."""
    made = {**terms, **{key: dry[key] for key in ENGINE_TERMS}, "known": True}
    return {**made, "total_mib": engine_mib(dry) + (made["context_mib"] or 0) + (made["scratch_mib"] or 0)}


def engine_mib(part):
    """What the engine takes of the cards: a dry run's own sum, which is cut to whole MiB once, or else weights, KV and compute added."""
    return part["device_mib"] if part.get("device_mib") else sum(part[key] or 0 for key in ENGINE_TERMS)


# --- the plan ---


def make(wishes, cards, reserve_mib=1024, max_loaded_models=1, build=None, dry_run=None):
    """The plan of these wishes on these cards.

    cards: [] plans a host that serves from its CPU: nothing is held against a budget.
    build: the engine's build for the formula, None for the newest measured.
    dry_run: None, or ``f(settled wish, its cards, num_batch)`` that answers as _dry_run.run() does.

    Raises PlanError or plan_formula.VramError for input that the servers refuse.
    """
    build = build or plan_formula.NEWEST_MEASURED_BUILD
    names = [wish["name"] for wish in wishes]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise PlanError(f"Model {doubled[0]} is declared {names.count(doubled[0])} times; its settings can only be one. Declare it once.")
    budgets = {card["index"]: max(offers_mib(card) - reserve_mib, 0) for card in cards}
    settled = [settle(wish, cards) for wish in wishes]
    entries, warnings = [], []
    for wish in settled:
        entry, noted = _entry(wish, cards, budgets, build, dry_run)
        entries.append(entry)
        warnings += noted
    resident, planned, crowded = _house(entries, budgets, max_loaded_models)
    problems = [f"Model {wish['name']}: {problem}" for wish in settled for problem in wish["problems"]]
    suggestions, errors = [], []
    for wish, entry in zip(settled, entries):
        if entry["fits"] is False:
            found = _suggestions(wish, cards, reserve_mib, build)
            suggestions += found
            errors.append(_does_not_fit(entry, cards, reserve_mib, found))
    if crowded and not errors:
        together = sum(entry["total_mib"] for entry in entries if entry["name"] in resident)
        suggestions.append(
            {
                "model": None,
                "change": "ollama_max_loaded_models=1",
                "total_mib": max(entry["total_mib"] for entry in entries),
                "fits": True,
            }
        )
        errors.append(
            f"Models {' and '.join(resident)}, loaded together, need {together:,} MiB; {_offer(cards, reserve_mib)}."
            " Set ollama_max_loaded_models=1 (each fits alone), or declare smaller settings for one of them."
        )
    undecided = [entry["name"] for entry in entries if entry["fits"] is None]
    return {
        "schema": SCHEMA,
        "fits": False if errors else None if undecided else True,
        "method": _one({entry["method"] for entry in entries}),
        "engine_build": _one({entry["engine_build"] for entry in entries}),
        "reserve_mib": reserve_mib,
        "max_loaded_models": max_loaded_models,
        "models": entries,
        "gpus": [
            {
                **{key: card[key] for key in ("index", "uuid", "name", "total_mib", "reserved_mib", "used_mib")},
                "budget_mib": budgets[card["index"]],
                "planned_mib": planned[card["index"]],
                "headroom_mib": budgets[card["index"]] - planned[card["index"]],
            }
            for card in cards
        ],
        "suggestions": suggestions,
        "errors": errors,
        "problems": problems,
        "warnings": warnings,
    }


def _one(values):
    """The one value of all models, 'mixed' where they differ."""
    return values.pop() if len(values) == 1 else "mixed" if values else None


def _entry(wish, cards, budgets, build, dry_run):
    """(the plan's entry of one model alone on the cards, warnings)."""
    warnings, shape = [], wish["shape"]
    order = sorted(cards, key=lambda card: -budgets[card["index"]])
    best = order[0] if order else None
    formula = predict_on(wish, best, build)
    terms, method, dry, engine = formula, "formula", None, f"b{build}"
    per_card = {best["index"]: formula["total_mib"]} if best else {}
    if len(cards) > 1 and not plan_formula.stays_on_one(shape, wish["context"], wish["slots"], offers_mib(best)):
        batch = batch_of(wish, sum(offers_mib(card) for card in cards))
        shares = plan_formula.split(
            shape, wish["context"], wish["slots"], wish["kv_cache_type"], batch,
            [offers_mib(card) for card in cards], wish["flash_attention"], build,
        )  # fmt: skip
        per_card = {card["index"]: share for card, share in zip(cards, shares) if share}
        formula = {**formula, "num_batch": batch, **_shared(shape, wish, batch, build, len(per_card))}
        terms = formula
    if dry_run is not None:
        used = [card for card in cards if card["index"] in per_card]
        dry = dry_run(wish, used, formula["num_batch"])
        if "refused" in dry:
            if dry.get("loads") is False:
                wish["problems"].append(
                    f"{dry['refused']} Its load would fail the same way. Change its settings, or plan with method=formula if you know better."
                )
            warnings.append(f"Model {wish['name']} was planned by formula: {dry['refused']}")
            dry = None
    if dry is not None:
        terms, method, engine = measured(formula, dry), "dry_run", dry["engine"]
        if len(dry["per_card_mib"]) == len(per_card):
            extra = formula["context_mib"] // len(per_card) + (formula["scratch_mib"] or 0) // len(per_card)
            per_card = {index: share + extra for index, share in zip(sorted(per_card), dry["per_card_mib"])}
        told, seen = engine_mib(formula), engine_mib(dry)
        if formula["known"] and abs(told - seen) > AGREEMENT * seen:
            warnings.append(
                f"Model {wish['name']}: the formula says {told:,} MiB and the server's dry run {seen:,} MiB, {abs(told - seen) / seen:.1%} apart;"
                f" the formula is out of date for the architecture {shape['architecture']} on {engine}. The dry run counts."
            )
    elif not terms["known"]:
        reasons = "; ".join(sorted(set(shape["unknown"].values())))
        warnings.append(
            f"Model {wish['name']} is planned by the server's dry run only: {reasons}. By formula it takes at least"
            f" {terms['total_mib']:,} MiB. Plan again with method dry_run on a host with the engine."
        )
    if shape["extra_bytes"]:
        warnings.append(f"Model {wish['name']} has a projector or adapter: its weights are counted, its working memory is not.")
    over = any(share > budgets[index] for index, share in per_card.items())
    fits = True if not cards else False if over else True if terms["known"] else None
    sums = [engine_mib(part) if part else None for part in (formula if formula["known"] else None, dry)]
    return {
        "name": wish["name"],
        **{key: terms[key] for key in ("weights_mib", "kv_mib", "compute_mib", "context_mib", "scratch_mib", "total_mib", "host_mib")},
        "num_ctx": wish["num_ctx"],
        "effective_num_ctx": wish["context"],
        "capped_by": wish["capped_by"],
        "num_parallel": wish["slots"],
        "kv_cache_type": wish["kv_cache_type"],
        "flash_attention": wish["flash_attention"],
        "num_batch": formula["num_batch"],
        "architecture": shape["architecture"],
        "trained_context": shape["context_length"],
        "file_bytes": shape["file_bytes"],
        "gpu": sorted(per_card),
        "per_gpu_mib": {str(index): share for index, share in sorted(per_card.items())},
        "formula_mib": sums[0],
        "dry_run_mib": sums[1],
        "method": method,
        "engine_build": engine,
        "fits": fits,
    }, warnings  # fmt: skip


def _shared(shape, wish, batch, build, count):
    """Terms of a model on several cards: compute buffer, context and scratch are there once on each."""
    terms = plan_formula.predict(shape, wish["context"], wish["slots"], wish["kv_cache_type"], batch, wish["flash_attention"], build)
    for key in ("compute_mib", "context_mib", "scratch_mib"):
        terms[key] = None if terms[key] is None else terms[key] * count
    parts = ("weights_mib", "kv_mib", "compute_mib", "context_mib", "scratch_mib")
    return {**terms, "total_mib": sum(terms[part] or 0 for part in parts)}


def _house(entries, budgets, max_loaded_models):
    """(names of the models that may be loaded at once, {card: MiB that the plan takes there}, whether they crowd).

    The largest max_loaded_models models are housed, largest first, each whole on the card with the most room left;
    a model that was split stays as it is. A smaller model in the place of a larger one fits wherever that did. Each
    entry's ``gpu`` is set to where it was put.
    """
    order = sorted(entries, key=lambda entry: -entry["total_mib"])
    residents = order[: max(max_loaded_models, 1)]
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
            crowded = crowded or (len(share) > 1 and entry["fits"] is not False and planned[index] + need > budgets[index])
            planned[index] += need
    return [entry["name"] for entry in residents], planned, crowded


def remembered(old_text, wish, cards, num_batch, engine_label):
    """What a dry run said for exactly this before, from the text of a written plan; None where it says nothing of it.

    So a run with nothing to do makes no CUDA context, and a card that is full with the planned model is not asked.
    """
    try:
        old = json.loads(old_text)
        entry = next(one for one in old["models"] if one["name"] == wish["name"] and one["method"] == "dry_run")
        asked = {
            "architecture": wish["shape"]["architecture"],
            "file_bytes": wish["shape"]["file_bytes"],
            "effective_num_ctx": wish["context"],
            "num_parallel": wish["slots"],
            "kv_cache_type": wish["kv_cache_type"],
            "flash_attention": wish["flash_attention"],
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


# --- what to change ---


def _kv_name(kv_type):
    return f"{kv_type} KV"


def _offer(cards, reserve_mib):
    best = max(cards, key=offers_mib)
    held = f" and {best['used_mib']:,} held by others" if best["used_mib"] else ""
    text = f"{label(best)} offers {max(offers_mib(best) - reserve_mib, 0):,} MiB after a reserve of {reserve_mib:,}{held}"
    if len(cards) > 1:
        text += f", all {len(cards)} cards {sum(max(offers_mib(card) - reserve_mib, 0) for card in cards):,}"
    return text


def _does_not_fit(entry, cards, reserve_mib, suggestions):
    """The sentence of house-style.md: found, wanted, what to do."""
    slots = f"{entry['num_parallel']} slot{'s' if entry['num_parallel'] > 1 else ''}"
    least = "" if entry["compute_mib"] is not None and entry["kv_mib"] is not None else "at least "
    text = (
        f"Model {entry['name']} with num_ctx={entry['effective_num_ctx']}, {_kv_name(entry['kv_cache_type'])} and {slots}"
        f" needs {least}{entry['total_mib']:,} MiB; {_offer(cards, reserve_mib)}."
    )
    settings = [f"{one['change']} ({one['total_mib']:,} MiB, fits)" for one in suggestions if not one["weights"]]
    weights = [f"{one['change']} (about {one['total_mib']:,} MiB, fits)" for one in suggestions if one["weights"]]
    if settings:
        text += f" Set {', or '.join(settings)}."
    if weights:
        text += f" {'Or take' if settings else 'Take'} {', or '.join(weights)}."
    if not suggestions:
        text += " No smaller setting of it fits; choose a smaller model or a larger card."
    return text


def _suggestions(wish, cards, reserve_mib, build):
    """Changes that make a wish fit, least loss first: [{model, change, total_mib, fits: True, weights: bool}].

    Each change alone (KV q8_0, fewer slots, smaller context, smaller quantisation); where fewer than three of these
    fit, also on top of q8_0 KV; where nothing fits yet, all of them together.
    """
    if wish["shape"]["unknown"]:
        return []
    budgets = {card["index"]: max(offers_mib(card) - reserve_mib, 0) for card in cards}
    found = []

    def fits(changes, text):
        made, _warnings = _entry(settle({**wish, "num_ctx": wish["context"], **changes}, cards), cards, budgets, build, None)
        if made["fits"]:
            weights = "shape" in changes
            found.append(
                {
                    "model": wish["name"],
                    "change": text,
                    "total_mib": made["total_mib"],
                    "fits": True,
                    "weights": weights,
                }
            )
        return bool(made["fits"])

    def first_that_fits(tries):
        return any(fits(changes, text) for changes, text in tries)

    plain = wish["kv_cache_type"] in plan_formula.PLAIN_KV_TYPES and wish["flash_attention"]
    quantisable = not any(row[head] % 32 for row in wish["shape"]["cache"] for head in ("head_k", "head_v"))
    kv = {"kv_cache_type": "q8_0"} if plain and quantisable else {}
    also = "ollama_kv_cache_type=q8_0 with " if kv else ""
    slots = [({"num_parallel": count}, f"ollama_num_parallel={count}") for count in (4, 3, 2, 1) if count < wish["slots"]]
    contexts = [({"num_ctx": context}, f"num_ctx={context}") for context in CONTEXTS if context < wish["context"]]
    weights = _smaller_weights(wish)

    by_kv = bool(kv) and fits(kv, "ollama_kv_cache_type=q8_0")
    by_slots = first_that_fits(slots)
    first_that_fits(contexts)
    if weights:
        fits(weights, "a q4_K_M of the same model")
    if kv and not by_kv and len(found) < 3:
        if not by_slots:
            first_that_fits(({**kv, **change}, also + text) for change, text in slots)
        first_that_fits(({**kv, **change}, also + text) for change, text in contexts)
    if not found and slots:
        one = {**kv, "num_parallel": 1}
        first_that_fits(({**one, **change}, f"{also}ollama_num_parallel=1 and {text}") for change, text in contexts)
    if not found and weights:
        least = {**weights, **kv, "num_parallel": 1}
        what = f"a q4_K_M of the same model with {'q8_0 KV and ' if kv else ''}one slot"
        fits(least, what) or first_that_fits(({**least, **change}, f"{what} and {text}") for change, text in contexts)
    return found


def _smaller_weights(wish):
    tensors = wish["header"]["tensors"]
    main = {}
    for tensor in tensors:
        main[tensor["type"]] = main.get(tensor["type"], 0) + tensor["bytes"]
    if max(main, key=main.get) in QUANTISED_ENOUGH:
        return {}
    shape = plan_formula.as_q4_k_m(wish["shape"], tensors)
    return {"shape": shape} if shape else {}


# --- the file ---


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
        return all(abs(one["budget_mib"] - other["budget_mib"]) <= UNSETTLED_MIB for one, other in zip(old["gpus"], plan["gpus"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _settled_part(plan):
    moving = ("used_mib", "budget_mib", "headroom_mib")
    return {**plan, "gpus": [{key: value for key, value in card.items() if key not in moving} for card in plan["gpus"]]}
