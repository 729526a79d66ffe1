# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""A sample of the GPUs by the csv answers of nvidia-smi."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from .._host.units import Run
from . import shape
from .shape import GPU_IS_LOST, SUCCESS


def _enabled(text: str) -> bool:
    if text not in ("Enabled", "Disabled"):
        raise ValueError(text)
    return text == "Enabled"


Field = tuple[str, str, Callable[[str], Any]]

# Key of the GPU, field as `nvidia-smi --help-query-gpu` names it, and how its text is read.
FIELDS: tuple[Field, ...] = (
    ("index", "index", int),
    ("uuid", "uuid", str),
    ("name", "name", str),
    ("pci_bus_id", "pci.bus_id", str),
    ("driver_version", "driver_version", str),
    ("compute_capability", "compute_cap", str),
    ("total_mib", "memory.total", int),
    ("reserved_mib", "memory.reserved", int),
    ("used_mib", "memory.used", int),
    ("free_mib", "memory.free", int),
    ("gpu_util_percent", "utilization.gpu", int),
    ("memory_util_percent", "utilization.memory", int),
    ("temperature_c", "temperature.gpu", int),
    ("power_w", "power.draw", float),
    ("power_limit_w", "power.limit", float),
    ("power_default_limit_w", "power.default_limit", float),
    ("power_enforced_limit_w", "enforced.power.limit", float),
    ("power_min_limit_w", "power.min_limit", float),
    ("power_max_limit_w", "power.max_limit", float),
    ("throttle_reasons", "clocks_throttle_reasons.active", lambda text: shape.throttle_reasons(int(text, 16))),
    ("ecc_enabled", "ecc.mode.current", _enabled),
    ("mig_enabled", "mig.mode.current", _enabled),
    ("persistence_enabled", "persistence_mode", _enabled),
    ("pcie_generation", "pcie.link.gen.current", int),
    ("pcie_generation_max", "pcie.link.gen.max", int),
    ("pcie_width", "pcie.link.width.current", int),
    ("pcie_width_max", "pcie.link.width.max", int),
)
TIMEOUT_S = 60  # without persistence every call starts the card, seconds each


def read(run: Run | None = None, proc: str = "/proc") -> dict | None:
    """A sample by nvidia-smi's csv answers; None where there is no such program or it does not end in time."""
    fields = list(FIELDS)
    while True:
        done = _ask(run, "--query-gpu=" + ",".join(field[1] for field in fields))
        if done is None:
            return None
        refused = re.search(r'Field "([^"]+)" is not a valid field', done.stdout)
        kept = [field for field in fields if not refused or field[1] != refused.group(1)]
        if len(kept) == len(fields):
            break
        fields = kept
    answer = shape.answer("nvidia-smi")
    answer["gpus"] = [gpu for gpu in (_gpu(fields, row) for row in _rows(done.stdout)) if gpu]
    for gpu in answer["gpus"]:
        answer["driver_version"] = gpu.pop("driver_version", None) or answer["driver_version"]
    if done.returncode == GPU_IS_LOST:
        answer["gpus"].append(_lost(len(answer["gpus"]), done.stdout, len(fields)))
    elif done.returncode != SUCCESS:  # nvidia-smi exits with the code of NVML
        return shape.failed(answer, done.returncode, " ".join(done.stdout.split())[:200] or "no text")
    _add_processes(answer["gpus"], run, proc)
    return shape.answered(answer)


def _ask(run: Run | None, query: str) -> Any:
    try:
        return (run or subprocess.run)(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=TIMEOUT_S,
            env=dict(os.environ, LC_ALL="C"),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _rows(text: str) -> list[list[str]]:
    """Cells of each line; nvidia-smi quotes nothing, and no value has a comma."""
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def _gpu(fields: Sequence[Field], row: list[str]) -> dict[str, Any] | None:
    """A GPU of one row; None for a line that is not one (a message between the rows)."""
    if len(row) != len(fields) or not row[0].isdigit():
        return None
    gpu = dict(shape.EMPTY_GPU)
    for (key, _name, convert), text in zip(fields, row):
        gpu[key] = _converted(convert, text)
    gpu["throttled"] = shape.throttled(gpu["throttle_reasons"])
    if "lost" in " ".join(row).lower():
        gpu.update(state="lost", message=shape.LOST.format(gpu["index"]))
    elif gpu["total_mib"] is None:
        gpu.update(state="error", message=shape.NO_MEMORY.format(gpu["index"]))
    return gpu


def _converted(convert: Callable[[str], Any], text: str) -> Any:
    """The cell's value; None for [N/A], [Not Supported], [Unknown Error] and whatever else is no such value."""
    if not text or text.startswith("[") or text == "N/A":
        return None
    try:
        return convert(text)
    except ValueError:
        return None


def _lost(index: int, text: str, columns: int) -> dict[str, Any]:
    """The GPU of the message that nvidia-smi gives in place of its row."""
    text = " ".join(line.strip() for line in text.splitlines() if line.count(",") != columns - 1)
    bus = re.search(r"([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])", text)
    return dict(
        shape.EMPTY_GPU,
        index=index,
        state="lost",
        pci_bus_id=bus.group(1) if bus else None,
        message=f"nvidia-smi reports a lost GPU ({text[-160:]}); this host has to be rebooted.",
    )


def _add_processes(gpus: list[dict[str, Any]], run: Run | None, proc: str) -> None:
    done = _ask(run, "--query-compute-apps=gpu_uuid,pid,used_memory")
    if done is None or done.returncode != SUCCESS:
        return
    by_uuid = {gpu["uuid"]: gpu for gpu in gpus if gpu["uuid"] and gpu["state"] == "ok"}
    for gpu in by_uuid.values():
        gpu["processes"] = []
    for row in _rows(done.stdout):
        if len(row) == 3 and row[0] in by_uuid and row[1].isdigit():
            entry = shape.process(int(row[1]), "compute", _converted(int, row[2]), proc)
            by_uuid[row[0]]["processes"].append(entry)
