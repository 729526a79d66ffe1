#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: soak_run
short_description: Put a load on a host's model server, and measure the host meanwhile
version_added: 1.0.0
description:
  - Writes the program of the soak test into a folder of its own, runs it there as the transient unit C(gpufleet-soak.service),
    shows its progress line by line, fetches what it measured, and removes the folder.
  - When the play is interrupted the test is stopped in an orderly way, and what it measured so far is fetched.
  - A crash of the server, an error, a lost card are results, not failures of this module.
  - The playbook C(gpufleet.llm.soak) and the role P(gpufleet.llm.soak#role) are what people use.
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Does nothing in check mode, as a load is one.
  diff_mode:
    support: none
    description: There is nothing to compare.
  action:
    support: full
    description: Runs on the controller, and a program on the host.
extends_documentation_fragment: []
options:
  config:
    description: What is to be asked, of whom; the keys are those of CONFIG in C(plugins/module_utils/_soak/program.py).
    type: dict
    required: true
  python:
    description: Python 3.9 or newer on the host. One that has nvidia-ml-py reads the GPUs through it.
    type: path
    required: true
  dest:
    description: File on the controller for the measure, gzipped JSON lines.
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
