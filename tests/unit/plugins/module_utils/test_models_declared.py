# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration as ollama_declaration
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declared as ollama_declared

QWEN = {"name": "q", "from": "qwen3:14b", "load": True, "parameters": {"num_ctx": 40960, "num_batch": 512}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("qwen3", "is no list"),
        (["qwen3"], "Entry 1 of models_declared is qwen3"),
        ([{"from": "b"}], "Model number 1: name: 'None' is no model name"),
        (
            [{**QWEN, "parameters": {"num_ctx": "4k"}}],
            "Model q: invalid int value [4k] of parameter num_ctx; write a whole number",
        ),
        (
            [{**QWEN, "parameters": {"cache_type": "q8_0"}}],
            "Model q: unknown parameter 'cache_type'. The KV cache type is a server setting",
        ),
        ([{**QWEN, "form": "x"}], "Did you mean from?"),
        ([{**QWEN, "state": "loaded"}], "has to be present or absent"),
        ([{**QWEN, "keep_alive": "soon"}], "keep_alive is 'soon'"),
        ([{"name": "q", "modelfile": "FROM a\nSYSTEN b"}], "Model q: Modelfile line 2: 'SYSTEN' is no instruction"),
        ([QWEN, {**QWEN, "name": "Q:latest", "load": False}], "declared twice (entries 1 and 2)"),
        ([QWEN, {**QWEN, "name": "r"}], "2 models are to be loaded (q:latest, r:latest), and the server keeps 1 in memory"),
    ],
)
def test_what_is_wrong_is_one_sentence(entries, words):
    found = ollama_declared.problems(entries, max_loaded=1)
    assert len(found) == 1
    assert words in found[0]


def test_each_fault_is_told_and_nothing_else():
    faults = ollama_declared.problems([{**QWEN, "pull": "x"}, {"name": ""}, {"name": "fine", "from": "b", "state": "absent"}])
    assert len(faults) == 2
    assert ollama_declared.problems([QWEN, {"name": "r", "from": "b"}], max_loaded=1) == []
    assert ollama_declared.problems([QWEN, {**QWEN, "name": "r"}]) == []


def test_the_role_s_default_is_fine(repo):
    defaults = yaml.safe_load((repo / "roles" / "models" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    entries = defaults["models_declared"]
    entries[0]["parameters"]["num_ctx"] = "40960"
    assert ollama_declared.problems(entries, max_loaded=1) == []
    specification = yaml.safe_load((repo / "roles" / "models" / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    options = specification["argument_specs"]["main"]["options"]["models_declared"]["options"]
    assert set(options) == set(ollama_declared.Entry.KEYS)


def test_the_file_for_people():
    entry = ollama_declared.Entry.of({**QWEN, "name": "lan:5000/ns/q:v1", "comment": "For the\nhelpdesk."})
    assert entry.file_name == "lan:5000+ns+q:v1.modelfile"
    assert entry.modelfile.splitlines()[1:] == [
        "# For the",
        "# helpdesk.",
        "FROM qwen3:14b",
        "PARAMETER num_batch 512",
        "PARAMETER num_ctx 40960",
    ]
    assert ollama_declared.Entry.of(QWEN).file_name == "q.modelfile"


def test_no_two_models_share_a_file_on_the_host():
    names = ["qwen3:14b", "qwen3-14b", "qwen3.14b", "ns/qwen3:14b", "ns-qwen3:14b", "lan:5000/ns/q", "lan-5000/ns/q", "lan/5000-ns/q"]
    files = [ollama_declared.Entry.of({"name": name, "from": "base"}).file_name for name in names]
    assert len(set(files)) == len(names) and not any("/" in name for name in files)
    same = {ollama_declared.Entry.of({"name": name, "from": "base"}).file_name for name in ("q", "q:latest", "library/q")}
    assert same == {"q.modelfile"}


def tags(*names):
    return [{"name": name, "digest": "d" * 64} for name in names]


def test_what_nobody_declares():
    declared = [ollama_declaration.declare(QWEN), ollama_declaration.declare({"name": "f", "gguf": "/x"})]
    there = tags("q:latest", "Qwen3:14b", "f:latest", "f:latest.src-0123456789ab", "old:latest", "g:latest.src-0123456789ab")
    assert ollama_declared.undeclared(declared, there) == ["g:latest.src-0123456789ab", "old:latest"]


def measured(held, settings=None, planned=(), version="1", entry=None, path=None, tmp_path=None):
    file = tmp_path / "measured.json"
    file.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    remembered = ollama_declared.Measured.read(str(file), version, settings, list(planned))
    return remembered.of("q:latest", {"digest": "d"}, entry)


RECORD = {"digest": "d", "version": "1", "settings": {"kv": "q8_0"}, "size_mib": 9, "size_vram_mib": 9, "predicted_mib": 8}


@pytest.mark.parametrize(
    ("held", "options", "size"),
    [
        ({"models": {"q:latest": RECORD}}, {}, 9),
        ({"models": {"q:latest": RECORD}}, {"version": "2"}, None),
        ({"models": {"q:latest": RECORD}}, {"settings": {"kv": "f16"}}, None),
        ({"models": {"q:latest": {**RECORD, "digest": "e"}}}, {}, None),
        ({"models": {"q:latest": {"digest": "d"}}}, {}, None),
        ({"models": {"q:latest": 5}}, {}, None),
        ({"models": []}, {}, None),
        ("[]", {}, None),
        ("{damaged", {}, None),
    ],
)
def test_a_measurement_holds_while_nothing_changed(tmp_path, held, options, size):
    found = measured(held, **{"settings": {"kv": "q8_0"}, **options}, tmp_path=tmp_path)
    assert (found or {}).get("size_mib") == size


def test_what_is_loaded_now_wins_and_the_prediction_stays(tmp_path):
    entry = {"size": 3 * 2**20 + 1, "size_vram": 3 * 2**20 + 1, "context_length": 5}
    now = measured({"models": {"q:latest": RECORD}}, {"kv": "q8_0"}, entry=entry, tmp_path=tmp_path)
    assert (now["size_mib"], now["size_vram_mib"], now["context_length"], now["predicted_mib"]) == (4, 4, 5, 8)
    planned = [{"name": "q:latest", "formula_mib": 7.4, "dry_run_mib": None}]
    assert measured({}, planned=planned, entry=entry, tmp_path=tmp_path)["predicted_mib"] == 7


def test_the_plan_reads_shapes_where_they_are():
    entries = [
        QWEN,
        {"name": "variant", "from": "q", "parameters": {"num_ctx": 8192}},
        {"name": "filed", "gguf": "/x.gguf"},
        {"name": "lan", "from": "lan:5000/ns/m:t", "insecure": True},
        {"name": "asis:t"},
        {"name": "small", "gguf": "/x.gguf", "quantize": "q8_0"},
        {"name": "gone", "from": "b", "state": "absent"},
    ]
    planned = {one["name"]: one for one in ollama_declared.plan_models(entries, [], num_ctx=4096, kv_cache_type="q8_0")}
    shared = {"num_parallel": 1, "kv_cache_type": "q8_0", "flash_attention": True}
    assert planned == {
        "q:latest": {"name": "q:latest", "ref": "qwen3:14b", "num_ctx": 40960, "num_batch": 512, **shared},
        "variant:latest": {"name": "variant:latest", "ref": "qwen3:14b", "num_ctx": 8192, "num_batch": 512, **shared},
        "filed:latest": {"name": "filed:latest", "gguf": "/x.gguf", "num_ctx": 4096, **shared},
        "lan:latest": {"name": "lan:latest", "ref": "http://lan:5000/ns/m:t", "num_ctx": 4096, **shared},
        "asis:t": {"name": "asis:t", "ref": "asis:t", "num_ctx": 4096, **shared},
    }
    there = {one["name"]: one for one in ollama_declared.plan_models(entries, ["Qwen3:14b", "small:latest", "filed:latest"])}
    assert there["variant:latest"]["from_server"] == "qwen3:14b"
    assert there["small:latest"]["from_server"] == "small:latest"
    assert there["filed:latest"]["from_server"] == "filed:latest"


def test_models_made_from_each_other_do_not_go_round_for_ever():
    entries = [{"name": "a", "from": "b"}, {"name": "b", "from": "a"}]
    assert len(ollama_declared.plan_models(entries, [])) == 2


def test_an_extended_context_is_planned_from_its_base_and_inherited():
    extension = {"method": "yarn", "factor": 2}
    entries = [
        {"name": "long", "from": "qwen3:14b", "context_extension": extension, "parameters": {"num_ctx": 65536}},
        {"name": "derived", "from": "long"},
        {"name": "short", "from": "qwen3:14b"},
    ]
    fresh = {one["name"].partition(":")[0]: one for one in ollama_declared.plan_models(entries, [])}
    assert fresh["long"]["ref"] == "qwen3:14b" and fresh["long"]["context_extension"] == {"method": "yarn", "factor": 2.0}
    assert fresh["derived"]["context_extension"] == fresh["long"]["context_extension"] and fresh["derived"]["num_ctx"] == 65536
    assert "context_extension" not in fresh["short"]
    there = ollama_declared.plan_models(entries, ["qwen3:14b", "long:latest", "derived:latest"])
    assert [(one["from_server"], "context_extension" in one) for one in there] == [("qwen3:14b", True), ("qwen3:14b", True), ("qwen3:14b", False)]


def test_an_extension_is_checked_on_the_controller():
    (told,) = ollama_declared.problems([{"name": "a", "from": "b", "context_extension": {"method": "linear", "factor": 2}}])
    assert told == "Model a:latest: context_extension.method is 'linear'; it has to be one of yarn."
