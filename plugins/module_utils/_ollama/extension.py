# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What ``context_extension`` of a declaration asks for; how it is done is in ``_plan.context_extension``."""

from __future__ import annotations

from typing import Any, NamedTuple

METHODS = ("yarn",)
# Qwen's model cards: YaRN is validated up to a factor of 4, that is 131,072 tokens.
LARGEST_FACTOR = 4.0


class ExtensionError(Exception):
    """A context that cannot be extended; the text is for the operator."""


class Extension(NamedTuple):
    """What is declared: the method and the factor by which the native context grows."""

    method: str
    factor: float

    @property
    def text(self) -> str:
        """Part of a model's name in the store, such as ``yarn2`` or ``yarn2_5``."""
        return f"{self.method}{self.factor:g}".replace(".", "_")


def declared(entry: Any, where: str = "") -> Extension | None:
    """The extension that ``context_extension`` of a declaration asks for, checked; None for None."""
    if entry is None:
        return None
    if not isinstance(entry, dict) or set(entry) != {"method", "factor"}:
        raise ExtensionError(
            f"{where}context_extension is {str(entry)[:80]}; a dictionary of method and factor was wanted."
        )
    if entry["method"] not in METHODS:
        raise ExtensionError(
            f"{where}context_extension.method is '{entry['method']}'; it has to be one of {', '.join(METHODS)}."
        )
    try:
        factor = float(entry["factor"])
    except (TypeError, ValueError):
        factor = 0.0
    if not 1.0 < factor <= LARGEST_FACTOR:
        raise ExtensionError(
            f"{where}context_extension.factor is {str(entry['factor'])[:20]}; a number above 1 and up to "
            f"{LARGEST_FACTOR:g} was wanted: Qwen's models are validated up to 4."
        )
    return Extension(entry["method"], factor)
