#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_user
short_description: Manage an account of Open WebUI
version_added: 1.0.0
description:
  - Creates, changes and removes an account. Options that are not given stay as they are.
  - The first administrator comes from the environment of the service. Open WebUI refuses to remove it or to change
    its role.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
  - gpufleet.llm.open_webui
attributes:
  check_mode:
    support: full
    details: If Open WebUI does not answer, for example on a fresh host, check mode assumes an empty one.
  diff_mode:
    support: full
options:
  email:
    description: E-mail address, which identifies the account.
    type: str
    required: true
  state:
    description: >-
      Whether the account exists. V(absent) also removes its chats.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Name in the UI. The default for a new account is the address.
    type: str
  role:
    description: V(pending) sees nothing, V(user) may chat. The default for a new account is V(user).
    type: str
    choices: [pending, user, admin]
  password:
    description: >-
      Password, from a vault. Required for a new account. With the role's settings Open WebUI requires eight characters, with a lower-case
      and an upper-case letter, a digit and a symbol.
    type: str
  update_password:
    description:
      - V(on_create) does not change the password of an existing account.
      - V(always) tries the password, which counts as one of 15 sign-ins in 180 seconds, and sets it if it is refused.
    type: str
    choices: [on_create, always]
    default: on_create
"""

EXAMPLES = r"""
- name: An account for a colleague
  gpufleet.llm.open_webui_user:
    token: "{{ __session.token }}"
    email: eva@example.org
    name: Eva
    role: user
    password: "{{ vault_open_webui_eva }}"
"""

RETURN = r"""
user:
  description: The account as it is now.
  type: dict
  returned: when it is or would be present
  sample: {email: eva@example.org, name: Eva, role: user}
differences:
  description: What was or would be changed.
  type: list
  elements: str
  returned: always
  sample: [role]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import users as open_webui_users


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token": {"type": "str", "required": True, "no_log": True},
            "timeout_s": {"type": "int", "default": 30},
            "email": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str"},
            "role": {"type": "str", "choices": ["pending", "user", "admin"]},
            "password": {"type": "str", "no_log": True},
            "update_password": {"type": "str", "choices": ["on_create", "always"], "default": "on_create", "no_log": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    client = open_webui_client.Client(asked["url"], asked["token"], asked["timeout_s"])
    try:
        module.exit_json(**apply(client, asked, module.check_mode))
    except open_webui_client.OpenWebuiError as error:
        module.fail_json(msg=f"Account {asked['email']}: {error}")


def apply(client, asked, check_mode):
    """Look, compare, act."""
    observed = open_webui_client.unless_fresh(lambda: open_webui_users.observe(client, asked["email"]), check_mode)
    if asked["state"] == "absent":
        if observed is not None and not check_mode:
            open_webui_users.delete(client, observed["id"])
        differences = [] if observed is None else ["state"]
        return {"changed": bool(differences), "differences": differences, "diff": show(observed, None)}
    base = observed or {"name": asked["email"], "role": "user"}
    wanted = {"email": asked["email"].lower(), **{key: asked[key] or base[key] for key in ("name", "role")}}
    if observed is None and not asked["password"]:
        raise open_webui_client.OpenWebuiError("it is not there, and without a password it cannot be made.")
    differences = open_webui_client.difference(observed, wanted)
    if (
        observed
        and asked["password"]
        and asked["update_password"] == "always"
        and not open_webui_users.password_holds(client, asked["email"], asked["password"])
    ):
        differences.append("password")
    if differences and not check_mode:
        act(client, asked, observed, wanted, differences)
    return {
        "changed": bool(differences),
        "differences": differences,
        "user": wanted,
        "diff": show(observed, {**wanted, "password": "a new one"} if observed and "password" in differences else wanted),
    }


def act(client, asked, observed, wanted, differences):
    """Make the account, or change what differs in it."""
    if observed is None:
        open_webui_users.add(client, wanted["email"], wanted["name"], wanted["role"], asked["password"])
        return
    changes = {key: wanted[key] for key in differences if key != "password"}
    if "password" in differences:
        changes["password"] = asked["password"]
    open_webui_users.update(client, observed["id"], changes)


def show(before, after):
    """Before and after for --diff; that the password is a new one, never which."""
    text = ["".join(f"{key}: {user[key]}\n" for key in ("email", "name", "role", "password") if key in user) if user else "" for user in (before, after)]
    return {"before": text[0], "after": text[1]}


if __name__ == "__main__":
    main()
