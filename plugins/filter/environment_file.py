# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment


class FilterModule:
    """The filter gpufleet.llm.environment_file."""

    def filters(self):
        return {"environment_file": ollama_environment.environment_file}
