# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own certificate authority: made once, trusted by the lab's images and by nobody else."""

from __future__ import annotations

import os

from .shell import cache, run, say

NAMES = ("github.com", "registry.ollama.ai", "mirror")
"""Whom the mirror stands for; its certificate and its network aliases say so."""


def ensure():
    """Make the authority and the mirror's certificate if they are missing; return their folder."""
    folder = cache("ca")
    done = folder / "mirror.crt"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    say(f"Making the lab's certificate authority in {folder}")
    run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-sha256",
            "-subj",
            "/CN=gpufleet throw-away lab CA",
            "-addext",
            "basicConstraints=critical,CA:TRUE,pathlen:0",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout",
            folder / "ca.key",
            "-out",
            folder / "ca.crt",
        ]
    )
    run(
        [
            "openssl",
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=mirror",
            "-keyout",
            folder / "mirror.key",
            "-out",
            folder / "mirror.csr",
        ]
    )
    extensions = folder / "mirror.ext"
    names = ",".join(f"DNS:{name}" for name in NAMES)
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n", encoding="utf-8")
    run(
        [
            "openssl",
            "x509",
            "-req",
            "-in",
            folder / "mirror.csr",
            "-CA",
            folder / "ca.crt",
            "-CAkey",
            folder / "ca.key",
            "-CAcreateserial",
            "-days",
            "3650",
            "-sha256",
            "-extfile",
            extensions,
            "-out",
            folder / "mirror.new",
        ]
    )
    os.chmod(folder / "ca.key", 0o600)
    os.chmod(folder / "mirror.key", 0o600)
    os.replace(folder / "mirror.new", done)
    return folder
