# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules ollama_model and ollama_info, from arguments to results, on a server."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import sources as ollama_sources
from ansible_collections.gpufleet.llm.plugins.modules import ollama_info, ollama_model
from ansible_collections.gpufleet.llm.tests.unit.plugins.ollama_server import free_port, ollama, tiny_gguf


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ollama(tmp_path_factory.mktemp("ollama")) as url:
        client = ollama_client.Client(url, timeout=60)
        path = tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
        digest = ollama_sources.file_digest(path)
        client.push_blob(path, digest)
        client.create({"model": "base", "files": {"tiny.gguf": digest}})
        client.close()
        yield url


@pytest.fixture
def call(capsys):
    """Runs a module; its answer as a dict."""

    def call(module, check=False, **options):
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return call


def test_a_refused_load_says_what_the_engine_said(call, server, tmp_path, monkeypatch):
    """The stand-in's log is no journal, so a command of that name gives the lines that llama.cpp writes."""
    said = [
        "common_params_fit_impl: projected to use 11885 MiB of device memory vs. 7838 MiB of free device memory",
        "load_tensors: offloaded 23/41 layers to GPU",
    ]
    command = tmp_path / "journalctl"
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$*\" >> " + str(tmp_path / "asked") + "\n" + "".join(f"echo '{line}'\n" for line in said), encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    refused = call(ollama_model, url=server, name="partly", state="loaded", unit="ollama.service", **{"from": "base"})
    assert refused["failed"]
    assert "The engine wanted 11,885 MiB of the GPU, found 7,838 MiB free, and put 23 of 41 layers on it." in refused["msg"]
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert "--unit=ollama.service" in asked
    assert "--since=@1" in asked
    call(ollama_model, url=server, name="partly", state="absent")


def test_from_arguments_to_results(call, server):
    options = {
        "url": server,
        "name": "mine",
        "from": "base",
        "parameters": {"num_ctx": "256", "temperature": 0.5},
        "system": "Hi.",
    }
    said = call(ollama_model, check=True, **options)
    assert said["changed"]
    assert said["digest"] is None
    done = call(ollama_model, **options)
    assert done["changed"]
    assert done["differs"] == ["model"]
    assert done["diff"]["before"] == ""
    assert "PARAMETER num_ctx 256\nPARAMETER temperature 0.5\n" in done["diff"]["after"]
    assert said["diff"] == done["diff"]
    assert len(done["digest"]) == len(done["base_digest"]) == 64
    again = call(ollama_model, **options)
    assert not again["changed"]
    assert again["digest"] == done["digest"]
    assert again["requests"]["writes"] == 0
    assert again["requests"]["count"] <= 3
    assert again["diff"]["before"] == again["diff"]["after"]

    refused = call(ollama_model, state="loaded", **options)
    assert refused["failed"]
    assert "runs on the CPU" in refused["msg"]
    assert refused["msg"].endswith("It was taken out of memory again and is still in the store.")
    assert call(ollama_info, url=server)["loaded"] == []
    loaded = call(ollama_model, state="loaded", allow_offload=True, **options)
    assert loaded["changed"]
    assert (loaded["loaded"], loaded["context_length"], loaded["size_vram"]) == (True, 256, 0)
    others = call(ollama_model, state="loaded", **options)
    assert others["failed"]
    assert "taken out of memory" not in others["msg"]
    assert call(ollama_info, url=server)["loaded"] != []
    assert call(ollama_model, url=server, name="mine", state="unloaded", check=True)["changed"]
    assert call(ollama_model, url=server, name="mine", state="unloaded")["changed"]
    assert not call(ollama_model, url=server, name="mine", state="unloaded")["changed"]
    assert call(ollama_model, url=server, name="mine", state="absent", check=True)["changed"]
    assert call(ollama_model, url=server, name="mine", state="absent")["changed"]
    assert not call(ollama_model, url=server, name="mine", state="absent")["changed"]


def test_a_modelfile_on_the_host(call, server, tmp_path):
    path = tmp_path / "Modelfile"
    path.write_text("FROM base\nPARAMETER num_ctx 4k\n", encoding="utf-8")
    refused = call(ollama_model, url=server, name="filed", modelfile_path=str(path))
    assert refused["msg"].startswith("Modelfile line 2: invalid int value [4k]")
    path.write_text("FROM base\nPARAMETER num_ctx 4096\n", encoding="utf-8")
    assert call(ollama_model, url=server, name="filed", modelfile_path=str(path))["changed"]
    assert not call(ollama_model, url=server, name="filed", modelfile_path=str(path))["changed"]
    assert "cannot be read" in call(ollama_model, url=server, name="filed", modelfile_path=str(tmp_path / "none"))["msg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from": "base", "parameters": {"num_ctx": "4k"}}, "invalid int value [4k]"),
        ({"from": "base", "parameters": {"cache_type": "q8_0"}}, "ollama_kv_cache_type"),
        ({"from": "base", "gguf": "/x"}, "mutually exclusive"),
        ({"state": "loaded", "keep_alive": "soon"}, "keep_alive is 'soon'"),
        ({"state": "loaded", "system": "x"}, "nothing to be made from"),
    ],
)
def test_bad_input_ends_before_the_server_is_asked(call, options, words):
    answer = call(ollama_model, url=f"http://127.0.0.1:{free_port()}", name="x", **options)
    assert answer["failed"]
    assert words in answer["msg"]


def test_a_host_without_server(call):
    url = f"http://127.0.0.1:{free_port()}"
    assert "connection refused" in call(ollama_model, url=url, name="x", **{"from": "b"})["msg"]
    said = call(ollama_model, check=True, url=url, name="x", state="loaded", **{"from": "b"})
    assert said["changed"]
    assert said["actions"] == ["create x:latest", "load x:latest"]
    assert not call(ollama_model, check=True, url=url, name="x", state="absent")["changed"]
    assert "connection refused" in call(ollama_info, url=url)["msg"]
    declared = [{"name": "x", "from": "b", "load": True}]
    for options in ({"check": True}, {"must_answer": False}):
        look = call(ollama_info, url=url, declared=declared, plan="/nonexistent/plan.json", **options)
        assert not look["reachable"]
        assert look["plan_pending"]
        assert look["declared"][0]["pending"]
        assert look["declared"][0]["load_pending"]


def test_one_look_at_all_models(call, server, tmp_path):
    declared = [
        {"name": "look", "from": "base", "load": True, "allow_offload": True, "parameters": {"num_ctx": 128}},
        {"name": "gone", "state": "absent"},
    ]
    options = {
        "url": server,
        "declared": declared,
        "modelfiles": str(tmp_path),
        "measured": str(tmp_path / "measured.json"),
        "plan": str(tmp_path / "plan.json"),
        "fingerprint": "w",
    }
    look = call(ollama_info, **options)
    assert look["reachable"]
    first, second = look["declared"]
    assert (first["pending"], first["load_pending"], first["modelfile_pending"], second["pending"]) == (True, True, True, False)
    assert look["plan_pending"]

    call(
        ollama_model,
        url=server,
        name="look",
        state="loaded",
        allow_offload=True,
        parameters={"num_ctx": 128},
        **{"from": "base"},
    )
    (tmp_path / "look.modelfile").write_text(first["modelfile"], encoding="utf-8")
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    look = call(ollama_info, planned=[{"name": "look:latest", "formula_mib": 7, "dry_run_mib": None}], **options)
    first = look["declared"][0]
    assert (first["pending"], first["load_pending"], first["modelfile_pending"]) == (False, False, False)
    assert first["loaded"]["offloaded"]
    assert not first["loaded"]["stale"]
    assert first["problem"] is None
    assert first["measured"]["predicted_mib"] == 7
    assert look["measured_pending"]
    assert look["undeclared"] == [name for name in look["undeclared"] if name.startswith("filed")]

    record = json.dumps({"models": look["measured"], "fingerprint": "w"})
    (tmp_path / "measured.json").write_text(record, encoding="utf-8")
    call(ollama_model, url=server, name="look", state="unloaded")
    look = call(ollama_info, **options)
    assert not look["measured_pending"]
    assert not look["plan_pending"]
    assert not look["declared"][0]["load_pending"]
    assert look["loaded"] == []
    declared[0].update(allow_offload=False, keep_alive="-1")
    first = call(ollama_info, **options)["declared"][0]
    assert "runs on the CPU" in first["problem"]
    assert first["load_pending"]
    assert "unknown key" in call(ollama_info, url=server, declared=[{"name": "x", "fro": "y"}])["msg"]
