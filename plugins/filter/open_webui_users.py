# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui.client import OpenWebuiError


def open_webui_users(given):
    try:
        return declared.page_users(given)
    except OpenWebuiError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.open_webui_users."""

    def filters(self):
        return {"open_webui_users": open_webui_users}
