#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the files that tell of an NVIDIA driver: what the kernel shows, modules on disk, DKMS's records.

Without options: 580.126.09, open, loaded, on disk for the one kernel. `--kernel A --kernel B` are two, the first runs;
`--without B --build-error 'x.c:1:2: error: …'` is a failed build; `--on-disk 590.10 --library 590.10` is an upgrade
with the old module still loaded.
"""

from __future__ import annotations

import argparse
import pathlib
import struct

# A signature as include/linux/module_signature.h of Linux has it, of nobody: signer, key and signature, then what is how
# long (algorithm, hash, kind X.509, length of signer, of key, padding, length of signature), then the mark.
SIGNATURE = b"made up" + b"key" + b"none" + struct.pack(">BBBBB3xI", 1, 4, 1, 7, 3, 4) + b"~Module signature appended~\n"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def module_file(version, flavour, kernel, signed):
    """The bytes of a kernel module that holds nothing but its section .modinfo (ELF64, as modinfo reads it)."""
    fields = {
        "version": version,
        "license": "Dual MIT/GPL" if flavour == "open" else "NVIDIA",
        "vermagic": f"{kernel} SMP preempt mod_unload modversions",
        "name": "nvidia",
    }
    info = b"".join(f"{key}={value}\0".encode() for key, value in fields.items())
    names = b"\0.modinfo\0.shstrtab\0"
    table = (64 + len(info) + len(names) + 7) // 8 * 8

    def section(name, kind, offset, size):
        return struct.pack("<IIQQQQIIQQ", name, kind, 2 if kind else 0, 0, offset, size, 0, 0, 1 if kind else 0, 0)

    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = section(0, 0, 0, 0) + section(1, 1, 64, len(info)) + section(10, 3, 64 + len(info), len(names))
    body = header + info + names
    return body.ljust(table, b"\0") + sections + (SIGNATURE if signed else b"")


def tree(wanted):
    """``{path: bytes}`` of the files, and ``{path: target}`` of the links."""
    running = wanted.kernel[0]
    on_disk = wanted.on_disk or wanted.driver
    files = {"proc/sys/kernel/osrelease": f"{running}\n".encode(), "proc/modules": b""}
    links = {}
    if not wanted.not_loaded:
        kind = "Open Kernel Module for x86_64" if wanted.flavour == "open" else "x86_64 Kernel Module"
        files["proc/driver/nvidia/version"] = (
            f"NVRM version: NVIDIA UNIX {kind}  {wanted.driver}  Release Build  (lab)\n".encode()
            + b"GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)\n"
        )
        files["sys/module/nvidia/version"] = f"{wanted.driver}\n".encode()
        files["proc/modules"] = b"nvidia_uvm 6750208 0 - Live 0x0 (O)\nnvidia 14000000 1 nvidia_uvm, Live 0x0 (O)\n"
    if wanted.nouveau:
        files["proc/modules"] += b"nouveau 2400256 0 - Live 0x0\n"
        files["sys/module/nouveau/initstate"] = b"live\n"
    if wanted.library:
        files[f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{wanted.library}"] = b""
    if wanted.secure_boot is not None:
        files[SECURE_BOOT] = b"\x06\0\0\0" + (b"\1" if wanted.secure_boot == "on" else b"\0")
    for kernel in wanted.kernel:
        files[f"boot/vmlinuz-{kernel}"] = b""
        if kernel in wanted.without:
            files[f"lib/modules/{kernel}/modules.dep"] = b"kernel/fs/ext4/ext4.ko:\n"
            continue
        relative = f"updates/dkms/{wanted.module}.ko"
        files[f"lib/modules/{kernel}/modules.dep"] = f"kernel/fs/ext4/ext4.ko:\n{relative}: kernel/video.ko\n".encode()
        files[f"lib/modules/{kernel}/{relative}"] = module_file(on_disk, wanted.flavour, kernel, wanted.signed)
        built = f"{on_disk}/{kernel}/x86_64"
        files[f"var/lib/dkms/{wanted.module}/{built}/module/{wanted.module}.ko"] = b""
        links[f"var/lib/dkms/{wanted.module}/kernel-{kernel}-x86_64"] = built
    if wanted.build_error:
        files[f"var/lib/dkms/{wanted.module}/{on_disk}/build/make.log"] = (
            f"DKMS make.log for {wanted.module}-{on_disk} for kernel {wanted.without[-1]} (x86_64)\n"
            f"make: Entering directory\n{wanted.build_error}\nmake[1]: *** [Makefile:255: nvidia] Error 1\n"
        ).encode()
    return files, links


def write(dest, files, links):
    for path, content in files.items():
        target = dest / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path, target in links.items():
        (dest / path).unlink(missing_ok=True)
        (dest / path).symlink_to(target)


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=pathlib.Path)
    parser.add_argument("--driver", default="580.126.09", help="version of the loaded module")
    parser.add_argument("--on-disk", help="version of the modules on disk; default: the loaded one's")
    parser.add_argument("--library", help="also the name of a library of this version")
    parser.add_argument("--kernel", action="append", help="an installed kernel; the first runs")
    parser.add_argument("--without", action="append", default=[], help="a kernel that has no module on disk")
    parser.add_argument("--build-error", help="DKMS failed so, for the last --without")
    parser.add_argument("--flavour", choices=("open", "proprietary"), default="open")
    parser.add_argument("--module", default="nvidia", help="nvidia-current-open in Debian's own packages")
    parser.add_argument("--secure-boot", choices=("on", "off"))
    parser.add_argument("--signed", action="store_true")
    parser.add_argument("--nouveau", action="store_true", help="nouveau is loaded")
    parser.add_argument("--not-loaded", action="store_true")
    wanted = parser.parse_args(words)
    wanted.kernel = wanted.kernel or ["6.1.0-50-amd64"]
    if wanted.build_error and not wanted.without:
        parser.error("--build-error needs the kernel it failed for: --without KERNEL")
    return wanted


def main(words=None):
    wanted = arguments(words)
    write(wanted.dest, *tree(wanted))


if __name__ == "__main__":
    main()
