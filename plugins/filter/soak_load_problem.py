# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._soak import load as soak_load


def soak_load_problem(changes, preset):
    """'' or the sentence that says why this is no load."""
    try:
        soak_load.settle(preset, dict(changes))
    except (soak_load.LoadError, TypeError, ValueError) as error:
        return f"soak_load: {error}"
    return ""


class FilterModule:
    """The filter gpufleet.llm.soak_load_problem."""

    def filters(self):
        return {"soak_load_problem": soak_load_problem}
