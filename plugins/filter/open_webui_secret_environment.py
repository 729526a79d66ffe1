# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as open_webui_environment


def open_webui_secret_environment(extra, owned=None, release=open_webui_environment.names.RELEASE):
    """Secret environment of Open WebUI, checked; see DOCUMENTATION beside this file."""
    try:
        return open_webui_environment.render_secrets(dict(extra or {}), dict(owned or {}), release)
    except open_webui_environment.EnvError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.open_webui_secret_environment."""

    def filters(self):
        return {"open_webui_secret_environment": open_webui_secret_environment}
