# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import cards as plan_cards
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import formula as plan_formula
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import kv_cache as plan_kv_cache
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import make as plan_make
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import server_rules as plan_server_rules
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import shape as plan_shape

TESTS = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TESTS.parent))

from bench import plan as bench_plan  # noqa: E402

REFERENCE = json.loads((TESTS / "unit/data/qwen3_14b_4090.json").read_text())
ACCURACY = TESTS.parent / "tests/measurements/plan_accuracy.json"
CARD = plan_cards.given([{"name": "NVIDIA GeForce RTX 4090", "total_mib": 24564}])


@pytest.fixture(scope="module")
def headers():
    made = {}

    def header(shape):
        if shape not in made:
            made[shape] = bench_plan.header_of(shape)
        return made[shape]

    return header


@pytest.mark.parametrize("row", REFERENCE["rows"], ids=lambda row: "-".join(str(part) for part in row[:4]))
def test_the_reference_table_of_an_rtx_4090(headers, row):
    shape, num_ctx, kv_type, slots, total, verdict, batch = row
    model = {
        "name": shape,
        "header": headers(shape),
        "num_ctx": num_ctx,
        "num_parallel": slots,
        "kv_cache_type": kv_type,
        "flash_attention": True,
        "num_batch": None,
    }
    plan = plan_make.make([model], CARD)
    entry = plan["models"][0]
    assert (entry["total_mib"], entry["num_batch"], plan["fits"]) == (total, batch, verdict == "fits")
    assert verdict == "no" or entry["total_mib"] <= 23540
    assert entry["total_mib"] == sum(entry[term] for term in ("weights_mib", "kv_mib", "compute_mib", "context_mib", "scratch_mib"))


def test_the_formula_still_says_what_the_real_engine_said():
    taken = json.loads(ACCURACY.read_text())
    made = bench_plan.summary(taken)
    assert bench_plan.faults(made) == []
    assert len(made) >= 12 and len(taken["rows"]) > 300


def test_a_formula_that_is_off_is_a_fault():
    taken = json.loads(ACCURACY.read_text())
    taken["rows"][0][7] += 2
    assert bench_plan.faults(bench_plan.summary(taken)) != []


def test_the_public_cuda_log_of_qwen3_14b_q8_0(headers):
    # Published log of an older build: CUDA0 model 14,177.36, CPU_Mapped 788.24, KV q8_0 at 32768 2,720.00, compute 306.75 MiB.
    terms = plan_formula.predict(plan_shape.describe(headers("qwen3-14b-q8_0")), 32768, 1, "q8_0", 512, build=9452)
    assert (terms["weights_mib"], terms["host_mib"], terms["kv_mib"], terms["compute_mib"]) == (14177, 788, 2720, 307)


@pytest.mark.parametrize(
    ("asked", "trained", "total_mib", "expected"),
    [
        (65536, 40960, 24210, (40960, "trained")),
        (40960, 40960, 24210, (40960, None)),
        (65536, None, 24210, (65536, None)),
        (None, 131072, 24210, (32768, "default")),
        (None, 131072, 16022, (4096, "default")),
        (None, 1 << 20, 48420, (262144, "default")),  # two RTX 4090: the tiers add up all cards
        (None, 40960, 48420, (40960, "trained")),
        (None, 40960, 0, (4096, "default")),
    ],
)
def test_the_context_that_ollama_makes_of_it(asked, trained, total_mib, expected):
    assert plan_server_rules.effective_context(asked, trained, total_mib) == expected


def test_the_batch_without_flash_attention(headers):
    shape = plan_shape.describe(headers("qwen3-14b-q8_0"))
    assert plan_server_rules.automatic_batch(shape, 8192, 1, 24210, flash_attention=False) == 512
    assert plan_server_rules.automatic_batch(shape, 8192, 1, 8000, flash_attention=False) == 256
    assert plan_server_rules.automatic_batch(shape, 4096, 1, 24210) == 512
    assert plan_server_rules.automatic_batch(shape, 40960, 1, 81000) == 2048


def test_a_quantised_cache_needs_flash_attention_and_whole_blocks(headers):
    shape = plan_shape.describe(headers("qwen3-14b-q8_0"))
    with pytest.raises(plan_shape.VramError, match="needs flash attention, which is off"):
        plan_server_rules.check_settings(shape, "m", "q8_0", False)
    odd = {**shape, "cache": [{**row, "head_k": 80, "head_v": 80} for row in shape["cache"]]}
    with pytest.raises(plan_shape.VramError, match="80 elements, which is no multiple"):
        plan_server_rules.check_settings(odd, "m", "q4_0", True)
    plan_server_rules.check_settings(odd, "m", "f16", False)


def test_a_tied_embedding_is_on_both_sides(headers):
    shape = plan_shape.describe(headers("qwen3-4b-q4_K_M"))
    assert shape["tied"] and shape["end_bytes"] > shape["host_bytes"] > 0


def test_a_sliding_window_bounds_its_layers(headers):
    shape = plan_shape.describe(headers("gpt-oss-20b-mxfp4"))
    windows = [row["window"] for row in shape["cache"]]
    assert windows[:4] == [128, None, 128, None]
    assert plan_kv_cache.cells(shape["cache"][0], 131072, 512) == 768
    assert plan_kv_cache.cells(shape["cache"][1], 131072, 512) == 131072


@pytest.mark.parametrize(
    ("architecture", "term", "reason"),
    [("mamba2", "kv", "recurrent"), ("qwen3next", "kv", "recurrent"), ("brandnew", "kv", "not measured"), ("granite", "compute", "not measured")],
)
def test_what_is_not_known_is_said_and_not_guessed(headers, architecture, term, reason):
    header = headers("qwen3-4b-q4_K_M")
    keys = {key.replace("qwen3.", f"{architecture}."): value for key, value in header["keys"].items()}
    shape = plan_shape.describe({**header, "keys": {**keys, "general.architecture": architecture}})
    assert reason in shape["unknown"][term]
    terms = plan_formula.predict(shape, 8192, 1, "f16", 512)
    assert terms["known"] is False and terms[f"{term}_mib"] is None


@pytest.mark.parametrize("key", ["qwen3.block_count", "qwen3.attention.head_count_kv", "qwen3.embedding_length", "general.architecture"])
@pytest.mark.parametrize("value", [None, "x", -1, 1 << 70, float("nan"), [], ["a"], True, {"array": "str", "length": 3}])
def test_absurd_keys_are_an_error_not_a_traceback(headers, key, value):
    header = headers("qwen3-4b-q4_K_M")
    try:
        shape = plan_shape.describe({**header, "keys": {**header["keys"], key: value}})
    except plan_shape.VramError:
        return
    assert key == "qwen3.attention.head_count_kv" or shape["unknown"]


def test_layers_are_dealt_out_by_free_memory(headers):
    shape = plan_shape.describe(headers("qwen3-32b-q4_K_M"))
    shares = plan_formula.split(shape, 40960, 1, "q8_0", 512, [24210, 24210])
    whole = plan_formula.predict(shape, 40960, 1, "q8_0", 512)
    each = whole["compute_mib"] + whole["context_mib"] + whole["scratch_mib"]
    assert abs(sum(shares) - 2 * each - whole["weights_mib"] - whole["kv_mib"]) <= 2
    assert abs(shares[0] - shares[1]) < 1500


def test_a_smaller_quantisation_is_close_to_the_published_one(headers):
    header = headers("qwen3-14b-q8_0")
    smaller = plan_shape.as_q4_k_m(plan_shape.describe(header), header["tensors"])
    published = plan_shape.describe(headers("qwen3-14b-q4_K_M"))
    assert abs(sum(smaller["layer_bytes"]) + smaller["end_bytes"] - sum(published["layer_bytes"]) - published["end_bytes"]) < plan_kv_cache.MIB
    assert plan_shape.as_q4_k_m(published, headers("qwen3-14b-q4_K_M")["tensors"]) is None


def test_the_header_of_a_running_server_plans_the_same(headers):
    header = headers("qwen3-14b-q8_0")
    tensors = [{"name": one["name"], "type": one["type"].upper(), "shape": one["shape"]} for one in header["tensors"]]
    shown = plan_given.from_show({"model_info": {**header["keys"], "tokenizer.ggml.tokens": None}, "tensors": tensors})
    assert plan_formula.predict(plan_shape.describe(shown), 8192, 1, "f16", 512) == plan_formula.predict(plan_shape.describe(header), 8192, 1, "f16", 512)
