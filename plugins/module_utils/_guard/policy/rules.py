# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The rules of the VRAM guard, its thresholds, and what an Xid stands for."""

from __future__ import annotations

from ..._gpu.memory import CUDA_CONTEXT_MIB

HOUR = 3600.0
DAY = 24 * HOUR

DEFAULTS: dict = {
    "interval_s": 15,
    "debounce": 4,  # samples in a row
    "growth_mib": 1024,  # beyond what plan, server and baseline explain
    "trapped_mib": 300,
    "ownerless_mib": 1024,
    "foreign_mib": 300,
    "free_low_mib": 512,
    "limit_mib": None,
    "leak_mib": 256,
    "leak_mib_per_hour": 50,
    "leak_window_s": 900,
    "context_mib": CUDA_CONTEXT_MIB,
    "scratch_bytes_per_token": 4096,  # f16 scratch of a quantized KV cache, measured on Qwen3-14B
    "load_grace_s": 300,  # OLLAMA_LOAD_TIMEOUT
    "unload_grace_s": 10,  # Ollama waits up to 5 s for the memory of a runner that it ended
    "stuck_s": 1800,
    "idle_s": 30,
    "drain_s": 120,
    "settle_s": {"unload": 30, "end": 30, "restart": 60, "fence": 0},
    "cool_down_s": 300,
    "budgets": {
        "unload": {"hour": 3, "day": 24},
        "end": {"hour": 3, "day": 12},
        "restart": {"hour": 2, "day": 4},
    },
    "unit": "ollama.service",
}

ACTIONS = ("unload", "end", "restart", "fence")

# In the order in which they are considered: the first that may act, acts. `ladder` is what is tried, one rung after
# the other, while the signal stays; () is only reported.
# `means` is the sentence for people; `why_not` says what the rule deliberately does not do.
RULES: dict[str, dict] = {
    "driver": {
        "ladder": (),
        "means": "NVML cannot be used: no driver, no library, a mismatch of the two, or no permission",
        "why_not": "restarting the server does not fix a driver",
    },
    "nvml_flapping": {
        "ladder": (),
        "debounce": 1,
        "means": "NVML answers, fails, answers again",
        "why_not": "partial data is not a reason to act",
    },
    "gpu_lost": {
        "ladder": ("fence",),
        "debounce": 2,
        "means": "a GPU is lost, or NVML or an Xid asks for a reset or a reboot",
        "why_not": "no unload and no restart: calls to a lost GPU may block, and only a reset or reboot helps",
    },
    "ollama_unreadable": {
        "ladder": (),
        "means": "the Ollama API does not answer or answers nonsense",
        "why_not": "systemd restarts a server that died; one that cannot be read is not judged",
    },
    "orphan": {
        "ladder": ("end", "fence"),
        "means": "a runner of Ollama whose server is gone (its parent is init) still holds VRAM",
        "why_not": "the server is left alone; a second server of another user is only reported",
    },
    "stale_runner": {
        "ladder": ("end", "restart", "fence"),
        "means": "the unit has more runners on the GPU than /api/ps has models, and none is loading",
        "why_not": "a runner is ended only if the stale one can be identified; otherwise restart is next",
    },
    "trapped": {
        "ladder": ("restart", "fence"),
        "means": "the unit holds VRAM for no model: /api/ps is empty, or the server itself holds it (ollama#16336)",
        "why_not": "an unload cannot help: there is no model to name",
    },
    "hang": {
        "ladder": ("unload", "restart", "fence"),
        "means": "a runner is stopped or its health port is silent while the server answers",
        "why_not": "a busy runner answers its health port, so a long generation is not a hang",
    },
    "stuck_unload": {
        "ladder": ("restart", "fence"),
        "means": 'a model is long past its expiry ("Stopping…" in `ollama ps`) and does not unload',
        "why_not": "a generation longer than keep_alive looks the same, so the limit is long",
    },
    "growth": {
        "ladder": ("unload", "restart", "fence"),
        "needs_plan": True,
        "means": "a runner holds more than plan, server and its own baseline explain",
        "why_not": "without a plan for the model it is only reported",
    },
    "xid_application": {
        "ladder": ("unload",),
        "debounce": 1,
        "means": "three Xids of the application class within ten minutes",
        "why_not": "the GPU is healthy; a fresh runner is enough",
    },
    "leak": {
        "ladder": ("unload",),
        "debounce": 1,
        "means": "a runner grew steadily for a quarter of an hour, beyond plan and server",
        "why_not": "never restarted for: one step at the first long prompt is normal",
    },
    "limit": {
        "ladder": ("unload",),
        "means": "a GPU uses more than vram_guard_limit_mib",
        "why_not": "idle models are unloaded; the server is not restarted, since it would load them again",
    },
    "cpu_offload": {
        "ladder": ("unload",),
        "means": "a model lies in host memory, partly (size_vram < size) or entirely (planned, and size_vram = 0),"
        " although it would fit now",
        "why_not": "if it would not fit it is only reported: the plan or another process is the cause",
    },
    "plan_off": {
        "ladder": (),
        "means": "a freshly loaded runner already holds more than planned",
        "why_not": "it would load the same again: correct the plan or the settings",
    },
    "ownerless": {
        "ladder": (),
        "means": "VRAM is in use that no process owns",
        "why_not": "a restart does not free it; a driver reload or a reboot may",
    },
    "free_low": {
        "ladder": (),
        "means": "little VRAM is free although all of it is explained",
        "why_not": "that is how it was configured",
    },
    "foreign": {
        "ladder": (),
        "means": "processes that are not Ollama's use the GPU",
        "why_not": "they belong to another user",
    },
}

# The first row is NVIDIA's device plugin's list of errors that leave the GPU healthy; the second
# says by its text that it wants a reset, or that the GPU is gone (79).
XID_APPLICATION = (13, 31, 43, 45, 68, 109)
XID_FATAL = (46, 62, 79, 119, 120, 140, 154)


def debounce_of(rule, settings):
    """Samples in a row after which a signal of that rule is believed."""
    return RULES[rule].get("debounce", settings["debounce"])
