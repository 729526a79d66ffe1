# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up runs of the soak test, for what judges and shows them."""

from __future__ import annotations

import json

PLANNED = 11985


def run(seconds=600, held=lambda t: PLANNED, cards=1, pace_s=10, **changes):
    """A healthy run as the program writes it; `held(t)` is the memory, `changes` replaces what a function of t gives.

    runner(t) -> (pid, context), ps(t) -> (size, size_vram) | None, s_per_token(t), status(t), temp(t), thr(t), others(t), server(t).
    """

    def at(name, t, default):
        return changes[name](t) if name in changes else default

    gpus = [{"index": i, "name": "NVIDIA GeForce RTX 4090", "uuid": f"GPU-{i}", "total_mib": 24564, "planned_mib": PLANNED} for i in range(cards)]
    made = {
        "start": {
            "schema": 1, "host": "gpu1", "at": 1_800_000_000.0, "load": {"preset": "article", "conversations": 1, "rounds": 15, "seed": 1},
            "target": {"kind": "ollama", "url": "http://127.0.0.1:11434"}, "model": "qwen3-14b-4090", "interval_s": 1.0, "gpus": gpus,
            "nvml": {"state": "ok", "source": "pynvml"}, "versions": {"ollama": "0.32.15", "driver": "580.126.09", "digest": "ab" * 32},
            "plan": {"models": [{"name": "qwen3-14b-4090", "total_mib": PLANNED, "scratch_mib": 0}], "gpus": [{"index": 0, "planned_mib": PLANNED}]},
        },
        "samples": [], "requests": [], "generations": [], "events": list(changes.get("events", ())),
        "end": {"t": float(seconds), "reason": changes.get("reason", "done"), "detail": "", "cpu_s": 3.0},
    }  # fmt: skip
    seen = set()
    for t in range(seconds):
        pid, context = at("runner", t, (100, 40960))
        if pid and pid not in seen:
            seen.add(pid)
            made["generations"].append({"t": float(t), "pid": pid, "start": pid, "model": "abc", "context": context})
        sizes = at("ps", t, (11885, 11885))
        models = [] if sizes is None else [["qwen3-14b-4090:latest", *sizes, context]]
        made["samples"].append(
            {
                "t": float(t), "late": 0.001, "rss": 900.0 + t % 3, "runners": [[pid, pid]] if pid else [], "server": at("server", t, 50),
                "ps": {"state": at("ps_state", t, "ok"), "models": models},
                "gpus": [
                    {"i": i, "state": at("card", t, "ok"), "used": held(t) + at("others", t, 0), "held": held(t), "others": at("others", t, 0),
                     "temp": at("temp", t, 60), "w": 300.0, "util": 90, "thr": at("thr", t, [])}
                    for i in range(cards)
                ],
            }
        )  # fmt: skip
    for number, t in enumerate(range(3, seconds - 5, pace_s), 1):
        ok = at("status", t, "ok") == "ok"
        made["requests"].append(
            {
                "t": float(t), "conversation": 1, "round": number, "kind": "chat", "status": "ok" if ok else "error", "error": "" if ok else "cut",
                "http": 200 if ok else 500, "ttft": 0.5 if ok else None, "total": 4.0, "tokens_in": 8000 if ok else None, "tokens_out": 200 if ok else None,
                "s_per_token": at("s_per_token", t, 0.017) if ok else None, "load_s": 0.01, "done_reason": "stop" if ok else None, "loop": at("loop", t, None),
            }
        )  # fmt: skip
    return made


def lines(made):
    """The run as the program's JSON lines."""
    places = (("sample", "samples"), ("request", "requests"), ("generation", "generations"), ("event", "events"))
    entries = [("start", made["start"]), *((kind, entry) for kind, place in places for entry in made[place])]
    entries += [("end", made["end"])] if made["end"] else []
    return [json.dumps({"k": kind, **entry}) for kind, entry in entries]
