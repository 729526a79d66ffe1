# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyrings: fingerprints held against gpg's own, and valid ones with one defect each."""

from __future__ import annotations

import collections
import hashlib
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import openpgp


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """``(binary keyring, armored keyring, fingerprints)`` of two keys that gpg has made."""
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


def test_fingerprints_are_gpgs_and_gpg_reads_what_is_written(keys, tmp_path):
    binary, armored, found = keys
    for data in (binary, armored, armored.replace(b"\n", b"\r\n"), b"\n" + armored + b"\n\n"):
        fingerprints, written = openpgp.parse(data)
        assert sorted(fingerprints) == found
        assert openpgp.parse(written) == (fingerprints, written)
        (tmp_path / "keyring").write_bytes(written)
        listed = subprocess.run(["gpg", "--batch", "--with-colons", "--show-keys", str(tmp_path / "keyring")], capture_output=True, check=True).stdout
        assert sorted(one.decode() for one in re.findall(rb"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)) == found


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no public key"),
        (b"<html>404</html>", "no OpenPGP keyring"),
        (b"\x00\x01", "no OpenPGP keyring"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END PGP PUBLIC KEY BLOCK-----\n", "no OpenPGP keyring"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n", "armor cannot be read"),
        (b"\x99" * (openpgp.LIMIT + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_no_keyring_is_refused_in_words(data, says):
    with pytest.raises(openpgp.OpenpgpError, match=says) as refused:
        openpgp.parse(data)
    assert "wanted" in str(refused.value)


# --- valid pieces, and one defect ---------------------------------------------------------------


def older(kind, body, width):
    """A packet in the older form; ``width`` is the number of octets of its length: 1, 2 or 4."""
    return bytes([0x80 | kind << 2 | width.bit_length() - 1]) + len(body).to_bytes(width, "big") + body


def newer(kind, body, width):
    """A packet in the newer form, with a length in 1, 2 or 5 octets."""
    size = len(body)
    sizes = {1: bytes([size]) if size < 192 else None, 2: bytes([192 + (size - 192 >> 8), size - 192 & 255]) if 192 <= size < 8384 else None}
    return bytes([0xC0 | kind]) + (sizes.get(width) or b"\xff" + size.to_bytes(4, "big")) + body


# Around each size at which the form of a length changes.
SIZES = [0, 1, 30, 191, 192, 193, 255, 256, 8383, 8384]


@st.composite
def body(draw, first=b""):
    size, step = draw(st.sampled_from(SIZES)), draw(st.integers(1, 255))
    return first + bytes(step * at % 256 for at in range(size))


@st.composite
def pieces(draw):
    """``[(kind, body)]`` of one to three keys with user IDs, signatures and subkeys."""
    made = []
    for _key in range(draw(st.integers(1, 3))):
        made.append((6, draw(body(b"\x04key"))))
        made += draw(st.lists(st.tuples(st.sampled_from([2, 13]), body()), max_size=3))
        made += draw(st.lists(st.tuples(st.just(14), body(b"\x04")), max_size=1))
    return made


def keyring(made, draw):
    """Bytes of packets, each in a form of its own."""
    return b"".join(draw(st.sampled_from([older, newer]))(kind, body, draw(st.sampled_from([2, 4]))) for kind, body in made)


DEFECTS = {
    "another type": lambda made, at, kind: [*made[:at], (kind, b"x"), *made[at:]],
    "another version": lambda made, at, _kind: [*made[:at], (6, b"\x06" + b"x" * 20), *made[at:]],
    "a subkey of another version": lambda made, at, _kind: [*made, (14, b"\x03abc")],
    "no key in front": lambda made, at, _kind: [(13, b"somebody"), *made],
    "cut": None,
    "a half packet behind": None,
    "text behind": None,
    "a length without an end": None,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_whole_keyrings_are_read_and_every_defect_is_refused(name):
    met = collections.Counter()

    @settings(max_examples=80)
    @given(st.data())
    def prove(data):
        made = data.draw(pieces())
        whole = keyring(made, data.draw)
        wanted = [hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper() for kind, body in made if kind == 6]
        fingerprints, written = openpgp.parse(whole)
        assert fingerprints == wanted
        assert list(openpgp.packets(written)) == made
        met["whole"] += 1
        change = DEFECTS[name]
        if change:
            kind = data.draw(st.sampled_from([one for one in range(64) if one not in openpgp.ALLOWED]))
            broken = b"".join(newer(kind, body, 4) for kind, body in change(made, data.draw(st.integers(1, len(made))), kind))
        elif name == "cut":
            at = data.draw(st.one_of(st.just(len(whole) - 1), st.integers(1, len(whole) - 1)))
            broken = whole[: at if not _is_border(whole, at) else at - 1]
        else:
            broken = whole + {"a half packet behind": b"\x98\x05abc", "text behind": b"\n-----BEGIN PGP", "a length without an end": b"\x9babc"}[name]
        with pytest.raises(openpgp.OpenpgpError, match="wanted"):
            openpgp.parse(broken)
        met["broken"] += 1

    prove()
    assert min(met["whole"], met["broken"]) >= 60, met


def test_armor_with_anything_beside_is_refused(keys):
    armored = keys[1]
    for data in (armored + armored, b"Our key:\n" + armored, armored + b"x", armored + keys[0], armored.replace(b"-----END", b"-----BEGIN")):
        with pytest.raises(openpgp.OpenpgpError, match="nothing beside"):
            openpgp.parse(data)


def _is_border(whole, at):
    """Whether a keyring that is cut there ends with a whole packet."""
    try:
        list(openpgp.packets(whole[:at]))
    except openpgp.OpenpgpError:
        return False
    return True
