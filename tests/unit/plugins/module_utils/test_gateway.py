# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import policy as gateway_policy
from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import settings as gateway_settings

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


RIGHT = {
    **{name: [] if "networks" in name or name == "gateway_upstreams" else None for name, _valid, _wanted in gateway_settings.RULES},
    **{name: 9000 for name, _valid, _wanted in gateway_settings.RULES if name.endswith(("_s", "_days", "_minute", "burst", "streams"))},
    "gateway_names": ["a.example"],
    "gateway_upstreams": [],
    "gateway_addresses": ["0.0.0.0"],
    "gateway_port": 443,
    "gateway_http_port": 80,
    "gateway_certificate_days": "90",
    "gateway_max_body_mib": 6,
    "gateway_page_max_body_mib": 21,
    "gateway_memory_max_mib": 2048,
    "ollama_host": "127.0.0.1",
    "ollama_port": 11434,
    "open_webui_host": "127.0.0.1",
    "open_webui_port": "8080",
}


def test_settings_that_can_be():
    assert gateway_settings.problems(RIGHT) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gateway_http_port": 443}, "gateway_http_port is 443, which is gateway_port"),
        ({"gateway_ca_days": 90}, "lives longer"),
        ({"gateway_ca_days": "9", "gateway_certificate_days": 10}, "lives longer"),
        ({"gateway_memory_max_mib": 303}, "wanted is at least 304"),
        ({"gateway_max_body_mib": 64, "gateway_memory_max_mib": 767}, "wanted is at least 768"),
        ({"gateway_max_body_mib": 65}, "gateway_max_body_mib is 65; wanted is a number of MiB, 1 to 64."),
        ({"gateway_names": []}, "at least one host name"),
        ({"gateway_names": ["1.2.3"]}, "gateway_names is ['1.2.3']"),
        ({"gateway_names": ["[::1]"]}, "gateway_names is"),
        ({"gateway_names": ["a..b"]}, "gateway_names is"),
        ({"gateway_names": ["-a"]}, "gateway_names is"),
        ({"gateway_addresses": ["::"]}, "such as 0.0.0.0 or [::]"),
        ({"gateway_addresses": ["localhost"]}, "such as 0.0.0.0 or [::]"),
        ({"gateway_addresses": ["fe80::1%eth0"]}, "gateway_addresses is"),
        ({"gateway_admin_networks": ["192.0.2.0/33"]}, "gateway_admin_networks is"),
        ({"gateway_upstreams": [{"address": "a"}]}, "gateway_upstreams is"),
        ({"gateway_upstreams": [{"address": "::1", "ca": "x"}]}, "gateway_upstreams is"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(wrong, says):
    (sentence,) = gateway_settings.problems({**RIGHT, **wrong})
    assert says in sentence and sentence.endswith(".")


def test_limits_themselves_are_taken():
    for right in (
        {"gateway_memory_max_mib": 304},
        {"gateway_ca_days": 91},
        {"gateway_certificate_days": 3},
        {"gateway_max_body_mib": 64},
        {"gateway_burst": 0},
    ):
        assert gateway_settings.problems({**RIGHT, **right}) == []
