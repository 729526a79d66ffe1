# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import service as ollama_service


@pytest.mark.parametrize(
    ("environment", "changed"),
    [
        ({}, {}),
        ({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KV_CACHE_TYPE": ' "Q8_0" '}, {"num_parallel": 4, "kv_cache_type": "q8_0"}),
        ({"OLLAMA_NUM_PARALLEL": "four", "OLLAMA_CONTEXT_LENGTH": "8k"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_CONTEXT_LENGTH": "0"}, {}),
        ({"OLLAMA_FLASH_ATTENTION": "0"}, {"flash_attention": False}),
        ({"OLLAMA_FLASH_ATTENTION": "maybe"}, {"flash_attention": True}),
        ({"LLAMA_ARG_FIT_TARGET": "0", "OLLAMA_KEEP_ALIVE": "-1"}, {"fit_target_mib": 0, "keep_alive": "-1"}),
        ({"HTTPS_PROXY": "http://user:secret@proxy"}, {}),
    ],
)
def test_settings_are_what_the_server_makes_of_them(environment, changed):
    assert ollama_service.settings(environment) == {**ollama_service.DEFAULTS, **changed}


def systemctl(folder, text, status=0):
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_running_service(tmp_path):
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "environ").write_bytes(b"OLLAMA_NUM_PARALLEL=2\0HTTPS_PROXY=http://u:secret@p\0odd\0\xff=\xfe\0")
    command = systemctl(tmp_path, "MainPID=42\nActiveState=active\nExecMainStartTimestamp=Mon 2026-11-23")
    found = ollama_service.observe("ollama.service", command, str(tmp_path))
    assert (found["active"], found["pid"], found["settings"]["num_parallel"]) == ("active", 42, 2)
    assert "secret" not in str(found)


def test_a_service_that_is_not_there(tmp_path):
    command = systemctl(tmp_path, "MainPID=0\nActiveState=inactive\nExecMainStartTimestamp=")
    assert ollama_service.observe("x", command, str(tmp_path)) == {
        "active": "inactive",
        "pid": None,
        "started_at": None,
        "settings": None,
    }


def test_what_cannot_be_read_is_told(tmp_path):
    command = systemctl(tmp_path, "MainPID=42\nActiveState=active")
    with pytest.raises(ollama_service.ServiceError, match="become: true"):
        ollama_service.observe("x", command, str(tmp_path))
    for broken in (systemctl(tmp_path, "", 1), str(tmp_path / "none")):
        with pytest.raises(ollama_service.ServiceError, match="systemd cannot be asked"):
            ollama_service.observe("x", broken, str(tmp_path))


PARTLY = """\
srv    load_model: loading model
common_params_fit_impl: projected to use 11885 MiB of device memory vs. 7838 MiB of free device memory
load_tensors: offloaded 23/41 layers to GPU
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PARTLY, (23, 41, 11885, 7838)),
        ("offloaded 3/3 layers to GPU\n" + PARTLY, (23, 41, 11885, 7838)),
        ("load_tensors: offloaded 0/41 layers to GPU", (0, 41, None, None)),
        ("projected to use 900 MiB of host memory", (None, None, None, None)),
        ("", (None, None, None, None)),
    ],
)
def test_the_layout_is_what_the_engine_said_last(text, found):
    assert tuple(ollama_service.read_layout(text)[key] for key in ("layers", "all_layers", "wanted_mib", "free_mib")) == found


def test_a_journal_that_cannot_be_read_is_none(tmp_path):
    assert ollama_service.layout("x", 1.5, str(tmp_path / "none")) is None
    assert ollama_service.layout("x", 1.5, systemctl(tmp_path, "offloaded 1/2 layers to GPU", 1)) is None
    assert ollama_service.layout("x", 1.5, systemctl(tmp_path, "offloaded 1/2 layers to GPU"))["layers"] == 1
