# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cards that NVML shows, memory that the lab's NVML sees as theirs, and how much of it a model takes."""

from __future__ import annotations

import ctypes
import mmap
import re

from .gguf import Gguf, tensor_bytes
from .settings import MIB, env

CONTEXT = 457 * MIB
"""What the real server itself assumes for a CUDA context."""

CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q4_0": 0.5625, "q4_1": 0.625, "iq4_nl": 0.5625,
    "q5_0": 0.6875, "q5_1": 0.75,
}  # fmt: skip


def cards() -> list:
    """[{"total": bytes, "free": bytes}] of every GPU that NVML shows; [] without driver or library.

    Initialized, read and shut down at each call, so that a card that comes or goes is noticed.
    """
    if env("CUDA_VISIBLE_DEVICES") == "-1":
        return []
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    found = []
    try:
        count = ctypes.c_uint()
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            handle = ctypes.c_void_p()
            memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
            failed = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            if not failed and not library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
                found.append({"total": memory[0], "free": memory[1]})
    finally:
        library.nvmlShutdown()
    return found


def free() -> int:
    return sum(card["free"] for card in cards())


def hold(size: int, card: int):
    """Hold so many bytes of a card's VRAM: a private mapping of /dev/zero, never touched.

    The file offset of the mapping, in pages, is the index of the card.
    """
    if size <= 0:
        return None
    with open("/dev/zero", "rb") as zero:
        return mmap.mmap(zero.fileno(), size, flags=mmap.MAP_PRIVATE, prot=0, offset=card * mmap.PAGESIZE)


def weights(gguf: Gguf) -> tuple[list, int]:
    """(bytes of each layer with the output as the last, bytes that stay on the host: the input embedding)."""
    layers = gguf.get("block_count")
    found, host, embedding = [0] * (layers + 1), 0, 0
    for name, shape, kind, _offset in gguf.tensors:
        size = tensor_bytes(shape, kind)
        match = re.match(r"blk\.(\d+)\.", name)
        if match and int(match.group(1)) < layers:
            found[int(match.group(1))] += size
        elif name.startswith("token_embd"):
            host += size
            embedding += size if name == "token_embd.weight" else 0
        else:
            found[layers] += size
    if not any(name == "output.weight" for name, *_rest in gguf.tensors):
        found[layers] += embedding  # tied: the output is a second copy on the card
    return found, host


def buffers(gguf: Gguf, flags: dict) -> tuple[int, int, int]:
    """Bytes of (KV cache of one layer, compute buffer of a card, compute buffer of the host).

    Measured on llama.cpp b10488: compute = ubatch * (4 * (3 * ff + k * hidden) + 2 * ctx per slot), with k = 2 for a
    quantized cache and 3 for f16; without flash attention heads * ctx * ubatch * 4 more.
    """
    hidden = gguf.get("embedding_length")
    heads = max(gguf.get("attention.head_count"), 1)
    kv_heads = gguf.get("attention.head_count_kv") or heads
    key = gguf.get("attention.key_length") or hidden // heads
    value = gguf.get("attention.value_length") or hidden // heads
    slots, ubatch = max(flags["parallel"], 1), flags["ubatch"]
    per_slot = -(-(flags["ctx"] // slots) // 256) * 256
    one = kv_heads * (key * CACHE_BYTES[flags["cache_k"]] + value * CACHE_BYTES[flags["cache_v"]])
    cache = 0 if f"{gguf.arch}.pooling_type" in gguf.kv else int(one * per_slot * slots)
    spread = 3 if flags["cache_k"] in ("f32", "f16", "bf16") else 2
    compute = ubatch * (4 * (3 * gguf.get("feed_forward_length") + spread * hidden) + 2 * per_slot)
    compute += 0 if flags["flash"] else heads * per_slot * ubatch * 4
    return cache, compute, ubatch * (8 * hidden + 2 * per_slot)


def deal(sizes: list, compute: int, budgets: list, asked: int) -> tuple[list, int]:
    """(bytes per card, layers on cards): llama.cpp fills from the output backwards; each card has a compute buffer.

    asked: a number of layers, which is kept whatever is free; -1 for as many as fit.
    """
    order = sorted(range(len(budgets)), key=lambda index: -budgets[index])
    whole = [index for index in order if budgets[index] >= sum(sizes) + compute]
    queue = whole[:1] or order
    room = {index: budgets[index] - compute for index in queue}
    places, on_card = [0] * len(budgets), 0
    for size in reversed(sizes if asked < 0 else sizes[max(len(sizes) - asked, 0) :]):
        while asked < 0 and queue and room[queue[0]] < size:
            queue = queue[1:]
        if not queue:
            break
        places[queue[0]] += size + (0 if places[queue[0]] else compute)
        room[queue[0]] -= size
        on_card += 1
    return places, on_card


def plan(gguf: Gguf, flags: dict, cards: list) -> dict:
    """Where llama-server would put a model: bytes per card and on the host, layers on cards.

    flags: ctx (of all slots), parallel, ubatch, cache_k, cache_v, flash, gpu_layers (-1: as many as fit), fit_target
    (bytes to leave free on each card). MemoryError where the layers that were asked for do not fit.
    """
    layers, host_weights = weights(gguf)
    cache, compute, host_compute = buffers(gguf, flags)
    sizes = [size + cache for size in layers[:-1]] + layers[-1:]
    budgets = [max(card["free"] - CONTEXT - flags["fit_target"], 0) for card in cards]
    asked = flags["gpu_layers"]
    places, on_card = deal(sizes, compute, budgets, asked) if cards and asked else ([0] * len(cards), 0)
    if asked > 0 and any(size + CONTEXT > card["free"] for size, card in zip(places, cards)):
        raise MemoryError("cudaMalloc failed: out of memory")
    host = host_weights + host_compute + sum(sizes[: len(sizes) - on_card]) + (0 if on_card else compute)
    vram = sum(places)
    return {
        "places": places, "vram": vram, "size": vram if on_card == len(sizes) else vram + host, "on_card": on_card,
        "layers": len(sizes), "wanted": sum(sizes) + compute, "model": sum(layers), "cache": cache * (len(sizes) - 1),
        "compute": compute, "host_weights": host_weights, "host_compute": host_compute,
    }  # fmt: skip
