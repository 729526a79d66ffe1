# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import policy as gateway_policy

SECRET = "0123456789abcdef0123456789abcdef"
MODELS = [{"name": "Qwen3:latest", "parameters": {"num_ctx": 40960}}, {"name": "small:1b"}]
DEFAULTS = {"pin": "strip", "rate_per_minute": 120, "burst": 20, "streams": 8}


def entry(**more):
    return {"name": "alice", "token": SECRET, **more}


def test_a_token_leaves_as_its_sha256_only():
    made = gateway_policy.policy([entry(pin="off", models=["QWEN3"], streams=2)], MODELS, DEFAULTS, 8192)
    assert made["tokens"] == {hashlib.sha256(SECRET.encode()).hexdigest(): "alice"}
    assert made["rights"] == {"alice": {"routes": ["native", "openai"], "models": ["qwen3"], "pin": "off"}}
    assert made["limits"] == {"alice": {"rate_per_minute": 120, "burst": 20, "streams": 2}}
    assert made["models"] == {"qwen3": 40960, "small:1b": 8192}
    assert SECRET not in json.dumps(made)


def test_a_given_sha256_is_the_same_as_its_token():
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    assert gateway_policy.policy([{"name": "a", "sha256": digest}], [], DEFAULTS, 1)["tokens"] == {digest: "a"}


def test_no_models_means_none_and_left_out_means_all():
    rights = gateway_policy.policy([entry(models=[]), {"name": "bob", "token": SECRET + "b"}], MODELS, DEFAULTS, 1)["rights"]
    assert rights["alice"]["models"] == [] and rights["bob"]["models"] is None


def test_nothing_is_wrong_with_good_tokens():
    assert gateway_policy.problems([entry(routes=["openai"], models=["qwen3", "SMALL:1b"], pin="refuse", burst=0)], MODELS) == []
    assert gateway_policy.problems([], []) == []


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (["text"], "Entry 1"),
        ([{"token": SECRET}], "Entry 1"),
        ([entry(name="Alice")], "Entry 1"),
        ([entry(name="a-b")], "Entry 1"),
        ([entry(name="a" * 33)], "Entry 1"),
        ([entry(), entry(token=SECRET + "x")], "alice stands in gateway_tokens twice"),
        ([entry(), entry(name="bob")], "alice and bob are the same"),
        ([entry(), {"name": "bob", "sha256": hashlib.sha256(SECRET.encode()).hexdigest()}], "alice and bob are the same"),
        ([entry(token="short")], "5 characters"),
        ([entry(token="blank " * 10)], "no bearer token has"),
        ([entry(sha256="0" * 64)], "both token and sha256"),
        ([{"name": "alice"}], "neither token and sha256"),
        ([{"name": "alice", "sha256": "AB" * 32}], "sha256 that is none"),
        ([entry(role="admin")], "has role"),
        ([entry(routes=[])], "routes []"),
        ([entry(routes=["admin"])], "routes ['admin']"),
        ([entry(pin="maybe")], "pin maybe"),
        ([entry(models=["other"])], "models other"),
        ([entry(models="qwen3")], "models qwen3"),
        ([entry(streams=0)], "streams 0"),
        ([entry(rate_per_minute="60")], "rate_per_minute 60"),
        ([entry(burst=True)], "burst True"),
    ],
)
def test_each_wrong_token_is_one_sentence_that_does_not_quote_it(tokens, says):
    found = gateway_policy.problems(tokens, MODELS)
    assert len(found) == 1 and says in found[0]
    assert SECRET not in found[0] and "short" not in found[0]
