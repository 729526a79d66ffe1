# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""How much VRAM a model takes on a card, term by term: the formula.

    total = weights + KV cache + compute buffer + CUDA context + scratch

``describe()`` turns a header (``_plan.gguf``) into a *shape*: what decides the memory, and nothing else. ``predict()``
turns a shape and settings into MiB. What the formula does not know it says (``unknown``) and leaves to the
server's own dry run (``_plan.dry_run``); it never guesses.

Where the figures come from, unless a line says otherwise: dry runs of llama-server b10488 (the engine of Ollama
0.32.15) on header files of the true shapes, docs/measurements/plan_accuracy.md. CUDA context and scratch cannot be seen without
a card and are predicted.
"""

from __future__ import annotations

MIB = 1024 * 1024

# Bytes of one block of a KV cache type, and elements in it (ggml-common.h of llama.cpp).
KV_TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
PLAIN_KV_TYPES = ("f32", "f16", "bf16")

# What Ollama itself sets aside for a GPU's CUDA context ("minimum memory", ml/device.go); 300-500 is usual.
CUDA_CONTEXT_MIB = 457

# The build of llama.cpp from which a context's outputs are limited (its PR 23861), which took the vocabulary out
# of the compute buffer. b9452 has the old figure, b9509 (Ollama 0.30.5) the new one.
LIMITED_OUTPUTS_BUILD = 9509
NEWEST_MEASURED_BUILD = 10488

# Default num_ctx of Ollama by the VRAM of all cards together (server/routes.go; since 0.15.5).
DEFAULT_CONTEXTS = ((47 * 1024, 262144), (23 * 1024, 32768), (0, 4096))

# Ollama gives these one slot, whatever is asked (server/sched.go).
ONE_SLOT = frozenset(
    [
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    ]
)

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

# Compressed attention: one row of kv_lora_rank + rope dimensions a token, no V.
LATENT_CACHE = frozenset(["deepseek2"])

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


class VramError(Exception):
    """Settings that the server would refuse, or a header that lacks a key; the text is fit for an operator."""


def mib(count):
    """Bytes as whole MiB, to the nearest."""
    return int(count / MIB + 0.5)


def padded(count, step=256):
    """llama.cpp's caches grow in steps of 256 cells."""
    return (count + step - 1) // step * step


# --- the shape ---


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
         "unknown": {"weights" | "kv" | "compute": "why the formula does not know this term"}}

    VramError where a key that every model has is missing or absurd.
    """
    keys, tensors = header["keys"], header["tensors"]
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise VramError(f"{header['source']} has no general.architecture, so it is no language model. Name the model's own GGUF.")

    def number(name, default=None, whole=True):
        value = keys.get(f"{architecture}.{name}", default)
        if isinstance(value, list):
            value = max((element for element in value if isinstance(element, int)), default=default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 40:
            raise VramError(f"{header['source']} has {architecture}.{name}={str(value)[:40]}, which is no usable number; the file is damaged.")
        return int(value) if whole else value

    layers, hidden, heads = number("block_count"), number("embedding_length"), number("attention.head_count", 0)
    if not layers or not hidden or layers > 4096:
        raise VramError(f"{header['source']} lacks {architecture}.block_count or {architecture}.embedding_length, so its memory cannot be planned.")
    unknown = {}
    shape = {
        "architecture": architecture,
        "layers": layers,
        "context_length": number("context_length", 0) or None,
        "hidden": hidden,
        "heads": heads,
        "feed_forward": number("feed_forward_length", 0),
        "experts_used": number("expert_used_count", 0),
        "expert_feed_forward": number("expert_feed_forward_length", 0),
        "expert_shared_feed_forward": number("expert_shared_feed_forward_length", 0),
        "file_bytes": header["file_bytes"],
        "extra_bytes": sum(header.get("extra_bytes", {}).values()),
        "kv_heads": min(_per_layer(keys, f"{architecture}.attention.head_count_kv", layers, heads) or [0]),
        "unknown": unknown,
    }
    shape.update(_weights(tensors, layers, unknown))
    shape["cache"] = _cache(keys, architecture, layers, hidden, heads, number, unknown)
    rows = shape["cache"] or [{"k": 0, "head_k": 0}]
    shape["query"] = heads * max(row["head_k"] for row in rows)
    shape["key_value"] = max(row["k"] for row in rows)
    reason = _compute_unknown(shape) if shape["cache"] else unknown["kv"]
    if f"{architecture}.pooling_type" in keys or architecture.startswith(("bert", "nomic-bert", "jina-bert")):
        reason = f"{architecture} is an embedding model"
    if reason:
        unknown["compute"] = reason
    return shape


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


def _per_layer(keys, name, layers, default):
    """A key that is one number for all layers or a list of one each."""
    value = keys.get(name, default)
    values = value if isinstance(value, list) else [value] * layers
    if len(values) < layers or not all(isinstance(one, int) and 0 <= one < 1 << 24 for one in values):
        raise VramError(f"{name} is {str(value)[:60]}, which does not tell {layers} layers' numbers; the file is damaged.")
    return values[:layers]


def _cache(keys, architecture, layers, hidden, heads, number, unknown):
    if architecture in RECURRENT:
        unknown["kv"] = f"{architecture} has recurrent layers"
        return None
    width = hidden // heads if heads else 0
    head_k, head_v = number("attention.key_length", width), number("attention.value_length", width)
    kv_heads = _per_layer(keys, f"{architecture}.attention.head_count_kv", layers, heads)
    window = number("attention.sliding_window", 0) or None
    if architecture in LATENT_CACHE and number("attention.key_length_mla", 0):
        return [{"k": heads_kv * head_k, "v": 0, "head_k": head_k, "head_v": head_v, "window": None} for heads_kv in kv_heads]
    pattern = keys.get(f"{architecture}.attention.sliding_window_pattern")
    if architecture in WINDOW_PATTERN and window:
        if isinstance(pattern, list) and len(pattern) >= layers:
            windowed = [bool(one) for one in pattern[:layers]]
        else:
            every = WINDOW_PATTERN[architecture]
            windowed = [index % every < every - 1 for index in range(layers)]
    elif architecture in PLAIN_CACHE or architecture in LATENT_CACHE or architecture in WINDOW_PATTERN:
        windowed = [False] * layers
    else:
        unknown["kv"] = f"the cache of the architecture {architecture} was not measured"
        return None
    return [
        {
            "k": count * head_k,
            "v": count * head_v,
            "head_k": head_k,
            "head_v": head_v,
            "window": window if narrow else None,
        }
        for count, narrow in zip(kv_heads, windowed)
    ]


# --- the settings that the server really uses ---


def effective_context(asked, trained, total_mib):
    """(num_ctx, capped_by): what Ollama makes of an asked num_ctx (None: its default by total_mib of all cards).

    capped_by is None, "trained" (the model's context_length, silently) or "default" (the tier of the cards' VRAM).
    """
    wanted, reason = asked, None
    if not wanted:
        wanted, reason = next(context for least, context in DEFAULT_CONTEXTS if total_mib >= least), "default"
    if trained and wanted > trained:
        return trained, "trained"
    return wanted, reason


def rough_bytes(shape, context, slots):
    """What Ollama takes a model for before it asks the engine (PredictServerVRAM of llm/llama_server.go): the file, and a cache of f16."""
    width = shape["hidden"] // shape["heads"] if shape["heads"] else 0
    return shape["file_bytes"] + 4 * shape["layers"] * max(shape["kv_heads"], 1) * width * context * slots


def stays_on_one(shape, context, slots, free_mib):
    """Whether Ollama keeps a model to one of several cards, the one with so much free memory (bestSingleGPUFit of server/sched.go, 0.32.15).

    It does where its rough estimate is at most 80 % of that. Any other model is given all cards, also one that would fit.
    """
    return rough_bytes(shape, context, slots) <= free_mib * MIB * 80 // 100


def automatic_batch(shape, context, slots, free_mib, flash_attention=True):
    """num_batch as Ollama chooses it (automaticGenerationBatch of server/sched.go), from its own rough estimate."""
    total_context = context * slots
    if not flash_attention:
        return 256 if total_context > 4096 and 0 < free_mib <= 8192 else 512
    predicted = rough_bytes(shape, context, slots)
    free = free_mib * MIB
    for batch, share, surcharge in ((2048, 0.60, 2048 * MIB), (1024, 0.75, 768 * MIB)):
        if total_context <= (32768 if batch == 2048 else 4096):
            continue
        if not free or (predicted <= free * share and predicted + surcharge <= free * 0.8):
            return batch
    return 512


def check_settings(shape, name, kv_type, flash_attention):
    """VramError for what the servers refuse to load."""
    if kv_type not in KV_TYPES:
        raise VramError(f"Model {name}: kv_cache_type={kv_type} is not known; choose one of {', '.join(KV_TYPES)}.")
    if kv_type in PLAIN_KV_TYPES:
        return
    if not flash_attention:
        raise VramError(
            f"Model {name}: kv_cache_type={kv_type} needs flash attention, which is off; the server would refuse to load it."
            " Set ollama_flash_attention=true, or ollama_kv_cache_type=f16."
        )
    block = KV_TYPES[kv_type][1]
    for row in shape["cache"] or []:
        for what in ("head_k", "head_v"):
            if row[what] % block:
                raise VramError(
                    f"Model {name}: kv_cache_type={kv_type} stores blocks of {block}, and its attention heads have {row[what]}"
                    " elements, which is no multiple; the server would refuse to load it. Set ollama_kv_cache_type=f16."
                )


# --- the terms ---


def cells(row, context, ubatch):
    """Cells of one layer's cache for one slot: the context, or the window and one batch."""
    full = padded(context)
    return full if row["window"] is None else min(full, padded(row["window"] + ubatch))


def cache_bytes(row, context, slots, kv_type, ubatch):
    """Bytes of one layer's K and V."""
    size, elements = KV_TYPES[kv_type]
    return cells(row, context, ubatch) * slots * (row["k"] + row["v"]) * size // elements


def scratch_bytes(shape, context, slots, kv_type, ubatch):
    """What CUDA's pool takes to turn one layer's quantised K and V to f16 during prefill (llama.cpp #21054, #23446)."""
    if kv_type in PLAIN_KV_TYPES:
        return 0
    return max(2 * cells(row, context, ubatch) * slots * (row["k"] + row["v"]) for row in shape["cache"])


# --- the compute buffer ---
#
# Elements (f32) that stand at once for one token of a batch while the widest part of the graph is computed. Each rule
# was read off dry runs of several shapes of the architecture, true ones and made-up ones with one size changed.


def _gated(shape, quantised):
    """Dense models with gate, up and down: the FFN's three rows, the attention's output and two of the residual stream.

    With a quantised cache the allocator finds another place for the attention's output, by which of the two is wider.
    """
    query, hidden = shape["query"], shape["hidden"]
    extra = 0 if not quantised or query > hidden else query if query < hidden else -query
    return 3 * shape["feed_forward"] + query + 2 * hidden + extra


def _fused(shape, _quantised):
    """Gate and up in one matrix (Phi)."""
    return 3 * shape["feed_forward"] + 2 * shape["hidden"]


def _experts(shape, _quantised):
    """Qwen3's experts: their outputs twice, one row of each expert, the attention's output."""
    used = shape["experts_used"]
    return 2 * used * shape["hidden"] + used * shape["expert_feed_forward"] + shape["query"]


def _biased_experts(shape, _quantised):
    """gpt-oss: as above, and two rows of the residual stream."""
    used = shape["experts_used"]
    return 2 * used * shape["hidden"] + used * shape["expert_feed_forward"] + shape["query"] + 2 * shape["hidden"]


def _latent(shape, _quantised):
    """DeepSeek-V2-Lite, whose first, dense layer is its widest part."""
    return 3 * shape["feed_forward"] + 3 * shape["hidden"]


COMPUTE = {
    "qwen3": _gated,
    "llama": _gated,
    "gemma3": _gated,
    "phi3": _fused,
    "qwen3moe": _experts,
    "gpt-oss": _biased_experts,
    "deepseek2": _latent,
}


def _compute_unknown(shape):
    """Why the rule of the shape's architecture was not measured for this shape, or None."""
    architecture = shape["architecture"]
    if architecture not in COMPUTE:
        return f"the compute buffer of the architecture {architecture} was not measured"
    if not shape["query"] or (not shape["feed_forward"] and not shape["experts_used"]):
        return "its header lacks the sizes of attention or feed-forward"
    if architecture == "qwen3moe" and (shape["experts_used"] != 8 or shape["query"] <= shape["hidden"]):
        return "only Qwen3's own mixtures of experts (8 used) were measured"
    if architecture == "llama" and shape["experts_used"]:
        return "mixtures of experts of the architecture llama were not measured"
    if architecture == "deepseek2" and (shape["layers"], shape["hidden"], shape["feed_forward"]) != (27, 2048, 10944):
        return "of DeepSeek's models only V2-Lite was measured"
    return None


def compute_bytes(shape, context, kv_type, ubatch, flash_attention, build=NEWEST_MEASURED_BUILD):
    """Bytes of the compute buffer of one device; None where the formula does not know it."""
    full = padded(context)
    windows = [row["window"] for row in shape["cache"] if row["window"] is not None]
    window = cells({"window": max(windows)}, context, ubatch) if windows else 0
    if build < LIMITED_OUTPUTS_BUILD:
        if shape["architecture"] != "qwen3":
            return None
        without = ubatch * (shape["vocabulary"] + shape["hidden"]) * 4
        return without if flash_attention else without + shape["heads"] * full * ubatch * 4
    quantised = kv_type not in PLAIN_KV_TYPES
    elements = COMPUTE[shape["architecture"]](shape, quantised)
    # masks in f16, one for each kind of layer, and the two rotations that go with a quantised cache
    latent = shape["architecture"] in LATENT_CACHE
    rotations = 2 * 4 * shape["cache"][0]["head_k"] ** 2 if quantised and not latent else 0
    if flash_attention:
        return ubatch * (4 * elements + 2 * (full + window)) + rotations
    if latent:
        return None
    # scores of every head and an f32 mask, and the rows of residual stream, query, key and value
    query = 0 if shape["architecture"] == "phi3" else 2 * shape["query"]
    scores = shape["heads"] * full + 2 * shape["hidden"] + query + (4 if windows else 2) * shape["key_value"]
    return ubatch * 4 * (max(scores, elements) + full + window)


def predict(shape, context, slots, kv_type, ubatch, flash_attention=True, build=NEWEST_MEASURED_BUILD):
    """{weights_mib, kv_mib, compute_mib, context_mib, scratch_mib, total_mib, host_mib, known} on one card.

    A term that the formula does not know is None; total_mib is then the sum of the others and known is False, so
    total_mib is only the least that it takes.
    """
    ubatch = min(ubatch, padded(context) * slots)
    unknown = shape["unknown"]
    terms = {
        "weights_mib": mib(sum(shape["layer_bytes"]) + shape["end_bytes"] + shape["extra_bytes"]),
        "kv_mib": None,
        "compute_mib": None,
        "context_mib": CUDA_CONTEXT_MIB,
        "scratch_mib": None,
    }
    if "kv" not in unknown:
        terms["kv_mib"] = mib(sum(cache_bytes(row, context, slots, kv_type, ubatch) for row in shape["cache"]))
        terms["scratch_mib"] = mib(scratch_bytes(shape, context, slots, kv_type, ubatch))
    if "compute" not in unknown:
        compute = compute_bytes(shape, context, kv_type, ubatch, flash_attention, build)
        terms["compute_mib"] = None if compute is None else mib(compute)
    return {
        **terms,
        "total_mib": sum(value for value in terms.values() if value is not None),
        "host_mib": mib(shape["host_bytes"]),
        "known": not unknown and terms["compute_mib"] is not None,
    }


def split(shape, context, slots, kv_type, ubatch, free_mib, flash_attention=True, build=NEWEST_MEASURED_BUILD):
    """MiB on each of several cards, as llama.cpp deals the layers out: by the cards' free memory.

    Its rule (llama-model.cpp, default tensor split): unit i of layers + 1 (the last is the output) goes to the first
    card whose share of the free memory, summed up, is above i / (layers + 1). Each card has its own compute buffer,
    context and scratch. CUDA may copy its inputs for pipelining, which is not in here: not verified.
    """
    whole, units = sum(free_mib), shape["layers"] + 1
    if not whole:
        return [0] * len(free_mib)
    ends = [sum(free_mib[: index + 1]) / whole for index in range(len(free_mib))]
    shares = [0] * len(free_mib)
    ubatch = min(ubatch, padded(context) * slots)
    for unit in range(units):
        card = next((index for index, end in enumerate(ends) if unit / units < end), len(ends) - 1)
        if unit == shape["layers"]:
            shares[card] += shape["end_bytes"] + shape["extra_bytes"]
        else:
            shares[card] += shape["layer_bytes"][unit]
            if shape["cache"]:
                shares[card] += cache_bytes(shape["cache"][unit], context, slots, kv_type, ubatch)
    each = CUDA_CONTEXT_MIB
    if "kv" not in shape["unknown"]:
        each += mib(scratch_bytes(shape, context, slots, kv_type, ubatch))
    if "compute" not in shape["unknown"]:
        each += mib(compute_bytes(shape, context, kv_type, ubatch, flash_attention, build) or 0)
    return [mib(share) + each if share else 0 for share in shares]


# --- another quantisation ---


def as_q4_k_m(shape, tensors):
    """The shape that these tensors would have as q4_K_M, llama.cpp's mix (llama-quant.cpp); None where it would not be smaller.

    Matrices become q4_k; the output, and the value and down projections of the first and last eighth of the layers
    and of every third between, q6_k. The quantised file of a publisher may differ by a few per cent.
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
            if name == "output.weight" or tied_embedding or (more and part[-2] in ("attn_v", "ffn_down", "ffn_down_exps")):
                kind = "q6_k"
        blocks = {"q4_k": 144, "q6_k": 210}
        size = tensor["bytes"] if kind not in blocks or kind == tensor["type"] else _elements(rows) // 256 * blocks[kind]
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
