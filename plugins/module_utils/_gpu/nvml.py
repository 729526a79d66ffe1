# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
# ruff: noqa: F401
"""Previous names of what client.py, library.py, sample.py and _host/processes.py hold; goes with its last caller."""

from __future__ import annotations

from .._host.processes import describe as describe_process
from .._host.processes import ticks_per_second, unit_of
from .client import load as client
from .client import read
from .client import versions as client_versions
from .library import Library as BareLibrary


def __getattr__(name: str):
    # Late: smi.py imports subprocess, which a tick of the guard does not need.
    from . import sample

    return getattr(sample, name)
