# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declared as ollama_declared


class FilterModule:
    """The filter gpufleet.llm.plan_models."""

    def filters(self):
        return {"plan_models": ollama_declared.plan_models}
