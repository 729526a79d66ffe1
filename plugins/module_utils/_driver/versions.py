# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Driver versions: how they compare, and which of them Ollama can use."""

from __future__ import annotations

import re
from typing import Any

# Ollama's CUDA libraries and the driver branch each needs (discover/cuda_compat.go and docs/gpu.mdx of v0.33):
# v12 is built with CUDA 12.8 and compressed fatbins, v13 with CUDA 13.0.
OLLAMA_LIBRARIES = (("cuda_v12", 550), ("cuda_v13", 580))
OLLAMA_RULE_SINCE = (0, 30)
# v12 wants more of the driver for cards before Volta; CUDA 13 has dropped those before Turing.
OLLAMA_OLD_CARDS = ("7.0", 570)
OLLAMA_V13_CARDS = "7.5"


class DriverError(Exception):
    """A version or a setting is not one; the text says what was found and what is wanted."""


def version_key(version: str | None) -> list[int]:
    """Numbers of a driver version such as 580.126.09, for comparing; [] for None."""
    return [int(part) for part in re.findall(r"\d+", version or "")]


def branch(version: str | None) -> int | None:
    """580 of "580.126.09"; None for None."""
    return version_key(version)[0] if version else None


def ollama_serves(
    driver_version: str | None, ollama_version: str | None = None, capability: str | None = None
) -> dict[str, Any]:
    """``{"minimum": branch or None, "libraries": [...], "ok": bool or None}`` of a driver for an Ollama release.

    ``ollama_version`` None means a current one. Releases before 0.30 are not judged (minimum None). ``ok`` is None
    when the driver's version is not known. Raises DriverError for a text that is not a version.
    Source: discover/cuda_compat.go of Ollama v0.33.
    """
    if ollama_version is not None:
        number = re.match(r"v?(\d+)\.(\d+)", str(ollama_version))
        if not number:
            raise DriverError(f"'{ollama_version}' is not an Ollama version; wanted is one such as 0.33.0.")
        if (int(number.group(1)), int(number.group(2))) < OLLAMA_RULE_SINCE:
            return {"minimum": None, "libraries": [], "ok": None}
    libraries = list(OLLAMA_LIBRARIES)
    if capability and version_key(capability) < version_key(OLLAMA_V13_CARDS):
        libraries = libraries[:1]
    if capability and version_key(capability) < version_key(OLLAMA_OLD_CARDS[0]):
        libraries = [(libraries[0][0], OLLAMA_OLD_CARDS[1])]
    minimum = min(needed for _name, needed in libraries)
    if driver_version is None:
        return {"minimum": minimum, "libraries": [], "ok": None}
    served = [name for name, needed in libraries if version_key(driver_version)[0] >= needed]
    return {"minimum": minimum, "libraries": served, "ok": bool(served)}
