# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment


def open_webui_environment(settings, extra=None, owned=None, release=environment.names.RELEASE):
    """Environment of Open WebUI, checked; see DOCUMENTATION beside this file."""
    try:
        return environment.render(dict(settings), dict(extra or {}), dict(owned or {}), release)
    except environment.EnvError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.open_webui_environment."""

    def filters(self):
        return {"open_webui_environment": open_webui_environment}
