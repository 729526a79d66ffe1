#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: soak_run
short_description: Put a load on a host and measure it
version_added: 1.0.0
description:
  - Copies the program of the load test to the host, runs it as the transient unit C(gpufleet-soak.service),
    shows its progress, fetches the samples, and removes the program.
  - If the play is interrupted, it stops the test and fetches the samples so far.
  - A crash of the server, an error or a lost card is a result and not a failure of this module.
  - Use the playbook C(gpufleet.llm.soak) or the role P(gpufleet.llm.soak#role).
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Does nothing in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
  action:
    support: full
    description: Runs on the controller, and a program on the host.
extends_documentation_fragment: []
options:
  config:
    description: The load and its target. The keys are those of CONFIG in C(plugins/module_utils/_soak/program.py).
    type: dict
    required: true
  python:
    description: Python 3.9 or newer on the host, with nvidia-ml-py to read the GPUs.
    type: path
    required: true
  dest:
    description: File on the controller for the samples, gzipped JSON lines.
    type: path
    required: true
  poll_s:
    description: Seconds between two reads of the progress.
    type: float
    default: 2.0
"""

EXAMPLES = r"""
- name: Two minutes of load
  gpufleet.llm.soak_run:
    config:
      load: {preset: quick}
      model: qwen3-14b-4090
    python: /opt/gpufleet/venv/bin/python
    dest: "./soak/{{ inventory_hostname }}.jsonl.gz"
"""

RETURN = r"""
dest:
  description: The file with the measure.
  type: str
  returned: always
  sample: ./soak/gpu01.jsonl.gz
"""
