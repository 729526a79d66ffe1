# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared


class FilterModule:
    """The filter gpufleet.llm.open_webui_models."""

    def filters(self):
        return {"open_webui_models": declared.complete_models}
