#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write several small files in one round trip
version_added: 1.0.0
description:
  - Compares content, mode and owner of any number of text files, and changes those that differ.
  - M(ansible.builtin.template) and M(ansible.builtin.copy) need a round trip for each file, changed or not.
  - Each file is replaced atomically. Its directory must exist.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    description: A second run with the same files changes nothing.
    support: full
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path on the host. A link is replaced by a file.
        type: path
        required: true
      content:
        description: The whole text.
        type: str
        required: true
      mode:
        description: Four octal digits.
        type: str
        default: "0644"
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
  backup:
    description: Whether to keep a copy of each file that is replaced next to it.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Write a program and its unit
  gpufleet.llm.files:
    files:
      - path: /usr/local/bin/example
        content: "{{ lookup('ansible.builtin.template', 'example.j2') }}"
        mode: "0755"
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('ansible.builtin.template', 'example.service.j2') }}"
"""

RETURN = r"""
paths:
  description: The files that were changed, or would be.
  type: list
  elements: str
  returned: success
  sample: [/usr/local/bin/example]
created:
  description: Those of RV(paths) that were not there before.
  type: list
  elements: str
  returned: success
  sample: []
backups:
  description: The copies, with O(backup).
  type: list
  elements: dict
  returned: success
  sample: [{path: /usr/local/bin/example, backup_file: "/usr/local/bin/example.4711.2026-11-28@14:00:00~"}]
"""

import grp
import os
import pwd
import re
import stat

from ansible.module_utils.basic import AnsibleModule


def wanted(given):
    """{path, data, mode, uid, gid} of an entry of O(files). ValueError with a sentence for what cannot be."""
    path = given["path"]
    if not os.path.isabs(path):
        raise ValueError(f"{path} is a relative path; an absolute one was wanted.")
    if not re.fullmatch(r"0[0-7]{3}", given["mode"]):
        raise ValueError(f"{path}: mode is {given['mode']!r}; four octal digits such as 0644 were wanted.")
    ids = {}
    for key, lookup in (("owner", pwd.getpwnam), ("group", grp.getgrnam)):
        try:
            ids[key] = lookup(given[key])
        except KeyError:
            raise ValueError(f"{path}: there is no {'user' if key == 'owner' else 'group'} {given[key]} on this host. Make it first.") from None
    return {
        "path": path,
        "data": given["content"].encode(),
        "mode": int(given["mode"], 8),
        "uid": ids["owner"].pw_uid,
        "gid": ids["group"].gr_gid,
    }


def found(path):
    """{data, mode, uid, gid} of a plain file, None where there is none; ValueError for a folder or a device."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(info.st_mode):
        return None
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path} is there and is no file; remove it, or give another path.")
    with open(path, "rb") as handle:
        return {"data": handle.read(), "mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}


def difference(before, after):
    """What differs, for people: content, mode, owner."""
    if before is None:
        return ["content"]
    named = {"content": ("data",), "mode": ("mode",), "owner": ("uid", "gid")}
    return [what for what, keys in named.items() if any(before[key] != after[key] for key in keys)]


def shown(before, after, differs):
    """The entry of a diff."""
    path = after["path"]
    entry = {"before_header": path, "after_header": path, "before": "", "after": ""}
    if "content" in differs:
        entry["before"] = (before or {"data": b""})["data"].decode("utf-8", "replace")
        entry["after"] = after["data"].decode()
    for what, key, show in (("mode", "mode", "{:04o}".format), ("owner", "uid", str)):
        if before and what in differs:
            entry["before"] += f"# {what} {show(before[key])}\n"
            entry["after"] += f"# {what} {show(after[key])}\n"
    return entry


def write(module, after):
    """Replace the file in one step."""
    folder = os.path.dirname(after["path"])
    if not os.path.isdir(folder):
        raise ValueError(f"The folder {folder} is not there. Make it first.")
    part = os.path.join(module.tmpdir, "file")
    with open(part, "wb") as handle:
        handle.write(after["data"])
    os.chmod(part, after["mode"])
    os.chown(part, after["uid"], after["gid"])
    if os.path.islink(after["path"]):
        os.unlink(after["path"])
    module.atomic_move(part, after["path"])
    os.chown(after["path"], after["uid"], after["gid"])
    os.chmod(after["path"], after["mode"])


def main():
    one = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": one},
            "backup": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    paths, diffs, created, backups = [], [], [], []
    try:
        # All are judged before the first one is written.
        pairs = [(found(given["path"]), wanted(given)) for given in module.params["files"]]
        for before, after in pairs:
            differs = difference(before, after)
            if not differs:
                continue
            paths.append(after["path"])
            diffs.append(shown(before, after, differs))
            if before is None:
                created.append(after["path"])
            elif module.params["backup"] and not module.check_mode:
                backups.append({"path": after["path"], "backup_file": module.backup_local(after["path"])})
            if not module.check_mode:
                write(module, after)
    except (ValueError, OSError) as error:
        module.fail_json(msg=str(error), changed=bool(paths) and not module.check_mode, paths=paths, created=created, backups=backups)
    module.exit_json(changed=bool(paths), paths=paths, created=created, backups=backups, diff=diffs)


if __name__ == "__main__":
    main()
