# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import sys
import time

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import dry_run
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[4]))

from bench import plan as bench_plan  # noqa: E402

# Printed by llama-server b10488 for Qwen3-14B q8_0 at 65,536 tokens of f16.
HEAD = "common_memory_breakdown_print: | memory breakdown [MiB]     |  total     free     self   model   context   compute    unaccounted |\n"
ONE = "common_memory_breakdown_print: |   - RPC0 (127.0.0.1:50952) | 102400 = 102400 + (24613 = 14177 +   10240 +     196) +      -24613 |\n"
HOST = "common_memory_breakdown_print: |   - Host                   |                      872 =   788 +       0 +      84                |\n"
PROJECTED = "common_params_fit_impl: projected to use 24613 MiB of device memory vs. 102400 MiB of free device memory\n"
# The same on two cards, with other names and paddings.
TWO = (
    "common_memory_breakdown_print: |   - CUDA0 (RTX 4090)       |  24077 =  23600 + (12306 =  7088 +    5120 +      98) +      -11829 |\n"
    "common_memory_breakdown_print: |   - CUDA1 (RTX 4090)       |  24077 =  23600 + (12307 =  7089 +    5120 +      98) +      -11830 |\n"
)
MODEL = {"context": 8192, "slots": 2, "kv_cache_type": "q8_0", "flash_attention": True}
CARD = {"index": 0, "uuid": None}


def test_one_card():
    said = dry_run.parse("noise\n" + HEAD + ONE + HOST + PROJECTED)
    assert said == {"weights_mib": 14177, "kv_mib": 10240, "compute_mib": 196, "host_mib": 872, "device_mib": 24613, "per_card_mib": [24613]}


def test_no_card():
    said = dry_run.parse(HEAD + HOST + "common_params_fit_impl: projected to use 872 MiB of host memory vs. 24105 MiB of total host memory\n")
    assert said == {"refused": "the engine found no GPU."}


def test_a_port_that_was_taken_says_nothing_of_the_model():
    said = dry_run.parse("srv start: couldn't bind HTTP server socket\nsrv llama_server: exiting due to HTTP server error\n")
    assert "refused" in said and "loads" not in said


def test_two_cards():
    said = dry_run.parse(HEAD + TWO + HOST + PROJECTED.replace("24613 MiB of device", "24614 MiB of device"))
    assert said["device_mib"] == 24614  # the engine's own sum, more exact than that of two figures that were cut
    assert (said["weights_mib"], said["kv_mib"], said["compute_mib"], said["per_card_mib"]) == (14177, 10240, 196, [12306, 12307])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\xff" * 100,
        PROJECTED,
        HEAD + PROJECTED,
        HEAD + ONE + PROJECTED,
        HEAD + HOST + PROJECTED,
        HEAD + ONE.replace("(24613 = ", "(") + HOST + PROJECTED,
        HEAD + ONE.replace("10240", "10290") + HOST + PROJECTED,
        HEAD + ONE + ONE + HOST + PROJECTED,
        HEAD + ONE + ONE.replace("RPC0 (127.0.0.1:50952)", "new form") + HOST + PROJECTED,
        HEAD + ONE + HOST + PROJECTED.replace("24613 MiB of device", "9999 MiB of device"),
        HEAD + ONE + HOST + "will use 24613 MiB\n",
    ],
)
def test_any_other_form_is_refused_and_never_guessed_at(text):
    assert "refused" in dry_run.parse(text)


@pytest.mark.parametrize("text", ["error loading model: unknown model architecture: 'x'\n", "/src/ggml-impl.h:318: fatal error\n", "GGML_ASSERT(x) failed\n"])
def test_an_engine_that_ends_by_an_error_says_so(text):
    said = dry_run.parse("load\n" + text)
    assert said["loads"] is False and text.strip().rsplit("/", 1)[-1] in said["refused"]


@pytest.mark.parametrize(
    ("text", "path", "build"),
    [
        ("version: 10488 (abcdef1)\nbuilt with GCC", "", 10488),
        ("version: 0.1.2-dev (build 10500, commit abc)\n", "", 10500),
        ("version: 0.1.2-dev (build 0, commit unknown)\n", "/opt/ollama/0.32.15/lib/ollama", 10488),
        ("version: 0.1.2-dev (build 0, commit unknown)\n", "/opt/engine", None),
        ("", "", None),
    ],
)
def test_the_build_of_an_engine(text, path, build):
    assert dry_run.build_of(text, path) == build


def test_the_flags_are_those_of_ollama():
    assert " ".join(dry_run.flags("/m", 1, MODEL, 512)) == (
        "--model /m --port 1 --host 127.0.0.1 --no-webui --offline -c 16384 -np 2 --log-verbosity 4 --no-log-prefix"
        " --no-log-timestamps --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on -b 512 -ub 512"
    )


def test_the_environment_is_that_of_ollama(tmp_path):
    (tmp_path / "cuda_v13").mkdir()
    (tmp_path / "cuda_v13/libggml-cuda.so").touch()
    engine = {"folder": str(tmp_path), "environment": {"CUDA_VISIBLE_DEVICES": "GPU-1"}}
    made = dry_run._environment(engine, "cuda_v13")
    assert made["LD_LIBRARY_PATH"] == f"{tmp_path}:{tmp_path}/cuda_v13" and made["GGML_BACKEND_PATH"] == f"{tmp_path}/cuda_v13/libggml-cuda.so"
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-1" and "SSH_AUTH_SOCK" not in made


def engine_of(tmp_path, script):
    server = tmp_path / "llama-server"
    server.write_text(f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'version: 10488 (x)'; exit; fi\n{script}\n")
    server.chmod(0o755)
    return dry_run.find(str(tmp_path), {})


@pytest.fixture
def header():
    return plan_given.from_metadata({"general.architecture": "qwen3", "tensors": [{"name": "token_embd.weight", "type": "f32", "shape": [32, 32]}]})


def test_an_engine_is_ended_as_soon_as_it_has_said_it(tmp_path, header):
    (tmp_path / "said").write_text(HEAD + ONE + HOST + PROJECTED)
    engine = engine_of(tmp_path, f"cat {tmp_path}/said; echo $$ > {tmp_path}/pid; exec sleep 60")
    started = time.monotonic()
    said = dry_run.run(engine, {**MODEL, "header": header}, [CARD], 512)
    assert said["per_card_mib"] == [24613] and said["engine"] == "b10488" and time.monotonic() - started < 10
    pid = (tmp_path / "pid").read_text().strip() if (tmp_path / "pid").exists() else ""
    assert not pid or not os.path.exists(f"/proc/{pid}")


def test_an_engine_that_says_nothing_is_given_up(tmp_path, header, monkeypatch):
    engine = engine_of(tmp_path, "exec sleep 60")
    monkeypatch.setattr(dry_run, "DEADLINE_S", 0.3)
    assert "did not say within" in dry_run.run(engine, {**MODEL, "header": header}, [CARD], 512)["refused"]


def test_an_engine_that_floods_is_given_up(tmp_path, header):
    engine = engine_of(tmp_path, "exec yes")
    assert "refused" in dry_run.run(engine, {**MODEL, "header": header}, [CARD], 512)


def test_a_full_card_is_left_alone(tmp_path, header):
    engine = engine_of(tmp_path, f"touch {tmp_path}/started")
    card = {**CARD, "free_mib": 900}
    assert "900 MiB free" in dry_run.run(engine, {**MODEL, "header": header}, [card], 512)["refused"]
    assert not (tmp_path / "started").exists()


def test_another_number_of_cards_is_refused(tmp_path, header):
    (tmp_path / "said").write_text(HEAD + ONE + HOST + PROJECTED)
    engine = engine_of(tmp_path, f"cat {tmp_path}/said")
    said = dry_run.run(engine, {**MODEL, "header": header}, [CARD, {"index": 1, "uuid": None}], 512)
    assert "sees 1 GPUs; the plan has 2" in said["refused"]


def test_no_engine_and_no_such_user(tmp_path, header):
    assert dry_run.find(str(tmp_path)) is None
    engine_of(tmp_path, "true")
    if os.geteuid() == 0:
        with pytest.raises(dry_run.DryRunError, match="whom this host does not have"):
            dry_run.find(str(tmp_path), {}, "no-such-user")


CACHE = pathlib.Path(os.environ.get("GPUFLEET_CACHE", "~/.cache/gpufleet")).expanduser()
ENGINES = sorted(path.parents[1] for path in CACHE.glob("real/*/lab/ggml-rpc-server"))


@pytest.mark.slow
@pytest.mark.skipif(not ENGINES, reason="needs make real-server")
@pytest.mark.parametrize("release", ENGINES, ids=lambda path: path.name)
@pytest.mark.parametrize("cards", [1, 2])
def test_each_real_engine_still_speaks_this_form(cards, release):
    folder = release / "lib" / "ollama"
    header = bench_plan.header_of("qwen3-4b-q4_K_M")
    with bench_plan.simulated_card(folder.parents[1]) as first, bench_plan.simulated_card(folder.parents[1]) as second:
        engine = dry_run.find(str(folder), {"LLAMA_ARG_RPC": f"{first},{second}"})
        given = [{"index": index, "uuid": None} for index in range(cards)]
        said = dry_run.run(engine, {**MODEL, "header": header}, given, 512, given=True)
    told = bench_plan.formula(header, 8192, "q8_0", 2, 512, True)
    assert abs(said["weights_mib"] - told["weights_mib"]) <= 2 and abs(said["kv_mib"] - told["kv_mib"]) <= 1 and len(said["per_card_mib"]) == cards
    assert abs(said["compute_mib"] - cards * told["compute_mib"]) <= (1 if cards == 1 else 0.02 * sum(said["per_card_mib"]))
