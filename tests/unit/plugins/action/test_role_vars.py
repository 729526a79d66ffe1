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


def test_a_role_that_is_not_there():
    with pytest.raises(AnsibleActionFail, match="no role 'nowhere'"):
        run("nowhere", {})
