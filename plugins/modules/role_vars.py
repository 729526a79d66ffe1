#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: role_vars
short_description: Refuse variables that look like a role's but are none of its options
version_added: 1.0.0
description:
  - Every variable of the host that starts with the role's name and an underscore has to be an option in the role's C(meta/argument_specs.yml).
  - Role argument validation refuses wrong types, but it does not see a misspelt name. This module does.
  - It runs on the controller and opens no connection to the host.
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing in either mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
  action:
    support: full
    description: Runs on the controller.
extends_documentation_fragment: []
options:
  role:
    description: Short name of a role of this collection.
    type: str
    required: true
  others:
    description: Longer names of other roles that begin with the same word, whose variables are not this role's.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Refuse unknown variables
  gpufleet.llm.role_vars:
    role: ollama
"""

RETURN = r"""
unknown:
  description: The variables that no option of the role matches.
  type: list
  elements: str
  returned: always
  sample: [ollama_kv_cache]
"""
