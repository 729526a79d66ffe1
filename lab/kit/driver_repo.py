# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's APT repositories: NVIDIA's driver packages in name, version and dependencies, and kernels for the lab's hosts.

Small real packages, made by dpkg-deb: they carry the NVML simulator under a driver's version and call
lab/driver/lab_driver.py where NVIDIA's call dkms. Signed with a key that is made once a machine. Everything is
cached by content in $CACHE/packages; a lab's mirror gets a copy.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import tempfile
from email.utils import formatdate

from . import hardware
from .shell import LAB, LabError, cache, run, step

VERSIONS = ("580.95.05", "580.126.09", "590.44.01")
KERNELS = {"debian": ("6.1.0-50-amd64", "6.1.0-51-amd64"), "ubuntu": ("6.8.0-60-generic", "6.8.0-61-generic")}
"""What a lab host runs, and what its distribution would bring next."""

SYSTEMS = ("debian12", "debian13", "ubuntu2204", "ubuntu2404", "ubuntu2604")
LIBRARY = "usr/lib/x86_64-linux-gnu"
KERNEL_PROGRAM = "/usr/local/lib/lab/lab_driver.py"
PIN = """Package: /nvidia/ /libcuda/ /libnvcuvid/ /libnvoptix/
Pin: version {pinned}
Pin-Priority: 1000
"""
PERSISTENCED = """[Unit]
Description=NVIDIA Persistence Daemon
Wants=syslog.target

[Service]
Type=simple
ExecStart=/usr/bin/nvidia-persistenced {flags}
ExecStopPost=/bin/rm -rf /var/run/nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""


def key_home():
    """Return the folder with the lab's signing key, made if it is missing."""
    home = cache("packages", "key")
    if not (home / "fingerprint").exists():
        home.mkdir(parents=True, exist_ok=True)
        os.chmod(home, 0o700)
        _gpg(home, "--passphrase", "", "--quick-generate-key", "gpufleet throw-away lab <lab@demo.example>", "rsa3072", "sign", "never")
        listed = _gpg(home, "--with-colons", "--list-keys").stdout
        fingerprint = re.search(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE).group(1)
        _gpg(home, "--yes", "--output", home / "keyring.gpg", "--export", fingerprint)
        (home / "fingerprint").write_text(fingerprint, encoding="utf-8")
    return home


def fingerprint():
    """Return the fingerprint of the lab's signing key."""
    return (key_home() / "fingerprint").read_text(encoding="utf-8")


def _gpg(home, *words):
    return run(["gpg", "--homedir", home, "--batch", "--no-tty", "--quiet", *words])


def package(name, version, depends="", files=None, scripts=None, **fields):
    """Return the description of one package: control fields, {path: (content, mode)} and maintainer scripts."""
    control = {"Package": name, "Version": version, "Architecture": fields.pop("arch", "amd64"), "Maintainer": "gpufleet lab <lab@demo.example>"}
    control.update({key.replace("_", "-").title(): value for key, value in {"depends": depends, **fields}.items() if value})
    control["Section"] = fields.get("section", "non-free/libs")
    control["Description"] = f"{name} of the lab\n A stand-in of gpufleet.llm's lab: the shape of the vendor's package without its content."
    return {"control": control, "files": files or {}, "scripts": scripts or {}}


def _called(*words):
    """Return a shell line that calls the simulated kernel, where there is one."""
    return f"if [ -x {KERNEL_PROGRAM} ]; then {KERNEL_PROGRAM} {' '.join(words)} || exit $?; fi\n"


def _dkms_scripts(version, flavour):
    """Return the maintainer scripts of a package with module sources, as debhelper's dkms sequence writes them."""
    return {
        "postinst": '#!/bin/sh\nset -e\nif [ "$1" = configure ]; then\n' + _called("build", version, flavour) + "fi\n",
        "prerm": "#!/bin/sh\nset -e\ncase $1 in remove|upgrade|deconfigure)\n" + _called("remove", version) + ";; esac\n",
    }


def _pins(version, revision):
    """Return the two pinning packages that a version has: of its branch, and its own."""
    branch = version.partition(".")[0]
    found = []
    for name, pinned, own in ((branch, f"{branch}.*", f"{branch}-{revision}"), (version, f"{version}-*", f"{version}-{revision}")):
        path = "etc/apt/preferences.d/nvidia-driver-pinning"  # APT passes over a file whose name ends in ".05"
        found.append(
            package(
                f"nvidia-driver-pinning-{name}",
                own,
                arch="all",
                provides="nvidia-driver-pinning",
                conflicts="nvidia-driver-pinning",
                replaces="nvidia-driver-pinning",
                files={path: (PIN.format(pinned=pinned), 0o644)},
            )
        )
    return found


def _library(version):
    """Return the files of the NVML library, which is the simulator under this version."""
    name = f"libnvidia-ml.so.{version}"
    return {f"{LIBRARY}/{name}": (hardware.library(version).read_bytes(), 0o644), f"{LIBRARY}/libnvidia-ml.so.1": ("->", name)}


SMI = {"usr/bin/nvidia-smi": (f'#!/bin/sh\nexec {KERNEL_PROGRAM} smi "$@"\n', 0o755)}


def _persistenced(flags):
    return {
        "usr/bin/nvidia-persistenced": (f'#!/bin/sh\nexec {KERNEL_PROGRAM} persistenced "$@"\n', 0o755),
        "usr/lib/systemd/system/nvidia-persistenced.service": (PERSISTENCED.format(flags=flags), 0o644),
    }


PERSISTENCED_SCRIPTS = {
    "postinst": '#!/bin/sh\nset -e\nif [ "$1" = configure ]; then systemctl daemon-reload; systemctl enable nvidia-persistenced.service || true; fi\n'
}


def debian(version):
    """Return the packages of NVIDIA's Debian repository for a driver: no branch in any name."""
    full = f"{version}-1"
    same = f"(= {full})"
    plain = [package(name, full) for name in ("libnvidia-ptxjitcompiler1", "firmware-nvidia-gsp", "nvidia-modprobe")]
    kernel = f"nvidia-kernel-support {same}, firmware-nvidia-gsp {same}"
    return [
        *plain,
        package("libnvidia-ml1", full, files=_library(version)),
        package("libcuda1", full, f"libnvidia-ptxjitcompiler1 {same}"),
        package("nvidia-kernel-support", full, f"nvidia-modprobe (>= {version})"),
        package("nvidia-kernel-open-dkms", full, kernel, scripts=_dkms_scripts(version, "open"), conflicts="nvidia-kernel-dkms, nvidia-open-kernel-dkms"),
        package(
            "nvidia-kernel-dkms", full, kernel, scripts=_dkms_scripts(version, "proprietary"), conflicts="nvidia-kernel-open-dkms, nvidia-open-kernel-dkms"
        ),
        package("nvidia-persistenced", full, files=_persistenced("--user nvpd"), scripts=PERSISTENCED_SCRIPTS),
        # >= for the module is what pulls the newest branch in where nothing pins it.
        package(
            "nvidia-driver-cuda",
            full,
            f"libcuda1 {same}, libnvidia-ml1 {same}, nvidia-kernel-open-dkms (>= {full}) | nvidia-kernel-dkms (>= {full}), nvidia-persistenced (>= {version})",
            conflicts="nvidia-smi",
            files=SMI,
        ),
        package("cuda-drivers", full, f"nvidia-driver-cuda (>= {full})"),
        *_pins(version, "1"),
    ]


def ubuntu(version):
    """Return the packages of NVIDIA's Ubuntu repository for a driver: the branch is in the names up to 580."""
    branch = int(version.partition(".")[0])
    suffix = "" if branch >= 590 else f"-{branch}"
    full = f"{version}-1ubuntu1"

    def named(stem, opened=""):
        return f"{stem}{suffix}{opened}" if suffix else f"{stem}{opened}"

    def replaced(stem, opened=""):
        older = ", ".join(f"{stem}-{old}{opened}" for old in (570, 580) if f"-{old}" != suffix)
        return {"conflicts": older, "replaces": older}

    found = [
        package(named("nvidia-kernel-common"), full, **replaced("nvidia-kernel-common")),
        package(named("libnvidia-compute"), full, files=_library(version), **replaced("libnvidia-compute")),
        package(named("nvidia-utils"), full, f"{named('libnvidia-compute')} (>= {full})", files=SMI, **replaced("nvidia-utils")),
        package(
            named("nvidia-compute-utils"), full, files=_persistenced("--user nvidia-persistenced --no-persistence-mode --verbose"),
            scripts=PERSISTENCED_SCRIPTS, **replaced("nvidia-compute-utils"),
        ),
        package(
            named("nvidia-dkms", "-open"), full, f"{named('nvidia-kernel-common')} (>= {full})",
            scripts=_dkms_scripts(version, "open"), **replaced("nvidia-dkms", "-open"),
        ),
        *_pins(version, "1ubuntu1"),
    ]  # fmt: skip
    if branch == 580:
        # What asks for 570 gets 580.
        for stem, opened in (("libnvidia-compute", ""), ("nvidia-utils", ""), ("nvidia-dkms", "-open")):
            found.append(package(f"{stem}-570{opened}", full, f"{stem}-580{opened}", section="oldlibs"))
    return found


def toolkits():
    """Return the toolkits of NVIDIA's repository: they never bring a driver."""
    return [package(f"cuda-toolkit-{version.replace('.', '-')}", f"{version}.1-1") for version in ("12.8", "13.0", "13.1")]


def kernels(distribution):
    """Return a distribution's kernels and headers with their meta-packages; files below what a lab host takes for its root."""
    found = []
    arch = "amd64" if distribution == "debian" else "generic"
    for number, release in enumerate(KERNELS[distribution]):
        root = hardware.ROOTFS.lstrip("/")
        script = {"postinst": '#!/bin/sh\nset -e\nif [ "$1" = configure ]; then\n' + _called("kernel", release) + "fi\n"}
        image = {f"{root}/boot/vmlinuz-{release}": ("", 0o644)}
        headers = {f"{root}/usr/src/linux-headers-{release}/Makefile": ("", 0o644)}
        found.append(package(f"linux-image-{release}", f"99.{number}-1", files=image, scripts=script, section="kernel"))
        found.append(package(f"linux-headers-{release}", f"99.{number}-1", files=headers, scripts=script, section="kernel"))
    newest = KERNELS[distribution][0]  # the next one comes by name, when a test says so
    found.append(package(f"linux-headers-{arch}", "99.0-1", f"linux-headers-{newest}", section="kernel"))
    return found


def _build(one, folder):
    """Write a package; return its stanza for Packages."""
    control = dict(one["control"])
    name = f"{control['Package']}_{control['Version']}_{control['Architecture']}.deb"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        files = {**one["files"], f"usr/share/doc/{control['Package']}/README": ("Made by gpufleet.llm's lab.\n", 0o644)}
        for path, (content, mode) in files.items():
            target = os.path.join(work, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if content == "->":
                os.symlink(mode, target)
                continue
            with open(target, "wb") as handle:
                handle.write(content if isinstance(content, bytes) else content.encode())
            os.chmod(target, mode)
        os.makedirs(os.path.join(work, "DEBIAN"))
        text = "".join(f"{key}: {value}\n" for key, value in control.items())
        for script, body in {"control": text, **one["scripts"]}.items():
            path = os.path.join(work, "DEBIAN", script)
            with open(path, "w", encoding="utf-8") as handle:
                handle.write(body)
            os.chmod(path, 0o644 if script == "control" else 0o755)
        os.chmod(work, 0o755)
        run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", work, folder / name])
    body = (folder / name).read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    return text.replace("Description:", f"Filename: ./{name}\nSize: {len(body)}\nSHA256: {digest}\nDescription:")


def _repository(packages, folder, origin, label, home):
    """Make a signed flat repository of packages in a folder."""
    folder.mkdir(parents=True)
    index = "\n".join(_build(one, folder) for one in packages).encode()
    indices = {"Packages": index, "Packages.gz": gzip.compress(index, mtime=0)}
    lines = [f"Origin: {origin}", f"Label: {label}", "Architectures: amd64", f"Date: {formatdate(usegmt=True).replace('GMT', 'UTC')}", "SHA256:"]
    for name, body in indices.items():
        (folder / name).write_bytes(body)
        lines.append(f" {hashlib.sha256(body).hexdigest()} {len(body)} {name}")
    (folder / "Release").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _gpg(home, "--yes", "--clearsign", "--output", folder / "InRelease", folder / "Release")
    shutil.copyfile(home / "keyring.gpg", folder / "cuda-archive-keyring.gpg")


def build():
    """Return the folder with all repositories, {cuda,kernel}/SYSTEM, made if their recipe has changed."""
    for command in ("dpkg-deb", "gpg"):
        if not shutil.which(command):
            raise LabError(f"The command {command} is not on this machine; the lab's driver packages need it. Install dpkg and gnupg.")
    home = key_home()
    recipe = hashlib.sha256(f"{fingerprint()} {hardware.library().parent.name}".encode())
    recipe.update((LAB / "kit" / "driver_repo.py").read_bytes())
    target = cache("packages", recipe.hexdigest()[:16])
    if target.exists():
        return target
    with step("Making the lab's driver packages", "10-20 s"):
        half = cache("packages") / f".new-{os.getpid()}"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        for distribution, made in (("debian", debian), ("ubuntu", ubuntu)):
            packages = [one for version in VERSIONS for one in made(version)]
            # A branch's pin is one package, whatever versions the branch has.
            packages = list({(one["control"]["Package"], one["control"]["Version"]): one for one in packages}.values())
            _repository([*packages, *toolkits()], half / "cuda" / distribution, "NVIDIA", "NVIDIA CUDA", home)
            _repository(kernels(distribution), half / "kernel" / distribution, "gpufleet lab", "gpufleet lab kernels", home)
        os.replace(half, target)
    return target


def lay_out(mirror):
    """Give a lab's mirror the repositories, under each system's name."""
    made = build()
    stamp = mirror / "packages" / "made-of"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made.name:
        return
    shutil.rmtree(mirror / "packages", ignore_errors=True)
    for kind in ("cuda", "kernel"):
        for system in SYSTEMS:
            shutil.copytree(made / kind / re.sub(r"\d+", "", system), mirror / "packages" / kind / system)
    stamp.write_text(made.name, encoding="utf-8")
