# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command `lab` is made of. Standard library only, Python 3.9 syntax: it runs before any venv exists."""

from __future__ import annotations
