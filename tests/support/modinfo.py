#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kmod's modinfo says of the modules that lab/nvml/make_rootfs.py makes, for machines without kmod.

A program (`modinfo FILE`), and run(), which stands for subprocess.run. test_driver.py compares it with the real one
where that is installed.
"""

from __future__ import annotations

import lzma
import pathlib
import re
import subprocess
import sys

SIGNED = b"~Module signature appended~\n"


def answer(path):
    """(exit status, stdout, stderr) of `modinfo path`."""
    body = pathlib.Path(path).read_bytes()
    if path.endswith(".xz"):
        body = lzma.decompress(body)
    if not body.startswith(b"\x7fELF"):
        return 1, f"filename:       {path}\n", "modinfo: ERROR: could not get modinfo from 'x': Exec format error\n"
    fields = {"filename": path}
    for key in ("version", "license", "vermagic", "name"):
        fields[key] = re.search(rb"[\0\x01-\x1f]?\b" + key.encode() + rb"=([^\0]*)\0", body).group(1).decode()
    if body.endswith(SIGNED):
        fields.update(sig_id="X509", signer="made up")
    return 0, "".join(f"{key + ':':16}{value}\n" for key, value in fields.items()), ""


def run(command, capture_output=False, encoding=None, errors=None, timeout=None, check=True):
    """subprocess.run of `modinfo FILE`, in this process; FileNotFoundError for any other program, bytes without an encoding."""
    if command[0] != "modinfo":
        raise FileNotFoundError(command[0])
    assert capture_output and timeout and not check
    status, stdout, stderr = answer(command[1])
    if encoding is None:
        return subprocess.CompletedProcess(command, status, stdout.encode(), stderr.encode())
    return subprocess.CompletedProcess(command, status, stdout, stderr)


if __name__ == "__main__":
    status, stdout, stderr = answer(sys.argv[1])
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    raise SystemExit(status)
