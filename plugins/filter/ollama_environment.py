# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment


def ollama_environment(settings, extra=None):
    """Environment of the Ollama server, checked; see DOCUMENTATION beside this file."""
    try:
        return environment.render(dict(settings), dict(extra or {}))
    except environment.EnvError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.ollama_environment."""

    def filters(self):
        return {"ollama_environment": ollama_environment}
