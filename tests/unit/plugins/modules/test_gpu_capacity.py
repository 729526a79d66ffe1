# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, by its arguments alone."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
import yaml
from ansible.module_utils import basic

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[4]))

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import encode as plan_encode
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import sources as plan_sources
from ansible_collections.gpufleet.llm.plugins.modules import gpu_capacity  # noqa: E402
from bench import plan as bench_plan  # noqa: E402

RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "total_mib": 24564}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A header file of Qwen3-14B q8_0, without its vocabulary."""
    header = bench_plan.header_of("qwen3-14b-q8_0")
    path = tmp_path_factory.mktemp("model") / "qwen3.gguf"
    plan_encode.write_header_file(str(path), {**header, "keys": {**header["keys"], "qwen3.context_length": 40960}})
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys):
    """What the module answers to these arguments."""

    def answer(check=False, **arguments):
        arguments = {"gpus": [RTX_4090], "engine": "/nonexistent", "venv": "/nonexistent", **arguments}
        arguments = {key: value for key, value in arguments.items() if value is not ...}
        arguments.update({"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"})
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            gpu_capacity.main()
        return json.loads(capsys.readouterr().out)

    return answer


def model(gguf, **changes):
    return {"name": "qwen3:14b-q8_0", "gguf": gguf, "num_ctx": 40960, "kv_cache_type": "q8_0", **changes}


def test_plan_write_repeat_change(run, gguf, tmp_path):
    target = tmp_path / "plan.json"
    predicted = run(check=True, models=[model(gguf)], write_to=str(target))
    assert predicted["changed"] is True and not target.exists() and '"fits": true' in predicted["diff"]["after"]
    made = run(models=[model(gguf)], write_to=str(target), state="asserted")
    assert made["changed"] is True and made["diff"]["before"] == ""
    assert json.loads(target.read_text()) == made["plan"] and made["plan"]["models"][0]["total_mib"] == 18356
    assert target.stat().st_mode & 0o777 == 0o644
    assert run(models=[model(gguf)], write_to=str(target))["changed"] is False
    assert run(check=True, models=[model(gguf)], write_to=str(target))["changed"] is False
    target.chmod(0o600)
    assert run(models=[model(gguf)], write_to=str(target))["changed"] is True and target.stat().st_mode & 0o777 == 0o644
    other = run(models=[model(gguf, num_ctx=8192)], write_to=str(target))
    assert other["changed"] is True and "40960" in other["diff"]["before"]


def test_asserted_fails_with_the_texts_and_writes_nothing(run, gguf, tmp_path):
    target = tmp_path / "plan.json"
    failed = run(models=[model(gguf, kv_cache_type="f16", num_parallel=4)], state="asserted", write_to=str(target))
    assert failed["failed"] and "needs 40,406 MiB; GPU 0 (RTX 4090) offers 23,186 MiB" in failed["msg"] and failed["plan"]["fits"] is False
    capped = run(models=[model(gguf, num_ctx=65536)], state="asserted", write_to=str(target))
    assert capped["failed"] and "num_ctx=65536 exceeds the model's trained context of 40,960" in capped["msg"]
    assert not target.exists()
    assert run(models=[model(gguf, num_ctx=65536)])["plan"]["problems"]


def test_cards_that_cannot_be_read(run, gguf, monkeypatch):
    monkeypatch.setattr(gpu_capacity.gpu_sample, "sample", lambda: {"state": "no_driver", "message": "no driver.", "gpus": []})
    monkeypatch.setattr(gpu_capacity.gpu_client, "load", lambda: "pynvml")
    failed = run(models=[model(gguf)], gpus=...)
    assert failed["failed"] and "No GPU could be read" in failed["msg"] and "give gpus" in failed["msg"]
    instead = run(models=[model(gguf)], gpus=..., gpus_if_unreadable=[RTX_4090])
    assert instead["plan"]["fits"] is True and "Planned for the cards in gpus_if_unreadable" in instead["plan"]["warnings"][-1]
    unknown = run(models=[model(gguf)], gpus=..., gpus_if_unreadable=[], state="asserted")
    assert unknown["plan"]["fits"] is None and unknown["plan"]["gpus"] == []
    assert run(models=[model(gguf)], gpus=[])["plan"]["fits"] is True


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_ctx": 0}, "num_ctx=0 is out of bounds"),
        ({"num_parallel": 5000}, "num_parallel=5000 is out of bounds"),
        ({"gguf": "/nonexistent.gguf"}, "/nonexistent.gguf cannot be read"),
        ({"flash_attention": False}, "needs flash attention"),
        ({"ref": "qwen3:14b"}, "mutually exclusive"),
        ({"gguf": None}, "one of the following is required"),
        ({"gguf": None, "metadata": {"tensors": []}}, "tensors is missing"),
        ({"gguf": None, "from_server": "m"}, "answer"),
    ],
)
def test_bad_input_is_a_sentence(run, gguf, changes, says):
    asked = {key: value for key, value in {**model(gguf), **changes}.items() if value is not None}
    failed = run(models=[asked], server_url="http://127.0.0.1:9")
    assert failed["failed"] and says in failed["msg"] and "Traceback" not in failed["msg"]


def test_method_dry_run_wants_its_engine(run, gguf):
    failed = run(models=[model(gguf)], method="dry_run")
    assert failed["failed"] and "method=dry_run needs llama-server" in failed["msg"]


def test_an_engine_on_the_host_is_asked_once(run, gguf, tmp_path):
    said = (
        "memory breakdown [MiB]\n"
        "common_memory_breakdown_print: |   - CUDA0 (x) | 24077 = 23600 + (17740 = 14177 + 3400 + 163) + -17000 |\n"
        "common_memory_breakdown_print: |   - Host | 848 = 788 + 0 + 60 |\n"
        "projected to use 17740 MiB of device memory vs. 23600 MiB of free device memory\n"
    )
    (tmp_path / "said").write_text(said)
    server = tmp_path / "llama-server"
    server.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'version: 10488 (x)'\necho >> {tmp_path}/asked\nexec cat {tmp_path}/said\n")
    server.chmod(0o755)
    settings = {"models": [model(gguf)], "engine": str(tmp_path), "engine_user": "root", "write_to": str(tmp_path / "plan.json")}
    first = run(**settings)
    assert first["plan"]["method"] == "dry_run" and first["plan"]["models"][0]["compute_mib"] == 163 and first["plan"]["engine_build"] == "b10488"
    assert run(**settings)["changed"] is False
    assert len((tmp_path / "asked").read_text()) == 1


def test_the_documentation_names_the_arguments():
    told = yaml.safe_load(gpu_capacity.DOCUMENTATION)["options"]
    assert set(told["models"]["suboptions"]) == set(gpu_capacity.MODEL) and set(told["gpus"]["suboptions"]) == set(gpu_capacity.CARD)
    yaml.safe_load(gpu_capacity.EXAMPLES), yaml.safe_load(gpu_capacity.RETURN)


@pytest.mark.parametrize(("factor", "num_ctx", "total"), [(2, 65536, 14501), (4, 131072, 20261)])
def test_an_extended_context_is_planned_as_a_longer_one(run, tmp_path, factor, num_ctx, total):
    """Predicted for Qwen3-14B q4_K_M with a q8_0 cache, in MiB."""
    header = bench_plan.header_of("qwen3-14b-q4_K_M")
    path = tmp_path / "qwen3.gguf"
    plan_encode.write_header_file(str(path), {**header, "keys": {**header["keys"], "qwen3.context_length": 40960}})
    extended = model(str(path), num_ctx=num_ctx, context_extension={"method": "yarn", "factor": factor})
    planned = run(models=[extended], state="asserted")["plan"]
    assert planned["fits"] is True and not planned["problems"]
    assert planned["models"][0]["num_ctx"] == num_ctx and planned["models"][0]["total_mib"] == total
    too_long = run(models=[{**extended, "num_ctx": num_ctx + 1}], state="asserted")
    assert too_long["failed"] and f"exceeds the model's trained context of {num_ctx:,}" in too_long["msg"]


def test_an_extension_that_is_wrong_for_the_model_is_refused(run, gguf, tmp_path):
    header = plan_sources.read_file(gguf)
    path = tmp_path / "long.gguf"
    plan_encode.write_header_file(str(path), {**header, "raw": None, "keys": {**header["keys"], "qwen3.context_length": 262144}})
    failed = run(models=[model(str(path), context_extension={"method": "yarn", "factor": 2})])
    assert failed["failed"] and "has a trained context of 262144; YaRN is known to be right for" in failed["msg"]
