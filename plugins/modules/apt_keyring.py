#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_keyring
short_description: A keyring for APT, taken only if it holds the keys that are expected
version_added: 1.0.0
description:
  - Fetches a keyring and writes it where an APT source names it in C(Signed-By), in binary form.
  - What was fetched is parsed once, and the file is put together from the accepted packets, which are public keys, their user IDs, signatures
    and subkeys. A keyring with anything else in it is refused.
  - The fingerprints of all its keys have to be among those that are expected; otherwise nothing is changed.
  - A keyring that is there and holds expected keys only is left alone, and nothing is fetched.
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    description: Can run in check mode and says what would be changed, without changing it.
    support: full
  diff_mode:
    description: Returns what was and what is, for C(--diff).
    support: full
options:
  url:
    description: Address of the keyring, binary or one block of ASCII armor. An C(http) address needs O(checksum).
    type: str
    required: true
  dest:
    description: Path of the keyring on the host.
    type: path
    required: true
  fingerprints:
    description: Fingerprints of keys that may be in it, 40 hexadecimal digits each; blanks and case do not matter.
    type: list
    elements: str
    required: true
  checksum:
    description: SHA-256 of what is fetched, 64 hexadecimal digits. With it the address may be one without TLS.
    type: str
"""

EXAMPLES = r"""
- name: Know NVIDIA's key
  gpufleet.llm.apt_keyring:
    url: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-archive-keyring.gpg
    dest: /etc/apt/keyrings/gpufleet-nvidia.gpg
    fingerprints: [EB693B3035CD5710E231E123A4B469963BF863CC]
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the keys in the keyring.
  type: list
  elements: str
  returned: success
  sample: [EB693B3035CD5710E231E123A4B469963BF863CC]
"""

import contextlib
import hashlib
import os
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import openpgp


def read(path):
    """The fingerprints in a keyring on the host; [] where there is none, or one that this module would not have written so."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as handle:
            state = os.fstat(handle.fileno())
            if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) != 0o644:
                return []
            data = handle.read(openpgp.LIMIT + 1)
            found, binary = openpgp.parse(data)
            return found if binary == data else []
    except (OSError, openpgp.OpenpgpError):
        return []


def fetch(url, checksum):
    """The bytes at an address. Raises OpenpgpError where they came without TLS and are not those of the checksum."""
    if not url.startswith(("https://", "http://")) or (url.startswith("http://") and not checksum):
        raise openpgp.OpenpgpError(f"{url} is an address without TLS; wanted is https://, or the keyring's SHA-256 in checksum.")
    try:
        with contextlib.closing(open_url(url, timeout=60)) as answer:
            came_from, data = answer.geturl(), answer.read(openpgp.LIMIT + 1)
    except Exception as error:  # urllib, ssl and socket have no class of errors in common
        raise openpgp.OpenpgpError(
            f"{url} could not be read ({error}); wanted is the repository's keyring. Check the address and the host's way to it."
        ) from error
    if not checksum and not came_from.startswith("https://"):
        raise openpgp.OpenpgpError(f"{url} led to {came_from}, an address without TLS; wanted is https:// all the way, or a checksum.")
    digest = hashlib.sha256(data).hexdigest()
    if checksum and digest != checksum.lower():
        raise openpgp.OpenpgpError(f"{url} has SHA-256 {digest}; checksum is {checksum}. Find out from the vendor which is right.")
    return data


def write(dest, data):
    """Replace the keyring in one step, whoever owned the one before, and whatever link it was."""
    os.makedirs(os.path.dirname(dest), mode=0o755, exist_ok=True)
    handle, half = tempfile.mkstemp(dir=os.path.dirname(dest), prefix=".apt_keyring.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), 0o644)
        os.replace(half, dest)
    except OSError:
        os.unlink(half)
        raise


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "checksum": {"type": "str"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    expected = {"".join(one.split()).upper() for one in asked["fingerprints"]}
    have = read(asked["dest"])
    if have and set(have) <= expected:
        module.exit_json(changed=False, fingerprints=have)
    try:
        found, data = openpgp.parse(fetch(asked["url"], asked["checksum"]))
    except openpgp.OpenpgpError as error:
        module.fail_json(msg=f"{error} Nothing was changed.")
    strange = sorted(set(found) - expected)
    if strange:
        module.fail_json(
            msg=f"{asked['url']} holds the key {', '.join(strange)}; expected is {' or '.join(sorted(expected))}. Nothing was changed. Find out from the "
            f"vendor whether the key was changed before you add it to the expected ones."
        )
    if not module.check_mode:
        write(asked["dest"], data)
    texts = [{"before": "\n".join(have) + "\n", "after": "\n".join(found) + "\n", "before_header": asked["dest"], "after_header": asked["dest"]}]
    module.exit_json(changed=True, fingerprints=found, diff=texts)


if __name__ == "__main__":
    main()
