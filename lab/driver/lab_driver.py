#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel and DKMS do with a driver, on a lab host without either; everything lies below /var/lib/lab/rootfs.

The lab's driver packages call it where NVIDIA's call dkms; it is also /usr/local/sbin/modprobe and update-initramfs.

    lab_driver.py boot                        the newest kernel with an image runs; nouveau or nvidia takes the card
    lab_driver.py build VERSION FLAVOUR       DKMS for every kernel whose headers are there; 10 when a build fails
    lab_driver.py remove VERSION              the modules of a version go
    lab_driver.py kernel RELEASE              a kernel or its headers were installed: DKMS builds for it
    lab_driver.py smi -i GPU -pl WATT         nvidia-smi
    lab_driver.py persistenced                nvidia-persistenced: keeps the card's state while it runs
    modprobe [-r] MODULE…                     load or unload
    update-initramfs -u                       take modprobe.d's blacklists into what boots

/etc/lab/driver.json breaks things:

    build_errors     {"590.44.01": "nvidia/nv-pci.c:237:9: error: …"}: that version does not build (key also "VERSION KERNEL")
    install_errors   {"590.44.01": "…"}: its package cannot be configured, for a reason that is no build's
    nouveau          false: the kernel has no such module
    uvm              false: nvidia_uvm does not load
    in_use           true: somebody holds the module, so only a reboot replaces it
    initramfs        "580.95.05": what boots loads this module, whatever is on disk
    boot_faults      {"gpus": 0}: faults of the card (lab_card.py set) that the next boot brings
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import signal
import sys
import time

ROOT = os.environ.get("LAB_ROOTFS", "/var/lib/lab/rootfs")
ETC = os.environ.get("LAB_ETC", "/etc")
RUN = os.environ.get("LAB_RUN", "/run/nvml-sim")
DEV = os.environ.get("LAB_DEV", "/dev")
DKMS_FAILED = 10  # what dkms' own postinst helper ends with


def slurp(path):
    """A file's text; None where there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError:
        return None


def spill(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(content if isinstance(content, bytes) else content.encode())


def inside(*parts):
    return os.path.join(ROOT, *parts)


def settings():
    return json.loads(slurp(f"{ETC}/lab/driver.json") or "{}")


def kernel_key(release):
    return [int(number) for number in re.findall(r"\d+", release)]


def kernels():
    """Releases with an image, oldest first."""
    return sorted((path.rsplit("vmlinuz-", 1)[1] for path in glob.glob(inside("boot/vmlinuz-*"))), key=kernel_key)


def running():
    return (slurp(inside("proc/sys/kernel/osrelease")) or "").strip()


# ---- DKMS ------------------------------------------------------------------------------------------------------------


def module_path(kernel):
    return inside("lib/modules", kernel, "updates/dkms/nvidia.ko")


def version_of(path):
    """The version in a module file, None without one."""
    try:
        with open(path, "rb") as handle:
            found = re.search(rb"version=([0-9.]+)\0", handle.read())
    except OSError:
        return None
    return found.group(1).decode() if found else None


def registered():
    """(version, flavour) of what DKMS was given last, or None."""
    known = json.loads(slurp(inside("var/lib/dkms/registered.json")) or "null")
    return tuple(known) if known else None


def build(version, flavour, only=None):
    """Build for every kernel whose headers are there, or one; return the exit status."""
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    import make_rootfs

    os.makedirs(inside("var/lib/dkms/nvidia", version), exist_ok=True)
    spill(inside("var/lib/dkms/registered.json"), json.dumps([version, flavour]))
    refused = settings().get("install_errors", {}).get(version)
    if refused:
        print(refused, file=sys.stderr)
        return 1
    wrong = settings().get("build_errors", {})
    status = 0
    for kernel in [only] if only else kernels():
        if not os.path.isdir(inside("usr/src", f"linux-headers-{kernel}")):
            print(f"Module build for kernel {kernel} was skipped since the\nkernel headers for this kernel do not seem to be installed.")
            continue
        error = wrong.get(f"{version} {kernel}") or wrong.get(version)
        log = inside("var/lib/dkms/nvidia", version, "build/make.log")
        if error:
            spill(
                log,
                f"DKMS make.log for nvidia-{version} for kernel {kernel} (x86_64)\nmake: Entering directory '/usr/src/linux-headers-{kernel}'\n"
                f"{error}\nmake[2]: *** [scripts/Makefile.build:250: nvidia] Error 1\n",
            )
            print(f"Error! Bad return status for module build on kernel: {kernel} (x86_64)\nConsult {log} for more information.", file=sys.stderr)
            status = DKMS_FAILED
            continue
        spill(module_path(kernel), make_rootfs.module_file(version, flavour, kernel, False))
        depmod(kernel)
        spill(inside("var/lib/dkms/nvidia", version, kernel, "x86_64/module/nvidia.ko"), "")
        link(f"{version}/{kernel}/x86_64", inside("var/lib/dkms/nvidia", f"kernel-{kernel}-x86_64"))
        print(f"nvidia.ko:\nRunning module version sanity check.\n - Installation\n   - Installing to /lib/modules/{kernel}/updates/dkms/")
    return status


def link(target, path):
    if os.path.islink(path):
        os.unlink(path)
    os.symlink(target, path)


def depmod(kernel):
    text = "kernel/fs/ext4/ext4.ko:\n"
    if os.path.exists(module_path(kernel)):
        text += "updates/dkms/nvidia.ko: kernel/video.ko\n"
    spill(inside("lib/modules", kernel, "modules.dep"), text)


def remove(version):
    """Take a version's modules away; what is loaded stays loaded."""
    for kernel in kernels():
        if version_of(module_path(kernel)) == version:
            os.unlink(module_path(kernel))
            depmod(kernel)
            os.path.islink(inside("var/lib/dkms/nvidia", f"kernel-{kernel}-x86_64")) and os.unlink(inside("var/lib/dkms/nvidia", f"kernel-{kernel}-x86_64"))
    shutil.rmtree(inside("var/lib/dkms/nvidia", version), ignore_errors=True)
    if (registered() or [None])[0] == version:
        os.unlink(inside("var/lib/dkms/registered.json"))
    return 0


def kernel_installed(release):
    """What /etc/kernel/postinst.d/dkms does: it never fails the kernel's own installation."""
    if os.path.exists(inside("boot", f"vmlinuz-{release}")):
        depmod(release)
        if registered():
            build(*registered(), only=release)
    return 0


# ---- the kernel ------------------------------------------------------------------------------------------------------


def loaded():
    return (slurp(inside("sys/module/nvidia/version")) or "").strip() or None


def await_card():
    """Until NVML says what the kernel now does; lab-card looks four times a second."""
    want = f"driver {loaded()}" if loaded() else "init 9"
    deadline = time.monotonic() + 5
    while os.path.isdir(RUN) and want not in (slurp(f"{RUN}/state") or want).splitlines() and time.monotonic() < deadline:
        time.sleep(0.05)


def node(name, major, minor):
    path = os.path.join(DEV, name)
    if not os.path.exists(path) and os.geteuid() == 0:
        os.mknod(path, 0o20666, os.makedev(major, minor))
        os.chmod(path, 0o666)


def modules_file():
    names = [name for name in ("nouveau", "nvidia_uvm", "nvidia") if os.path.isdir(inside("sys/module", name))]
    spill(inside("proc/modules"), "".join(f"{name} 14000000 0 - Live 0x0 (O)\n" for name in names))


def load(name):
    """Return the sentence of modprobe's refusal, None when the module is in."""
    name = name.replace("-", "_")
    if name == "nvidia_uvm":
        refused = load("nvidia")
        if refused:
            return refused
        if settings().get("uvm") is False:
            return "modprobe: ERROR: could not insert 'nvidia_uvm': Unknown symbol in module, or unknown parameter (see dmesg)"
        spill(inside("sys/module/nvidia_uvm/initstate"), "live\n")
        node("nvidia-uvm", 511, 0)
    if name != "nvidia" or loaded():
        modules_file()
        return None
    version = version_of(module_path(running()))
    if version is None:
        return f"modprobe: FATAL: Module nvidia not found in directory /lib/modules/{running()}"
    if os.path.isdir(inside("sys/module/nouveau")):
        return "modprobe: ERROR: could not insert 'nvidia': No such device"
    with open(module_path(running()), "rb") as handle:
        body = handle.read()
    if secure_boot() and not body.endswith(b"~Module signature appended~\n"):
        return "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service"
    kind = "x86_64 Kernel Module" if b"license=NVIDIA\0" in body else "Open Kernel Module for x86_64"
    spill(inside("proc/driver/nvidia/version"), f"NVRM version: NVIDIA UNIX {kind}  {version}  Release Build  (lab)\n")
    spill(inside("sys/module/nvidia/version"), f"{version}\n")
    modules_file()
    cards = json.loads(slurp(f"{ETC}/nvml-sim/card.json") or "{}").get("gpus", [])
    node("nvidiactl", 195, 255)
    for number in range(len(cards)):
        node(f"nvidia{number}", 195, number)
    await_card()
    return None


def secure_boot():
    for path in glob.glob(inside("sys/firmware/efi/efivars/SecureBoot-*")):
        with open(path, "rb") as handle:
            return handle.read()[4:5] == b"\1"
    return False


def users():
    """Who holds the card: processes with VRAM, and nvidia-persistenced."""
    held = re.findall(r"^process (\d+)", slurp(f"{RUN}/state") or "", re.MULTILINE) + (["somebody"] if settings().get("in_use") else [])
    return held + (["nvidia-persistenced"] if os.path.exists("/run/nvidia-persistenced/lab") else [])


def unload(name):
    """Return the sentence of modprobe's refusal, None when the module is out or was not there."""
    name = name.replace("-", "_")
    if not os.path.isdir(inside("sys/module", name)):
        return None
    if name in ("nvidia", "nvidia_uvm") and users():
        return f"modprobe: FATAL: Module {name} is in use."
    if name == "nvidia":
        if os.path.isdir(inside("sys/module/nvidia_uvm")):
            unload("nvidia_uvm")
        shutil.rmtree(inside("proc/driver/nvidia"), ignore_errors=True)
        for path in glob.glob(f"{RUN}/limit-*"):
            os.unlink(path)
    shutil.rmtree(inside("sys/module", name), ignore_errors=True)
    for path in glob.glob(f"{DEV}/nvidia-uvm") if name == "nvidia_uvm" else glob.glob(f"{DEV}/nvidia[0-9c]*") if name == "nvidia" else []:
        os.unlink(path)
    modules_file()
    await_card()
    return None


def modprobe(words):
    names = [word for word in words if not word.startswith("-")]
    if "-a" not in words and "--all" not in words and "-r" not in words and "--remove" not in words:
        names = names[:1]  # further words are the module's parameters
    for name in names:
        refused = unload(name) if {"-r", "--remove"} & set(words) else load(name)
        if refused:
            print(refused, file=sys.stderr)
            return 1
    return 0


def blacklists():
    return [path for path in sorted(glob.glob(f"{ETC}/modprobe.d/*.conf")) if re.search(r"^blacklist nouveau", slurp(path) or "", re.MULTILINE)]


def update_initramfs(words):
    if "-u" in words or "-c" in words:
        spill(inside("boot/initramfs.json"), json.dumps({"blacklists": blacklists(), "time": time.time()}))
    return 0


def break_card(faults):
    path = f"{ETC}/nvml-sim/card.json"
    if faults:
        card = json.loads(slurp(path))
        card["faults"] = {**card.get("faults", {}), **faults}
        spill(path, json.dumps(card, indent=2) + "\n")


def boot():
    """What firmware, boot loader, initramfs and udev come to: one kernel runs, one module has the card."""
    for name in ("nvidia", "nvidia_uvm", "nouveau"):
        shutil.rmtree(inside("sys/module", name), ignore_errors=True)
    shutil.rmtree(inside("proc/driver/nvidia"), ignore_errors=True)
    os.makedirs(inside("sys/module"), exist_ok=True)
    if kernels():
        spill(inside("proc/sys/kernel/osrelease"), f"{kernels()[-1]}\n")
        depmod(kernels()[-1])
    blacklisted = json.loads(slurp(inside("boot/initramfs.json")) or "{}").get("blacklists")
    if settings().get("nouveau") is not False and not blacklisted:
        spill(inside("sys/module/nouveau/initstate"), "live\n")
    modules_file()
    break_card(settings().get("boot_faults", {}))
    load("nvidia")  # udev, by the card's own PCI alias
    stale = settings().get("initramfs")
    if stale and loaded():
        spill(inside("sys/module/nvidia/version"), f"{stale}\n")
    for path in sorted(glob.glob(f"{ETC}/modules-load.d/*.conf")):
        for line in (slurp(path) or "").splitlines():
            refused = load(line.strip()) if line.strip() and not line.startswith("#") else None
            if refused:
                print(refused, file=sys.stderr)
    return 0


# ---- the driver's programs -------------------------------------------------------------------------------------------


def smi(words):
    """nvidia-smi -i GPU -pl WATT; nothing else is needed where nvidia-ml-py reads."""
    if not loaded():
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
        return 9
    if "-pl" not in words:
        print("This nvidia-smi of the lab only sets the power limit (-i GPU -pl WATT).")
        return 2
    watt = int(words[words.index("-pl") + 1])
    which = words[words.index("-i") + 1] if "-i" in words else None
    state = slurp(f"{RUN}/state") or ""
    for index, uuid in enumerate(re.findall(r"^uuid (\S+)", state, re.MULTILINE)):
        low, high = (int(number) // 1000 for number in re.findall(r"^range (\d+) (\d+)", state, re.MULTILINE)[index])
        if which not in (None, uuid, str(index)):
            continue
        if not low <= watt <= high:
            print(f"Provided power limit {watt}.00 W is not a valid power limit which should be between {low}.00 W and {high}.00 W for GPU {index}")
            return 2
        spill(f"{RUN}/limit-{index}", str(watt))
    time.sleep(0.6)  # lab-card looks four times a second
    return 0


def persistenced(words):
    if not loaded():
        print("nvidia-persistenced failed to initialize. Check syslog for more details.", file=sys.stderr)
        return 1
    if "--no-persistence-mode" not in words or "--persistence-mode" in words:
        spill("/run/nvidia-persistenced/lab", "on")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        signal.pause()
    finally:
        if os.path.exists("/run/nvidia-persistenced/lab"):
            os.unlink("/run/nvidia-persistenced/lab")
    return 0


def main(words):
    called = os.path.basename(words[0])
    if called == "modprobe":
        return modprobe(words[1:])
    if called == "update-initramfs":
        return update_initramfs(words[1:])
    commands = {
        "boot": boot,
        "build": build,
        "remove": remove,
        "kernel": kernel_installed,
        "smi": lambda *rest: smi(rest),
        "persistenced": lambda *rest: persistenced(rest),
    }
    return commands[words[1]](*words[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
