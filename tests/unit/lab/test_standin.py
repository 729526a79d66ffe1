# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's parts: environment, names, memory, GGUF. Its API is tested by tests/contract."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REPO = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPO / "lab"), str(REPO / "lab/real")]

import shapes  # noqa: E402
from standin import card, gguf  # noqa: E402
from standin import settings as environment
from standin.store import Name  # noqa: E402

MIB = 1024 * 1024
CARD_4090 = {"total": 24564 * MIB, "free": 24210 * MIB}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ("127.0.0.1", 11434)), ("0.0.0.0", ("0.0.0.0", 11434)), ("1.2.3.4:80", ("1.2.3.4", 80)), (":8080", ("", 8080)),
        ("http://h", ("h", 80)), ("https://h/x", ("h", 443)), ("h:abc", ("h", 11434)), ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 11434)), (' "1.2.3.4:5" ', ("1.2.3.4", 5)),
    ],
)  # fmt: skip
def test_address(monkeypatch, text, wanted):
    monkeypatch.setenv("OLLAMA_HOST", text)
    assert environment.host_and_port() == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", 300), ("10m", 600), ("1h30m", 5400), ("-1", environment.FOREVER_S), ("0", 0), ("45", 45), ("soon", 300), ("-5m", environment.FOREVER_S)],
)
def test_times(monkeypatch, text, wanted):
    monkeypatch.setenv("X_TIME", text)
    assert environment.env_duration("X_TIME", 300) == wanted


@given(st.text(max_size=40))
def test_a_valid_name_is_a_path_below_the_store(text):
    name = Name.parse(text)
    if name.valid():
        assert name.path().count("/") == 3
        assert not any(part.startswith(".") for part in name.path().split("/"))
        assert Name.parse(name.full()) == name


# -- memory: held against what the real server's own dry run printed (b10488, Qwen3-14B, ubatch 512 and 1024)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("shape") / "m.gguf"
    shapes.write("qwen3-14b-q4_K_M", path)
    return gguf.Gguf(str(path))


def plan(weights, cards, **changes):
    flags = {
        "ctx": 40960, "parallel": 1, "ubatch": 1024, "cache_k": "q8_0", "cache_v": "q8_0", "flash": True,
        "gpu_layers": -1, "fit_target": 1024 * MIB,
    }  # fmt: skip
    return card.plan(weights, {**flags, **changes}, cards)


@pytest.mark.parametrize(
    ("changes", "cache", "compute"),
    [
        ({}, 3400, 324),
        ({"ubatch": 512}, 3400, 162),
        ({"ubatch": 512, "ctx": 8192}, 680, 130),
        ({"ubatch": 512, "cache_k": "f16", "cache_v": "f16"}, 6400, 172),
        ({"ubatch": 512, "ctx": 32768, "flash": False, "cache_k": "f16", "cache_v": "f16"}, 5120, 164 + 2560),
        ({"ubatch": 512, "ctx": 81920, "parallel": 2}, 6800, 162),
    ],
)
def test_terms_of_the_plan(qwen, changes, cache, compute):
    found = plan(qwen, [CARD_4090], **changes)
    assert found["cache"] / MIB == cache
    assert found["compute"] / MIB == pytest.approx(compute, abs=3)


def test_a_model_that_fits_is_wholly_on_the_card(qwen):
    found = plan(qwen, [CARD_4090])
    assert found["on_card"] == found["layers"] == 41
    assert found["size"] == found["vram"] == found["wanted"]
    assert found["vram"] / MIB == pytest.approx(11885, abs=1)
    assert found["host_weights"] // MIB == 417


def test_no_card_is_the_cpu(qwen):
    found = plan(qwen, [])
    assert found["vram"] == 0 and found["places"] == [] and found["size"] > 12000 * MIB


def test_a_number_of_layers_that_was_asked_for_is_kept_or_fails(qwen):
    small = [{"total": 8192 * MIB, "free": 8192 * MIB}]
    assert plan(qwen, small, gpu_layers=0)["vram"] == 0
    assert plan(qwen, small, gpu_layers=1)["on_card"] == 1
    with pytest.raises(MemoryError):
        plan(qwen, small, gpu_layers=99)


def test_what_fits_one_card_stays_on_one_and_more_is_split(qwen):
    assert sorted(bool(size) for size in plan(qwen, [dict(CARD_4090), dict(CARD_4090)])["places"]) == [False, True]
    found = plan(qwen, [{"total": 10000 * MIB, "free": 10000 * MIB}] * 2)
    assert all(found["places"]) and found["on_card"] == 41


@settings(max_examples=30)
@given(free=st.integers(0, 26000), ctx=st.integers(256, 131072))
def test_a_plan_never_takes_more_than_is_free(qwen, free, ctx):
    found = plan(qwen, [{"total": 26000 * MIB, "free": free * MIB}], ctx=ctx)
    assert found["vram"] == 0 or found["vram"] + (457 + 1024) * MIB <= free * MIB
    assert found["size"] >= found["vram"]


# -- GGUF


@given(st.binary(max_size=200))
def test_what_is_no_gguf_is_an_error_not_a_crash(tmp_path_factory, body):
    path = tmp_path_factory.getbasetemp() / "hostile.gguf"
    for content in (body, b"GGUF" + body, b"GGUF\3\0\0\0" + body):
        path.write_bytes(content)
        with pytest.raises(gguf.GgufError):
            gguf.Gguf(str(path))


def test_a_rewritten_file_says_the_same_is_a_fixpoint_and_keeps_its_holes(tmp_path):
    source, first, second = tmp_path / "source.gguf", tmp_path / "1", tmp_path / "2"
    shapes.write("qwen3-14b-q4_K_M", source, 2)
    gguf.rewrite(gguf.Gguf(str(source)), str(first))
    assert gguf.Gguf(str(first)).tensors == gguf.Gguf(str(source)).tensors
    gguf.rewrite(gguf.Gguf(str(first)), str(second))
    assert second.stat().st_size == first.stat().st_size > source.stat().st_size
    assert second.stat().st_blocks * 512 < 64 * MIB < second.stat().st_size


def test_faults_are_read_again_each_time(tmp_path, monkeypatch):
    path = tmp_path / "lab-faults.json"
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    faults = environment.Faults()
    assert faults.get("answer_tokens", 7) == 7 and not faults.hits("status_500", "/api/tags")
    path.write_text('{"answer_tokens": 3, "status_500": ["/api/t"]}')
    assert faults.get("answer_tokens", 7) == 3
    assert faults.hits("status_500", "/api/tags") and not faults.hits("status_500", "/api/ps")


def test_a_mapping_is_not_touched_memory():
    before = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    held = card.hold(1 << 34, 0)
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert [line for line in maps.splitlines() if line.endswith("/dev/zero") and "---p" in line]
    assert (int(pathlib.Path("/proc/self/statm").read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE") < 16 * MIB
    held.close()
