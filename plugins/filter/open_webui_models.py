# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui.client import OpenWebuiError


def open_webui_models(given, models=()):
    try:
        return declared.page_models(given, models)
    except OpenWebuiError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter gpufleet.llm.open_webui_models."""

    def filters(self):
        return {"open_webui_models": open_webui_models}
