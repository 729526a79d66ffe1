#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_secrets
short_description: Manage the file with Open WebUI's secret environment variables
version_added: 1.0.0
description:
  - Writes an environment file that only root can read. Variables in O(generate) get a value once and keep it.
  - Result and diff contain the names that changed and never a value.
  - If the administrator's password changes, the previous one is kept in a separate file until M(gpufleet.llm.open_webui_token) has
    changed it in Open WebUI.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows names and never values.
options:
  path:
    description: Path of the file.
    type: path
    default: /etc/gpufleet/open_webui.secrets.env
  values:
    description: Variables and their values. A null removes a variable.
    type: dict
    required: true
  generate:
    description: Variables that get a random value of 384 bits if they have none.
    type: list
    elements: str
    default: [WEBUI_SECRET_KEY]
  pid:
    description: Main process of the running service. Its environment is compared with the file.
    type: int
    default: 0
  previous:
    description: Keep the previous file as C(.previous) for a rollback. The caller removes it.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Keep the secrets
  gpufleet.llm.open_webui_secrets:
    values:
      WEBUI_ADMIN_EMAIL: admin@example.org
      WEBUI_ADMIN_PASSWORD: "{{ vault_open_webui_admin_password }}"
"""

RETURN = r"""
names_changed:
  description: Names that were set, removed or given another value.
  type: list
  elements: str
  returned: always
  sample: ["WEBUI_ADMIN_PASSWORD: another value"]
stale:
  description: Whether the process named by O(pid) runs with other values than the file's.
  type: bool
  returned: always
  sample: false
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama.environment import environment_file
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as env

PASSWORD = "WEBUI_ADMIN_PASSWORD"


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/gpufleet/open_webui.secrets.env"},
            "values": {"type": "dict", "required": True, "no_log": True},
            "generate": {"type": "list", "elements": "str", "default": ["WEBUI_SECRET_KEY"]},
            "pid": {"type": "int", "default": 0},
            "previous": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    path = asked["path"]
    try:
        text = read(path)
        before = env.parse(text or "")
        values = {name: env.text_of(value) for name, value in asked["values"].items() if value is not None}
        after = env.wanted_secrets(before, values, asked["generate"])
        told = env.names_changed(before, after)
        owned = text is not None and os.stat(path).st_mode & 0o7777 == 0o600 and os.stat(path).st_uid == os.geteuid()
        told += [] if owned or text is None else ["mode 0600, owner root"]
        if told and not module.check_mode:
            if before.get(PASSWORD) and before[PASSWORD] != after.get(PASSWORD) and not os.path.exists(path + ".former"):
                write(path + ".former", before[PASSWORD])
            if text is not None and asked["previous"]:
                write(path + ".previous", text)
            write(path, environment_file(after))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path} cannot be read or written ({error.strerror}); the module needs to be root.")
    result = {"changed": bool(told), "names_changed": told, "stale": stale(asked["pid"], after)}
    if told:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": "",
            "after": "".join(f"{line}\n" for line in told),
        }
    module.exit_json(**result)


def read(path):
    """The file's text, or None where there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def write(path, text):
    """Replace the file in one step; never readable by others, not even for a moment."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".open_webui.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def stale(pid, wanted):
    """Whether the process runs with other values; False where there is no process."""
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/environ", encoding="utf-8", errors="surrogateescape") as handle:
            running = dict(entry.split("=", 1) for entry in handle.read().split("\0") if "=" in entry)
    except OSError:
        return True
    return any(running.get(name) != value for name, value in wanted.items())


if __name__ == "__main__":
    main()
