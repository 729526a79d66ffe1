#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Return what a role's preflight needs to know of a host
version_added: 1.0.0
description:
  - Reads the distribution, systemd's version, free space, links and files, listeners and the state of units in one round trip.
  - Changes nothing.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes.info
options:
  paths:
    description: Paths to return the state of. Free space is that of the nearest existing parent.
    type: list
    elements: path
    default: []
  ports:
    description: TCP ports to return the listeners of.
    type: list
    elements: int
    default: []
  units:
    description: systemd units to return the state of.
    type: list
    elements: str
    default: []
  commands:
    description: Programs to search in the path.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Read the host's state
  gpufleet.llm.host_info:
    paths: [/opt/ollama, /opt/ollama/current]
    ports: [11434]
    units: [ollama.service]
  register: __state
"""

RETURN = r"""
distribution:
  description: C(id), C(version_id) and C(pretty_name) of os-release.
  type: dict
  returned: always
  sample: {id: debian, version_id: "12", pretty_name: Debian GNU/Linux 12 (bookworm)}
architecture:
  description: Machine type of the kernel.
  type: str
  returned: always
  sample: x86_64
kernel:
  description: Release of the running kernel.
  type: str
  returned: always
  sample: 6.1.0-50-amd64
systemd:
  description: Version of systemd. Null without systemd.
  type: int
  returned: always
  sample: 252
memory_mib:
  description: C(total) and C(available) memory in MiB.
  type: dict
  returned: always
  sample: {total: 64000, available: 60000}
paths:
  description:
    For each path its kind (file, directory, link, other, absent), link target, owner, group, mode, size in bytes and free space in MiB;
    refusal is empty, or names the link in the path through which another account could redirect root.
  type: dict
  returned: always
  sample:
    /opt/ollama/current: {kind: link, target: 0.32.15, owner: root, group: root, mode: "0777", size: 7, free_mib: 51200, refusal: ""}
listeners:
  description: For each port the listening sockets with address, pid, command and systemd unit.
  type: dict
  returned: always
  sample:
    "11434": [{address: 127.0.0.1, pid: 812, command: ollama, unit: ollama.service}]
units:
  description:
    For each unit its load, active, sub and unit-file state, main PID, whether systemd has to
    reload it, and the fingerprint of the configuration that its main process runs with (C(GPUFLEET_CONFIG) of its environment).
  type: dict
  returned: always
  sample:
    ollama.service:
      load_state: loaded
      active_state: active
      sub_state: running
      unit_file_state: enabled
      main_pid: 812
      need_daemon_reload: false
      config: 0f3b9c1d
commands:
  description: For each program its path, or null.
  type: dict
  returned: always
  sample: {zstd: /usr/bin/zstd}
uid:
  description: Effective user ID that the module ran under.
  type: int
  returned: always
  sample: 0
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._host import facts, units


def main():
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "commands": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        state = facts.observe(asked["paths"], asked["ports"], asked["units"], asked["commands"])
    except units.HostError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **state)


if __name__ == "__main__":
    main()
