# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import policy as gateway_policy
from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import settings as gateway_settings
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declared as ollama_declared
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared as open_webui_declared
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as open_webui_environment
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import load as soak_load

# variable -> what judges its value; the keyword arguments of the filter are that function's own.
CHECKS = {
    "gateway_settings": gateway_settings.problems,
    "gateway_tokens": gateway_policy.problems,
    "models_declared": ollama_declared.problems,
    "ollama_environment": ollama_environment.problems,
    "open_webui_environment": open_webui_environment.problems,
    "open_webui_models": open_webui_declared.model_problems,
    "open_webui_secret_environment": open_webui_environment.secret_problems,
    "open_webui_users": open_webui_declared.user_problems,
    "soak_load": soak_load.problems,
}


def problems(value, variable, **about):
    """What is wrong with the value of a variable, a sentence each; see DOCUMENTATION beside this file."""
    if variable not in CHECKS:
        raise AnsibleFilterError(f"problems knows no variable {variable}; it knows {', '.join(sorted(CHECKS))}.")
    try:
        return CHECKS[variable](value, **about)
    except TypeError as error:
        raise AnsibleFilterError(f"problems of {variable}: {error}") from error


class FilterModule:
    """The filter gpufleet.llm.problems."""

    def filters(self):
        return {"problems": problems}
