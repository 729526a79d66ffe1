# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of every module that talks to Open WebUI."""

    DOCUMENTATION = r"""
options:
  url:
    description: URL of Open WebUI, without a path.
    type: str
    default: http://127.0.0.1:8080
  token:
    description: Token of an administrator, from M(gpufleet.llm.open_webui_token).
    type: str
    required: true
  timeout_s:
    description: Timeout of a request in seconds.
    type: int
    default: 30
"""
