# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's parts: how Go writes values, names, environment, memory, GGUF. Its API is tested by tests/contract."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REPO = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPO / "lab/services"), str(REPO / "lab/real")]

import ollama_standin as standin  # noqa: E402
import shapes  # noqa: E402

MIB = 1024 * 1024
CARD_4090 = {"total": 24564 * MIB, "free": 24210 * MIB}


# -- Go's way with values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4096.0, "4096"),
        (0.7, "0.7"),
        (1048576.0, "1.048576e+06"),
        (12345678901.0, "1.2345678901e+10"),
        (1e-7, "1e-07"),
        (999999.0, "999999"),
        (1e6, "1e+06"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (-2.5, "-2.5"),
        (0.0, "0"),
        (1234567.5, "1.2345675e+06"),
    ],
)
def test_numbers_as_fmt_writes_them(value, text):
    assert standin.go_g(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value):
    assert float(standin.go_g(value)) == value
    assert float(standin.go_number(value)) == value


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",))))
def test_quoted_text_comes_back(text):
    """Go's quoting is Python's but for \\U and \\x of what is not printable, which Python reads alike."""
    quoted = standin.go_quote(text)
    assert quoted[0] == quoted[-1] == '"' and "\n" not in quoted
    plain = "".join(char if ord(char) < 128 else f"\\U{ord(char):08x}" for char in quoted[1:-1])
    assert plain.encode("ascii").decode("unicode_escape") == text


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=8) | st.integers(-(2**53), 2**53),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_json_without_html(value):
    text = standin.go_json(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("-1", None),
        ("0", 0),
        ("1.5s", 1.5),
        ("100ms", 0.1),
        ("-2m", -120),
        ("x", None),
        ("", None),
        ("5", None),
        ("1d", None),
        ("5m ", None),
    ],
)
def test_durations(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match="time: "):
            standin.go_duration(text)
    else:
        assert standin.go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("count", "text"),
    [(14768307200, "14.8B"), (262592, "263K"), (494032768, "494.03M"), (7, "7"), (2 * 10**9, "2B"), (10**6, "1M")],
)
def test_counts_as_people_read_them(count, text):
    assert standin.human_number(count) == text


# -- environment


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ("127.0.0.1", 11434)),
        ("0.0.0.0", ("0.0.0.0", 11434)),
        ("1.2.3.4:80", ("1.2.3.4", 80)),
        (":8080", ("", 8080)),
        ("http://h", ("h", 80)),
        ("https://h/x", ("h", 443)),
        ("h:99999", ("h", 11434)),
        ("h:abc", ("h", 11434)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 11434)),
        (' "1.2.3.4:5" ', ("1.2.3.4", 5)),
    ],
)
def test_address(monkeypatch, text, wanted):
    monkeypatch.setenv("OLLAMA_HOST", text)
    assert standin.host_and_port() == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1", True), ("false", False), ("F", False), ("maybe", True), ("", False), ("no", True), ("'0'", False)],
)
def test_switches(monkeypatch, text, wanted):
    monkeypatch.setenv("X_SWITCH", text)
    assert standin.env_bool("X_SWITCH") is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", 300), ("10m", 600), ("-1", standin.FOREVER_S), ("0", 0), ("45", 45), ("soon", 300), ("-5m", standin.FOREVER_S)],
)
def test_times(monkeypatch, text, wanted):
    monkeypatch.setenv("X_TIME", text)
    assert standin.env_duration("X_TIME", 300) == wanted


def test_a_bad_number_is_replaced_aloud(monkeypatch, capsys):
    monkeypatch.setenv("X_NUMBER", "8k")
    assert standin.env_uint("X_NUMBER", 7) == 7
    assert "invalid environment variable, using default" in capsys.readouterr().err


# -- names


@pytest.mark.parametrize(
    ("text", "short", "path"),
    [
        ("a", "a:latest", "registry.ollama.ai/library/a/latest"),
        ("n/a:t", "n/a:t", "registry.ollama.ai/n/a/t"),
        ("h:5000/n/a", "h:5000/n/a:latest", "h:5000/n/a/latest"),
        ("http://h/n/a", "h/n/a:latest", "h/n/a/latest"),
    ],
)
def test_names(text, short, path):
    name = standin.Name.parse(text)
    assert name.valid() and name.short() == short and name.path() == path


@given(st.text(max_size=40))
def test_a_valid_name_is_a_path_below_the_store(text):
    name = standin.Name.parse(text)
    if name.valid():
        assert name.path().count("/") == 3
        assert not any(part.startswith(".") for part in name.path().split("/"))
        assert standin.Name.parse(name.full()).path() == name.path()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a:cloud", ("a", "cloud")), ("a:b-cloud", ("a:b", "cloud")), ("a:local", ("a", "local")), ("a:b", ("a:b", ""))],
)
def test_reserved_suffixes(text, wanted):
    assert standin.cut_source(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Prompt }}",
        "{{ if .System }}{{ .System }}{{ end }}",
        "{{- range $i, $_ := .Messages }}{{ len (slice $.Messages $i) }}{{ end }}",
        "{{/* a comment */}}",
        '{{ eq .Role "x y z" }}',
    ],
)
def test_templates_that_go_takes(text):
    standin.check_template(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ .X", "unclosed action"),
        ("{{ if .X }}", "unexpected EOF"),
        ("{{ end }}", "unexpected {{end}}"),
        ("a\n{{ foo .X }}", ':2: function "foo" not defined'),
    ],
)
def test_templates_that_go_refuses(text, said):
    with pytest.raises(standin.ApiError) as caught:
        standin.check_template(text)
    assert said in caught.value.message and caught.value.status == 400


# -- memory: held against what the real server's own dry run printed (facts: b10488, Qwen3-14B, ubatch 512 and 1024)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("shape") / "m.gguf"
    shapes.write("qwen3-14b-q4_K_M", path)
    return standin.Gguf(str(path))


def plan(gguf, cards, **changes):
    flags = {
        "ctx": 40960,
        "parallel": 1,
        "ubatch": 1024,
        "cache_k": "q8_0",
        "cache_v": "q8_0",
        "flash": True,
        "gpu_layers": -1,
        "fit_target": 1024 * MIB,
    }
    return standin.memory_plan(gguf, {**flags, **changes}, cards)


@pytest.mark.parametrize(
    ("changes", "cache", "compute"),
    [
        ({}, 3400, 324),
        ({"ubatch": 512}, 3400, 162),
        ({"ubatch": 512, "ctx": 8192}, 680, 130),
        ({"ubatch": 512, "cache_k": "f16", "cache_v": "f16"}, 6400, 172),
        ({"ubatch": 512, "ctx": 8192, "cache_k": "f16", "cache_v": "f16"}, 1280, 140),
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


def test_a_card_that_is_too_small_gets_a_part(qwen):
    found = plan(qwen, [{"total": 8192 * MIB, "free": 8192 * MIB}])
    assert 0 < found["on_card"] < 41
    assert 0 < found["vram"] < found["size"]
    assert found["vram"] <= (8192 - 1024 - 457) * MIB


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
    two = [dict(CARD_4090), dict(CARD_4090)]
    assert sorted(bool(size) for size in plan(qwen, two)["places"]) == [False, True]
    small = [{"total": 10000 * MIB, "free": 10000 * MIB}] * 2
    found = plan(qwen, small)
    assert all(found["places"]) and found["on_card"] == 41


@settings(max_examples=30)
@given(free=st.integers(0, 26000), ctx=st.integers(256, 131072))
def test_a_plan_never_takes_more_than_is_free(qwen, free, ctx):
    found = plan(qwen, [{"total": 26000 * MIB, "free": free * MIB}], ctx=ctx)
    assert found["vram"] == 0 or found["vram"] + (457 + 1024) * MIB <= free * MIB
    assert found["size"] >= found["vram"]


# -- GGUF


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.gguf"
    shapes.write(shapes.TINY, path)
    return path


def test_header_of_a_file(tiny):
    gguf = standin.Gguf(str(tiny))
    assert gguf.arch == "qwen3" and gguf.get("block_count") == 2 and gguf.file_type() == "F16"
    assert gguf.kv["tokenizer.ggml.tokens"].count == len(gguf.kv["tokenizer.ggml.tokens"].read()) == len(gguf.kv["tokenizer.ggml.token_type"])
    last = gguf.tensors[-1]
    assert gguf.data_offset + last[3] + gguf.tensor_bytes(last[1], last[2]) <= gguf.size


@given(st.binary(max_size=200))
def test_what_is_no_gguf_is_an_error_not_a_crash(tmp_path_factory, body):
    path = tmp_path_factory.getbasetemp() / "hostile.gguf"
    for content in (body, b"GGUF" + body, b"GGUF\3\0\0\0" + body):
        path.write_bytes(content)
        with pytest.raises(standin.GgufError):
            standin.Gguf(str(path))


def test_a_rewritten_file_says_the_same_and_is_a_fixpoint(tiny, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for target in (first, second):
        target.touch()
    standin.rewrite_gguf(standin.Gguf(str(tiny)), str(first), 7)
    once = standin.Gguf(str(first))
    assert once.file_type() == "Q8_0" and once.kv["general.quantization_version"] == 2
    assert [tensor[:3] for tensor in once.tensors] == [tensor[:3] for tensor in standin.Gguf(str(tiny)).tensors]
    standin.rewrite_gguf(once, str(second))
    assert second.read_bytes() == first.read_bytes()
    data = standin.Gguf(str(tiny))
    assert first.read_bytes()[once.data_offset :] == tiny.read_bytes()[data.data_offset :]


def test_holes_stay_holes(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as out:
        out.write(b"head")
        out.seek(32 * MIB)
        out.write(b"middle")
        out.truncate(64 * MIB)
    with open(source, "rb") as one, open(target, "w+b") as other:
        standin.copy_sparse(one, other, 0, 0, 64 * MIB)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert target.stat().st_blocks * 512 < 4 * MIB


# -- faults


def test_faults_are_read_again_each_time(tmp_path):
    path = tmp_path / "faults.json"
    faults = standin.Faults(str(path))
    assert faults.get("slow_load_s") == 0 and not faults.hits("hang", "/api/tags")
    path.write_text('{"slow_load_s": 3, "hang": ["/api/t"], "status_500": true}')
    assert faults.get("slow_load_s") == 3
    assert faults.hits("hang", "/api/tags") and not faults.hits("hang", "/api/ps") and faults.hits("status_500", "/x")
    path.write_text("{")
    assert faults.all() == {}


def test_the_faults_file_lies_beside_the_models(monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", "/var/lib/ollama/models")
    monkeypatch.delenv("OLLAMA_LAB_FAULTS", raising=False)
    assert standin.faults_path() == "/var/lib/ollama/lab-faults.json"


def test_nonsense_depends_on_nothing_but_its_text():
    assert standin.nonsense("a", 5) == standin.nonsense("a", 9)[:5] != standin.nonsense("b", 5)


def test_a_mapping_is_not_touched_memory():
    before = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    held = standin.map_vram(1 << 34, 0)
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert [line for line in maps.splitlines() if line.endswith("/dev/zero") and "---p" in line]
    assert (int(pathlib.Path("/proc/self/statm").read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE") < 16 * MIB
    held.close()
