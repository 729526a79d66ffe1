# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the whole collection takes for granted about a card's memory."""

from __future__ import annotations

MIB = 1024 * 1024

# What Ollama itself sets aside for a GPU's CUDA context ("minimum memory", ml/device.go); 300-500 MiB is usual.
CUDA_CONTEXT_MIB = 457
