# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""What to change where a model does not fit: by least loss, each change already planned."""

from __future__ import annotations

from .cards import label, offers_mib
from .entry import alone, settle
from .kv_cache import PLAIN_KV_TYPES
from .shape import as_q4_k_m

# Contexts that a suggestion may name, besides the model's own length.
CONTEXTS = (262144, 131072, 65536, 40960, 32768, 16384, 8192, 4096)
QUANTIZED_ENOUGH = frozenset(
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


def _kv_name(kv_type):
    return f"{kv_type} KV"


def offer(cards, reserve_mib):
    best = max(cards, key=offers_mib)
    held = f" and {best['used_mib']:,} held by others" if best["used_mib"] else ""
    text = (
        f"{label(best)} offers {max(offers_mib(best) - reserve_mib, 0):,} MiB after a reserve of {reserve_mib:,}{held}"
    )
    if len(cards) > 1:
        text += f", all {len(cards)} cards {sum(max(offers_mib(card) - reserve_mib, 0) for card in cards):,}"
    return text


def does_not_fit(entry, cards, reserve_mib, suggestions):
    """A sentence: what the model needs, what the cards offer, what to set."""
    slots = f"{entry['num_parallel']} slot{'s' if entry['num_parallel'] > 1 else ''}"
    least = "" if entry["compute_mib"] is not None and entry["kv_mib"] is not None else "at least "
    text = (
        f"Model {entry['name']} with num_ctx={entry['effective_num_ctx']}, {_kv_name(entry['kv_cache_type'])} and "
        f"{slots}"
        f" needs {least}{entry['total_mib']:,} MiB; {offer(cards, reserve_mib)}."
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


def suggestions(model, cards, reserve_mib, build):
    """Changes that make a settled model fit, least loss first: [{model, change, total_mib, fits: True, weights: bool}].

    Each change alone (KV q8_0, fewer slots, smaller context, smaller quantization); where fewer than three of these
    fit, also on top of q8_0 KV; where nothing fits yet, all of them together.
    """
    if model["shape"]["unknown"]:
        return []
    tries = _Tries(model, cards, reserve_mib, build)
    kv = {"kv_cache_type": "q8_0"} if _may_quantize_cache(model) else {}
    also = "ollama_kv_cache_type=q8_0 with " if kv else ""
    slots = [
        ({"num_parallel": count}, f"ollama_num_parallel={count}") for count in (4, 3, 2, 1) if count < model["slots"]
    ]
    contexts = [({"num_ctx": context}, f"num_ctx={context}") for context in CONTEXTS if context < model["context"]]
    weights = _smaller_weights(model)

    by_kv = bool(kv) and tries.fits(kv, "ollama_kv_cache_type=q8_0")
    by_slots = tries.first_that_fits(slots)
    tries.first_that_fits(contexts)
    if weights:
        tries.fits(weights, "a q4_K_M of the same model")
    if kv and not by_kv and len(tries.found) < 3:
        if not by_slots:
            tries.first_that_fits(({**kv, **change}, also + text) for change, text in slots)
        tries.first_that_fits(({**kv, **change}, also + text) for change, text in contexts)
    if not tries.found and slots:
        one = {**kv, "num_parallel": 1}
        more = f"{also}ollama_num_parallel=1 and "
        tries.first_that_fits(({**one, **change}, more + text) for change, text in contexts)
    if not tries.found and weights:
        least = {**weights, **kv, "num_parallel": 1}
        what = f"a q4_K_M of the same model with {'q8_0 KV and ' if kv else ''}one slot"
        if not tries.fits(least, what):
            tries.first_that_fits(({**least, **change}, f"{what} and {text}") for change, text in contexts)
    return tries.found


class _Tries:
    """Changes of one model that were planned; ``found`` has those that fit."""

    def __init__(self, model, cards, reserve_mib, build):
        self.model, self.cards, self.build = model, cards, build
        self.budgets = {card["index"]: max(offers_mib(card) - reserve_mib, 0) for card in cards}
        self.found = []

    def fits(self, changes, text):
        """Whether the model with these changes fits; noted under ``text`` if it does."""
        model = settle({**self.model, "num_ctx": self.model["context"], **changes}, self.cards)
        made, _warnings = alone(model, self.cards, self.budgets, self.build, None)
        if made["fits"]:
            what = {"model": model["name"], "change": text, "total_mib": made["total_mib"]}
            self.found.append({**what, "fits": True, "weights": "shape" in changes})
        return bool(made["fits"])

    def first_that_fits(self, tries):
        return any(self.fits(changes, text) for changes, text in tries)


def _may_quantize_cache(model):
    if model["kv_cache_type"] not in PLAIN_KV_TYPES or not model["flash_attention"]:
        return False
    return not any(row[head] % 32 for row in model["shape"]["cache"] for head in ("head_k", "head_v"))


def _smaller_weights(model):
    tensors = model["header"]["tensors"]
    main: dict[str, int] = {}
    for tensor in tensors:
        main[tensor["type"]] = main.get(tensor["type"], 0) + tensor["bytes"]
    if max(main, key=lambda kind: main[kind]) in QUANTIZED_ENOUGH:
        return {}
    shape = as_q4_k_m(model["shape"], tensors)
    return {"shape": shape} if shape else {}
