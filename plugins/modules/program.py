#!/usr/bin/python
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: program
short_description: Install a program of this collection on a host
version_added: 1.0.0
description:
  - Copies the Python packages of a program that runs on the host without Ansible, such as the VRAM guard, into one directory.
  - The directory contains nothing else. It is replaced as a whole, and the previous one stays until the new one is complete.
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
  diff_mode:
    support: full
    description: Returns the digests of the program before and after, and the paths that differ.
  idempotent:
    support: full
    description: A second run with the same collection changes nothing.
options:
  name:
    description: The program.
    type: str
    required: true
    choices: [vram_guard, open_webui_retention, soak]
  path:
    description: The directory on the host for the program and nothing else.
    type: path
    required: true
  python:
    description: The interpreter that runs the program. It also compiles the files, because the program's user may not write there.
    type: path
    default: /usr/bin/python3
  files:
    description: The program's files, path to text. Set by the controller, not by you.
    type: dict
"""

EXAMPLES = r"""
- name: Install the VRAM guard's packages
  gpufleet.llm.program:
    name: vram_guard
    path: /opt/gpufleet/lib/vram_guard
"""

RETURN = r"""
digest:
  description: SHA-256 over all files of the program.
  type: str
  returned: success
  sample: 4b2c1d0e…
differing:
  description: Paths below O(path) that were missing, different, not the program's, or writable by others.
  type: list
  elements: str
  returned: success
  sample: [gpufleet_llm/_guard/policy.py]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "choices": sorted(programs.PACKAGES)},
            "path": {"type": "path", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "files": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    path, files = module.params["path"], module.params["files"]
    if not files:
        module.fail_json(msg="gpufleet.llm.program was called without its files; they come from its action plugin, so call it by its full name.")
    try:
        before = programs.digest(programs.installed(path))
        differing = programs.difference(path, files)
        if differing and not module.check_mode:
            programs.install(path, files, module.params["python"])
    except (programs.ProgramError, OSError) as error:
        module.fail_json(msg=f"Could not install {module.params['name']} in {path}: {error}")
    result = {"changed": bool(differing), "digest": programs.digest(files), "differing": differing}
    if module._diff:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": f"{before[:12]}\n" if differing else f"{result['digest'][:12]}\n",
            "after": f"{result['digest'][:12]} ({', '.join(differing)})\n" if differing else f"{result['digest'][:12]}\n",
        }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
