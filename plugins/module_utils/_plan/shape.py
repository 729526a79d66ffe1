# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""The shape of a model: what of its header decides the memory, and nothing else."""

from __future__ import annotations

from . import compute
from .compute import LATENT_CACHE

# Tensors that llama.cpp keeps on the host: its input layer (llama-model.cpp, LLM_TENSOR_LAYER_INPUT).
INPUT_TENSORS = frozenset(
    [
        "token_embd.weight",
        "per_layer_token_embd.weight",
        "position_embd.weight",
        "token_types.weight",
        "token_embd_norm.weight",
        "token_embd_norm.bias",
    ]
)
# Architectures whose cache is one row of K and V per layer, KV head and token, and nothing else.
PLAIN_CACHE = frozenset(
    [
        "llama",
        "mistral3",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "phi3",
        "granite",
        "granitemoe",
        "olmoe",
        "starcoder2",
        "gemma",
        "internlm2",
        "smollm3",
    ]
)
# Every n-th layer sees the whole context, the others a window (llama_hparams::set_swa_pattern).
WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4}
RECURRENT = frozenset(
    [
        "mamba",
        "mamba2",
        "jamba",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
        "arwkv7",
        "falcon-h1",
        "lfm2",
        "lfm2moe",
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "granitehybrid",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
        "plamo2",
        "plamo3",
        "kimi-linear",
    ]
)


EMBEDDING = ("bert", "nomic-bert", "jina-bert")


class VramError(Exception):
    """Settings that the server would refuse, or a header that lacks a key; the text is fit for an operator."""


def describe(header):
    """The shape of a header::

        {"architecture", "layers", "context_length", "hidden", "heads", "feed_forward", "experts_used",
         "expert_feed_forward", "vocabulary", "file_bytes", "tied": bool,
         "host_bytes": n,                       # what stays in the host's memory (the input embedding)
         "layer_bytes": [n, …], "end_bytes": n, # weights on the GPU: each layer's, and the output's with the norms
         "cache": [{"k": elements, "v": elements, "head_k": n, "head_v": n, "window": n | None}, …] | None,
         "extra_bytes": n,                      # projector and adapters
         "query": n, "key_value": n,            # elements of one token's Q, and of its K
         "kv_heads": n,                         # the smallest of all layers, as Ollama's own estimate takes it
         "incomplete": None | "why tensors are missing",
         "unknown": {"weights" | "kv" | "compute": "why the formula does not know this term"}}

    VramError where a key that every model has is missing or absurd.
    """
    keys = _Keys(header)
    layers, hidden = keys.number("block_count"), keys.number("embedding_length")
    heads = keys.number("attention.head_count", 0)
    if not layers or not hidden or layers > 4096:
        raise VramError(
            f"{keys.source} lacks {keys.architecture}.block_count or {keys.architecture}.embedding_length, so its"
            " memory cannot be planned."
        )
    unknown: dict[str, str] = {}
    shape = {
        "architecture": keys.architecture,
        "layers": layers,
        "context_length": keys.number("context_length", 0) or None,
        "hidden": hidden,
        "heads": heads,
        "feed_forward": keys.number("feed_forward_length", 0),
        "experts_used": keys.number("expert_used_count", 0),
        "expert_feed_forward": keys.number("expert_feed_forward_length", 0),
        "expert_shared_feed_forward": keys.number("expert_shared_feed_forward_length", 0),
        "file_bytes": header["file_bytes"],
        "extra_bytes": sum(header.get("extra_bytes", {}).values()),
        "kv_heads": min(keys.per_layer("attention.head_count_kv", layers, heads) or [0]),
        "unknown": unknown,
        **_weights(header["tensors"], layers, unknown),
    }
    shape["incomplete"] = _missing(header, shape)
    shape["cache"] = _cache(keys, layers, hidden, heads, unknown)
    rows = shape["cache"] or [{"k": 0, "head_k": 0}]
    shape["query"] = heads * max(row["head_k"] for row in rows)
    shape["key_value"] = max(row["k"] for row in rows)
    reason = compute.unknown_reason(shape) if shape["cache"] else unknown["kv"]
    if keys.get("pooling_type") is not None or keys.architecture.startswith(EMBEDDING):
        reason = f"{keys.architecture} is an embedding model"
    if reason:
        unknown["compute"] = reason
    return shape


def _missing(header, shape):
    """Why tensors of a header are missing, also noted as unknown weights; None where none are known to be."""
    incomplete = header.get("incomplete")
    empty = [index for index, size in enumerate(shape["layer_bytes"]) if not size]
    if not header["tensors"] and not incomplete:
        raise VramError(
            f"{header['source']} has no tensors, so it is a vocabulary or a configuration without a model. Name the"
            " model's own GGUF."
        )
    if incomplete or empty:
        reason = incomplete or f"layers {empty[0]} to {empty[-1]} have no tensors, so a part of it is missing"
        shape["unknown"]["weights"] = reason
    return incomplete


class _Keys:
    """The keys of a header's architecture; VramError for what no model can have."""

    def __init__(self, header):
        self.source, self._keys = header["source"], header["keys"]
        self.architecture = self._keys.get("general.architecture")
        if not isinstance(self.architecture, str) or not self.architecture:
            raise VramError(
                f"{self.source} has no general.architecture, so it is no language model. Name the model's own GGUF."
            )

    def get(self, name, default=None):
        return self._keys.get(f"{self.architecture}.{name}", default)

    def number(self, name, default=None):
        """A whole number; the largest where there is one for each layer."""
        value = self.get(name, default)
        if isinstance(value, list):
            value = max((element for element in value if isinstance(element, int)), default=default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 40:
            raise VramError(
                f"{self.source} has {self.architecture}.{name}={str(value)[:40]}, which is no usable number; the file"
                " is damaged."
            )
        return int(value)

    def per_layer(self, name, layers, default):
        """A key that is one number for all layers or a list of one each, as a list of so many."""
        value = self.get(name, default)
        values = value if isinstance(value, list) else [value] * layers
        if len(values) < layers or not all(isinstance(one, int) and 0 <= one < 1 << 24 for one in values):
            raise VramError(
                f"{self.architecture}.{name} is {str(value)[:60]}, which does not give the numbers of {layers} layers;"
                " the file is damaged."
            )
        return values[:layers]


def _weights(tensors, layers, unknown):
    layer_bytes, end_bytes, host_bytes = [0] * layers, 0, 0
    embedding, vocabulary, tied = 0, 0, True
    for tensor in tensors:
        name = tensor["name"]
        if name in INPUT_TENSORS:
            host_bytes += tensor["bytes"]
            if name == "token_embd.weight":
                embedding, vocabulary = tensor["bytes"], tensor["shape"][-1]
            continue
        if name == "output.weight":
            tied = False
        if name.startswith(("v.", "mm.", "mtp.")) or ".nextn." in name:
            unknown["weights"] = f"its file holds more than the language model ({name})"
        index = name.split(".")[1] if name.startswith("blk.") and name.count(".") > 1 else ""
        if index.isdigit() and int(index) < layers:
            layer_bytes[int(index)] += tensor["bytes"]
        else:
            end_bytes += tensor["bytes"]
    if tied:
        end_bytes += embedding  # the output is a second copy of the embedding, on the GPU
    return {
        "layer_bytes": layer_bytes,
        "end_bytes": end_bytes,
        "host_bytes": host_bytes,
        "tied": tied,
        "vocabulary": vocabulary,
    }


def _cache(keys, layers, hidden, heads, unknown):
    """One row for each layer: elements of K and V a token, of one head, and its window; None where it is not known."""
    architecture = keys.architecture
    if architecture in RECURRENT:
        unknown["kv"] = f"{architecture} has recurrent layers"
        return None
    width = hidden // heads if heads else 0
    head_k, head_v = keys.number("attention.key_length", width), keys.number("attention.value_length", width)
    kv_heads = keys.per_layer("attention.head_count_kv", layers, heads)
    if architecture in LATENT_CACHE and keys.number("attention.key_length_mla", 0):
        return [{"k": count * head_k, "v": 0, "head_k": head_k, "head_v": head_v, "window": None} for count in kv_heads]
    windowed = _windowed(keys, layers)
    if windowed is None:
        unknown["kv"] = f"the cache of the architecture {architecture} was not measured"
        return None
    window = keys.number("attention.sliding_window", 0)
    head = {"head_k": head_k, "head_v": head_v}
    return [
        {"k": count * head_k, "v": count * head_v, **head, "window": window if narrow else None}
        for count, narrow in zip(kv_heads, windowed)
    ]


def _windowed(keys, layers):
    """For each layer whether it sees a window only; None for an architecture whose cache was not measured."""
    architecture = keys.architecture
    if architecture in WINDOW_PATTERN and keys.number("attention.sliding_window", 0):
        pattern = keys.get("attention.sliding_window_pattern")
        if isinstance(pattern, list) and len(pattern) >= layers:
            return [bool(one) for one in pattern[:layers]]
        every = WINDOW_PATTERN[architecture]
        return [index % every < every - 1 for index in range(layers)]
    if architecture in PLAIN_CACHE or architecture in LATENT_CACHE or architecture in WINDOW_PATTERN:
        return [False] * layers
    return None


def as_q4_k_m(shape, tensors):
    """The shape that these tensors would have as q4_K_M (llama-quant.cpp); None where it would not be smaller.

    Matrices become q4_k; the output, and the value and down projections of the first and last eighth of the layers
    and of every third between, q6_k. The quantized file of a publisher may differ by a few per cent.
    """
    if shape["unknown"].get("weights"):
        return None
    layers, made = shape["layers"], []
    for tensor in tensors:
        name, rows = tensor["name"], tensor["shape"]
        kind = tensor["type"]
        if len(rows) > 1 and not name.endswith(("_norm.weight", "ffn_gate_inp.weight")) and rows[0] % 256 == 0:
            kind = "q4_k"
            part = name.split(".")
            index = int(part[1]) if part[0] == "blk" and part[1].isdigit() else 0
            middle = index - layers // 8
            more = index < layers // 8 or index >= 7 * layers // 8 or middle % 3 == 2
            tied_embedding = name == "token_embd.weight" and shape["tied"]
            if (
                name == "output.weight"
                or tied_embedding
                or (more and part[-2] in ("attn_v", "ffn_down", "ffn_down_exps"))
            ):
                kind = "q6_k"
        blocks = {"q4_k": 144, "q6_k": 210}
        size = (
            tensor["bytes"] if kind not in blocks or kind == tensor["type"] else _elements(rows) // 256 * blocks[kind]
        )
        made.append({**tensor, "type": kind, "bytes": min(size, tensor["bytes"])})
    smaller = _weights(made, layers, {})
    before, after = sum(tensor["bytes"] for tensor in tensors), sum(tensor["bytes"] for tensor in made)
    if after > before * 0.9:
        return None
    return {**shape, **smaller, "file_bytes": shape["file_bytes"] - before + after}


def _elements(rows):
    count = 1
    for size in rows:
        count *= size
    return count
