# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader

from ansible_collections.gpufleet.llm.plugins.action import role_vars
from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_options


def run(role, variables, **args):
    task = SimpleNamespace(args={"role": role, **args}, async_val=0, check_mode=False, diff=False, action="role_vars", _role=None)
    plugin = role_vars.ActionModule(task, MagicMock(), MagicMock(), DataLoader(), None, None)
    return plugin.run(task_vars=variables)


def test_known_variables_pass():
    result = run("ollama", {"ollama_version": "0.32.15", "other_thing": 1, "__ollama_private": 2})
    assert not result.get("failed")
    assert result["unknown"] == []


def test_a_misspelt_variable_is_named_with_its_nearest_option():
    result = run("ollama", {"ollama_kv_cache_typ": "q8_0"})
    assert result["failed"]
    assert "ollama_kv_cache_typ" in result["msg"]
    assert "did you mean ollama_kv_cache_type?" in result["msg"]


def test_variables_of_a_longer_role_name_are_left_to_it():
    assert run("ollama", {"ollama_exporter_port": 1}, others=["ollama_exporter"])["unknown"] == []
    assert run("ollama", {"ollama_exporter_port": 1})["unknown"] == ["ollama_exporter_port"]


def test_a_fact_that_the_role_publishes_is_no_setting():
    assert run("ollama", {"ollama_found_server": 1, "ollama_owned": {}, "ollama_foundserver": 1})["unknown"] == ["ollama_foundserver"]


def test_a_role_that_is_not_there():
    with pytest.raises(AnsibleActionFail, match="no role 'nowhere'"):
        run("nowhere", {})


BOUNDS = {
    "ollama_port": {"min": 1, "max": 65535},
    "ollama_num_parallel": {"min": 1, "because": "a slot serves"},
    "ollama_home": {"match": "/[a-z/]+", "wanted": "a path"},
}


def test_each_value_out_of_its_bounds_is_named_and_no_other():
    result = run("ollama", {"ollama_port": 65536, "ollama_num_parallel": "2", "ollama_home": "/srv\n"}, bounds=BOUNDS)
    assert result["failed"]
    assert result["msg"] == (
        "ollama_port is 65536; a whole number from 1 to 65535 was wanted. Correct it in the inventory."
        ' ollama_home is "/srv\\n"; a path was wanted. Correct it in the inventory. Nothing was changed.'
    )


def test_values_at_their_bounds_pass_and_what_is_not_set_is_not_checked():
    assert not run("ollama", {"ollama_port": "65535", "ollama_num_parallel": 1}, bounds=BOUNDS).get("failed")


@pytest.mark.parametrize(
    ("value", "bound", "told"),
    [
        (4, {"min": 5}, "a is 4; a whole number of at least 5 was wanted. Correct it in the inventory."),
        (4, {"max": 3, "because": "three slots"}, "a is 4; a whole number of at most 3 was wanted (three slots). Correct it in the inventory."),
        ("4.5", {"min": 1}, 'a is "4.5"; a whole number of at least 1 was wanted. Correct it in the inventory.'),
        (True, {"min": 1}, "a is True; a whole number of at least 1 was wanted. Correct it in the inventory."),
        (None, {"min": 1}, "a is null; a whole number of at least 1 was wanted. Correct it in the inventory."),
        (None, {"min": 1, "null": True}, ""),
        (0, {"min": 1, "null": True}, "a is 0; null or a whole number of at least 1 was wanted. Correct it in the inventory."),
        (
            {"x": {"hour": 3, "day": -1}},
            {"min": 0, "values": True},
            'a is {"x": {"hour": 3, "day": -1}}; whole numbers of at least 0 was wanted. Correct it in the inventory.',
        ),
        ({"x": {"hour": 3, "day": 0}}, {"min": 0, "values": True}, ""),
        ([], {"match": "b+", "count": 1, "wanted": "b"}, "a is []; b was wanted. Correct it in the inventory."),
        (["b", "bc"], {"match": "b+", "wanted": "b"}, 'a is ["b", "bc"]; b was wanted. Correct it in the inventory.'),
        (["b", "bb"], {"match": "b+", "count": 2, "wanted": "b"}, ""),
    ],
)
def test_one_bound(value, bound, told):
    assert role_options.bound_problem("a", value, bound) == told


def test_a_fingerprint_tells_settings_apart():
    assert role_options.fingerprint({"a": 1, "b": [2]}) == role_options.fingerprint({"b": [2], "a": 1})
    assert role_options.fingerprint({"a": 1}) != role_options.fingerprint({"a": 2})
