# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment


def ollama_environment_problem(settings, extra=None):
    """What is wrong with the environment, in one sentence; '' where nothing is."""
    try:
        ollama_environment.render(dict(settings), dict(extra or {}))
    except ollama_environment.EnvError as error:
        return str(error)
    return ""


class FilterModule:
    """The filter gpufleet.llm.ollama_environment_problem."""

    def filters(self):
        return {"ollama_environment_problem": ollama_environment_problem}
