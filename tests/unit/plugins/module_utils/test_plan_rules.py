# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The edges of what the server decides by itself, and of cards that can be given."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import cards, file, server_rules
from ansible_collections.gpufleet.llm.plugins.module_utils._plan.shape import VramError

MIB = 1024 * 1024


def shape(file_bytes=0, **changes):
    """A shape without heads: the server's rough estimate of it is its file alone."""
    return {"file_bytes": file_bytes, "layers": 7, "kv_heads": 3, "hidden": 90, "heads": 0, "cache": None, **changes}


@pytest.mark.parametrize(
    ("asked", "trained", "total_mib", "context", "reason"),
    [
        (None, None, 23 * 1024 - 1, 4096, "default"),
        (None, None, 23 * 1024, 32768, "default"),
        (None, None, 47 * 1024 - 1, 32768, "default"),
        (None, None, 47 * 1024, 262144, "default"),
        (None, 32768, 47 * 1024, 32768, "trained"),
        (0, None, 0, 4096, "default"),
        (5000, 5000, 0, 5000, None),
        (5001, 5000, 0, 5000, "trained"),
        (5001, None, 0, 5001, None),
    ],
)
def test_the_context_that_the_server_takes(asked, trained, total_mib, context, reason):
    assert server_rules.effective_context(asked, trained, total_mib) == (context, reason)


def test_the_servers_rough_estimate_is_the_file_and_a_cache_of_two_halves():
    assert server_rules.rough_bytes(shape(1000, heads=9), 11, 2) == 1000 + 7 * 3 * (90 // 9) * 11 * 2 * 2 * 2
    assert server_rules.rough_bytes(shape(1000, heads=9, kv_heads=0), 11, 2) == 1000 + 7 * 1 * 10 * 11 * 2 * 4
    assert server_rules.rough_bytes(shape(1000), 11, 2) == 1000


@pytest.mark.parametrize(("more", "stays"), [(-1, True), (0, True), (1, False)])
def test_a_model_stays_on_one_card_up_to_four_fifths_of_it(more, stays):
    assert server_rules.stays_on_one(shape(8 * MIB + more), 8192, 1, 10) is stays


@pytest.mark.parametrize(
    ("context", "slots", "free_mib", "batch"),
    [(4096, 1, 8192, 512), (4097, 1, 8192, 256), (2049, 2, 8192, 256), (4097, 1, 8193, 512), (4097, 1, 0, 512), (4097, 1, 1, 256)],
)
def test_the_batch_without_flash_attention(context, slots, free_mib, batch):
    assert server_rules.automatic_batch(shape(), context, slots, free_mib, flash_attention=False) == batch


@pytest.mark.parametrize(
    ("context", "slots", "free_mib", "file_mib", "batch"),
    [
        (4096, 1, 20480, 100, 512),
        (4097, 1, 20480, 100, 1024),
        (32768, 1, 20480, 100, 1024),
        (32769, 1, 20480, 100, 2048),
        (16385, 2, 20480, 100, 2048),
        (65536, 1, 20480, 12288, 2048),  # 60 % of the free memory
        (65536, 1, 20480, 12289, 1024),
        (65536, 1, 20480, 15360, 1024),  # 75 %
        (65536, 1, 20480, 15361, 512),
        (65536, 1, 5120, 2048, 2048),  # with 2,048 MiB more it is 80 %
        (65536, 1, 5120, 2049, 1024),
        (65536, 1, 5120, 3328, 1024),  # with 768 MiB more it is 80 %
        (65536, 1, 5120, 3329, 512),
        (65536, 1, 0, 99999, 2048),
        (8192, 1, 0, 99999, 1024),
        (4096, 1, 0, 99999, 512),
    ],
)
def test_the_batch_with_flash_attention(context, slots, free_mib, file_mib, batch):
    assert server_rules.automatic_batch(shape(file_mib * MIB), context, slots, free_mib) == batch


@pytest.mark.parametrize(
    ("kv_type", "flash_attention", "head", "words"),
    [
        ("f16", False, 80, None),
        ("q8_0", True, 128, None),
        ("q8_0", True, 96, None),
        ("q8_0", False, 128, "needs flash attention"),
        ("q8_0", True, 80, "have 80 elements"),
        ("q9", True, 128, "is not known; choose one of f32"),
    ],
)
def test_settings_that_the_server_refuses(kv_type, flash_attention, head, words):
    made = shape(cache=[{"head_k": 64, "head_v": 64}, {"head_k": 128, "head_v": head}])
    if words is None:
        server_rules.check_settings(made, "m", kv_type, flash_attention)
        return
    with pytest.raises(VramError, match=words):
        server_rules.check_settings(made, "m", kv_type, flash_attention)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"total_mib": 255}, "total_mib=255 is no card's memory"),
        ({"total_mib": None}, "total_mib=None is no card's memory"),
        ({"total_mib": (1 << 24) + 1}, "is no card's memory"),
        ({"total_mib": 1000, "reserved_mib": -1}, "reserved_mib=-1"),
        ({"total_mib": 1000, "reserved_mib": 0, "used_mib": -1}, "used_mib=-1"),
        ({"total_mib": 1000, "reserved_mib": 300, "used_mib": 701}, "do not go into total_mib=1000"),
        ({"total_mib": 256}, None),
        ({"total_mib": 1 << 24}, None),
        ({"total_mib": 1000, "reserved_mib": 300, "used_mib": 700}, None),
        ({"total_mib": 1000, "reserved_mib": 0}, None),
    ],
)
def test_cards_that_can_be_given(card, words):
    card = {"reserved_mib": 100, **card} if card["total_mib"] == 256 else card
    if words is None:
        (made,) = cards.given([card])
        assert (made["total_mib"], made["reserved_mib"]) == (card["total_mib"], card.get("reserved_mib", 354))
        assert (made["index"], made["used_mib"]) == (0, card.get("used_mib", 0))
        return
    with pytest.raises(cards.PlanError, match=words):
        cards.given([card])


def test_what_cards_offer():
    made = cards.given([{"total_mib": 1000, "reserved_mib": 70, "used_mib": 11}, {"total_mib": 5000, "reserved_mib": 300}])
    assert [cards.offers_mib(card) for card in made] == [919, 4700]
    assert cards.usable_mib(made) == 930 + 4700
    assert cards.offers_mib({"total_mib": 10, "reserved_mib": 7, "used_mib": 8}) == 0
    assert [cards.label({"index": 3, "name": name}) for name in ("NVIDIA GeForce RTX 4090", None)] == ["GPU 3 (RTX 4090)", "GPU 3"]


def test_a_plan_is_written_for_people():
    assert file.document({"b": [1], "a": "≤"}) == '{\n  "a": "≤",\n  "b": [\n    1\n  ]\n}\n'
