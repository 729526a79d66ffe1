# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every filter of the collection, called as a template calls it; what they call has tests of its own."""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import re

import pytest
import yaml
from ansible.errors import AnsibleFilterError

FOLDER = pathlib.Path(__file__).resolve().parents[4] / "plugins" / "filter"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def the_filter(name):
    module = importlib.import_module(f"ansible_collections.gpufleet.llm.plugins.filter.{name}")
    found = module.FilterModule().filters()
    assert list(found) == [name]
    return found[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_is_documented_and_tested_here(name):
    assert callable(the_filter(name))
    assert yaml.safe_load((FOLDER / f"{name}.yml").read_text())["DOCUMENTATION"]["name"] == name
    assert f'the_filter("{name}")' in pathlib.Path(__file__).read_text()


# variable, value, keywords, words of the one problem; the value that has none
OUTSIDE = {"ollama_host": "127.0.0.1", "ollama_port": 11434, "open_webui_host": "127.0.0.1", "open_webui_port": 8080, "gateway_names": ["h"]}
GATEWAY = {**yaml.safe_load((FOLDER.parents[1] / "roles" / "gateway" / "defaults" / "main.yml").read_text()), **OUTSIDE}
PROBLEMS = [
    ("gateway_settings", {**GATEWAY, "gateway_hsts_s": "1; evil on"}, {}, "gateway_hsts_s is '1; evil on'; wanted is", GATEWAY),
    ("gateway_tokens", [{"name": "Ann B"}], {"models": []}, "Entry 1 of gateway_tokens has no name", []),
    ("models_declared", [{"name": "a b"}], {}, "is no model name", [{"name": "a", "from": "b"}]),
    ("ollama_environment", {"OLLAMA_NOHISTORY": 1}, {"settings": {}}, "has no effect on the server", {"OLLAMA_DEBUG": 1}),
    ("open_webui_environment", {"QWERTYUIOP": 3}, {"settings": {}}, "has QWERTYUIOP, which", {"RAG_TOP_K": 3}),
    ("open_webui_secret_environment", {"lower": "v4lue"}, {}, "capital letters", {"OPENAI_API_KEY": "v4lue"}),
    ("open_webui_models", [{"name": "x"}], {}, "An entry of open_webui_models has no id", None),
    ("open_webui_users", [{"email": "a@b", "passwd": "v4lue"}], {}, "has passwd for a@b; known are", [{"email": "a@b"}]),
    ("soak_load", {"roundz": 1}, {"preset": "quick"}, "soak_load: ", {}),
]


@pytest.mark.parametrize(("variable", "wrong", "about", "words", "right"), PROBLEMS)
def test_problems_are_sentences_and_none_where_nothing_is_wrong(variable, wrong, about, words, right):
    problems = the_filter("problems")
    (found,) = problems(wrong, variable, **about)
    assert words in found and found.endswith(".") and "v4lue" not in found
    assert problems(right, variable, **about) == []


def test_problems_of_every_variable_are_tested():
    module = importlib.import_module("ansible_collections.gpufleet.llm.plugins.filter.problems")
    assert sorted(module.CHECKS) == [one[0] for one in sorted(PROBLEMS)]
    documented = yaml.safe_load((FOLDER / "problems.yml").read_text())["DOCUMENTATION"]["options"]
    assert documented["variable"]["choices"] == sorted(module.CHECKS)


def test_problems_counts_the_models_that_are_to_be_loaded():
    entries = [{"name": name, "from": "base", "load": True} for name in ("one", "two", "three")]
    problems = the_filter("problems")
    assert "3 models are to be loaded" in problems(entries, "models_declared", max_loaded=2)[0]
    assert problems(entries, "models_declared", max_loaded=3) == []


@pytest.mark.parametrize(("arguments", "about", "words"), [(("colour",), {}, "knows no variable colour"), (("soak_load",), {"presett": 1}, "presett")])
def test_problems_of_what_it_does_not_know(arguments, about, words):
    with pytest.raises(AnsibleFilterError, match=words):
        the_filter("problems")({}, *arguments, **about)


def test_environments_are_rendered_as_each_service_reads_them():
    environment = the_filter("environment")
    assert environment({"OLLAMA_NUM_PARALLEL": 2, "OLLAMA_HOST": None}, "ollama", {"OLLAMA_DEBUG": True}) == {
        "OLLAMA_DEBUG": "1",
        "OLLAMA_NUM_PARALLEL": "2",
    }
    assert environment({"ENV": "dev"}, "open_webui", {"ENV": "prod", "ENABLE_CHANNELS": False}) == {
        "ENABLE_CHANNELS": "false",
        "ENV": "prod",
    }
    assert environment({}, "open_webui", {"OPENAI_API_KEY": "v4lue"}, secret=True) == {"OPENAI_API_KEY": "v4lue"}


@pytest.mark.parametrize(
    ("arguments", "about", "words"),
    [
        (("ollama", {"OLLAMA_NOHISTORY": 1}), {}, "has no effect"),
        (("open_webui", {"OPENAI_API_KEY": "v4lue"}), {}, "is a secret"),
        (("open_webui", {"ENABLE_SIGNUP": True}), {"owned": {"ENABLE_SIGNUP": "set it there"}}, "set it there"),
        (("nginx", {}), {}, "knows no service nginx"),
    ],
)
def test_environments_that_cannot_be(arguments, about, words):
    with pytest.raises(AnsibleFilterError, match=words) as caught:
        the_filter("environment")({}, *arguments, **about)
    assert "v4lue" not in str(caught.value)


def test_an_environment_file_has_a_line_for_each_key():
    assert the_filter("environment_file")({"B": "a b", "A": "1"}).splitlines()[-2:] == ["A=1", 'B="a b"']


def test_a_plan_is_made_for_each_model_where_its_shape_can_be_read():
    declared = [{"name": "mine", "from": "qwen3:14b", "parameters": {"num_ctx": 8192}}, {"name": "other:7b", "from": "there"}]
    planned = the_filter("plan_models")(declared, ["there:latest"], 4096, 3, "q8_0", False)
    settings = {"num_parallel": 3, "kv_cache_type": "q8_0", "flash_attention": False}
    assert planned == [
        {"name": "mine:latest", "ref": "qwen3:14b", "num_ctx": 8192, **settings},
        {"name": "other:7b", "from_server": "there:latest", "num_ctx": 4096, **settings},
    ]


def test_entries_of_open_webui_follow_the_declared_models():
    (entry,) = the_filter("open_webui_models")(None, [{"name": "mine"}, {"name": "old", "state": "absent"}])
    assert (entry["id"], entry["name"], entry["access"]) == ("mine:latest", "mine", "everyone")


def test_a_policy_of_the_gateway_never_has_a_token_in_it():
    token = "t" * 40
    defaults = {"pin": True, "rate_per_minute": 7, "burst": 3, "streams": 2}
    made = the_filter("gateway_policy")([{"name": "ann", "token": token, "rate_per_minute": 11}], [], defaults, 4096)
    assert made["tokens"] == {hashlib.sha256(token.encode()).hexdigest(): "ann"}
    assert made["limits"]["ann"]["rate_per_minute"] == 11 and made["limits"]["ann"]["burst"] == 3
    assert token not in str(made)


def test_a_program_is_its_files():
    files = the_filter("program_files")("open_webui_retention")
    path = FOLDER.parent / "module_utils" / "_open_webui" / "retention.py"
    assert files["gpufleet_llm/_open_webui/retention.py"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(AnsibleFilterError, match="no program 'nothing'"):
        the_filter("program_files")("nothing")


def test_no_task_or_variable_uses_a_filter_that_does_not_exist():
    used = {}
    for place in ("roles", "playbooks", "molecule", "lab"):
        for path in (FOLDER.parents[1] / place).rglob("*.*"):
            if path.is_file() and path.suffix in (".yml", ".j2"):
                for name in re.findall(r"\|\s*gpufleet\.llm\.(\w+)", path.read_text(encoding="utf-8")):
                    used.setdefault(name, path)
    assert len(used) > 5
    assert {name: path for name, path in used.items() if name not in NAMES} == {}
