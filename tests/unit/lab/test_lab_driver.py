# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel and DKMS, as the collection's own reader of a driver sees them; and the packages that call them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import offers, openpgp, selection
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import packages as driver_packages
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import problems as driver_problems
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import state as driver_state

REPO = pathlib.Path(__file__).resolve().parents[3]
OLD, NEXT = "6.1.0-50-amd64", "6.1.0-51-amd64"
ERROR = "nvidia/nv-pci.c:237:9: error: too few arguments to function 'pci_resize_resource'"


@pytest.fixture
def host(tmp_path, monkeypatch, modinfo):
    """lab_driver.py over a made-up host with one kernel and its headers; `host.look()` is the collection's reader."""
    shutil.copyfile(REPO / "lab/driver/lab_driver.py", tmp_path / "lab_driver.py")
    shutil.copyfile(REPO / "lab/nvml/make_rootfs.py", tmp_path / "make_rootfs.py")
    spec = importlib.util.spec_from_file_location("lab_driver", tmp_path / "lab_driver.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, folder in (("ROOT", "rootfs"), ("ETC", "etc"), ("RUN", "run"), ("DEV", "dev")):
        monkeypatch.setattr(module, name, str(tmp_path / folder))
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(module, "node", lambda *_what: None)
    module.spill(module.inside("boot", f"vmlinuz-{OLD}"), "")
    module.headers = lambda kernel: module.spill(module.inside("usr/src", f"linux-headers-{kernel}", "Makefile"), "")
    module.headers(OLD)
    module.look = lambda: driver_state.observe(tmp_path / "rootfs", run=modinfo.run)
    module.settle = lambda **what: module.spill(f"{module.ETC}/lab/driver.json", json.dumps(what))
    module.boot()
    return module


def test_nouveau_has_the_card_until_the_initramfs_knows_better(host):
    host.build("580.95.05", "open")
    assert host.look()["nouveau_loaded"]
    assert host.modprobe(["nvidia"]) == 1
    host.spill(f"{host.ETC}/modprobe.d/x.conf", "blacklist nouveau\n")
    host.boot()
    assert host.look()["nouveau_loaded"]
    host.update_initramfs(["-u"])
    host.boot()
    seen = host.look()
    assert (seen["nouveau_loaded"], seen["loaded_version"], seen["flavour"]) == (False, "580.95.05", "open")


def test_an_upgrade_leaves_the_old_module_loaded_until_it_is_reloaded(host):
    host.settle(nouveau=False)
    host.build("580.95.05", "open")
    host.boot()
    host.remove("580.95.05")
    host.build("580.126.09", "open")
    seen = host.look()
    assert (seen["loaded_version"], seen["kernels"][0]["version"], seen["dkms"][0]["state"]) == ("580.95.05", "580.126.09", "installed")
    assert driver_problems.reboot(seen)["needed"]
    assert host.modprobe(["-r", "nvidia_uvm", "nvidia"]) == 0
    assert host.modprobe(["--all", "nvidia", "nvidia_uvm"]) == 0
    assert not driver_problems.reboot(host.look())["needed"]


def test_a_module_in_use_is_not_unloaded(host):
    host.settle(nouveau=False)
    host.build("580.95.05", "open")
    host.boot()
    host.spill(f"{host.RUN}/state", "driver 580.95.05\nprocess 12 4000\nend\n")
    assert host.modprobe(["-r", "nvidia"]) == 1
    assert host.look()["loaded_version"] == "580.95.05"


def test_a_build_that_fails_is_told_as_dkms_tells_it(host):
    host.settle(nouveau=False, build_errors={"590.44.01": ERROR})
    assert host.build("590.44.01", "open") == host.DKMS_FAILED
    failed = host.look()["dkms"][0]
    assert (failed["state"], failed["kernel"], failed["error"]) == ("failed", OLD, ERROR)


def test_the_next_kernel_gets_its_module_when_its_headers_are_there(host):
    host.settle(nouveau=False)
    host.build("580.95.05", "open")
    host.boot()
    host.spill(host.inside("boot", f"vmlinuz-{NEXT}"), "")
    host.kernel_installed(NEXT)
    blocked = driver_problems.reboot(dict(host.look(), library_version="580.95.05"))
    assert (blocked["safe"], NEXT in blocked["blocked_by"]) == (False, True)
    host.headers(NEXT)
    host.kernel_installed(NEXT)
    assert driver_problems.reboot(dict(host.look(), library_version="580.95.05"))["safe"]
    host.boot()
    assert host.look()["running_kernel"] == NEXT


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The lab's repositories, made in an empty cache."""
    if not all(map(shutil.which, ("dpkg-deb", "gpg", "gcc"))):
        pytest.skip("no dpkg-deb, gpg or gcc")
    cache = tmp_path_factory.mktemp("c")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from kit import driver_repo; print(driver_repo.build()); print(driver_repo.fingerprint())"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(REPO / "lab")],
        capture_output=True,
        text=True,
        env={"GPUFLEET_CACHE": str(cache), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    subprocess.run(["gpgconf", "--homedir", str(cache / "packages/key"), "--kill", "all"], check=False)
    folder, fingerprint = done.stdout.split()[-2:]
    return pathlib.Path(folder), fingerprint


@pytest.mark.slow
def test_the_repositories_have_what_the_tables_name(repositories):
    import yaml

    for distribution, version_id in (("debian", "12"), ("ubuntu", "24.04")):
        index = gzip.decompress((repositories[0] / "cuda" / distribution / "Packages.gz").read_bytes()).decode()
        offered = offers.parse_index(index)
        table = yaml.safe_load((REPO / f"roles/cuda/files/packages/{distribution}.yml").read_text(encoding="utf-8"))
        for branch, version in ((580, "580.126.09"), (590, "590.44.01")):
            settings = {"source": "nvidia_repo", "branch": branch, "version": version, "flavour": "open"}
            wanted = selection.select(settings, {"id": distribution, "version_id": version_id}, table)
            for name in wanted["packages"]:
                assert version in [driver_packages.upstream(one) for one in offered[name]], name
            assert wanted["pin"] in offered


def test_the_repositories_are_signed_by_the_labs_key(repositories):
    folder = repositories[0] / "cuda/debian"
    assert openpgp.parse((folder / "cuda-archive-keyring.gpg").read_bytes())[0] == [repositories[1]]
    subprocess.run(["gpgv", "--keyring", str(folder / "cuda-archive-keyring.gpg"), str(folder / "InRelease")], check=True, capture_output=True)
