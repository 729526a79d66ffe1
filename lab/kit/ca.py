# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own CA: made once, trusted by the lab's images and by nobody else."""

from __future__ import annotations

import hashlib
import os

from .shell import cache, run, say

NAMES = ("github.com", "registry.ollama.ai", "developer.download.nvidia.com", "mirror")
"""Whom the mirror stands for; its certificate and its network aliases say so."""


def certificate():
    """Return (certificate, key) of the mirror, made if they are missing. A checkout that knows other names has one of its own."""
    stem = ensure() / f"mirror-{hashlib.sha256(' '.join(NAMES).encode()).hexdigest()[:8]}"
    done, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
    if not done.exists():
        _sign(stem, done, key)
    return done, key


def ensure():
    """Make the CA if it is missing; return its folder."""
    folder = cache("ca")
    if (folder / "ca.crt").exists() and (folder / "ca.key").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    say(f"Making the lab's CA in {folder}")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -sha256".split() + ["-subj", "/CN=gpufleet throw-away lab CA"]
    for extension in ("basicConstraints=critical,CA:TRUE,pathlen:0", "keyUsage=critical,keyCertSign,cRLSign"):
        words += ["-addext", extension]
    run([*words, "-keyout", folder / "ca.key", "-out", folder / "ca.crt"])
    os.chmod(folder / "ca.key", 0o600)
    return folder


def _sign(stem, done, key):
    """Make a key for the mirror and let the CA sign its names."""
    folder = stem.parent
    request, extensions, half = stem.with_suffix(".csr"), stem.with_suffix(".ext"), stem.with_suffix(".new")
    run(["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=mirror", "-keyout", key, "-out", request])
    names = ",".join(f"DNS:{name}" for name in NAMES)
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n", encoding="utf-8")
    words = ["openssl", "x509", "-req", "-in", request, "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"]
    run([*words, "-days", "3650", "-sha256", "-extfile", extensions, "-out", half])
    os.chmod(key, 0o600)
    os.replace(half, done)
