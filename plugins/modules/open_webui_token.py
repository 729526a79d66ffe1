#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_token
short_description: Sign in to Open WebUI and return a token
version_added: 1.0.0
description:
  - Waits until Open WebUI is ready, signs in and returns the token. Register it with C(no_log) and pass it to the other modules,
    because sign-ins are limited to 15 in 180 seconds per e-mail address, including successful ones.
  - If the password is refused and O(former_password_file) exists, it signs in with the password in that file, changes it to
    O(password), and removes the file.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
    details: >-
      Check mode changes nothing. It returns a token for the previous password if the new one is not set yet, and an empty token
      if Open WebUI does not answer, for example on a fresh host.
  diff_mode:
    support: none
options:
  url:
    description: URL of Open WebUI, without a path.
    type: str
    default: http://127.0.0.1:8080
  email:
    description: E-mail address of the account.
    type: str
    required: true
  password:
    description: Password of the account.
    type: str
    required: true
  former_password_file:
    description: File on the host with the previous password. M(gpufleet.llm.open_webui_secrets) writes it.
    type: path
  wait_s:
    description: Seconds to wait until Open WebUI is ready.
    type: int
    default: 120
  unit:
    description: systemd unit of Open WebUI on this host. If it has failed, the module does not wait.
    type: str
  timeout_s:
    description: Seconds that one request may take.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Sign in once for this play
  gpufleet.llm.open_webui_token:
    email: admin@example.org
    password: "{{ vault_open_webui_admin_password }}"
  register: __session
  no_log: true
"""

RETURN = r"""
token:
  description: The token.
  type: str
  returned: success
role:
  description: Role of the account.
  type: str
  returned: success
  sample: admin
password_changed:
  description: Whether the account's password was or would be changed.
  type: bool
  returned: success
  sample: false
ready_s:
  description: Seconds until Open WebUI was ready.
  type: float
  returned: success
  sample: 0.0
"""

import functools
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import ready as open_webui_ready
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import users as open_webui_users


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "email": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "former_password_file": {"type": "path", "no_log": False},
            "wait_s": {"type": "int", "default": 120},
            "unit": {"type": "str"},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    asked = module.params
    client = open_webui_client.Client(asked["url"], timeout=asked["timeout_s"])
    try:
        given_up = functools.partial(open_webui_ready.last_words, asked["unit"]) if asked["unit"] else lambda: ""
        ready_s = open_webui_ready.wait_ready(client, 0 if module.check_mode else asked["wait_s"], given_up)
        session, changed = sign_in(client, asked, module.check_mode)
    except open_webui_client.OpenWebuiError as error:
        if module.check_mode and error.status is None:
            module.exit_json(changed=False, password_changed=False, token="", role=None, ready_s=None)
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, password_changed=changed, token=session["token"], role=session["role"], ready_s=round(ready_s, 1))


def sign_in(client, asked, check_mode):
    """(session, whether the password was changed)."""
    former = read(asked["former_password_file"])
    try:
        session = open_webui_users.sign_in(client, asked["email"], asked["password"])
    except open_webui_client.OpenWebuiError as error:
        if error.status not in (400, 401) or former is None:
            raise
        session = open_webui_users.sign_in(client, asked["email"], former)
        if check_mode:
            return session, True
        client.token = session["token"]
        open_webui_users.change_password(client, former, asked["password"])
        client.token = None
        session = open_webui_users.sign_in(client, asked["email"], asked["password"])
        os.unlink(asked["former_password_file"])
        return session, True
    if former is not None and not check_mode:
        os.unlink(asked["former_password_file"])
    return session, False


def read(path):
    """The file's text, or None where there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except (OSError, TypeError):
        return None


if __name__ == "__main__":
    main()
