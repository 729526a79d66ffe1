#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_keyring
short_description: Install an APT keyring that contains only expected keys
version_added: 1.0.0
description:
  - Downloads a keyring and writes it in binary form, for C(Signed-By) of an APT source.
  - Parses the download once, and writes the accepted packets only - public keys, their user IDs, signatures and subkeys.
    A keyring with other packets is refused.
  - All fingerprints must be among the expected ones. Otherwise nothing is changed.
  - If the host already has a keyring with expected keys only, nothing is downloaded.
author:
  - The gpufleet.llm maintainers (@gpufleet)
attributes:
  check_mode:
    description: Reports what would change, without changing it.
    support: full
  diff_mode:
    description: Returns the state before and after.
    support: full
options:
  url:
    description: URL of the keyring, binary or as one block of ASCII armor. An C(http) URL requires O(checksum).
    type: str
    required: true
  dest:
    description: Path of the keyring on the host.
    type: path
    required: true
  fingerprints:
    description: Fingerprints of the accepted keys, 40 hexadecimal digits each. Spaces and case are ignored.
    type: list
    elements: str
    required: true
  checksum:
    description: SHA-256 of the download, 64 hexadecimal digits. With it, the URL may be one without TLS.
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
