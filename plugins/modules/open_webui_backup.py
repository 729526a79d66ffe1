#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_backup
short_description: Back up, restore or verify the data of Open WebUI
version_added: 1.0.0
description:
  - Backs up the uploads and the SQLite database, through a read-only connection and SQLite's backup API.
    That is safe with the write-ahead log, whether the service runs or not. A backup is complete or does not exist.
  - Reads and writes the data directory as its owner, so that root follows no link in it.
  - With O(marker) it records a running upgrade, so that the next run can settle an interrupted one.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description:
      - V(present) makes a backup and removes the oldest ones beyond O(keep). With O(marker) it records the upgrade.
      - V(restored) restores the backup O(name). Stop the service first.
      - V(verified) fails if the data is damaged, or has fewer users, chats, functions or files than the backup O(name). Otherwise it
        removes O(marker).
    type: str
    choices: [present, restored, verified]
    default: present
  data_dir:
    description: Data directory.
    type: path
    default: /var/lib/open-webui
  backup_dir:
    description: Directory of the backups.
    type: path
    default: /var/backups/open-webui
  name:
    description: Name of a backup. The default is the one in O(marker), or the newest.
    type: str
  version:
    description: Version of Open WebUI of the data. Required for O(state=present).
    type: str
  upgrade_to:
    description: Target version of the upgrade, for O(marker).
    type: str
  marker:
    description: File that records a running upgrade.
    type: path
  extra:
    description: Additional files to back up, such as the one with the secret key.
    type: list
    elements: path
    default: []
  keep:
    description: Number of backups to keep.
    type: int
    default: 3
"""

EXAMPLES = r"""
- name: Copy the data
  gpufleet.llm.open_webui_backup:
    version: 0.12.4
    extra: [/etc/gpufleet/open_webui.secrets.env]

- name: Put the newest copy back
  gpufleet.llm.open_webui_backup:
    state: restored
"""

RETURN = r"""
backup:
  description: Name, version, time and row counts of the copy; null where there is no database to copy.
  type: dict
  returned: success
  sample: {name: 20261123T220000Z-0.12.4, version: 0.12.4, made: 1795471200, counts: {user: 3, chat: 41, function: 1, file: 0}}
removed:
  description: Names of older copies that were removed.
  type: list
  elements: str
  returned: with O(state=present)
  sample: []
"""

import os
import tarfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import backup


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored", "verified"], "default": "present"},
            "data_dir": {"type": "path", "default": "/var/lib/open-webui"},
            "backup_dir": {"type": "path", "default": "/var/backups/open-webui"},
            "name": {"type": "str"},
            "version": {"type": "str"},
            "upgrade_to": {"type": "str"},
            "marker": {"type": "path"},
            "extra": {"type": "list", "elements": "path", "default": []},
            "keep": {"type": "int", "default": 3},
        },
        required_if=[("state", "present", ["version"])],
        supports_check_mode=True,
    )
    asked = module.params
    states = {"present": present, "restored": restored, "verified": verified}
    try:
        module.exit_json(**states[asked["state"]](asked, module.check_mode))
    except backup.BackupError as error:
        module.fail_json(msg=str(error))
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"{asked['backup_dir']}: {error}; the copy is not complete and does not count.")


def present(asked, check_mode):
    """Make a copy; a host whose data is in another database has none to copy."""
    if not os.path.exists(os.path.join(asked["data_dir"], backup.DATABASE)):
        return {"changed": False, "backup": None, "removed": []}
    if check_mode:
        return {"changed": True, "backup": None, "removed": []}
    made = backup.create(asked["data_dir"], asked["backup_dir"], asked["version"], asked["extra"])
    if asked["marker"]:
        note = {"backup": made["name"], "from": asked["version"], "to": asked["upgrade_to"]}
        backup.write_json(asked["marker"], note)
    return {"changed": True, "backup": made, "removed": backup.rotate(asked["backup_dir"], asked["keep"])}


def restored(asked, check_mode):
    """Put a copy back."""
    chosen = choose(asked)
    if not check_mode:
        backup.restore_backup(asked["backup_dir"], chosen["name"], asked["data_dir"])
    return {"changed": True, "backup": chosen}


def verified(asked, check_mode):
    """Compare with a copy, and end the upgrade where nothing is missing."""
    chosen = choose(asked)
    told = backup.missing(asked["data_dir"], chosen["counts"])
    if told:
        raise backup.BackupError(f"Beside the copy {chosen['name']}, {'; '.join(told)}.")
    noted = bool(asked["marker"]) and os.path.exists(asked["marker"])
    if noted and not check_mode:
        os.unlink(asked["marker"])
    return {"changed": noted, "backup": chosen}


def choose(asked):
    """Manifest of the copy that is meant."""
    there = backup.listing(asked["backup_dir"])
    noted = backup.read_json(asked["marker"]) if asked["marker"] else None
    name = asked["name"] or (noted or {}).get("backup") or (there[-1]["name"] if there else None)
    for entry in there:
        if entry["name"] == name:
            return entry
    known = ", ".join(entry["name"] for entry in there) or "none"
    raise backup.BackupError(f"The copy {name} is not in {asked['backup_dir']}; there is {known}.")


if __name__ == "__main__":
    main()
