#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: role_vars
short_description: Refuse variables that a role does not know or cannot use
version_added: 1.0.0
description:
  - Every variable of the host that starts with the role's name and an underscore must be an option in the role's C(meta/argument_specs.yml).
  - Names with C(found) after the role's name are facts that the role publishes, not settings.
  - Role argument validation refuses wrong types, but it does not detect a misspelled name. This module does.
  - With O(bounds), it names every value that is out of its bounds.
  - Runs on the controller and opens no connection to the host.
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
  bounds:
    description:
      - What values variables may have, by name. A variable that is not set is not checked.
      - V(min) and V(max) are for whole numbers; with V(values) set, for each value of a dictionary and of the dictionaries in it.
      - V(match) is a regular expression for the whole text, or for each element of a list; V(count) is the least number of elements.
      - V(kind) is one of C(account), C(folder), C(host), C(networks), C(release), C(unit) and C(url) in the place of V(match) and V(wanted).
      - V(null) allows null. V(wanted) says in words what is wanted, V(because) why.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Refuse unknown variables and numbers that are out of range
  gpufleet.llm.role_vars:
    role: ollama
    bounds:
      ollama_port: {min: 1, max: 65535}
"""

RETURN = r"""
unknown:
  description: The variables that no option of the role matches.
  type: list
  elements: str
  returned: always
  sample: [ollama_kv_cache]
"""
