# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The NVIDIA driver of a host: what is loaded, what is on disk for every kernel, what the library is.

``observe()`` reads files below ``root`` (a made-up tree in tests) and, for compressed modules only, runs modinfo.
``judge()`` turns what was read into problems, each with a text for an operator. Neither changes anything.

What ``observe`` returns::

    {
      "distribution": {"id": "debian", "version_id": "12"},
      "running_kernel": "6.1.0-50-amd64" | None,
      "next_kernel": str | None,       # the newest installed one, which a boot loader starts by default
      "loaded_version": "580.126.09" | None,
      "library_version": "580.126.09" | None,      # of libnvidia-ml.so.1, what new processes get
      "flavour": "open" | "proprietary" | None,    # of the loaded module, else of the one on disk
      "kernels": [{
        "kernel": str, "running": bool, "next": bool,
        "bootable": bool,              # its image, or where no image can be seen its modules, are there
        "version": str | None,         # of the module nvidia on disk; None: there is none (or it was not readable,
        "path": str | None,            # then path is set)
        "module": "nvidia" | "nvidia-current" | "nvidia-current-open" | None,   # Debian renames it
        "flavour": "open" | "proprietary" | None, "signed": bool | None,
      }],
      "dkms": [{"module": str, "version": str, "kernel": str | None,
                "state": "added" | "built" | "installed" | "failed", "error": str | None}],
      "secure_boot": bool | None, "nouveau_loaded": bool,
    }
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import subprocess

# Debian's own packages call the module nvidia-current or nvidia-current-open and map it by modprobe.d.
MODULE = re.compile(r"(?:^|/)(nvidia|nvidia-current|nvidia-current-open)\.ko(?:\.(?:xz|zst|gz))?$")
SIGNATURE = b"~Module signature appended~\n"  # include/linux/module_signature.h of Linux
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "lib64")
LOADED = re.compile(r"^NVRM version:.*?Kernel Module(?: for \S+)?\s+(\S+)", re.MULTILINE)

# Ollama's CUDA libraries and the driver branch each needs (discover/cuda_compat.go and docs/gpu.mdx of v0.33):
# v12 is built with CUDA 12.8 and compressed fatbins, v13 with CUDA 13.0.
OLLAMA_LIBRARIES = (("cuda_v12", 550), ("cuda_v13", 580))
OLLAMA_RULE_SINCE = (0, 30)
# v12 wants more of the driver for cards before Volta; CUDA 13 has dropped those before Turing.
OLLAMA_OLD_CARDS = ("7.0", 570)
OLLAMA_V13_CARDS = "7.5"

SUPPORTED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}


class DriverError(Exception):
    """A version or a wish is no such thing; the text says what was found and what is wanted."""


# ---- reading ---------------------------------------------------------------------------------------------------------


def observe(root="/", taken=None, run=subprocess.run, kernel=None):
    """What stands in this file's docstring. ``taken`` is a sample of _nvml; ``kernel`` overrides uname's release."""
    taken = taken or {}
    running = kernel or _running_kernel(root)
    kernels = installed_kernels(root, running)
    newest = max((name for name, image in kernels.items() if image), key=kernel_key, default=running)
    modules = [dict(module_on_disk(root, name, run), running=name == running, next=name == newest, bootable=image) for name, image in kernels.items()]
    loaded = read_loaded(root)
    on_disk = next((module["flavour"] for module in modules if module["running"]), None)
    return {
        "distribution": distribution(root),
        "running_kernel": running,
        "next_kernel": newest,
        # NVML asks the module itself; the files are for when NVML cannot.
        "loaded_version": taken.get("driver_version") or loaded[0],
        "library_version": library_version(root, taken.get("nvml_version")),
        "flavour": loaded[1] or on_disk,
        "kernels": sorted(modules, key=lambda module: kernel_key(module["kernel"])),
        "dkms": read_dkms(root),
        "secure_boot": secure_boot(root, run),
        "nouveau_loaded": os.path.isdir(os.path.join(root, "sys/module/nouveau")),
    }


def _running_kernel(root):
    return (read(root, "proc/sys/kernel/osrelease") or "").strip() or os.uname().release


def distribution(root):
    # A tree that holds only what the kernel shows has no os-release; then the one of this system counts.
    text = read(root, "etc/os-release") or read("/", "etc/os-release") or ""
    fields = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    return {key: fields.get(key.upper(), "").strip("\"'") or None for key in ("id", "version_id")}


def installed_kernels(root, running):
    """``{release: whether an image to boot is there}`` of the kernels with modules, and of the running one.

    Where no image can be seen at all (a container, an image kept elsewhere) every kernel with modules counts.
    """
    folder = os.path.join(root, "lib/modules")
    found = {}
    for name in sorted(_listdir(folder)):
        has_modules = os.path.exists(os.path.join(folder, name, "modules.dep"))
        image = any(os.path.exists(os.path.join(root, path)) for path in (f"boot/vmlinuz-{name}", f"lib/modules/{name}/vmlinuz"))
        if has_modules or image:
            found[name] = image
    if not any(found.values()):
        found = dict.fromkeys(found, True)
    # A folder that a removed kernel left behind cannot be booted.
    found = {name: image for name, image in found.items() if image or name == running}
    if running:
        found.setdefault(running, False)
    return found


def kernel_key(release):
    """Sorts kernel releases as their packages do: numbers by value (6.1.0-9 before 6.1.0-50)."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|[a-z]+", release.lower())]


def read_loaded(root):
    """``(version, flavour)`` of the loaded module, each None when there is none."""
    text = read(root, "proc/driver/nvidia/version") or ""
    version = (read(root, "sys/module/nvidia/version") or "").strip() or None
    named = LOADED.search(text)
    flavour = None
    if text:
        flavour = "open" if "Open Kernel Module" in text else "proprietary"
    return version or (named.group(1) if named else None), flavour


def library_version(root, nvml_version=None):
    """Of libnvidia-ml: NVML's own answer ("13.580.126.09" is CUDA's major number and the version), else the file's name."""
    if nvml_version and nvml_version.count(".") >= 2:
        return nvml_version.partition(".")[2]
    versions = [
        name[len("libnvidia-ml.so.") :]
        for folder in LIBRARY_FOLDERS
        for name in _listdir(os.path.join(root, folder))
        if re.fullmatch(r"libnvidia-ml\.so\.\d{2,}(\.\d+)+", name)
    ]
    return max(versions, key=version_key, default=None)


def module_on_disk(root, kernel, run=subprocess.run):
    """One entry of ``kernels``: the module that modprobe would take for this kernel, by modules.dep."""
    entry = {"kernel": kernel, "version": None, "path": None, "module": None, "flavour": None, "signed": None}
    folder = os.path.join("lib/modules", kernel)
    for line in (read(root, os.path.join(folder, "modules.dep")) or "").splitlines():
        match = MODULE.search(line.partition(":")[0])
        if not match:
            continue
        relative = line.partition(":")[0].strip()
        path = os.path.join(root, folder, relative) if not relative.startswith("/") else os.path.join(root, relative[1:])
        if not os.path.exists(path):  # listed, but gone: depmod has not run since
            continue
        info, signed = module_info(path, run)
        entry.update(
            path=os.path.join("/", os.path.relpath(path, root)),
            module=match.group(1),
            version=info.get("version"),
            flavour=_flavour(info.get("license")),
            signed=signed,
        )
        break
    return entry


def _flavour(license_text):
    """The open modules are "Dual MIT/GPL", the proprietary one is "NVIDIA"."""
    if not license_text:
        return None
    return "proprietary" if license_text == "NVIDIA" else "open"


def module_info(path, run=subprocess.run):
    """``({version, license, …}, signed)`` of a kernel module file; ``({}, None)`` when it cannot be read."""
    try:
        if path.endswith(".ko"):
            with open(path, "rb") as handle:
                return _elf_modinfo(handle)
        answer = _modinfo(path, run)  # in C, for what may be a hundred MiB to unpack
        if answer is not None:
            return answer, "signer" in answer or "sig_id" in answer
        opener = {".xz": lzma.open, ".gz": gzip.open}.get(os.path.splitext(path)[1])
        if opener is None:
            return {}, None
        with opener(path, "rb") as handle:
            return _elf_modinfo(handle)
    except (OSError, EOFError, lzma.LZMAError, struct.error, ValueError):
        return {}, None


def _modinfo(path, run):
    try:
        done = run(
            ["modinfo", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    fields = {}
    for line in done.stdout.splitlines():
        key, _colon, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _elf_modinfo(handle):
    """The section .modinfo of an ELF64 file ("key=value" texts ended by zeros), and whether a signature follows."""
    header = handle.read(64)
    if header[:5] != b"\x7fELF\x02":
        raise ValueError("no ELF64 file")
    order = "<" if header[5] == 1 else ">"
    section_offset = struct.unpack_from(order + "Q", header, 0x28)[0]
    size, count, names_index = struct.unpack_from(order + "HHH", header, 0x3A)
    if size != 64 or not names_index < count:
        raise ValueError("no section headers")
    handle.seek(section_offset)
    table = handle.read(size * count)
    # A section header: name, type, flags, address, offset, size, link, info, alignment, entry size.
    sections = [struct.unpack_from(order + "IIQQQQIIQQ", table, size * number) for number in range(count)]
    handle.seek(sections[names_index][4])
    names = handle.read(min(sections[names_index][5], 1 << 20))
    info = {}
    for section in sections:
        if names[section[0] : names.find(b"\0", section[0])] == b".modinfo":
            handle.seek(section[4])
            for text in handle.read(min(section[5], 1 << 20)).split(b"\0"):
                key, _equals, value = text.decode("utf-8", "replace").partition("=")
                info.setdefault(key, value)
    end = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, end - len(SIGNATURE)))
    return info, handle.read() == SIGNATURE


def read_dkms(root):
    """What /var/lib/dkms says of modules called nvidia…, newest state of each version and kernel.

    ``kernel-<release>-<arch>`` is a link to what is installed; ``<version>/<release>/<arch>/module`` is what was
    built; ``<version>/build/make.log`` stays behind from a build that failed.
    """
    base = os.path.join(root, "var/lib/dkms")
    found = []
    for module in sorted(name for name in _listdir(base) if name.startswith("nvidia")):
        folder = os.path.join(base, module)
        linked = {
            os.path.normpath(os.readlink(os.path.join(folder, name)))
            for name in _listdir(folder)
            if name.startswith("kernel-") and os.path.islink(os.path.join(folder, name))
        }
        for version in sorted((name for name in _listdir(folder) if name[:1].isdigit()), key=version_key):
            found += _dkms_version(root, module, version, linked)
    return found


def _dkms_version(root, module, version, linked):
    folder = os.path.join("var/lib/dkms", module, version)
    states = {}
    for kernel in _listdir(os.path.join(root, folder)):
        for arch in _listdir(os.path.join(root, folder, kernel)):
            if kernel not in ("source", "build") and _listdir(os.path.join(root, folder, kernel, arch, "module")):
                # The link is relative to the module's folder, or absolute on the host.
                ways = (f"{version}/{kernel}/{arch}", f"/{folder}/{kernel}/{arch}")
                states[kernel] = ("installed" if linked.intersection(ways) else "built", None)
    kernel, error = first_build_error(read(root, os.path.join(folder, "build/make.log")) or "")
    if error:
        states[kernel] = ("failed", error)
    if not states:
        states[None] = ("added", None)
    return [
        {"module": module, "version": version, "kernel": name, "state": state, "error": text}
        for name, (state, text) in sorted(states.items(), key=lambda item: kernel_key(item[0] or ""))
    ]


def first_build_error(log):
    """``(kernel, first line that is an error)`` of a DKMS make.log; ``(kernel, None)`` of one without."""
    head = re.search(r"^DKMS.*make\.log for .+ for kernel (\S+)", log, re.MULTILINE)
    error = re.search(r"^.*(?:: error: |fatal error: |^make.*\*\*\* |^ERROR: ).*$", log, re.MULTILINE)
    return (head.group(1) if head else None), (error.group(0).strip() if error else None)


def secure_boot(root, run=subprocess.run):
    """True or False; None when the firmware has EFI but does not tell."""
    try:
        with open(os.path.join(root, SECURE_BOOT), "rb") as handle:
            value = handle.read(5)  # four bytes of attributes, then the value
        if len(value) == 5:
            return value[4] == 1
    except OSError:
        pass
    if not os.path.isdir(os.path.join(root, "sys/firmware/efi")):
        return False
    try:
        done = run(
            ["mokutil", "--sb-state"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = re.search(r"SecureBoot (enabled|disabled)", done.stdout)
    return told.group(1) == "enabled" if told else None


# ---- versions --------------------------------------------------------------------------------------------------------


def version_key(version):
    """Numbers of a driver version such as 580.126.09, for comparing; [] for None."""
    return [int(part) for part in re.findall(r"\d+", version or "")]


def branch(version):
    """580 of "580.126.09"; None for None."""
    return version_key(version)[0] if version else None


def ollama_serves(driver_version, ollama_version=None, capability=None):
    """``{"minimum": branch or None, "libraries": [...], "ok": bool or None}`` of a driver for an Ollama release.

    ``ollama_version`` None means a current one. Releases before 0.30 are not judged (minimum None). ``ok`` is None
    when the driver's version is not known. Source: facts of v0.33's discover/cuda_compat.go.
    """
    if ollama_version is not None:
        number = re.match(r"v?(\d+)\.(\d+)", str(ollama_version))
        if not number:
            raise DriverError(f"'{ollama_version}' is no Ollama version; wanted is one such as 0.33.0.")
        if (int(number.group(1)), int(number.group(2))) < OLLAMA_RULE_SINCE:
            return {"minimum": None, "libraries": [], "ok": None}
    libraries = list(OLLAMA_LIBRARIES)
    if capability and version_key(capability) < version_key(OLLAMA_V13_CARDS):
        libraries = libraries[:1]
    if capability and version_key(capability) < version_key(OLLAMA_OLD_CARDS[0]):
        libraries = [(libraries[0][0], OLLAMA_OLD_CARDS[1])]
    minimum = min(needed for _name, needed in libraries)
    if driver_version is None:
        return {"minimum": minimum, "libraries": [], "ok": None}
    served = [name for name, needed in libraries if branch(driver_version) >= needed]
    return {"minimum": minimum, "libraries": served, "ok": bool(served)}


# ---- judging ---------------------------------------------------------------------------------------------------------


def reboot(observed):
    """``{"needed": bool, "reason": str or None, "safe": bool, "blocked_by": str or None}``.

    Compares loaded, on disk for the running kernel, and library. ``safe`` is the gate: the kernel that will boot
    has a module, of the version that the library needs. A host without any driver has nothing to lose by a reboot.
    """
    loaded, library = observed["loaded_version"], observed["library_version"]
    running = _kernel(observed, "running")
    coming = _kernel(observed, "next")
    disk = running["version"] if running else None
    reason = None
    if loaded and disk and loaded != disk:
        reason = f"The loaded module is {loaded}, the one on disk for the running kernel is {disk}."
    elif loaded and library and loaded != library:
        reason = f"The loaded module is {loaded}, the library is {library}."
    elif not loaded and observed["nouveau_loaded"] and disk:
        reason = f"nouveau holds the card; the module nvidia {disk} can load after a reboot without it."
    elif not loaded and not disk and coming and coming["version"]:
        reason = f"The running kernel {observed['running_kernel']} has no module nvidia, {coming['kernel']}, which boots next, has {coming['version']}."
    blocked = _blocked(observed, coming)
    return {"needed": reason is not None, "reason": reason, "safe": blocked is None, "blocked_by": blocked}


def _blocked(observed, coming):
    has_driver = observed["loaded_version"] or observed["library_version"]
    # Without a kernel on disk this is a container: its host decides what boots.
    if not has_driver or coming is None or not any(kernel["bootable"] for kernel in observed["kernels"]):
        return None
    kernel = coming["kernel"]
    if coming["path"] is None:
        failed = [entry for entry in observed["dkms"] if entry["state"] == "failed" and entry["kernel"] in (kernel, None)]
        because = f" DKMS failed to build {failed[-1]['version']}: {failed[-1]['error']}." if failed else ""
        return (
            f"Kernel {kernel}, which boots next, has no module nvidia on disk: a reboot would lose the GPU.{because} "
            f"Build the module for it first, or boot another kernel."
        )
    library = observed["library_version"]
    if library and coming["version"] and coming["version"] != library:
        return (
            f"Kernel {kernel}, which boots next, has module {coming['version']} on disk, but the library is {library}: "
            f"after a reboot no process could use the GPU. Bring both to one version first."
        )
    if observed["secure_boot"] and coming["signed"] is False:
        return f"Secure Boot is on and the module of kernel {kernel} is not signed: it would not load after a reboot."
    return None


def _kernel(observed, key):
    return next((kernel for kernel in observed["kernels"] if kernel[key]), None)


def judge(observed, taken, ollama_version=None, expected_gpus=()):
    """Problems of the host, ``[{"code", "message"}]``, worst first; [] for a host that serves.

    Codes: platform, no_library, not_loaded, mismatch, no_permission, no_gpu, error, gpu_lost, gpu_error,
    driver_too_old, gpus_differ, nouveau, reboot_needed, reboot_blocked.
    ``expected_gpus`` is ``[{"name": part of the name, "count": int}]``; [] expects nothing in particular.
    """
    problems = list(_platform(observed["distribution"]))
    state = taken["state"]
    if state != "ok":
        code = {"no_driver": "not_loaded"}.get(state, state)
        problems.append(_problem(code, " ".join([taken["message"], *_why_not_loaded(observed, state)])))
    problems += [_problem(f"gpu_{gpu['state']}", gpu["message"]) for gpu in taken["gpus"] if gpu["state"] != "ok"]
    problems += _too_old(observed, taken, ollama_version)
    problems += _differing(expected_gpus, taken["gpus"], state)
    if observed["nouveau_loaded"]:
        problems.append(
            _problem(
                "nouveau",
                "The module nouveau is loaded; blacklist it, renew the initramfs and reboot, or it may hold the card.",
            )
        )
    wanted = reboot(observed)
    if wanted["needed"]:
        problems.append(_problem("reboot_needed", f"{wanted['reason']} The host has to be rebooted, or the modules reloaded."))
    if not wanted["safe"]:
        problems.append(_problem("reboot_blocked", wanted["blocked_by"]))
    return problems


def _problem(code, message):
    return {"code": code, "message": message}


def _platform(distribution):
    known, version = SUPPORTED.get(distribution["id"]), distribution["version_id"]
    if known is None or version not in known:
        told = " ".join(part for part in (distribution["id"], version) if part) or "an unknown system"
        yield _problem(
            "platform",
            f"This host runs {told}; wanted is Debian 12 or 13, or Ubuntu 22.04, 24.04 or 26.04. Install one of these, or leave this host out of the play.",
        )


def _why_not_loaded(observed, state):
    """What is known about why the module is not there, or not of the library's version."""
    if state == "mismatch" and observed["loaded_version"] and observed["library_version"] != observed["loaded_version"]:
        yield f"Loaded is {observed['loaded_version']}, the library is {observed['library_version']}."
    if state != "no_driver":
        return
    running = _kernel(observed, "running")
    if observed["nouveau_loaded"]:
        yield "nouveau is loaded."
    if running and not running["path"] and any(kernel["path"] for kernel in observed["kernels"]):
        yield f"The running kernel {running['kernel']} has no module on disk."
    if observed["secure_boot"] and running and running["signed"] is False:
        yield "Secure Boot is on and the module is not signed."
    for entry in observed["dkms"]:
        if entry["state"] == "failed":
            yield f"DKMS failed to build {entry['version']}: {entry['error']}."


def _too_old(observed, taken, ollama_version):
    version = observed["loaded_version"] or observed["library_version"]
    capabilities = [gpu["compute_capability"] for gpu in taken["gpus"] if gpu["compute_capability"]]
    oldest = min(capabilities, key=version_key, default=None)
    serves = ollama_serves(version, ollama_version, oldest)
    if serves["ok"] is False:
        yield _problem(
            "driver_too_old",
            f"The NVIDIA driver is {version}; Ollama {ollama_version or '0.30 and later'} wants {serves['minimum']} or newer "
            f"and would serve from the CPU without saying so. Install branch 580.",
        )


def _differing(expected_gpus, gpus, state):
    if not expected_gpus or state not in ("ok", "no_gpu"):
        return
    left = [gpu["name"] or f"GPU {gpu['index']} ({gpu['state']})" for gpu in gpus if gpu["state"] == "ok"]
    found = ", ".join(f"{left.count(name)} x {name}" for name in sorted(set(left))) or "none"
    wanted = ", ".join(f"{entry['count']} x {entry['name']}" for entry in expected_gpus)
    matches = []
    for entry in expected_gpus:
        hits = [name for name in left if entry["name"].lower() in name.lower()]
        left = [name for name in left if name not in hits]
        matches.append(len(hits) == entry["count"])
    if left or not all(matches):
        yield _problem(
            "gpus_differ",
            f"GPUs found: {found}; the inventory wants {wanted}. Look for a lost or unseated card, or correct cuda_expected_gpus.",
        )


# ---- files -----------------------------------------------------------------------------------------------------------


def read(root, path):
    """The text of a file below root, None where it cannot be read."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return None


def _listdir(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
