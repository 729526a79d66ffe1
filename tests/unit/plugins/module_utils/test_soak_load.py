# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a soak test asks: the same for the same seed, as long as it says, and bounded."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._soak import load as soak

EXTRA = {"mixed": {"other_num_ctx": 8192, "embed_model": "nomic"}}


def length(request):
    return sum(len(message["content"].split()) for message in request["messages"])


@pytest.mark.parametrize("preset", sorted(soak.PRESETS))
def test_every_preset_is_whole(preset):
    load = soak.settle(preset, EXTRA.get(preset))
    assert set(load) == {*soak.DEFAULTS, *soak.PRESETS[preset], "preset"}
    assert load["rounds"] or load["duration_s"]


def test_the_articles_load_is_the_articles():
    load = soak.settle("article", {})
    asked = list(soak.requests(load, 1))
    assert len(asked) == 15 and load["pause_s"] == 1
    assert {request["kind"] for request in asked} == {"chat"}
    assert all(abs(length(request) - 8192) < 200 for request in asked)


@given(seed=st.integers(0, 2**32), conversation=st.integers(1, 64), number=st.integers(1, 200), tokens=st.integers(64, 4000))
@settings(max_examples=60, deadline=None)
def test_a_prompt_depends_on_seed_conversation_and_round_alone(seed, conversation, number, tokens):
    load = soak.settle("article", {"seed": seed, "input_tokens": tokens})
    one, other = (soak.request(load, conversation, number) for _twice in range(2))
    assert json.dumps(one) == json.dumps(other)
    # Nothing of a preset's bounds changes what is asked.
    assert soak.request(soak.settle("night", {"seed": seed, "input_tokens": tokens, "kinds": ("chat",)}), conversation, number) == one
    assert one["messages"][-1]["role"] == "user" and [m["role"] for m in one["messages"][:-1]] == ["user", "assistant"] * (len(one["messages"]) // 2)
    assert abs(length(one) - max(tokens, 45)) < 60


def test_other_seeds_conversations_and_rounds_ask_something_else():
    texts = {
        json.dumps(soak.messages(soak.settle("article", {"seed": seed}), conversation, number))
        for seed, conversation, number in itertools.product((1, 2), (1, 2), (1, 2, 3))
    }
    assert len(texts) == 12


def test_mixed_asks_what_really_arrives():
    load = soak.settle("mixed", {"other_num_ctx": 8192, "embed_model": "nomic"})
    asked = list(soak.requests(load, 1))
    assert {request["kind"] for request in asked} == {"chat", "title", "embed", "other_ctx"}
    for request in asked:
        assert request["options"].get("num_ctx") == (8192 if request["kind"] == "other_ctx" else None)
        assert (request["messages"] is None) == (request["kind"] == "embed")
    assert all(request["options"]["num_predict"] == soak.TITLE_TOKENS for request in asked if request["kind"] == "title")


def test_without_an_embedding_model_none_is_asked():
    load = soak.settle("mixed", {"other_num_ctx": 8192})
    assert "embed" not in {request["kind"] for request in soak.requests(load, 1)}


@pytest.mark.parametrize(
    ("preset", "changes", "says"),
    [
        ("nightly", {}, "article, mixed, night, quick"),
        ("quick", {"round": 3}, "no round"),
        ("quick", {"conversations": 0}, "conversations is 0"),
        ("quick", {"conversations": True}, "conversations is True"),
        ("quick", {"duration_s": 0}, "no end"),
        ("quick", {"input_tokens": "8k"}, "input_tokens"),
        ("quick", {"kinds": ["chat", "poem"]}, "poem"),
        ("mixed", {}, "other_num_ctx"),
        ("quick", {"kinds": ["embed"]}, "nothing"),
    ],
)
def test_what_is_no_load_is_refused_in_a_sentence(preset, changes, says):
    with pytest.raises(soak.LoadError, match=says):
        soak.settle(preset, changes)


def test_share_done_goes_by_the_nearer_bound():
    load = soak.settle("quick", {"rounds": 10, "conversations": 2, "duration_s": 100})
    assert soak.share_done(load, 50, 2) == 0.5
    assert soak.share_done(load, 10, 15) == 0.75
    assert soak.share_done(load, 500, 0) == 1.0
