# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the VRAM guard decides: pure functions, no clock, no file, no network.

One tick is three calls, each returning a new value and changing nothing::

    history  = remember(history, sample, plan, settings, now)   # fold the sample into streaks
    decision = decide(history, plan, budget, now, settings)     # what, if anything, is to be done
    history  = note(history, decision, now, settings)           # record what was done (or would have been)

``now`` is seconds on the guard's own clock, which never goes back (``_guard.state.parse_state`` makes it).

A *sample* is what one check of the host found::

    {"nvml":   {"state": "ok" | any other word, "detail": str},
     "gpus":   [{"uuid", "state": "ok" | "lost" | "unreadable", "total_mib", "used_mib", "free_mib",
                 "utilisation": percent or None, "recovery": text or None}],
     "processes": [{"pid", "start", "gpu", "used_mib": int or None, "unit", "kind", "uid_ok", "ppid",
                    "age_s", "cpu_s", "proc_state", "health"}],        one entry per GPU and process
     "ollama": {"state": "ok" | "down" | "timeout" | "error", "detail": str,
                "models": [{"name", "digest", "size_mib", "size_vram_mib", "context_length",
                            "expires_at": str, "expires_in_s": float}]},
     "xids":   {"state": "ok" | "skipped" | "unreadable", "events": [{"at": wall clock, "gpu", "xid"}]},
     "in_flight": generations under way now, None where that was not asked or not answered,
     "drained": whether somebody else has taken this host out of service (left out: no),
     "clock_step_s": how far the wall clock jumped against the boot clock since the last sample}

``kind`` of a process: "server" (ollama serve), "runner" (its child, by program name), "other".
A *plan* is ``{"state": "ok" | "absent" | "invalid", "models": {name: MiB}}``.
A *budget* is ``{"limits": {kind: {"hour": n, "day": n}}, "spent": [[when, kind], …]}``.

The reasons for the rules: docs/guides/vram_guard.md, whose table is generated from RULES, and Ollama's
scheduler (server/sched.go: a runner is killed on unload and its VRAM is given up to 5 s;
llm/llama_server.go: size_vram leaves out the CUDA context).
"""

from __future__ import annotations

from .decide import allowed, cool_down, decide
from .history import change_mode, fresh, note, remember, unfence
from .rules import ACTIONS, DAY, DEFAULTS, HOUR, RULES
from .runners import by_server

__all__ = (
    "ACTIONS",
    "DAY",
    "DEFAULTS",
    "HOUR",
    "RULES",
    "allowed",
    "by_server",
    "change_mode",
    "cool_down",
    "decide",
    "fresh",
    "note",
    "remember",
    "unfence",
)
