# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver of a made-up tree: read, and judged."""

from __future__ import annotations

import importlib.util
import lzma
import os
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import dkms, kernels, problems, versions
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import state as driver_state
from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import shape
from ansible_collections.gpufleet.llm.plugins.module_utils._host.distribution import distribution

REPO = pathlib.Path(__file__).resolve().parents[4]
OLD, NEW = "6.1.0-9-amd64", "6.1.0-50-amd64"
PCI_ERROR = "nvidia/nv-pci.c:237:9: error: too few arguments to function 'pci_resize_resource'"


def make_rootfs(*words):
    spec = importlib.util.spec_from_file_location("make_rootfs", REPO / "lab/nvml/make_rootfs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(word) for word in words])


@pytest.fixture
def tree(tmp_path, modinfo):
    """A function that makes a tree and observes it."""

    def made(*words, taken=None, run=None):
        make_rootfs(tmp_path, *words)
        etc = tmp_path / "etc"
        etc.mkdir(exist_ok=True)
        (etc / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
        return driver_state.observe(tmp_path, taken, run or modinfo.run)

    return made


def no_program(command, **_kwargs):
    raise FileNotFoundError(command[0])


def taken(state="ok", gpus=1, **changes):
    """A sample of nvml of so many RTX 4090."""
    gpu = dict(shape.EMPTY_GPU, name="NVIDIA GeForce RTX 4090", compute_capability="8.9", total_mib=24564)
    message = None if state == "ok" else shape.MESSAGES.get(state, "NVML failed.")
    return {
        "state": state,
        "message": message,
        "gpus": [dict(gpu, index=index, **changes) for index in range(gpus if state == "ok" else 0)],
        "driver_version": None,
    }


def codes(observed, sample=None, **settings):
    return [problem["code"] for problem in problems.judge(observed, sample or taken(), **settings)]


# ---- reading ----


def test_a_well_host(tree):
    seen = tree("--library", "580.126.09", "--secure-boot", "off")
    assert (seen["loaded_version"], seen["library_version"], seen["flavour"]) == ("580.126.09", "580.126.09", "open")
    assert (seen["running_kernel"], seen["next_kernel"]) == (NEW, NEW)
    assert seen["kernels"] == [
        {
            "kernel": NEW,
            "running": True,
            "next": True,
            "bootable": True,
            "version": "580.126.09",
            "path": f"/lib/modules/{NEW}/updates/dkms/nvidia.ko",
            "module": "nvidia",
            "flavour": "open",
            "signed": False,
            "error": None,
        }
    ]
    assert seen["dkms"] == [{"module": "nvidia", "version": "580.126.09", "kernel": NEW, "state": "installed", "error": None}]
    assert (seen["secure_boot"], seen["nouveau_loaded"]) == (False, False)
    assert codes(seen) == []
    assert problems.reboot(seen) == {"needed": False, "reason": None, "safe": True, "blocked_by": None}


def test_debian_renames_the_module(tree):
    seen = tree("--module", "nvidia-current-open", "--driver", "550.163.01")
    assert (seen["kernels"][0]["module"], seen["kernels"][0]["version"]) == ("nvidia-current-open", "550.163.01")
    assert seen["dkms"][0]["module"] == "nvidia-current-open"


def test_a_module_that_is_listed_and_gone_is_not_there(tree, tmp_path, modinfo):
    tree()
    (tmp_path / f"lib/modules/{NEW}/updates/dkms/nvidia.ko").unlink()
    module = driver_state.observe(tmp_path, None, modinfo.run)["kernels"][0]
    assert (module["path"], module["version"], module["error"]) == (None, None, None)


def test_flavours(tree):
    assert tree("--flavour", "proprietary")["flavour"] == "proprietary"


def test_the_flavour_of_what_is_not_loaded_is_read_on_disk(tree):
    seen = tree("--flavour", "proprietary", "--not-loaded")
    assert (seen["loaded_version"], seen["flavour"]) == (None, "proprietary")


def test_a_host_without_anything(tmp_path):
    seen = driver_state.observe(tmp_path, None, no_program, kernel="6.1.0")
    assert (seen["loaded_version"], seen["library_version"], seen["flavour"]) == (None, None, None)
    assert [entry["kernel"] for entry in seen["kernels"]] == ["6.1.0"]
    assert seen["dkms"] == []
    assert seen["secure_boot"] is False
    assert problems.reboot(seen)["safe"] is True


def test_nvml_knows_the_loaded_version_better(tree):
    seen = tree(taken={"driver_version": "590.10", "nvml_version": "13.590.10"})
    assert (seen["loaded_version"], seen["library_version"]) == ("590.10", "590.10")


def test_the_newest_kernel_boots_next_and_a_left_over_folder_does_not(tree, tmp_path):
    stale = tmp_path / "lib/modules/6.1.0-99-amd64"
    stale.mkdir(parents=True)
    (stale / "modules.dep").write_text("")
    seen = tree("--kernel", NEW, "--kernel", OLD)
    assert [(entry["kernel"], entry["running"], entry["next"]) for entry in seen["kernels"]] == [
        (OLD, False, False),
        (NEW, True, True),
    ]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (OLD, NEW),
        ("6.8.0-31-generic", "6.8.0-101-generic"),
        ("6.12.9+deb13-amd64", "6.12.107+deb13-amd64"),
        ("5.15.0-1", "6.1.0-1"),
    ],
)
def test_kernels_are_sorted_by_number(older, newer):
    assert max([newer, older], key=kernels.kernel_key) == newer


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_release_can_be_sorted(names):
    sorted(names, key=kernels.kernel_key)


def signed_module(tmp_path):
    """The path of a signed module of 580.126.09."""
    make_rootfs(tmp_path, "--signed")
    return tmp_path / f"lib/modules/{NEW}/updates/dkms/nvidia.ko"


def test_a_module_is_read_by_the_program_modinfo(tmp_path, monkeypatch, repo):
    """As a process, whose answer is text."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/modinfo").symlink_to(repo / "tests/support/modinfo.py")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    fields, error = kernels.modinfo(str(signed_module(tmp_path)))
    assert (fields["version"], fields["license"], fields["signer"], error) == ("580.126.09", "Dual MIT/GPL", "made up", None)


def test_an_answer_that_is_not_utf_8_is_an_answer(tmp_path, monkeypatch):
    (tmp_path / "modinfo").write_text("#!/bin/sh\nprintf 'version: 580.1\\nauthor: caf\\351\\n'\n")
    (tmp_path / "modinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert kernels.modinfo("x") == ({"version": "580.1", "author": "caf\ufffd"}, None)


@pytest.mark.skipif(shutil.which("modinfo") is None, reason="no kmod")
@pytest.mark.parametrize("name", ["nvidia.ko", "nvidia.ko.xz"])
def test_the_real_modinfo_says_what_ours_says(tmp_path, modinfo, name):
    path = signed_module(tmp_path)
    path.with_name("nvidia.ko.xz").write_bytes(lzma.compress(path.read_bytes()))
    real, error = kernels.modinfo(str(path.with_name(name)))
    ours, _error = kernels.modinfo(str(path.with_name(name)), modinfo.run)
    assert error is None
    assert {key: real[key] for key in ours} == ours


def test_a_module_that_cannot_be_read_says_why_and_blocks_a_reboot(tree):
    seen = tree("--library", "580.126.09", run=no_program)
    why = "modinfo of the package kmod is not installed"
    module = seen["kernels"][0]
    assert (module["version"], module["signed"], module["error"]) == (None, None, why)
    assert module["path"] == f"/lib/modules/{NEW}/updates/dkms/nvidia.ko"
    wanted = problems.reboot(seen)
    assert (wanted["needed"], wanted["safe"]) == (False, False)
    assert f"({why})" in wanted["blocked_by"]


def test_what_modinfo_refuses_is_told(tmp_path, modinfo):
    (tmp_path / "garbage.ko").write_bytes(b"\x7fEL")
    assert kernels.modinfo(str(tmp_path / "garbage.ko"), modinfo.run) == (
        {},
        "modinfo answered 1: modinfo: ERROR: could not get modinfo from 'x': Exec format error",
    )

    def slow(command, **_kwargs):
        raise subprocess.TimeoutExpired(command, 60)

    assert kernels.modinfo("x", slow)[1].startswith("modinfo failed: ")


def test_signatures(tree):
    assert tree("--signed")["kernels"][0]["signed"] is True


@given(st.text(max_size=200))
def test_modinfo_may_say_anything(text):
    def run(command, **_kwargs):
        return subprocess.CompletedProcess(command, 0, text, "")

    fields, error = kernels.modinfo("x", run)
    assert error is None
    assert all(isinstance(value, str) for value in fields.values())


def test_a_failed_build(tree):
    seen = tree("--kernel", OLD, "--kernel", NEW, "--without", NEW, "--build-error", PCI_ERROR)
    assert [(entry["kernel"], entry["state"], entry["error"]) for entry in seen["dkms"]] == [
        (OLD, "installed", None),
        (NEW, "failed", PCI_ERROR),
    ]
    assert seen["kernels"][1]["path"] is None


def test_dkms_knows_only_the_source(tmp_path):
    (tmp_path / "var/lib/dkms/nvidia/580.126.09").mkdir(parents=True)
    (tmp_path / "var/lib/dkms/nvidia/580.126.09/source").symlink_to("/usr/src/nvidia-580.126.09")
    assert [entry["state"] for entry in dkms.read(tmp_path)] == ["added"]


def test_built_and_not_installed(tree, tmp_path):
    make_rootfs(tmp_path)
    (tmp_path / f"var/lib/dkms/nvidia/kernel-{NEW}-x86_64").unlink()
    assert [entry["state"] for entry in dkms.read(tmp_path)] == ["built"]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["warn", PCI_ERROR, "more: error: later"], PCI_ERROR),
        (["a.h:1:2: fatal error: x.h: No such file"], "a.h:1:2: fatal error: x.h: No such file"),
        (["make[1]: *** [Makefile:255] Error 2"], "make[1]: *** [Makefile:255] Error 2"),
    ],
)
@pytest.mark.parametrize("head", ["DKMS make.log for nvidia-550 for kernel", "DKMS (dkms-3.2.2) make.log for nvidia/550 for kernel"])
def test_the_first_error_of_a_build_log(head, lines, error):
    log = "\n".join([f"{head} {NEW} (x86_64)", *lines])
    assert dkms.first_build_error(log) == (NEW, error)


def test_a_log_of_a_good_build_has_no_error():
    assert dkms.first_build_error("DKMS make.log for n-1 for kernel k (x86_64)\nCC x.o\n") == ("k", None)
    assert dkms.first_build_error("") == (None, None)


def test_secure_boot(tree, tmp_path):
    assert tree("--secure-boot", "on")["secure_boot"] is True
    (tmp_path / driver_state.SECURE_BOOT).unlink()
    assert driver_state.secure_boot(tmp_path, no_program) is None

    def mokutil(command, **_kwargs):
        return subprocess.CompletedProcess(command, 0, stdout="SecureBoot enabled\n")

    assert driver_state.secure_boot(tmp_path, mokutil) is True
    assert driver_state.secure_boot(tmp_path / "nowhere", mokutil) is False


def test_the_distribution_of_a_tree_without_one_is_this_system(tmp_path):
    assert driver_state.observe(tmp_path, None, no_program)["distribution"] == distribution("/")


@pytest.mark.parametrize(
    ("text", "version", "flavour"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.09  Release Build  (x)\n", "580.126.09", "open"),
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\n",
            "550.163.01",
            "proprietary",
        ),
    ],
)
def test_what_the_kernel_says(tmp_path, text, version, flavour):
    path = tmp_path / "proc/driver/nvidia"
    path.mkdir(parents=True)
    (path / "version").write_text(f"NVRM version: {text}\nGCC version:  gcc version 12.2.0\n")
    assert driver_state.read_loaded(tmp_path) == (version, flavour)


# ---- the table of reboots ----


def test_upgraded_and_not_reloaded(tree):
    seen = tree("--driver", "580.95.05", "--on-disk", "580.126.09", "--library", "580.126.09")
    wanted = problems.reboot(seen)
    assert wanted["needed"] is True
    assert "580.95.05" in wanted["reason"]
    assert "580.126.09" in wanted["reason"]
    assert wanted["safe"] is True
    assert codes(seen, taken("mismatch")) == ["mismatch", "reboot_needed"]


def test_only_the_module_on_disk_is_newer(tree):
    wanted = problems.reboot(tree("--driver", "580.95.05", "--on-disk", "580.126.09", "--library", "580.95.05"))
    assert wanted["needed"] is True
    assert "on disk" in wanted["reason"]
    assert wanted["safe"] is False  # it would load a module that the library does not fit


def test_only_the_library_is_newer(tree):
    wanted = problems.reboot(tree("--library", "590.10"))
    assert wanted["needed"] is True
    assert wanted["safe"] is False  # what boots next would not fit the library either
    assert "590.10" in wanted["blocked_by"]


def test_a_module_that_is_missing_on_disk_is_no_reason_to_reboot(tree):
    """It runs from memory; a reboot would lose it, so the gate says."""
    seen = tree("--without", NEW, "--library", "580.126.09")
    assert seen["kernels"][0]["path"] is None
    wanted = problems.reboot(seen)
    assert (wanted["needed"], wanted["reason"], wanted["safe"]) == (False, None, False)
    assert codes(seen) == ["reboot_blocked"]


def test_not_loaded_is_no_reason_to_reboot(tree):
    seen = tree("--not-loaded", "--library", "580.126.09")
    assert problems.reboot(seen)["needed"] is False
    assert codes(seen, taken("no_driver")) == ["not_loaded"]


def test_nouveau_holds_the_card(tree):
    seen = tree("--not-loaded", "--nouveau", "--library", "580.126.09")
    assert problems.reboot(seen)["needed"] is True
    assert codes(seen, taken("no_driver")) == ["not_loaded", "nouveau", "reboot_needed"]
    assert "nouveau is loaded" in problems.judge(seen, taken("no_driver"))[0]["message"]


def test_the_running_kernel_has_no_module_but_the_next_has(tree):
    seen = tree("--kernel", OLD, "--kernel", NEW, "--without", OLD, "--not-loaded", "--library", "580.126.09")
    wanted = problems.reboot(seen)
    assert (wanted["needed"], wanted["safe"]) == (True, True)
    assert NEW in wanted["reason"]


def test_no_reboot_into_a_kernel_without_the_module(tree):
    seen = tree("--kernel", OLD, "--kernel", NEW, "--without", NEW, "--build-error", PCI_ERROR, "--library", "580.126.09")
    wanted = problems.reboot(seen)
    assert (wanted["needed"], wanted["safe"]) == (False, False)
    assert PCI_ERROR in wanted["blocked_by"]
    assert NEW in wanted["blocked_by"]
    assert codes(seen) == ["reboot_blocked"]


def test_no_reboot_when_no_kernel_has_the_module_any_more(tree):
    seen = tree("--kernel", OLD, "--kernel", NEW, "--without", OLD, "--without", NEW, "--library", "580.126.09")
    assert "would lose the GPU" in problems.reboot(seen)["blocked_by"]


def test_a_container_without_kernels_is_not_judged(tree, tmp_path):
    tree("--library", "580.126.09")
    shutil.rmtree(tmp_path / "lib" / "modules")
    shutil.rmtree(tmp_path / "boot")
    seen = driver_state.observe(tmp_path, None, no_program)
    assert [kernel["bootable"] for kernel in seen["kernels"]] == [False]
    assert problems.reboot(seen)["safe"] is True


def test_a_module_that_secure_boot_would_refuse(tree):
    assert "not signed" in problems.reboot(tree("--secure-boot", "on"))["blocked_by"]


def test_a_signed_module_passes_secure_boot(tree):
    assert problems.reboot(tree("--secure-boot", "on", "--signed"))["safe"] is True


def test_secure_boot_explains_why_nothing_is_loaded(tree):
    seen = tree("--secure-boot", "on", "--not-loaded")
    assert "Secure Boot is on and the module is not signed" in problems.judge(seen, taken("no_driver"))[0]["message"]


# ---- judging ----


@pytest.mark.parametrize(
    ("driver", "ollama", "capability", "ok", "libraries"),
    [
        ("535.261.03", "0.33.0", "8.9", False, []),
        ("550.163.01", "0.30.0", "8.9", True, ["cuda_v12"]),
        ("580.126.09", "v0.32.15", "8.9", True, ["cuda_v12", "cuda_v13"]),
        ("580.126.09", None, None, True, ["cuda_v12", "cuda_v13"]),
        ("535.261.03", "0.29.9", "8.9", None, []),
        (None, "0.33.0", "8.9", None, []),
        ("550.163.01", "0.33.0", "6.1", False, []),
        ("580.126.09", "0.33.0", "6.1", True, ["cuda_v12"]),
        ("580.126.09", "0.33.0", "7.0", True, ["cuda_v12"]),
    ],
)
def test_the_driver_that_ollama_needs(driver, ollama, capability, ok, libraries):
    served = versions.ollama_serves(driver, ollama, capability)
    assert (served["ok"], served["libraries"]) == (ok, libraries)


def test_an_ollama_version_that_is_none():
    with pytest.raises(versions.DriverError, match="'latest' is not an Ollama version"):
        versions.ollama_serves("580.1", "latest")


def test_a_driver_too_old(tree):
    seen = tree("--driver", "535.261.03")
    problem = problems.judge(seen, taken(), "0.32.15")[0]
    assert problem["code"] == "driver_too_old"
    for word in ("535.261.03", "0.32.15", "550", "580"):
        assert word in problem["message"]


@pytest.mark.parametrize(
    ("expected", "differs"),
    [
        ([], False),
        ([{"name": "rtx 4090", "count": 2}], False),
        ([{"name": "RTX 4090", "count": 1}], True),
        ([{"name": "RTX 4090", "count": 3}], True),
        ([{"name": "RTX 3090", "count": 2}], True),
        ([{"name": "RTX 4090", "count": 2}, {"name": "A100", "count": 1}], True),
    ],
)
def test_other_gpus_than_declared(tree, expected, differs):
    found = problems.judge(tree(), taken(gpus=2), expected_gpus=expected)
    assert [problem["code"] for problem in found] == (["gpus_differ"] if differs else [])
    if differs:
        assert "2 x NVIDIA GeForce RTX 4090" in found[0]["message"]


def test_a_card_that_nobody_declared(tree):
    sample = taken(gpus=2)
    sample["gpus"][1]["name"] = "NVIDIA A100 80GB PCIe"
    assert codes(tree(), sample, expected_gpus=[{"name": "4090", "count": 1}]) == ["gpus_differ"]
    assert codes(tree(), sample, expected_gpus=[{"name": "4090", "count": 1}, {"name": "a100", "count": 1}]) == []


def test_a_lost_card_is_told_and_missed(tree):
    sample = taken(gpus=2)
    sample["gpus"][1].update(state="lost", message="GPU 1 has fallen off the bus.", name=None)
    assert codes(tree(), sample, expected_gpus=[{"name": "4090", "count": 2}]) == ["gpu_lost", "gpus_differ"]


@pytest.mark.parametrize(
    ("id_", "version", "fine"),
    [
        ("debian", "13", True),
        ("ubuntu", "24.04", True),
        ("debian", "11", False),
        ("fedora", "44", False),
        ("", "", False),
    ],
)
def test_platforms(tree, id_, version, fine):
    seen = dict(tree(), distribution={"id": id_, "version_id": version})
    assert codes(seen) == ([] if fine else ["platform"])


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("no_library", "no_library"),
        ("no_driver", "not_loaded"),
        ("mismatch", "mismatch"),
        ("no_permission", "no_permission"),
        ("no_gpu", "no_gpu"),
        ("error", "error"),
    ],
)
def test_each_state_has_a_code_and_a_sentence(tree, state, code):
    problem = problems.judge(tree(), taken(state))[0]
    assert (problem["code"], problem["stops"]) == (code, "gpu")
    assert problem["message"]


def test_what_stops_which_host(tree):
    seen = dict(tree("--not-loaded", "--nouveau", "--library", "580.126.09"), distribution={"id": "fedora", "version_id": "44"})
    found = problems.judge(seen, taken("no_driver"))
    assert {problem["code"]: problem["stops"] for problem in found} == {
        "platform": "always", "not_loaded": "gpu", "nouveau": "never", "reboot_needed": "never",
    }  # fmt: skip
