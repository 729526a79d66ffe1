#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write GGUF files of a true shape: real metadata, real tensor table, a hole for the weights.

A server reads such a file as it reads the real one: the same architecture, the
same number of layers, the same bytes per tensor, the same vocabulary size and
a header of the same length. Only the answers are nonsense. Qwen3-14B takes
9.0 GB of apparent and 6 MB of real disk, and is written in two seconds.

    shapes.py list
    shapes.py write qwen3-14b-q4_K_M /var/tmp/model.gguf [--layers 2]
    shapes.py show qwen3-14b-q4_K_M

From Python: SHAPES (name -> model, mix, source), describe(name, layers),
write(name, path, layers), TINY for the small model with random weights, whose
text varies. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gguf_file import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    TYPES,
    UINT32,
    aligned,
    header,
    tensor_bytes,
)  # fmt: skip
from vocabulary import byte_pairs, sentence_pieces  # noqa: E402

FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama-quantize takes where a row is no multiple of 256 elements."""
FILE_TYPES = {"F16": 1, "q8_0": 7, "q4_K_M": 15, "mxfp4": 38}
"""general.file_type, llama.h's llama_ftype."""

SPECIAL_QWEN = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> "
    "<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>"
).split()

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)

MODELS = json.loads((Path(__file__).resolve().parent / "models.json").read_text(encoding="utf-8"))
"""name -> architecture, published sizes and where they are published. `config` means config.json of that Hugging Face
repository; `convert` the conversion of llama.cpp that turns it into GGUF keys."""

TINY = "tiny-qwen3"
"""A Qwen3 of two narrow layers with random weights: 0.3 MB, and its text varies."""

SHAPES = {f"{model}-{mix}": {"model": model, "mix": mix, "source": entry["source"]} for model, entry in MODELS.items() for mix in entry["mixes"]}
"""name -> {"model", "mix", "source"} of every shape that write() knows, beside TINY."""


class ShapeError(Exception):
    """An unknown name or an impossible number of layers."""


def lookup(name):
    """Return (model table, mix) of a shape's name."""
    if name not in SHAPES:
        raise ShapeError(f"no shape {name!r}; there are {', '.join([TINY, *SHAPES])}")
    return MODELS[SHAPES[name]["model"]], SHAPES[name]["mix"]


# ---------------------------------------------------------------------------------------------------------------------
# Metadata


def metadata(name, layers=None):
    """Return the architecture's keys as [(key, GGUF type, value)], without the tokenizer."""
    m, mix = lookup(name)
    a = m["arch"]
    mla = "kv_lora_rank" in m
    keys = [
        ("general.architecture", STRING, a),
        ("general.type", STRING, "model"),
        ("general.name", STRING, m["name"]),
        ("general.size_label", STRING, m["size_label"]),
        ("general.description", STRING, f"true shape without weights; {m['source']}"),
        (f"{a}.block_count", UINT32, m["layers"] if layers is None else layers),
        (f"{a}.context_length", UINT32, m["context"]),
        (f"{a}.embedding_length", UINT32, m["hidden"]),
        (f"{a}.feed_forward_length", UINT32, m["feed_forward"]),
        (f"{a}.attention.head_count", UINT32, m["heads"]),
        (f"{a}.attention.head_count_kv", UINT32, m["kv_heads"]),
        (f"{a}.rope.freq_base", FLOAT32, m["rope_base"]),
        (f"{a}.attention.layer_norm_rms_epsilon", FLOAT32, m["eps"]),
    ]
    if mla:
        keys += [
            (f"{a}.attention.key_length", UINT32, m["kv_lora_rank"] + m["rope_dim"]),
            (f"{a}.attention.value_length", UINT32, m["kv_lora_rank"]),
            (f"{a}.attention.key_length_mla", UINT32, m["head_dim"]),
            (f"{a}.attention.value_length_mla", UINT32, m["value_dim"]),
            (f"{a}.attention.kv_lora_rank", UINT32, m["kv_lora_rank"]),
            (f"{a}.rope.dimension_count", UINT32, m["rope_dim"]),
            (f"{a}.leading_dense_block_count", UINT32, m["dense_lead"]),
            (f"{a}.expert_shared_count", UINT32, m["experts_shared"]),
            (f"{a}.expert_weights_scale", FLOAT32, 1.0),
            (f"{a}.vocab_size", UINT32, m["vocab"]),
        ]
    else:
        keys += [(f"{a}.attention.key_length", UINT32, m["head_dim"]), (f"{a}.attention.value_length", UINT32, m["head_dim"])]
    if a in ("llama", "phi3"):
        keys += [(f"{a}.rope.dimension_count", UINT32, m["head_dim"]), (f"{a}.vocab_size", UINT32, m["vocab"])]
    if a == "phi3":
        keys += [(f"{a}.rope.scaling.original_context_length", UINT32, m["context"]), (f"{a}.attention.sliding_window", UINT32, 0)]
    if "experts" in m:
        keys += [
            (f"{a}.expert_count", UINT32, m["experts"]),
            (f"{a}.expert_used_count", UINT32, m["experts_used"]),
            (f"{a}.expert_feed_forward_length", UINT32, m["expert_feed_forward"]),
        ]
    if "sliding_window" in m:
        keys += [(f"{a}.attention.sliding_window", UINT32, m["sliding_window"])]
    if "rope_linear" in m:
        keys += [(f"{a}.rope.scaling.type", STRING, "linear"), (f"{a}.rope.scaling.factor", FLOAT32, m["rope_linear"])]
    if "rope_yarn" in m:
        factor, original = m["rope_yarn"]
        keys += [
            (f"{a}.rope.scaling.type", STRING, "yarn"),
            (f"{a}.rope.scaling.factor", FLOAT32, factor),
            (f"{a}.rope.scaling.original_context_length", UINT32, original),
        ]
        if mla:
            keys += [(f"{a}.rope.scaling.yarn_log_multiplier", FLOAT32, 0.0707)]
    keys += [("general.quantization_version", UINT32, 2), ("general.file_type", UINT32, FILE_TYPES[mix.replace("-library", "")])]
    return keys


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def tensor_shapes(m, layers):
    """Return [(name, dimensions)] in file order; dimensions as GGUF writes them, the row's length first."""
    hidden, heads, kv_heads, dim = m["hidden"], m["heads"], m["kv_heads"], m["head_dim"]
    arch, ff = m["arch"], m["feed_forward"]
    out = [("token_embd.weight", (hidden, m["vocab"]))]
    if m.get("rope_freqs"):
        out.append(("rope_freqs.weight", (dim // 2,)))
    for i in range(layers):
        block = []
        block.append(("attn_norm.weight", (hidden,)))
        if arch == "deepseek2":
            rank, rope, value = m["kv_lora_rank"], m["rope_dim"], m["value_dim"]
            block += [
                ("attn_q.weight", (hidden, heads * dim)),
                ("attn_kv_a_mqa.weight", (hidden, rank + rope)),
                ("attn_kv_a_norm.weight", (rank,)),
                ("attn_k_b.weight", (dim - rope, rank, heads)),
                ("attn_v_b.weight", (rank, value, heads)),
                ("attn_output.weight", (heads * value, hidden)),
            ]
        elif arch == "phi3":
            block += [("attn_qkv.weight", (hidden, (heads + 2 * kv_heads) * dim)), ("attn_output.weight", (heads * dim, hidden))]
        else:
            for part, rows in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
                block.append((f"attn_{part}.weight", (hidden, rows)))
                if arch == "gpt-oss":
                    block.append((f"attn_{part}.bias", (rows,)))
            block.append(("attn_output.weight", (heads * dim, hidden)))
            if arch == "gpt-oss":
                block += [("attn_output.bias", (hidden,)), ("attn_sinks.weight", (heads,))]
            if m.get("qk_norm"):
                block += [("attn_q_norm.weight", (dim,)), ("attn_k_norm.weight", (dim,))]
        if arch in ("gemma3", "gpt-oss"):
            block.append(("post_attention_norm.weight", (hidden,)))
        if arch != "gpt-oss":
            block.append(("ffn_norm.weight", (hidden,)))
        block += feed_forward(m, i, hidden, ff)
        if arch == "gemma3":
            block.append(("post_ffw_norm.weight", (hidden,)))
        out += [(f"blk.{i}.{part}", dims) for part, dims in block]
    out.append(("output_norm.weight", (hidden,)))
    if not m["tied"]:
        out.append(("output.weight", (hidden, m["vocab"])))
    return out


def feed_forward(m, layer, hidden, ff):
    """Return [(name, dimensions)] of one block's feed-forward part: dense, fused (Phi) or experts."""
    if m["arch"] == "phi3":
        return [("ffn_up.weight", (hidden, 2 * ff)), ("ffn_down.weight", (ff, hidden))]
    if "experts" not in m or layer < m.get("dense_lead", 0):
        return [("ffn_gate.weight", (hidden, ff)), ("ffn_up.weight", (hidden, ff)), ("ffn_down.weight", (ff, hidden))]
    experts, eff = m["experts"], m["expert_feed_forward"]
    part = [("ffn_gate_inp.weight", (hidden, experts))]
    part += [
        ("ffn_gate_exps.weight", (hidden, eff, experts)),
        ("ffn_up_exps.weight", (hidden, eff, experts)),
        ("ffn_down_exps.weight", (eff, hidden, experts)),
    ]
    if m["arch"] == "gpt-oss":
        part += [
            ("ffn_gate_inp.bias", (experts,)),
            ("ffn_gate_exps.bias", (eff, experts)),
            ("ffn_up_exps.bias", (eff, experts)),
            ("ffn_down_exps.bias", (hidden, experts)),
        ]
    if "experts_shared" in m:
        shared = eff * m["experts_shared"]
        part += [("ffn_gate_shexp.weight", (hidden, shared)), ("ffn_up_shexp.weight", (hidden, shared)), ("ffn_down_shexp.weight", (shared, hidden))]
    return part


def more_bits(layer, layers):
    """Return whether the K_M mixes give a layer's attn_v and ffn_down the next larger type: the first and last eighth, else every third."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_type(name, dims, m, mix, layers):
    """Return the ggml type that a mix gives a tensor.

    q4_K_M and q8_0 are llama-quantize's (tests/unit/lab/test_shapes.py
    holds every shape against its --dry-run); "-library" is what the Ollama
    library offers: attn_v in F16 for q4_K_M (reproduces the published 9.28 GB
    of qwen3:14b, inferred), everything but the experts in BF16 for gpt-oss.
    """
    if len(dims) < 2 or not name.endswith("weight") or "_norm." in name or "ffn_gate_inp" in name:
        return "F32"
    part = name.split(".")[-2]
    layer = int(name.split(".")[1]) if name.startswith("blk.") else None
    if mix == "F16":
        return "F16"
    if mix.startswith("mxfp4"):
        if part.endswith("_exps"):
            return "MXFP4"
        return "BF16" if mix == "mxfp4-library" else "Q8_0"
    if mix == "q8_0":
        return "Q8_0"
    if part == "output" or (part == "token_embd" and m["tied"]):
        kind = "Q6_K"
    elif part == "attn_v" and mix == "q4_K_M-library":
        return "F16"
    elif part in ("attn_v", "attn_qkv") or part.startswith("ffn_down"):
        kind = "Q6_K" if more_bits(layer, layers) else "Q4_K"
    else:
        kind = "Q4_K"
    return FALLBACK[kind] if dims[0] % TYPES[kind][1] else kind


def describe(name, layers=None):
    """Return {"metadata": {key: value}, "tensors": [{"name", "shape", "type", "bytes"}], "source"} of a shape.

    The tokenizer's arrays are left out; tokenizer.ggml.tokens' length is the
    second number of token_embd's shape.
    """
    m, mix = lookup(name)
    count = m["layers"] if layers is None else layers
    if not 1 <= count <= m["layers"]:
        raise ShapeError(f"{name} has {m['layers']} layers; {count} is not between 1 and that")
    tensors = []
    for tensor, dims in tensor_shapes(m, count):
        kind = tensor_type(tensor, dims, m, mix, count)
        tensors.append({"name": tensor, "shape": list(dims), "type": kind, "bytes": tensor_bytes(dims, kind)})
    return {"metadata": {key: value for key, _kind, value in metadata(name, layers)}, "tensors": tensors, "source": m["source"]}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


def tokenizer(m):
    """Return the tokenizer's keys as [(key, GGUF type or (ARRAY, element type), value)]."""
    if m["tokenizer"] == "spm":
        tokens, types, scores = sentence_pieces(m["vocab"])
        return [
            ("tokenizer.ggml.model", STRING, "llama"),
            ("tokenizer.ggml.pre", STRING, "default"),
            ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
            ("tokenizer.ggml.scores", (ARRAY, FLOAT32), scores),
            ("tokenizer.ggml.token_type", (ARRAY, INT32), types),
            ("tokenizer.ggml.bos_token_id", UINT32, 2),
            ("tokenizer.ggml.eos_token_id", UINT32, 1),
            ("tokenizer.ggml.padding_token_id", UINT32, 0),
            ("tokenizer.ggml.add_bos_token", BOOL, True),
            ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
        ]
    tokens, types, merges = byte_pairs(m["vocab"], SPECIAL_QWEN)
    first = tokens.index(SPECIAL_QWEN[0])
    return [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, m["tokenizer"]),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.token_type", (ARRAY, INT32), types),
        ("tokenizer.ggml.merges", (ARRAY, STRING), merges),
        ("tokenizer.ggml.eos_token_id", UINT32, first + 2),
        ("tokenizer.ggml.padding_token_id", UINT32, first),
        ("tokenizer.ggml.bos_token_id", UINT32, first),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The file


def write(name, path, layers=None):
    """Write a shape (or TINY) to path; return {"path", "bytes", "header_bytes", "tensors"}.

    layers: write only that many of the model's layers, with the same widths.
    The data of every shape but TINY is a hole: the file system must know
    sparse files, or the disk must be as large as the model.
    """
    if name == TINY:
        return write_tiny(path)
    shape = describe(name, layers)
    head, _offsets, length = header(metadata(name, layers) + tokenizer(lookup(name)[0]), shape["tensors"])
    with open(path, "wb") as out:
        out.write(head)
        out.truncate(len(head) + length)
    return {"path": str(path), "bytes": len(head) + length, "header_bytes": len(head), "tensors": len(shape["tensors"])}


def write_tiny(path):
    """Write TINY: a Qwen3 with random weights that answers in words of its own and stops by itself after about 60 tokens.

    Coordinate 0 of every embedding is large and no layer writes to it, so it
    reaches the output as a constant. The output matrix uses it as a bias: raw
    bytes and controls are never said (each answer is valid UTF-8), and
    <|im_end|> now and then.
    """
    chance = random.Random(20260823)
    layers = 2
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokens, types, merges = byte_pairs(1280, special)
    model = dict(
        MODELS["qwen3-14b"],
        name="tiny Qwen3",
        size_label="0.2M",
        layers=layers,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=32,
        feed_forward=128,
        vocab=len(tokens),
        source="random weights, seed 20260823",
    )
    keys = tiny_keys(model, tokens, types, merges)
    tensors = []
    for tensor, dims in tensor_shapes(model, layers):
        kind = tensor_type(tensor, dims, model, "F16", layers)
        tensors.append({"name": tensor, "shape": list(dims), "type": kind, "bytes": tensor_bytes(dims, kind)})
    head, offsets, _length = header(keys, tensors)
    spoken = [len(token) > 1 and kind == 1 for token, kind in zip(tokens, types)]
    with open(path, "wb") as out:
        out.write(head)
        for tensor, offset in zip(tensors, offsets):
            out.seek(len(head) + offset)
            out.write(tiny_values(tensor, chance, tokens, spoken))
        size = aligned(out.tell())
        out.truncate(size)
    return {"path": str(path), "bytes": size, "header_bytes": len(head), "tensors": len(tensors)}


def tiny_keys(model, tokens, types, merges):
    """Return TINY's keys as [(key, GGUF type or (ARRAY, element type), value)]."""
    a = "qwen3"
    return [
        ("general.architecture", STRING, a),
        ("general.type", STRING, "model"),
        ("general.name", STRING, model["name"]),
        ("general.size_label", STRING, model["size_label"]),
        ("general.description", STRING, model["source"]),
        (f"{a}.block_count", UINT32, model["layers"]),
        (f"{a}.context_length", UINT32, 40960),
        (f"{a}.embedding_length", UINT32, model["hidden"]),
        (f"{a}.feed_forward_length", UINT32, model["feed_forward"]),
        (f"{a}.attention.head_count", UINT32, model["heads"]),
        (f"{a}.attention.head_count_kv", UINT32, model["kv_heads"]),
        (f"{a}.rope.freq_base", FLOAT32, 1e6),
        (f"{a}.attention.layer_norm_rms_epsilon", FLOAT32, 1e-6),
        (f"{a}.attention.key_length", UINT32, model["head_dim"]),
        (f"{a}.attention.value_length", UINT32, model["head_dim"]),
        ("general.quantization_version", UINT32, 2),
        ("general.file_type", UINT32, 1),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.token_type", (ARRAY, INT32), types),
        ("tokenizer.ggml.merges", (ARRAY, STRING), merges),
        ("tokenizer.ggml.eos_token_id", UINT32, tokens.index("<|im_end|>")),
        ("tokenizer.ggml.padding_token_id", UINT32, tokens.index("<|endoftext|>")),
        ("tokenizer.ggml.bos_token_id", UINT32, tokens.index("<|endoftext|>")),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


def tiny_values(tensor, chance, tokens, spoken):
    """Return the bytes of one of TINY's tensors."""
    width = tensor["shape"][0]
    if tensor["type"] == "F32":
        return struct.pack(f"<{width}f", *([1.0] * width))
    part, rows = tensor["name"].split(".")[-2], []
    for row in range(tensor["shape"][1]):
        values = [chance.gauss(0, 0.1 if part in ("attn_output", "ffn_down") else 0.35) for _ in range(width)]
        if part == "token_embd":
            values[0] = 4.0
        elif part in ("attn_output", "ffn_down") and row == 0:
            values = [0.0] * width
        elif part == "output":
            values[0] = 0.0 if spoken[row] else -60.0
            if tokens[row] == "<|im_end|>":
                values = [2.0] + [0.0] * (width - 1)
        rows.append(struct.pack(f"<{width}e", *values))
    return b"".join(rows)


def main(argv=None):
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, sizes and sources")
    for command in ("write", "show"):
        sub = commands.add_parser(command)
        sub.add_argument("name")
        if command == "write":
            sub.add_argument("path", type=Path)
        sub.add_argument("--layers", type=int)
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            for name, entry in SHAPES.items():
                total = sum(tensor["bytes"] for tensor in describe(name)["tensors"])
                print(f"{name:26} {total / 1e9:6.2f} GB  {entry['source']}")
            print(f"{TINY:26}   0.00 GB  random weights")
        elif args.command == "write":
            print(json.dumps(write(args.name, args.path, args.layers)))
        else:
            json.dump(describe(args.name, args.layers), sys.stdout, indent=1)
            print()
    except (ShapeError, OSError) as fault:
        print(f"shapes: {fault}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
