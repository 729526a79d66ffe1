# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that a running Ollama server really has: read from the environment of its process.

Private to this collection: it may change or go without notice.

The environment file says what the server will have after its next start; /proc says what it has. Only keys that
size the memory are read, so no secret (proxy credentials) leaves the host.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

#: What the server does where a key is not set (envconfig/config.go, 0.32.15; the fit target is llama.cpp's).
DEFAULTS: dict[str, Any] = {
    "num_parallel": 1,
    "kv_cache_type": "f16",
    "flash_attention": None,
    "context_length": None,
    "max_loaded_models": None,
    "keep_alive": "5m",
    "fit_target_mib": 1024,
}
_KEYS = {
    "OLLAMA_NUM_PARALLEL": ("num_parallel", "uint"),
    "OLLAMA_KV_CACHE_TYPE": ("kv_cache_type", "text"),
    "OLLAMA_FLASH_ATTENTION": ("flash_attention", "flag"),
    "OLLAMA_CONTEXT_LENGTH": ("context_length", "uint"),
    "OLLAMA_MAX_LOADED_MODELS": ("max_loaded_models", "uint"),
    "OLLAMA_KEEP_ALIVE": ("keep_alive", "text"),
    "LLAMA_ARG_FIT_TARGET": ("fit_target_mib", "uint"),
}


# llama.cpp's own words, which Ollama passes on to its log (llama-model.cpp and common/fit.cpp of b9888 to b10488).
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_PROJECTED = re.compile(r"projected to use (\d+) MiB of device memory vs\. (\d+) MiB of free device memory")


class ServiceError(Exception):
    """The service cannot be looked at; the text says why and what to do."""


def observe(unit: str, systemctl: str = "systemctl", proc: str = "/proc") -> dict[str, Any]:
    """`{active, pid, started_at, settings}` of a systemd unit; settings is None when it does not run.

    settings: num_parallel, kv_cache_type, flash_attention (None: the server decides), context_length (None: by the
    tier of VRAM), max_loaded_models (None: three for each GPU), keep_alive (text), fit_target_mib (MiB left free on
    each card).
    """
    properties = _properties(unit, systemctl)
    pid = int(properties.get("MainPID") or 0)
    found: dict[str, Any] = {
        "active": properties.get("ActiveState", "unknown"),
        "pid": pid or None,
        "started_at": properties.get("ExecMainStartTimestamp") or None,
        "settings": None,
    }
    if pid:
        found["settings"] = settings(_environment(pid, proc))
    return found


def settings(environment: dict[str, str]) -> dict[str, Any]:
    """The settings that the server makes of its environment: its parsing, its defaults."""
    found = dict(DEFAULTS)
    for key, (name, kind) in _KEYS.items():
        text = environment.get(key, "").strip().strip("\"'")
        if text == "":
            continue
        if kind == "uint":
            # What it cannot parse becomes the default, with a warning in its log. 0 is "not set" for all but the slots.
            if text.isascii() and text.isdigit():
                found[name] = int(text) or (0 if name == "fit_target_mib" else DEFAULTS[name])
        elif kind == "flag":
            found[name] = text.lower() not in ("0", "f", "false")
        else:
            found[name] = text.lower() if name == "kv_cache_type" else text
    return found


def layout(unit: str, since: float, journalctl: str = "journalctl") -> dict[str, Any] | None:
    """What the engine said of a model that the unit has loaded since then (epoch seconds), as read_layout() has it.

    None where the journal cannot be read: what it would say explains a failure and never is one.
    """
    command = [journalctl, f"--unit={unit}", f"--since=@{int(since)}", "--output=cat", "--quiet", "--no-pager"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_layout(done.stdout) if done.returncode == 0 else None


def read_layout(text: str) -> dict[str, Any]:
    """`{layers, all_layers, wanted_mib, free_mib}` of the last load in an engine's log, None where it is not there."""
    layers, projected = _OFFLOADED.findall(text), _PROJECTED.findall(text)
    on_gpu, of_all = layers[-1] if layers else (None, None)
    wanted, free = projected[-1] if projected else (None, None)
    numbers = {"layers": on_gpu, "all_layers": of_all, "wanted_mib": wanted, "free_mib": free}
    return {key: None if value is None else int(value) for key, value in numbers.items()}


def _properties(unit: str, systemctl: str) -> dict[str, str]:
    command = [systemctl, "show", unit, "--property=MainPID,ActiveState,ExecMainStartTimestamp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(
            f"systemd cannot be asked about {unit}: {error}. Leave `unit` out where there is no systemd."
        ) from None
    if done.returncode != 0:
        raise ServiceError(f"systemd cannot be asked about {unit}: {done.stderr.strip() or 'systemctl failed'}.")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _environment(pid: int, proc: str) -> dict[str, str]:
    try:
        with open(os.path.join(proc, str(pid), "environ"), "rb") as source:
            raw = source.read()
    except OSError as error:
        raise ServiceError(
            f"The environment of process {pid} cannot be read: {error.strerror}. Reading it takes root: run with "
            "become: true."
        ) from None
    pairs = (entry.split("=", 1) for entry in raw.decode("utf-8", "replace").split("\0") if "=" in entry)
    return dict(pairs)
