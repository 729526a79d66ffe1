# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Jinja of the roles soak and vram_guard, evaluated as Ansible does it."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import files
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import load, program

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"


def rendered(role, expression, **variables):
    """The value of a role's variable, with these variables of the host besides its defaults."""
    loader = DataLoader()
    known = {}
    for part in ("defaults", "vars"):
        known.update(loader.load_from_file(str(ROLES / role / part / "main.yml"), trusted_as_template=True))
    return Templar(loader=loader, variables={**known, **variables}).template(known[expression])


def host(uid=0, python="file", server="active", free_mib=200):
    return {
        "uid": uid,
        "paths": {"/opt/gpufleet/venv/bin/python": {"kind": python}, "/var/tmp": {"kind": "directory", "free_mib": free_mib}},
        "units": {"ollama.service": {"active_state": server}},
    }


def test_a_host_that_can_be_measured_is_not_refused():
    assert [one["met"] for one in rendered("soak", "__soak_needs", __soak_host=host())] == [True] * 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uid": 1000}, "user ID 1000"),
        ({"python": "absent"}, "no /opt/gpufleet/venv/bin/python"),
        ({"server": "failed"}, "ollama.service is failed"),
        ({"free_mib": 199}, "199 MiB free"),
    ],
)
def test_a_host_that_cannot_is_refused_for_the_one_thing_that_it_lacks(change, says):
    refused = [one["refusal"] for one in rendered("soak", "__soak_needs", __soak_host=host(**change)) if not one["met"]]
    assert len(refused) == 1
    assert says in refused[0]


@pytest.mark.parametrize(
    ("variables", "target", "url"),
    [
        ({}, "ollama", "http://127.0.0.1:11434"),
        ({"ollama_host": "0.0.0.0", "ollama_port": 11500}, "ollama", "http://127.0.0.1:11500"),
        ({"ollama_host": "::"}, "openai", "http://[::1]:11434"),
        ({"ollama_host": "192.0.2.7"}, "ollama", "http://192.0.2.7:11434"),
        ({"open_webui_port": 8088}, "open_webui", "http://127.0.0.1:8088"),
        ({"soak_url": "https://gpu1/v1"}, "openai", "https://gpu1/v1"),
    ],
)
def test_the_load_asks_where_the_server_listens(variables, target, url):
    config = rendered("soak", "__soak_config", inventory_hostname="gpu1", soak_target=target, **variables)
    assert (config["target"], config["url"], config["host"]) == (target, url, "gpu1")
    assert set(config) <= set(program.CONFIG)
    assert load.settle(config["load"]["preset"], {key: value for key, value in config["load"].items() if key != "preset"})


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, {"host": "127.0.0.1", "port": 11434, "mode": "dry_run", "metrics": False, "user": "ollama"}),
        ({"ollama_host": "::", "ollama_port": "11500"}, {"host": "::1", "port": 11500}),
        ({"ollama_host": "[::]"}, {"host": "::1"}),
        ({"ollama_host": "192.0.2.7", "ollama_user": "llm"}, {"host": "192.0.2.7", "user": "llm"}),
        ({"vram_guard_mode": "act", "vram_guard_textfile_dir": "/var/lib/x"}, {"mode": "act", "metrics": True}),
    ],
)
def test_the_program_takes_the_configuration_that_the_role_writes(tmp_path, variables, wanted):
    given = rendered("vram_guard", "__vram_guard_config", **variables)
    path = tmp_path / "vram-guard.json"
    path.write_text(json.dumps(given))
    config = files.load_config(str(path))
    assert {key: config[key] for key in wanted} == wanted


def test_each_setting_of_the_role_reaches_the_program(tmp_path):
    """Values that no default has, each another: a setting that took another's place would show."""
    numbers = {
        "interval_s": 17,
        "debounce": 5,
        "growth_mib": 1111,
        "trapped_mib": 333,
        "free_low_mib": 555,
        "limit_mib": 20001,
        "stuck_s": 1801,
        "drain_s": 121,
        "cool_down_s": 301,
    }
    budgets = {kind: {"hour": hour, "day": hour + 10} for hour, kind in enumerate(("unload", "end", "restart"), 5)}
    given = rendered(
        "vram_guard",
        "__vram_guard_config",
        **{f"vram_guard_{key}": value for key, value in numbers.items()},
        vram_guard_unit="other.service",
        vram_guard_budgets=budgets,
        vram_guard_fine_tuning={"idle_s": 31, "settle_s": {"restart": 61}},
        ollama_load_timeout_s=299,
    )
    path = tmp_path / "vram-guard.json"
    path.write_text(json.dumps(given))
    settings = files.load_config(str(path))["settings"]
    assert {key: settings[key] for key in numbers} == numbers
    assert (settings["unit"], settings["budgets"], settings["load_grace_s"], settings["idle_s"]) == ("other.service", budgets, 299, 31)
    assert settings["settle_s"] == {"unload": 30, "end": 30, "restart": 61, "fence": 0}


def test_the_privileged_part_is_installed_in_act_mode_only():
    names = [one["name"] for one in rendered("vram_guard", "__vram_guard_files")]
    assert names == ["vram-guard", "vram-guard.json", "vram-guard.service", "vram-guard.timer"]
    acting = [one["name"] for one in rendered("vram_guard", "__vram_guard_files", vram_guard_mode="act")]
    assert acting == [*names, "vram-guard-act.service", "vram-guard-act.path"]
