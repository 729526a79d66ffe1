# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The measure of a soak test: the JSON lines that its program writes, read back as one run.

A *run* is what ``parse()`` makes of the program's JSON lines::

    {"start":    {"schema", "host", "at": wall clock, "load", "target", "model", "interval_s", "gpus": [...], "plan",
                  "versions"},
     "samples":  [SAMPLE, …], "requests": [REQUEST, …], "generations": [GENERATION, …], "events": [EVENT, …],
     "end":      {"t", "reason": "done" | "stopped" | "failed" | "cut", "detail", "cpu_s"}}

``t`` is seconds since the start, by a clock that never goes back. A SAMPLE::

    {"t", "late": s after its time,
     "gpus": [{"i", "state", "used", "held", "others": MiB, "temp", "w", "util", "thr": [reasons]}],
     "rss": MiB of the unit's processes, "runners": [[pid, start], …], "server": pid | None,
     "ps": {"state": "ok" | other, "models": [[name, size MiB, size_vram MiB, context], …]}}

``held`` is what the card holds for the server: used less what other units' processes own, so memory that no process
owns any more (trapped) counts as the server's. A REQUEST::

    {"t", "conversation", "round", "kind", "status": "ok" | "error", "error": str, "http": int | None,
     "ttft": s, "total": s, "tokens_in", "tokens_out", "s_per_token", "load_s", "done_reason",
     "loop": {"at", "period"} | None}

A GENERATION is a runner that was seen: ``{"t", "pid", "start", "model": digest, "context": tokens of all slots}``; the
second of one model in a run is a reload. An EVENT: ``{"t", "what": "ready" | "xid" | "guard" | "other_process", …}``;
ready: the model was loaded, the start value of the table is what is held then.
"""

from __future__ import annotations

import json
from typing import Any

SCHEMA = 1

#: State of /api/ps in a sample that came before the first answer.
NOT_ASKED = "not asked"

PLACES = {"sample": "samples", "request": "requests", "generation": "generations", "event": "events"}


class SoakError(Exception):
    """A measure or a limit that cannot be worked with; the text is for an operator."""


def parse(lines) -> dict[str, Any]:
    """The run of its JSON lines; a last line that was cut off is left out. Raises SoakError."""
    run: dict[str, Any] = {"start": None, **{place: [] for place in PLACES.values()}, "end": None}
    bad = 0
    for line in lines:
        try:
            entry = json.loads(line)
            kind = entry.pop("k")
        except (ValueError, KeyError, AttributeError):
            bad += bool(line.strip())
            continue
        if kind in PLACES:
            run[PLACES[kind]].append(entry)
        elif kind in ("start", "end"):
            run[kind] = entry
    _refuse_damage(run, bad)
    if run["end"] is None:
        detail = "the program did not come to its end: it was killed, or the host went away"
        last = run["samples"][-1]["t"] if run["samples"] else 0.0
        run["end"] = {"t": last, "reason": "cut", "detail": detail, "cpu_s": None}
    return run


def _refuse_damage(run, bad):
    """SoakError for a file that is no measure, is of another schema, or has more than its last line damaged."""
    if run["start"] is None:
        raise SoakError(
            "This is no measure of a soak test: it has no line of kind start."
            " Give the file that the run left, unchanged."
        )
    schema = run["start"].get("schema")
    if schema != SCHEMA:
        raise SoakError(
            f"This measure is of schema {schema}; {SCHEMA} was wanted. Judge it with the collection that made it."
        )
    if bad > 1:
        raise SoakError(f"{bad} lines of this measure are damaged; one, the last, may be. Run again.")
