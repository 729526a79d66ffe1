# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One sample of the GPUs of this host, by whatever can answer.

``sample()`` asks, in this order, the module pynvml of nvidia-ml-py, the program nvidia-smi, and the bare
libnvidia-ml.so.1 (names, memory, processes, load). It raises nothing for a host without GPU, driver or library: the
sample says so in ``state``. Its shape is the docstring of shape.py.
"""

from __future__ import annotations

from typing import Any

from .._host.units import Run
from . import client, library, smi


def sample(nvml: Any = None, run: Run | None = None, proc: str = "/proc", library_name: str = library.NAME) -> dict:
    """One sample of everything (shape: shape.py).

    ``nvml`` is a module with pynvml's functions; without one, pynvml is imported, and where that is not
    to be had nvidia-smi is run, and where that is not to be had the library is asked directly.
    ``run`` stands for subprocess.run, ``proc`` for /proc.
    """
    nvml = nvml or client.load()
    if nvml is not None:
        return client.read(nvml, "pynvml", proc)
    answer = smi.read(run, proc)
    return answer if answer is not None else client.read(library.Library(library_name), "libnvidia-ml", proc)


def processes(taken: dict) -> list[dict] | None:
    """All processes of a sample in one list, each with ``gpu_index`` and ``gpu_uuid``; None when no GPU answered."""
    lists = [gpu for gpu in taken["gpus"] if gpu["processes"] is not None]
    if not lists:
        return None
    return [
        dict(process, gpu_index=gpu["index"], gpu_uuid=gpu["uuid"]) for gpu in lists for process in gpu["processes"]
    ]
