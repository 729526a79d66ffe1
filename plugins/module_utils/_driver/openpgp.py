# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Keyrings that APT can use: which keys are in one, and its bytes again, packet by packet. A host need not have gpg for that.

What arrives is parsed once. What is written is put together from the packets that were accepted, so nothing
can be in the file that was not looked at (RFC 9580: packets 4, public keys 5.5, armor 6).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

LIMIT = 1 << 20  # bytes; NVIDIA's keyring has 2 kB
SIGNATURE, PUBLIC_KEY, USER_ID, SUBKEY = 2, 6, 13, 14
ALLOWED = (SIGNATURE, PUBLIC_KEY, USER_ID, SUBKEY)
ARMOR = re.compile(
    rb"\s*-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[A-Za-z]+: [^\r\n]*\r?\n)*\r?\n"
    rb"([A-Za-z0-9+/\r\n]+={0,2})\r?\n(?:=[A-Za-z0-9+/]{4}\r?\n)?-----END PGP PUBLIC KEY BLOCK-----\s*"
)


class OpenpgpError(Exception):
    """The bytes are no keyring; the text says what was found and what is wanted."""


def parse(data):
    """``(fingerprints, binary keyring)`` of bytes, binary or one block of ASCII armor. Raises OpenpgpError.

    fingerprints: of the primary keys, version 4, 40 hexadecimal digits in capitals (SHA-1, RFC 9580 5.5.4.2).
    The keyring holds public keys with their user IDs, signatures and subkeys; anything else is refused, not left out.
    """
    if len(data) > LIMIT:
        raise OpenpgpError(f"The keyring is larger than {LIMIT >> 20} MiB; wanted are the repository's keys alone. Check the address.")
    found, accepted = [], []
    for kind, body in packets(_binary(data)):
        if kind not in ALLOWED:
            raise OpenpgpError(f"The keyring holds a packet of type {kind}; wanted are public keys, user IDs and signatures only. Check the address.")
        if kind in (PUBLIC_KEY, SUBKEY) and body[:1] != b"\x04":
            raise OpenpgpError(f"The keyring holds a key of version {body[0] if body else '?'}; wanted is version 4, which APT's tools take.")
        if kind == PUBLIC_KEY:
            found.append(hashlib.new("sha1", b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper())
        elif not found:
            raise OpenpgpError(f"The keyring begins with a packet of type {kind}; wanted is a public key. Check the address.")
        accepted.append(_packet(kind, body))
    if not found:
        raise OpenpgpError("The keyring holds no public key; wanted is the one that signs the repository. Check the address.")
    return found, b"".join(accepted)


def packets(data):
    """``(type, body)`` of each packet of a binary keyring. Raises OpenpgpError."""
    rest = memoryview(data)
    while rest.nbytes:
        kind, start, length = _header(rest)
        if rest.nbytes < start + length:
            raise OpenpgpError("The keyring ends in the middle of a packet; wanted is a whole OpenPGP public key. Fetch it again.")
        yield kind, bytes(rest[start : start + length])
        rest = rest[start + length :]


def _binary(data):
    """The bytes in ASCII armor, where the data is one block of it and nothing beside; else the data itself."""
    if data.lstrip()[:5] != b"-----":
        return data
    block = ARMOR.fullmatch(data)
    try:
        return base64.b64decode(b"".join(block.group(1).split()), validate=True) if block else b"\0"
    except binascii.Error as error:
        raise OpenpgpError(f"The keyring's armor cannot be read ({error}); wanted is an OpenPGP public key. Fetch it again.") from error


def _packet(kind, body):
    """A packet in the newer form, its length in five octets."""
    return bytes([0xC0 | kind, 0xFF]) + len(body).to_bytes(4, "big") + body


def _header(data):
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
    raise OpenpgpError(
        "What was fetched is no OpenPGP keyring; wanted is a public key, binary or one block of ASCII armor and nothing beside. Check the address."
    )
