# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of samples and histories of the VRAM guard, for the tests of its policy. No figure is a round one."""

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy

UNIT = "ollama.service"
TOTAL, USABLE = 24564, 24210
SETTINGS = policy.DEFAULTS
NO_PLAN = {"state": "absent", "detail": "", "models": {}}


def plan(**models):
    """A serving plan of {name without tag: MiB}."""
    return {"state": "ok", "detail": "", "models": {f"{name}:latest": float(size) for name, size in models.items()}}


def process(pid, mib, kind="runner", **parts):
    made = {"pid": pid, "start": pid * 7 + 1, "gpu": "A", "used_mib": mib, "unit": UNIT, "kind": kind, "uid_ok": True, "ppid": 50}
    return {**made, "age_s": 4001.0, "cpu_s": 12.5, "proc_state": "S", "health": "ok", **parts}


def model(name, vram, **parts):
    made = {"name": f"{name}:latest", "digest": f"d{name}", "size_mib": vram, "size_vram_mib": vram, "context_length": 40961}
    return {**made, "expires_at": "t1", "expires_in_s": 299.0, **parts}


def gpu(uuid="A", used=0, **parts):
    made = {"uuid": uuid, "pci": None, "state": "ok", "total_mib": TOTAL, "used_mib": used, "free_mib": USABLE - used}
    return {**made, "utilisation": 0, "recovery": None, **parts}


def sample(processes=(), models=(), gpus=None, nvml="ok", ollama="ok", **parts):
    if gpus is None:
        gpus = [gpu(used=sum(one["used_mib"] or 0 for one in processes) + 1)]
    made = {
        "nvml": {"state": nvml, "detail": ""},
        "gpus": list(gpus) if nvml == "ok" else [],
        "processes": list(processes) if nvml == "ok" else [],
        "ollama": {"state": ollama, "detail": "", "models": list(models) if ollama == "ok" else []},
        "xids": {"state": "ok", "events": []},
        "in_flight": None,
        "clock_step_s": 0.0,
    }
    return {**made, **parts}


def history(**parts):
    """That of a guard in act mode that can read everything."""
    return {**policy.fresh(), "mode": "act", "readable": True, **parts}


def streak(rule, subject="x", count=9, since=1.0, target=None, numbers=None):
    return {f"{rule}:{subject}": {"rule": rule, "subject": subject, "count": count, "since": since, "numbers": numbers or {}, "target": target}}


def record(model=None, mib=9001, **parts):
    """A runner's record of a history; *model* is name and digest."""
    made = {"pid": 7, "first": 0.0, "seen": 100.0, "busy": 0.0, "cpu_s": 1.0, "used_mib": mib, "model": model, "was": model}
    return {**made, "context": 40961, "unlisted": None, "sure": True, "baseline_mib": None, "trend": [], **parts}
