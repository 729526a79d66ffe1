# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of lab/real/shapes.py: sizes as published, files as GGUF readers want them, types as llama-quantize gives them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[3] / "lab" / "real"
sys.path.insert(0, str(REAL))

import shapes  # noqa: E402  pylint: disable=wrong-import-position

PUBLISHED_GB = {
    # File sizes as the model pages show them: ggml-org, unsloth, bartowski and lmstudio-community on Hugging Face; ollama.com for "-library".
    "qwen3-14b-q4_K_M": 9.00,
    "qwen3-14b-q4_K_M-library": 9.28,
    "qwen3-14b-q8_0": 15.70,
    "qwen3-4b-q4_K_M": 2.50,
    "qwen3-8b-q4_K_M": 5.03,
    "qwen3-32b-q4_K_M": 19.76,
    "qwen3-30b-a3b-q4_K_M": 18.56,
    "llama3.1-8b-q4_K_M": 4.92,
    "llama3.2-3b-q4_K_M": 2.02,
    "mistral-small-24b-q4_K_M": 14.33,
    "phi-4-q4_K_M": 9.05,
    "gemma3-12b-q4_K_M": 7.30,
    "gpt-oss-20b-mxfp4": 12.11,
    "gpt-oss-20b-mxfp4-library": 13.79,
    "deepseek-v2-lite-q4_K_M": 10.36,
}


def engine():
    """Return lib/ollama of the real server if it is built here."""
    answer = subprocess.run([str(REAL / "build"), "--path"], capture_output=True, text=True, check=False)
    return Path(answer.stdout.splitlines()[0]) / "lib" / "ollama" if answer.returncode == 0 else None


def small_vocabulary(monkeypatch, model):
    """Give a model a vocabulary that other readers walk through in no time; widths, layers and types are unaffected."""
    monkeypatch.setitem(shapes.MODELS, model, dict(shapes.MODELS[model], vocab=3072))


@pytest.mark.parametrize("name", sorted(PUBLISHED_GB))
def test_a_shape_is_as_large_as_the_published_file(name):
    tensors = shapes.describe(name)["tensors"]
    header = 0.0055 if "gemma" not in name else 0.0071
    assert sum(tensor["bytes"] for tensor in tensors) / 1e9 + header == pytest.approx(PUBLISHED_GB[name], abs=0.012)


def test_weights_on_the_card_are_those_of_a_real_log():
    """CUDA log of Qwen3-14B Q8_0: 14,177.36 MiB on the card, 788.24 on the host."""
    tensors = shapes.describe("qwen3-14b-q8_0")["tensors"]
    host = sum(tensor["bytes"] for tensor in tensors if tensor["name"] == "token_embd.weight") / 2**20
    card = sum(tensor["bytes"] for tensor in tensors) / 2**20 - host
    assert (round(card, 2), round(host, 2)) == (14177.36, 788.24)


def test_two_layers_keep_the_widths():
    whole, two = (shapes.describe("qwen3-14b-q4_K_M", layers)["tensors"] for layers in (None, 2))
    by_name = {tensor["name"]: tensor["shape"] for tensor in whole}
    assert len(two) == 2 * 11 + 3
    assert all(by_name[tensor["name"]] == tensor["shape"] for tensor in two)


@pytest.mark.parametrize("layers", [0, 41, -1])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(shapes.ShapeError, match="40 layers"):
        shapes.describe("qwen3-14b-q4_K_M", layers)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(shapes.ShapeError, match="qwen3-14b-q4_K_M"):
        shapes.describe("qwen3-15b-q4_K_M")


@pytest.mark.parametrize("name,layers", [("qwen3-14b-q4_K_M", 2), ("gemma3-12b-q4_K_M", 2), ("deepseek-v2-lite-q4_K_M", 3), ("tiny-qwen3", None)])
def test_another_reader_reads_the_file(name, layers, tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="the PyPI package gguf reads the file back")
    if name != shapes.TINY:
        small_vocabulary(monkeypatch, shapes.SHAPES[name]["model"])
    made = shapes.write(name, tmp_path / "model.gguf", layers)
    assert os.stat(made["path"]).st_size == made["bytes"]
    reader = gguf.GGUFReader(made["path"])
    assert len(reader.tensors) == made["tensors"]
    if name != shapes.TINY:
        told = shapes.describe(name, layers)
        read = {tensor.name: (list(map(int, tensor.shape)), tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in reader.tensors}
        assert read == {tensor["name"]: (tensor["shape"], tensor["type"], tensor["bytes"]) for tensor in told["tensors"]}
        assert os.stat(made["path"]).st_blocks * 512 < made["header_bytes"] + 65536, "the data is to be a hole"
    tokens = reader.get_field("tokenizer.ggml.tokens")
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert len(tokens.data) == int(embedding.shape[1])


def test_the_header_is_as_long_as_the_real_one():
    """Vocabulary and merges of Qwen3 are about 5.4 MB; the architecture's keys lie in the first 64 KiB."""
    head, _offsets, _length = shapes.header(
        shapes.metadata("qwen3-14b-q4_K_M") + shapes.tokenizer(shapes.MODELS["qwen3-14b"]),
        shapes.describe("qwen3-14b-q4_K_M")["tensors"],
    )
    assert 5.2e6 < len(head) < 6.0e6
    assert head.index(b"qwen3.attention.value_length") < 65536


@pytest.mark.parametrize("count", [1280, 100352, 151936, 201088])
def test_every_merge_joins_two_tokens_into_a_third(count):
    tokens, types, merges = shapes.byte_pairs(count, shapes.SPECIAL_QWEN)
    known = set(tokens)
    assert len(tokens) == len(types) == count == len(known)
    assert all(left in known and right in known and left + right in known for left, right in (merge.split(" ") for merge in merges))


def test_tiny_is_the_same_every_time_and_never_says_bytes(tmp_path):
    first, second = (shapes.write(shapes.TINY, tmp_path / f"{number}.gguf") for number in (1, 2))
    assert Path(first["path"]).read_bytes() == Path(second["path"]).read_bytes()
    assert first["bytes"] < 1_000_000


@pytest.mark.parametrize("model", sorted(shapes.MODELS))
def test_types_are_those_that_llama_quantize_gives(model, tmp_path, monkeypatch):
    libraries = engine()
    if libraries is None:
        pytest.skip("the real server is not built here (make real-server)")
    name, mix = (f"{model}-mxfp4", "MXFP4_MOE") if model == "gpt-oss-20b" else (f"{model}-q4_K_M", "Q4_K_M")
    small_vocabulary(monkeypatch, model)
    made = shapes.write(f"{model}-F16", tmp_path / "model.gguf")
    said = subprocess.run(
        [str(libraries / "llama-quantize"), "--dry-run", made["path"], mix],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    given = {}
    for line in (said.stdout + said.stderr).splitlines():
        found = re.match(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+-.*type =\s+(\w+),", line)
        if found:
            changed = re.search(r"->\s+[\d.]+ MiB \((\w+)\)", line)
            given[found.group(1)] = (changed.group(1) if changed else found.group(2)).upper()
    assert given == {tensor["name"]: tensor["type"] for tensor in shapes.describe(name)["tensors"]}
