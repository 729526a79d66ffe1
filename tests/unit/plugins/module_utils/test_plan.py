# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import cards as plan_cards
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import entry as plan_entry
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import file as plan_file
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import make as plan_make
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import server_rules as plan_server_rules
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import shape as plan_shape

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[4]))

from bench import plan as bench_plan  # noqa: E402

RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "total_mib": 24564}
HEADERS: dict = {}


def model(shape="qwen3-14b-q8_0", trained=131072, **changes):
    if (shape, trained) not in HEADERS:
        header = bench_plan.header_of(shape)
        keys = {**header["keys"], f"{header['keys']['general.architecture']}.context_length": trained}
        HEADERS[shape, trained] = {**header, "keys": keys}
    made = {"name": "qwen3:14b-q8_0", "header": HEADERS[shape, trained], "num_ctx": 40960, "num_parallel": 1, "kv_cache_type": "q8_0"}
    return {**made, "flash_attention": True, "num_batch": None, **changes}


def says(answer, context=40960, cards=(0,), num_batch=512):
    """A dry run that gives this answer, to the question that is expected."""

    def dry_run(settled, asked_cards, asked_batch):
        assert (settled["context"], settled["slots"], asked_batch) == (context, 1, num_batch)
        assert [card["index"] for card in asked_cards] == list(cards)
        return answer

    return dry_run


def plan(*models, gpus=(RTX_4090,), **settings):
    return plan_make.make(list(models), plan_cards.given(gpus), **settings)


def test_the_articles_setting_fails_with_what_to_do():
    made = plan(model(num_ctx=65536, kv_cache_type="f16"))
    assert made["fits"] is False
    assert made["errors"] == [
        "Model qwen3:14b-q8_0 with num_ctx=65536, f16 KV and 1 slot needs 25,070 MiB; GPU 0 (RTX 4090) offers 23,186 MiB after a reserve of 1,024."
        " Set ollama_kv_cache_type=q8_0 (20,516 MiB, fits), or num_ctx=40960 (21,206 MiB, fits)."
        " Or take a q4_K_M of the same model (about 19,055 MiB, fits)."
    ]
    assert [one["fits"] for one in made["suggestions"]] == [True] * 3
    assert made["gpus"][0]["headroom_mib"] == 23186 - 25070


def test_a_context_above_the_trained_one_is_a_problem_though_it_fits():
    made = plan(model(num_ctx=65536, trained=40960))
    assert made["fits"] is True and made["models"][0]["capped_by"] == "trained" and made["models"][0]["effective_num_ctx"] == 40960
    assert made["problems"] == [
        "Model qwen3:14b-q8_0: num_ctx=65536 exceeds the model's trained context of 40,960; Ollama would cap it silently."
        " Set num_ctx ≤ 40960 or use a GGUF with YaRN metadata."
    ]


@pytest.mark.parametrize("kv_cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("num_parallel", [1, 4])
@pytest.mark.parametrize("num_ctx", [65536, 131072])
@pytest.mark.parametrize("total_mib", [12282, 16376, 24564])
def test_every_suggestion_fits_when_it_is_followed(kv_cache_type, num_parallel, num_ctx, total_mib):
    card = {"name": "card", "total_mib": total_mib}
    first = model(num_ctx=num_ctx, kv_cache_type=kv_cache_type, num_parallel=num_parallel)
    made = plan(first, gpus=[card])
    assert made["fits"] is (not made["errors"])
    for one in made["suggestions"]:
        changes = {}
        for setting in one["change"].replace(" and ", " ").replace(",", " ").split():
            name, _equals, value = setting.partition("=")
            if name in ("num_ctx", "ollama_num_parallel"):
                changes[name.replace("ollama_", "")] = int(value)
            elif name == "ollama_kv_cache_type":
                changes["kv_cache_type"] = value
        if "q8_0 KV" in one["change"]:
            changes["kv_cache_type"] = "q8_0"
        if "one slot" in one["change"]:
            changes["num_parallel"] = 1
        again = {**first, **changes}
        if one["weights"]:
            again["shape"] = plan_shape.as_q4_k_m(plan_shape.describe(first["header"]), first["header"]["tensors"])
        followed = plan(again, gpus=[card])
        assert followed["fits"] is True and followed["models"][0]["total_mib"] == one["total_mib"], one


def test_what_others_hold_counts():
    assert plan(model(), gpus=[{**RTX_4090, "used_mib": 4000}])["fits"] is True
    made = plan(model(), gpus=[{**RTX_4090, "used_mib": 6000}])
    assert made["fits"] is False and "offers 17,186 MiB after a reserve of 1,024 and 6,000 held by others" in made["errors"][0]


def test_two_models_at_once_and_one_after_the_other():
    small = model("qwen3-14b-q4_K_M", name="small")
    assert plan(model(), small)["fits"] is True
    made = plan(model(), small, max_loaded_models=2)
    assert made["fits"] is False and "loaded together, need" in made["errors"][0]
    assert made["suggestions"][0]["change"] == "ollama_max_loaded_models=1"
    two = plan(model("qwen3-14b-q4_K_M", name="other"), small, max_loaded_models=2, gpus=[RTX_4090, RTX_4090])
    assert two["fits"] is True and sorted(entry["gpu"] for entry in two["models"]) == [[0], [1]]


def test_a_model_larger_than_a_card_is_split():
    made = plan(model("qwen3-32b-q4_K_M", num_ctx=40960, num_parallel=2), gpus=[RTX_4090, RTX_4090])
    entry = made["models"][0]
    assert made["fits"] is True and entry["gpu"] == [0, 1] and entry["context_mib"] == 2 * 457
    assert abs(sum(entry["per_gpu_mib"].values()) - entry["total_mib"]) <= 2
    assert [card["planned_mib"] for card in made["gpus"]] == list(entry["per_gpu_mib"].values())


def test_a_model_that_would_fit_one_card_is_dealt_out_where_ollama_does_so():
    """q8_0 with 40,960 tokens takes 20,516 MiB with its context: one card has room, but Ollama's rough estimate is above 80 % of it."""
    one, two = plan(model()), plan(model(), gpus=[RTX_4090, RTX_4090])
    assert one["fits"] is True and one["models"][0]["gpu"] == [0]
    assert two["fits"] is True and two["models"][0]["gpu"] == [0, 1]
    assert two["models"][0]["total_mib"] > one["models"][0]["total_mib"]
    assert plan(model(num_ctx=8192), gpus=[RTX_4090, RTX_4090])["models"][0]["gpu"] == [0]
    # The card with the most room counts.
    assert plan(model(num_ctx=8192), gpus=[{**RTX_4090, "used_mib": 9000}, RTX_4090])["models"][0]["gpu"] == [1]
    assert plan(model(num_ctx=8192), gpus=[{**RTX_4090, "used_mib": 9000}] * 2)["models"][0]["gpu"] == [0, 1]


def test_the_rough_estimate_is_ollamas():
    """predicted of PredictServerVRAM for 14B q4_K_M, 40,960 tokens: file bytes + 2 * 40 layers * 8 heads * 128 * 40,960 * 2."""
    shape = plan_shape.describe(model("qwen3-14b-q4_K_M")["header"])
    assert plan_server_rules.rough_bytes(shape, 40960, 1) == shape["file_bytes"] + 6_710_886_400
    limit = plan_server_rules.rough_bytes(shape, 40960, 1) * 5 // 4 // 1048576
    assert plan_server_rules.stays_on_one(shape, 40960, 1, limit + 1) and not plan_server_rules.stays_on_one(shape, 40960, 1, limit - 1)


def test_a_host_without_cards_is_held_against_nothing():
    made = plan_make.make([model()], [])
    assert made["fits"] is True and made["gpus"] == [] and made["models"][0]["gpu"] == []


def test_an_architecture_that_only_the_dry_run_knows():
    header = model()["header"]
    keys = {key.replace("qwen3.", "qwen3next."): value for key, value in header["keys"].items()}
    strange = model(header={**header, "keys": {**keys, "general.architecture": "qwen3next"}})
    made = plan(strange)
    assert made["fits"] is None and made["models"][0]["compute_mib"] is None
    assert "by the server's dry run only: qwen3next has recurrent layers" in made["warnings"][0]
    assert plan(strange, gpus=[{"name": "small", "total_mib": 12282}])["fits"] is False
    said = {"weights_mib": 14177, "kv_mib": 500, "compute_mib": 300, "per_card_mib": [14977], "engine": "b10488"}
    asked = plan(strange, dry_run=says(said))
    assert asked["fits"] is True and asked["method"] == "dry_run" and asked["models"][0]["total_mib"] == 14977 + 457


def test_the_dry_run_wins_and_a_formula_that_is_off_is_reported():
    said = {"weights_mib": 14177, "kv_mib": 3400, "compute_mib": 700, "per_card_mib": [18277], "engine": "b99999"}
    made = plan(model(), dry_run=says(said))
    entry = made["models"][0]
    assert (entry["compute_mib"], entry["total_mib"], entry["formula_mib"], entry["dry_run_mib"]) == (700, 18277 + 457 + 160, 17739, 18277)
    assert made["engine_build"] == "b99999" and "the formula is out of date for the architecture qwen3 on b99999" in made["warnings"][0]


def test_every_model_has_its_own_warnings_errors_and_problems():
    header = model()["header"]
    extra = {**header, "extra_bytes": {"projector": 5 * 2**20}}
    names = ("one", "two", "three")
    made = plan(*(model(name=name, header=extra, num_ctx=num_ctx) for name, num_ctx in zip(names, (200000, 8192, 300000))))
    assert [text.split()[1] for text in made["warnings"]] == ["one", "two", "three"]
    assert [text.split()[1].rstrip(":") for text in made["problems"]] == ["one", "three"]
    assert [text.split()[1] for text in made["errors"]] == ["one", "three"]
    assert {one["model"] for one in made["suggestions"]} == {"one", "three"}


def test_a_dry_run_that_was_refused_leaves_the_formula():
    made = plan(model(), dry_run=says({"refused": "GPU 0 has 12 MiB free."}))
    assert made["method"] == "formula" and "GPU 0 has 12 MiB free." in made["warnings"][0] and not made["problems"]
    made = plan(model(), dry_run=says({"refused": "the engine does not load it: x.", "loads": False}))
    assert "Its load would fail the same way" in made["problems"][0]


def test_a_written_plan_remembers_its_dry_run():
    said = {"weights_mib": 14177, "kv_mib": 3400, "compute_mib": 162, "device_mib": 17740, "per_card_mib": [17740], "engine": "b10488"}
    cards = plan_cards.given([RTX_4090])
    first = plan_make.make([model()], cards, dry_run=says(said))
    text, settled = plan_file.document(first), plan_entry.settle(model(), cards)
    assert plan_file.remembered(text, settled, cards, 512, "b10488") == said
    again = plan_make.make([model()], cards, dry_run=lambda one, used, batch: plan_file.remembered(text, one, used, batch, "b10488"))
    assert plan_file.same(text, again)
    assert plan_file.remembered(text, settled, cards, 1024, "b10488") is None
    assert plan_file.remembered(text, settled, cards, 512, "b10499") is None
    assert plan_file.remembered("{", settled, cards, 512, "b10488") is None


def test_a_written_plan_remembers_the_share_of_each_card():
    said = {"weights_mib": 18855, "kv_mib": 5440, "compute_mib": 700, "device_mib": 24997, "per_card_mib": [12101, 12896], "engine": "b10488"}
    cards = plan_cards.given([RTX_4090, RTX_4090])
    two = model("qwen3-32b-q4_K_M", num_ctx=40960, num_parallel=2)

    def dry_run(settled, used, num_batch):
        assert (settled["slots"], [card["index"] for card in used], num_batch) == (2, [0, 1], 1024)
        return said

    first = plan_make.make([two], cards, dry_run=dry_run)
    batch = first["models"][0]["num_batch"]
    assert first["models"][0]["scratch_mib"] > 0 and first["models"][0]["gpu"] == [0, 1]
    settled = plan_entry.settle(two, cards)
    assert plan_file.remembered(plan_file.document(first), settled, cards, batch, "b10488") == said
    assert plan_file.remembered(plan_file.document(first), settled, cards[:1], batch, "b10488") is None


@pytest.mark.parametrize(
    ("total_mib", "changes"),
    [
        (19000, ["num_ctx=4096", "ollama_kv_cache_type=q8_0 with num_ctx=8192"]),
        (17600, ["ollama_kv_cache_type=q8_0 with num_ctx=4096"]),
        (17200, ["ollama_kv_cache_type=q8_0 with ollama_num_parallel=1 and num_ctx=8192"]),
        (12282, ["a q4_K_M of the same model with q8_0 KV and one slot and num_ctx=16384"]),
        (10240, []),
    ],
)
def test_the_smaller_the_card_the_more_has_to_change(total_mib, changes):
    made = plan(model(num_parallel=4, kv_cache_type="f16"), gpus=[{"name": "x", "total_mib": total_mib}])
    assert [one["change"] for one in made["suggestions"]] == changes
    assert ("No smaller setting of it fits" in made["errors"][0]) is (changes == [])
    for one in made["suggestions"]:
        assert one["total_mib"] <= total_mib - 354 - 1024


def test_a_plan_is_the_same_while_only_others_move():
    before = plan_file.document(plan(model()))
    assert plan_file.same(before, plan(model(), gpus=[{**RTX_4090, "used_mib": 200}]))
    assert not plan_file.same(before, plan(model(), gpus=[{**RTX_4090, "used_mib": 300}]))
    assert not plan_file.same(before, plan(model(num_ctx=32768)))
    assert not plan_file.same("", plan(model())) and not plan_file.same("[]", plan(model()))
    assert json.loads(before)["models"][0]["name"] == "qwen3:14b-q8_0"


def gpu(**changes):
    made = {"index": 0, "state": "ok", "message": None, "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}
    return {**made, "total_mib": 24564, "reserved_mib": 354, "used_mib": 0, "free_mib": 24210, "processes": [], **changes}


def sample(*gpus):
    return {"state": "ok", "message": None, "gpus": list(gpus)}


def process(unit, used_mib):
    return {"pid": 1, "unit": unit, "used_mib": used_mib}


@pytest.mark.parametrize(
    ("changes", "used", "reserved"),
    [
        ({}, 0, 354),
        ({"used_mib": 19000, "processes": [process("ollama.service", 18500)]}, 500, 354),
        ({"used_mib": 19000, "processes": [process("ollama.service", None)]}, 0, 354),
        ({"used_mib": 19000, "processes": [process("ollama.service", None), process("x.service", 100)]}, 19000, 354),
        ({"used_mib": 19000, "processes": None}, 19000, 354),
        ({"used_mib": 354, "reserved_mib": None}, 0, 354),
        ({"used_mib": 100, "reserved_mib": None}, 0, 100),
    ],
)
def test_cards_as_nvml_tells_them(changes, used, reserved):
    (card,) = plan_cards.read(sample(gpu(**changes)))
    assert (card["used_mib"], card["reserved_mib"], card["uuid"]) == (used, reserved, "GPU-1")


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({"state": "no_driver", "message": "no driver.", "gpus": []}, "No GPU could be read: no driver."),
        (sample(gpu(state="lost", message="fell off the bus.")), "fell off the bus"),
        (sample(gpu(total_mib=None)), "its memory could not be read"),
        (sample(gpu(used_mib=None)), "its memory could not be read"),
    ],
)
def test_cards_that_cannot_be_read_are_not_zero(taken, says):
    with pytest.raises(plan_cards.PlanError, match=says):
        plan_cards.read(taken)


@pytest.mark.parametrize("card", [{"total_mib": 0}, {"total_mib": 100}, {"total_mib": 24564, "used_mib": 30000}, {"total_mib": 24564, "reserved_mib": -1}])
def test_cards_that_are_none(card):
    with pytest.raises(plan_cards.PlanError):
        plan_cards.given([card])


def test_a_model_declared_twice_and_a_refused_setting():
    with pytest.raises(plan_cards.PlanError, match="is declared 2 times"):
        plan(model(), model())
    with pytest.raises(plan_shape.VramError, match="needs flash attention"):
        plan(model(flash_attention=False))
