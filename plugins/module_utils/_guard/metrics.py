# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""vram_guard.prom for the textfile collector of node_exporter. Imported where metrics are wanted."""

from __future__ import annotations

import json
import os

from .._gpu.memory import MIB
from . import policy
from .files import write_text
from .report import draining, say


def write_metrics(folder, history, summary, clock):
    """Write vram_guard.prom into *folder*; a line in the journal where that cannot be."""
    lines = [line for metric in metrics(history, summary, clock) for line in _lines(*metric)]
    try:
        write_text(os.path.join(folder, "vram_guard.prom"), "\n".join(lines) + "\n")
    except OSError as error:
        say(f"<4>{json.dumps({'trouble': f'metrics could not be written: {error}'})}")


def metrics(history, summary, clock):
    """[(name, type, help, [({label: value}, number)])] of a tick's summary."""
    record, plan = summary["record"], summary["plan"]
    sources = {key: summary[key]["state"] for key in ("nvml", "ollama", "plan")}
    sources["kernel_log"] = summary["xids"]
    readable = [({"source": key}, int(value == "ok")) for key, value in sources.items()]
    gpus = [gpu for gpu in summary["gpus"] if gpu["state"] == "ok"]
    used = [({"uuid": gpu["uuid"]}, gpu["used_mib"] * MIB) for gpu in gpus]
    free = [({"uuid": gpu["uuid"]}, gpu["free_mib"] * MIB) for gpu in gpus]
    planned = [({"model": name}, int(size * MIB)) for name, size in sorted(plan["models"].items())]
    firing = {alert["rule"] for alert in record["alerts"]}
    rules = [({"rule": rule}, int(rule in firing)) for rule in policy.RULES]
    actions = [({"action": kind}, value) for kind, value in summary["totals"].items()]
    acting, fenced = history["mode"] == "act", history["fence"] is not None
    done = "What the guard did, or in a dry run would have done."
    return [
        ("last_tick_timestamp_seconds", "gauge", "When the guard last ran.", [({}, round(clock["wall"], 3))]),
        ("fenced", "gauge", "1 while the guard waits for a person.", [({}, int(fenced))]),
        ("draining", "gauge", "1 while a restart waits for running generations.", [({}, int(draining(record)))]),
        ("acting", "gauge", "1 in act mode, 0 in a dry run.", [({}, int(acting))]),
        ("source_readable", "gauge", "1 where the last read worked.", readable),
        ("gpu_memory_used_bytes", "gauge", "VRAM in use, without what driver and firmware reserve.", used),
        ("gpu_memory_free_bytes", "gauge", "VRAM that is free.", free),
        ("model_memory_planned_bytes", "gauge", "VRAM that the serving plan gives a model.", planned),
        ("signal", "gauge", "1 while a rule holds.", rules),
        ("actions_total", "counter", done, actions),
    ]


def _lines(name, kind, text, samples):
    yield f"# HELP vram_guard_{name} {text}"
    yield f"# TYPE vram_guard_{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        yield f"vram_guard_{name}{'{' + shown + '}' if shown else ''} {value}"


def _escape(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
