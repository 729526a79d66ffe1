#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_venv
short_description: Install the virtual environment of an Open WebUI version
version_added: 1.0.0
description:
  - Builds a virtual environment at its final path and writes a stamp last. An environment without a stamp is removed and built again.
  - pip installs uv into a temporary directory, with the host's pip configuration. uv then installs the packages.
  - A second run waits for a first one that still runs on the host.
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
    description: Path of the environment.
    type: path
    required: true
  version:
    description: The version of Open WebUI.
    type: str
    required: true
  package_set:
    description:
      - V(slim) is the set of the official slim image, without local embeddings and document readers.
      - V(full) contains all dependencies of the package.
    type: str
    choices: [slim, full]
    default: slim
  python:
    description: Python interpreter of the environment, 3.11 or 3.12.
    type: path
    required: true
  installer:
    description: Python interpreter that runs pip to install uv. The default is O(python).
    type: path
  requirements:
    description: File on the host with all packages and their hashes, including open-webui. Without it the package's own lists are used.
    type: path
  uv_requirements:
    description: File on the host with the version and hashes of uv.
    type: path
    required: true
  index_url:
    description: URL of the package index. The default is pip's configuration.
    type: str
"""

EXAMPLES = r"""
- name: Build the environment of Open WebUI 0.12.4
  gpufleet.llm.open_webui_venv:
    path: /opt/open-webui/0.12.4
    version: 0.12.4
    python: /usr/bin/python3.11
    requirements: /opt/open-webui/locks/0.12.4-slim.txt
    uv_requirements: /opt/open-webui/locks/uv.txt
"""

RETURN = r"""
reason:
  description: Why the environment was or would be built; empty when it was complete.
  type: str
  returned: always
  sample: it is not there
ensurepip:
  description: Whether the installer's interpreter can make environments with pip; Debian keeps that in a package of its own.
  type: bool
  returned: when the environment was or would be built
  sample: true
python_version:
  description: Version of the interpreter.
  type: str
  returned: when the environment was or would be built
  sample: "3.11"
stamp:
  description: What the environment's stamp says, with the number of packages and the seconds that building it took.
  type: dict
  returned: when the environment is there
  sample: {version: 0.12.4, package_set: slim, requirements_sha256: null, packages: 179, seconds: 21.4}
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import venv


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "package_set": {"type": "str", "choices": ["slim", "full"], "default": "slim"},
            "python": {"type": "path", "required": True},
            "installer": {"type": "path"},
            "requirements": {"type": "path"},
            "uv_requirements": {"type": "path", "required": True},
            "index_url": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    asked = dict(module.params, installer=module.params["installer"] or module.params["python"])
    os.umask(0o022)
    try:
        module.exit_json(**apply(asked, module.check_mode))
    except venv.VenvError as error:
        module.fail_json(msg=f"Open WebUI {asked['version']} was not installed. {error}")


def apply(asked, check_mode):
    """Look, compare, and build unless it is only asked what would be done."""
    wanted = venv.wanted_stamp(asked["version"], asked["package_set"], _text(asked["requirements"], check_mode))
    if check_mode:
        return _look(asked, wanted)
    with venv.alone(os.path.dirname(asked["path"])):
        result = _look(asked, wanted)
        if result["changed"]:
            if not result["ensurepip"]:
                raise venv.VenvError(f"{asked['installer']} has no ensurepip; install the package python3-venv.")
            lists = (asked["requirements"], asked["uv_requirements"])
            result["stamp"] = venv.build(asked["path"], wanted, asked["python"], *lists, asked["index_url"], asked["installer"])
        return result


def _look(asked, wanted):
    observed = venv.observe(asked["path"])
    reason = venv.difference(observed, wanted)
    result = {"changed": bool(reason), "reason": reason, "stamp": observed["stamp"]}
    if reason:
        major, minor = venv.python_version(asked["python"])
        result.update(ensurepip=venv.has_ensurepip(asked["installer"]), python_version=f"{major}.{minor}")
        before = f"{asked['path']}: {reason}\n"
        after = f"{asked['path']}: Open WebUI {asked['version']}, {asked['package_set']} set, {asked['python']}\n"
        result["diff"] = {"before": before, "after": after}
    return result


def _text(path, check_mode):
    """Text of the list; None without one, and in check mode where it has not been written so far."""
    if path is None or (check_mode and not os.path.exists(path)):
        return None
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError as error:
        raise venv.VenvError(f"{path} cannot be read ({error.strerror}).") from error


if __name__ == "__main__":
    main()
