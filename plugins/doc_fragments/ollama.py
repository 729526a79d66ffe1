# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that every module talking to an Ollama server has."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description:
      - URL of the Ollama server, as seen from the managed host.
      - "C(host:port), C([::1]:11434), C(http://…), C(https://…) (a proxy; Ollama itself speaks no TLS),
        or C(http+unix:///path/of/the.sock)."
    type: str
    default: http://127.0.0.1:11434
  timeout:
    description:
      - Seconds without progress during a pull, an import, a creation or a load. The operation itself may take longer.
      - Reads wait for at most 30 seconds.
    type: int
    default: 600
"""
