# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Fingerprints of the keys in a keyring that APT can use; a host need not have gpg for that."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

PUBLIC_KEY = 6  # packet type of RFC 9580; its subkeys are of another


class OpenpgpError(Exception):
    """The bytes are no keyring; the text says what was found and what is wanted."""


def dearmor(data):
    """The binary keyring of one in ASCII armour; what is binary already is returned as it is."""
    block = re.search(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+: [^\r\n]*\r?\n)*\r?\n(.*?)\r?\n(?:=[^\r\n]{4}\r?\n)?-----END", data, re.DOTALL)
    if not block:
        return data
    try:
        return base64.b64decode(b"".join(block.group(1).split()), validate=True)
    except binascii.Error as error:
        raise OpenpgpError(f"The keyring's armour cannot be read ({error}); wanted is an OpenPGP public key. Fetch it again.") from error


def fingerprints(data):
    """``["EB69…63CC", …]`` of the primary keys, version 4 (SHA-1, RFC 9580 5.5.4.2). Raises OpenpgpError."""
    found, rest = [], memoryview(dearmor(data))
    while rest.nbytes:
        kind, start, length = _packet(rest)
        body = bytes(rest[start : start + length])
        if len(body) < length:
            raise OpenpgpError("The keyring ends in the middle of a packet; wanted is a whole OpenPGP public key. Fetch it again.")
        if kind == PUBLIC_KEY:
            if body[:1] != b"\x04":
                raise OpenpgpError(f"The keyring holds a key of version {body[0] if body else '?'}; wanted is version 4, which APT's tools take.")
            found.append(hashlib.new("sha1", b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper())
        rest = rest[start + length :]
    if not found:
        raise OpenpgpError("The keyring holds no public key; wanted is the one that signs the repository. Check the address.")
    return found


def _packet(data):
    """``(type, offset of the body, length of the body)`` of the packet at the beginning."""
    tag = data[0]
    sizes = bytes(data[1:6])
    if tag & 0xC0 == 0xC0:  # the newer of the two forms
        if sizes and sizes[0] < 192:
            return tag & 0x3F, 2, sizes[0]
        if len(sizes) > 1 and sizes[0] < 224:
            return tag & 0x3F, 3, ((sizes[0] - 192) << 8) + sizes[1] + 192
        if len(sizes) == 5 and sizes[0] == 255:
            return tag & 0x3F, 6, int.from_bytes(sizes[1:5], "big")
    elif tag & 0x80 and tag & 3 != 3:
        width = 1 << (tag & 3)
        if len(sizes) >= width:
            return (tag >> 2) & 0x0F, 1 + width, int.from_bytes(sizes[:width], "big")
    raise OpenpgpError("What was fetched is no OpenPGP keyring; wanted is a public key, binary or in ASCII armour. Check the address.")
