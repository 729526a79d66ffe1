# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints, held against gpg's own."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import openpgp


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """``(binary keyring, armoured keyring, fingerprints)`` of two keys that gpg has made."""
    if not shutil.which("gpg"):
        pytest.skip("no gpg")
    home = tmp_path_factory.mktemp("gpg")

    def gpg(*words):
        return subprocess.run(["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", "", *words], capture_output=True, check=True).stdout

    gpg("--quick-generate-key", "one", "rsa2048", "sign", "never")
    gpg("--quick-generate-key", "two", "ed25519", "sign", "never")
    found = re.findall(rb"^fpr:+([0-9A-F]{40}):", gpg("--with-colons", "--list-keys"), re.MULTILINE)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    return gpg("--export"), gpg("--armor", "--export"), sorted(one.decode() for one in found)


def test_fingerprints_are_gpgs(keys):
    binary, armoured, found = keys
    assert sorted(openpgp.fingerprints(binary)) == found
    assert sorted(openpgp.fingerprints(armoured)) == found
    assert openpgp.dearmor(armoured) == binary


def test_half_a_keyring_is_refused(keys):
    with pytest.raises(openpgp.OpenpgpError, match="middle of a packet"):
        openpgp.fingerprints(keys[0][:100])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x00\x01", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END"])
def test_what_is_no_keyring_is_refused_in_words(data):
    with pytest.raises(openpgp.OpenpgpError, match="wanted is"):
        openpgp.fingerprints(data)


@given(st.binary(max_size=80))
def test_no_bytes_break_it(data):
    try:
        assert openpgp.fingerprints(data)
    except openpgp.OpenpgpError:
        pass
