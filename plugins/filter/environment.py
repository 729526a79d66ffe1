# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as open_webui_environment

RENDER = {"ollama": ollama_environment.render, "open_webui": open_webui_environment.render}


def environment(settings, service, extra=None, **about):
    """The environment of a service, every value as text; see DOCUMENTATION beside this file."""
    if service not in RENDER:
        raise AnsibleFilterError(f"environment knows no service {service}; it knows {', '.join(sorted(RENDER))}.")
    try:
        return RENDER[service](dict(settings), dict(extra or {}), **about)
    except (ollama_environment.EnvError, open_webui_environment.EnvError, TypeError) as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.environment."""

    def filters(self):
        return {"environment": environment}
