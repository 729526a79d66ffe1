# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command `lab` is made of.

engine, image, hosts, fleet and mirror talk to the Docker engine through Python's package docker, which is in .venv. state,
faults, world, ca and shell need the standard library only: programs beside a scenario import them with any Python.
"""

from __future__ import annotations
