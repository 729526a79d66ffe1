#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: service_folder
short_description: Create a directory for a service without following its links
version_added: 1.0.0
description:
  - Creates a directory and makes a service's account its owner. The parent may belong to the service, so a link in its place is refused.
    Owner and mode are set through a file descriptor, which no rename can redirect.
  - C(ansible.builtin.file) would follow such a link and change the owner of its target.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  path:
    description: Absolute path of the directory. Missing parents are created for root with mode 0755.
    type: path
    required: true
  owner:
    description: Account of the service.
    type: str
    required: true
  group:
    description: Group of the service.
    type: str
    required: true
  mode:
    description: Mode of the directory in octal digits.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Make the model store
  gpufleet.llm.service_folder:
    path: /var/lib/ollama/models
    owner: ollama
    group: ollama
    mode: "0750"
"""

RETURN = r"""
differences:
  description: What was changed of V(absent), V(group), V(mode) and V(owner).
  type: list
  elements: str
  returned: success
  sample: [owner]
"""

import grp
import pwd

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._host import folders


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "mode": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    path = asked["path"]
    try:
        # An account that check mode has only predicted has no number yet.
        owner, group = number(pwd.getpwnam, asked["owner"], 2, module), number(grp.getgrnam, asked["group"], 2, module)
        told = folders.own(path, owner, group, int(asked["mode"], 8), module.check_mode)
    except folders.FolderError as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{path} cannot be made the folder of {asked['owner']}: {error}.")
    diff = {"before_header": path, "after_header": path, "before": "", "after": "".join(f"{one}\n" for one in told)}
    module.exit_json(changed=bool(told), differences=told, diff=diff)


def number(lookup, name, field, module):
    """The account's number; -1, which is nobody's, where check mode asks for one that is not there."""
    try:
        return lookup(name)[field]
    except KeyError:
        if module.check_mode:
            return -1
        raise folders.FolderError(f"There is no account or group {name}; make it first.") from None


if __name__ == "__main__":
    main()
