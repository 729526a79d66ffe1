# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loaded models: load, unload, keep_alive, who shares a process and what starts another."""

from __future__ import annotations

import os
import signal
import time

import pytest
from conftest import until

pytestmark = pytest.mark.both


def test_an_empty_generate_loads(quiet):
    answer = quiet.load("plain").json()
    assert answer["done"] is True and answer["done_reason"] == "load" and answer["response"] == ""
    assert len(quiet.runners()) == 1


def test_a_chat_without_messages_loads(quiet):
    answer = quiet.post("/api/chat", {"model": "plain"}).json()
    assert answer["done_reason"] == "load" and answer["message"] == {"role": "assistant", "content": ""}


def test_fields_of_ps(quiet):
    quiet.load("plain", options={"num_ctx": 2048})
    entry = quiet.loaded()[0]
    assert entry["name"] == entry["model"] == "plain:latest" and entry["digest"] == quiet.digest("plain")
    assert entry["size"] >= entry["size_vram"] == 0 and entry["context_length"] == 2048
    assert entry["details"]["family"] == "qwen3" and "expires_at" in entry


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_keep_alive_0_unloads(quiet, path):
    quiet.load("plain")
    pids = quiet.runners()
    answer = quiet.post(path, {"model": "plain", "keep_alive": 0})
    assert answer.status == 200 and answer.json()["done_reason"] == "unload"
    assert until(lambda: not quiet.loaded())
    assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_keep_alive_as_text_unloads(quiet):
    quiet.load("plain")
    assert quiet.post("/api/generate", {"model": "plain", "keep_alive": "0"}).json()["done_reason"] == "unload"
    assert until(lambda: not quiet.loaded())


def test_unloading_what_is_not_loaded_is_no_error(quiet):
    assert quiet.post("/api/generate", {"model": "plain", "keep_alive": 0}).json()["done_reason"] == "unload"


@pytest.mark.real
def test_unloading_an_embedding_model(quiet):
    quiet.post("/api/embed", {"model": "vectors", "input": "x"})
    assert [entry["name"] for entry in quiet.loaded()] == ["vectors:latest"]
    assert quiet.post("/api/generate", {"model": "vectors", "keep_alive": 0}).status == 200
    assert until(lambda: not quiet.loaded())


@pytest.mark.parametrize(("keep", "low", "high"), [(600, 500, 700), ("10m", 500, 700), ("1h30m", 5000, 5800), (90.0, 80, 100), (None, 200, 320)])
def test_keep_alive_sets_the_expiry(quiet, keep, low, high):
    import datetime

    quiet.load("plain", **({} if keep is None else {"keep_alive": keep}))
    text = quiet.loaded()[0]["expires_at"]
    stamp = datetime.datetime.fromisoformat(text[:19] + ("+00:00" if text.endswith("Z") else text[-6:]))
    left = (stamp - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    assert low < left < high


@pytest.mark.parametrize("keep", [-1, "-1m"])
def test_a_negative_keep_alive_means_for_ever(quiet, keep):
    quiet.load("plain", keep_alive=keep)
    assert int(quiet.loaded()[0]["expires_at"][:4]) > 2200


@pytest.mark.parametrize("keep", ["soon", True, "5"])
def test_a_bad_keep_alive(quiet, keep):
    assert quiet.post("/api/generate", {"model": "plain", "keep_alive": keep}).status == 400


def test_a_model_goes_when_its_time_is_over(quiet):
    quiet.load("plain", keep_alive="1s")
    assert quiet.loaded()
    assert until(lambda: not quiet.loaded(), 8)


def test_a_later_request_sets_the_time_anew(quiet):
    quiet.load("plain", keep_alive="1s")
    quiet.load("plain", keep_alive="10m")
    time.sleep(1.5)
    assert quiet.loaded()


def test_default_keep_alive_of_the_environment(fresh, gguf):
    server = fresh({"OLLAMA_KEEP_ALIVE": "1s"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m")
    assert until(lambda: not server.loaded(), 8)


def test_num_ctx_above_the_trained_length_is_capped(quiet):
    quiet.load("plain", options={"num_ctx": 65536})
    assert quiet.loaded()[0]["context_length"] == 40960


def test_two_names_on_the_same_weights_share_a_process(quiet, name):
    quiet.create(name, **{"from": "plain", "system": "x", "parameters": {"temperature": 0.1}})
    quiet.load("plain")
    pids = quiet.runners()
    quiet.load(name)
    assert quiet.runners() == pids
    assert [entry["name"] for entry in quiet.loaded()] == ["plain:latest"]


def test_an_alias_unloads_the_shared_process(quiet, name):
    quiet.create(name, **{"from": "plain", "system": "x"})
    quiet.load("plain")
    quiet.post("/api/generate", {"model": name, "keep_alive": 0})
    assert until(lambda: not quiet.loaded())


@pytest.mark.parametrize(("option", "value"), [("num_ctx", 1024), ("num_batch", 64), ("num_thread", 1)])
def test_runner_options_start_another_process(quiet, option, value):
    quiet.load("plain", options={"num_ctx": 2048})
    pids = quiet.runners()
    quiet.load("plain", options={"num_ctx": 2048, option: value})
    assert quiet.runners() != pids and len(quiet.loaded()) == 1


def test_the_same_runner_options_keep_the_process(quiet):
    quiet.load("plain", options={"num_ctx": 2048})
    pids = quiet.runners()
    quiet.load("plain", options={"num_ctx": 2048})
    assert quiet.runners() == pids


def test_sampling_options_keep_the_process(quiet):
    quiet.load("plain")
    pids = quiet.runners()
    quiet.post(
        "/api/generate",
        {
            "model": "plain",
            "prompt": "x",
            "stream": False,
            "options": {"temperature": 0.1, "top_k": 3, "seed": 5, "num_predict": 2},
        },
    )
    assert quiet.runners() == pids


def test_num_ctx_of_the_model_counts_as_the_requests(quiet, name):
    quiet.create(name, **{"from": "plain", "parameters": {"num_ctx": 1024}})
    quiet.load(name)
    assert quiet.loaded()[0]["context_length"] == 1024
    quiet.load(name, options={"num_ctx": 2048})
    assert quiet.loaded()[0]["context_length"] == 2048


def test_context_length_of_the_environment(fresh, gguf):
    server = fresh({"OLLAMA_CONTEXT_LENGTH": "3072"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m")
    assert server.loaded()[0]["context_length"] == 3072


def test_delete_does_not_unload(quiet, name, gguf):
    quiet.create(name, files={"m.gguf": quiet.upload(gguf["other"])})
    quiet.load(name, keep_alive="4s")
    pids = quiet.runners()
    assert quiet.call("DELETE", "/api/delete", {"model": name}).status == 200
    assert [entry["name"] for entry in quiet.loaded()] == [f"{name}:latest"]
    assert quiet.post("/api/generate", {"model": name, "keep_alive": 0}).status == 404
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not quiet.loaded(), 25)


def test_new_weights_under_a_loaded_name_leave_the_old_runner(quiet, name, gguf):
    """Both are listed under the same name with different digests: unload before replacing."""
    quiet.create(name, files={"m.gguf": quiet.upload(gguf["other"])})
    quiet.load(name, keep_alive="5s")
    old = quiet.digest(name)
    quiet.create(name, **{"from": "plain", "system": name})
    quiet.load(name, keep_alive="5s")
    found = sorted(entry["digest"] for entry in quiet.loaded() if entry["name"] == f"{name}:latest")
    assert found == sorted([old, quiet.digest(name)])
    until(lambda: not quiet.loaded(), 25)


def test_max_loaded_models_evicts(fresh, gguf):
    server = fresh({"OLLAMA_MAX_LOADED_MODELS": "1"})
    server.create("one", files={"m.gguf": server.upload(gguf["plain"])})
    server.create("two", files={"m.gguf": server.upload(gguf["other"])})
    server.load("one")
    server.load("two")
    assert [entry["name"] for entry in server.loaded()] == ["two:latest"] and len(server.runners()) == 1


def test_two_models_are_loaded_side_by_side(fresh, gguf):
    server = fresh()
    server.create("one", files={"m.gguf": server.upload(gguf["plain"])})
    server.create("two", files={"m.gguf": server.upload(gguf["other"])})
    server.load("one", keep_alive="5m")
    server.load("two", keep_alive="10m")
    assert [entry["name"] for entry in server.loaded()] == ["two:latest", "one:latest"], "the longest to live comes first"


def test_parallel_slots_multiply_the_cache_not_the_context(fresh, gguf):
    server = fresh({"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_CONTEXT_LENGTH": "2048"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m")
    assert server.loaded()[0]["context_length"] == 2048
    with open(f"/proc/{server.runners()[0]}/cmdline", "rb") as handle:
        words = handle.read().split(b"\0")
    assert words[words.index(b"-c") + 1] == b"4096" and words[words.index(b"-np") + 1] == b"2"


def test_command_line_of_a_runner(quiet):
    quiet.load("plain", options={"num_ctx": 2048, "num_batch": 128})
    with open(f"/proc/{quiet.runners()[0]}/cmdline", "rb") as handle:
        words = handle.read().decode().split("\0")
    assert words[words.index("--model") + 1].startswith(str(quiet.models / "blobs"))
    assert words[words.index("-b") + 1] == words[words.index("-ub") + 1] == "128"


def test_a_killed_runner_is_listed_until_the_next_request(quiet):
    quiet.load("plain")
    pid = quiet.runners()[0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}") or not quiet.runners())
    assert [entry["name"] for entry in quiet.loaded()] == ["plain:latest"]
    answer = quiet.post("/api/generate", {"model": "plain", "prompt": "x", "stream": False, "options": {"num_predict": 2}})
    assert answer.status == 200 and quiet.runners() != [pid]


def test_a_cache_type_that_does_not_exist_breaks_every_load(fresh, gguf):
    server = fresh({"OLLAMA_KV_CACHE_TYPE": "fp8"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    answer = server.post("/api/generate", {"model": "m"})
    assert answer.status == 500 and "llama-server process has terminated" in answer.error()
    assert server.loaded() == []


def test_a_quantised_cache_needs_flash_attention(fresh, gguf):
    server = fresh({"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    # On a busy machine the real one may see its runner's end before it has read why; the next load says it.
    for _try in range(5):
        answer = server.post("/api/generate", {"model": "m"})
        assert answer.status == 500
        if "flash" in answer.error().lower():
            return
    raise AssertionError(answer.error())


def test_a_quantised_cache_works_with_flash_attention_unset(fresh, gguf):
    server = fresh({"OLLAMA_KV_CACHE_TYPE": "q8_0"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m")
    with open(f"/proc/{server.runners()[0]}/cmdline", "rb") as handle:
        assert b"--cache-type-k\0q8_0\0" in handle.read()
