# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages of a driver: the tables, what a host has, and what one transaction would do."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import offers, packages, selection
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import plan as driver_plan

REPO = pathlib.Path(__file__).resolve().parents[4]
TABLES = {name: yaml.safe_load((REPO / f"roles/cuda/files/packages/{name}.yml").read_text(encoding="utf-8")) for name in ("debian", "ubuntu")}
DEBIAN = {"id": "debian", "version_id": "12"}
UBUNTU = {"id": "ubuntu", "version_id": "24.04"}
OFFERED = {
    name: [f"{version}-1" for version in ("580.95.05", "580.126.09", "590.44.01")]
    for name in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "libcuda1", "nvidia-persistenced")
}
OFFERED.update({f"nvidia-driver-pinning-{pin}": ["1"] for pin in ("580", "590", "580.95.05", "580.126.09", "590.44.01")})
OFFERED["cuda-toolkit-13-0"] = ["13.0.1-1"]


def settings(**changes):
    plain = {
        "source": "nvidia_repo", "branch": 580, "version": "", "flavour": "open", "toolkit": "", "upgrade": False, "downgrade": False,
        "remove_other": False, "hold": True, "gpu_required": True, "ollama_version": None,
    }  # fmt: skip
    return {**plain, **changes}


def host(distribution=None, sources=(), cards=(0x2684,), secure_boot=False, **versions):
    """A host with these packages, `libcuda1="580.95.05-1"`; a dash is written as two underscores."""
    held = versions.pop("held", ())
    found = {
        name.replace("__", "-"): {"version": version.rstrip("!"), "ok": not version.endswith("!"), "held": name in held, "maintainer": ""}
        for name, version in versions.items()
    }
    for package in held:
        found[package]["held"] = True
    return {
        "distribution": distribution or DEBIAN, "packages": found, "sources": list(sources),
        "cards": None if cards is None else list(cards), "secure_boot": secure_boot,
    }  # fmt: skip


def with_driver(version="580.95.05", pin="580.95.05", **more):
    full = f"{version}-1"
    return host(
        nvidia__driver__cuda=full, nvidia__kernel__open__dkms=full, libcuda1=full, nvidia__persistenced=full, linux__headers__amd64="6.1.170-1",
        **{f"nvidia__driver__pinning__{pin}": "1"}, **more,
    )  # fmt: skip


def plan(asked, observed, offered=None, gpus=()):
    table = TABLES.get(observed["distribution"]["id"])
    chosen = selection.select(asked, observed["distribution"], table)
    return driver_plan.difference(asked, chosen, observed, lambda: OFFERED if offered is None else offered, gpus)


def codes(found):
    return [problem["code"] for problem in found["problems"]]


def never():
    raise AssertionError("the source was asked although nothing is missing")


def test_the_newest_version_that_every_package_has_is_taken():
    offered = {name: ["535.309.01-0+deb12u1", "535.261.03-1"] for name in ("libcuda1", "nvidia-smi")}
    offered["nvidia-open-kernel-dkms"] = ["535.261.03-1"]
    found = plan(settings(source="distro", branch=535, gpu_required=False), host(linux__headers__amd64="6.1"), offered)
    assert (found["target_version"], codes(found)) == ("535.261.03", [])
    assert found["install"][0] == "libcuda1=535.261.03-1"
    assert "Pin: version 535.261.03-*\n" in found["preferences"] and " libnvidia-* " in found["preferences"]
    assert found["previous_preferences"] == ""
    # None in common: the first one's newest, and what has not got it is named.
    offered["nvidia-open-kernel-dkms"] = []
    assert (
        "no nvidia-open-kernel-dkms for driver 535.309.01"
        in plan(settings(source="distro", branch=535, gpu_required=False), host(), offered)["problems"][0]["message"]
    )


def test_apts_preferences_follow_the_version_and_only_where_no_package_pins():
    installed = host(libcuda1="550.163.01-2", nvidia__smi="550.163.01-2", nvidia__open__kernel__dkms="550.163.01-2", nvidia__persistenced="550.163.01-1",
                     linux__headers__amd64="6.12", distribution={"id": "debian", "version_id": "13"})  # fmt: skip
    found = plan(settings(source="distro", branch=550), installed, {})
    assert (found["action"], found["preferences"]) == ("none", found["previous_preferences"]) and "550.163.01-*" in found["preferences"]
    assert plan(settings(), host())["preferences"] == plan(settings(), with_driver())["previous_preferences"] == ""


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distribution, asked, names, pin",
    [
        (DEBIAN, settings(), ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"], "nvidia-driver-pinning-580"),
        (DEBIAN, settings(flavour="proprietary"), ["nvidia-driver-cuda", "nvidia-kernel-dkms"], "nvidia-driver-pinning-580"),
        (DEBIAN, settings(branch=590, version="590.44.01"), ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"], "nvidia-driver-pinning-590.44.01"),
        (DEBIAN, settings(source="distro"), ["libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms"], None),
        (UBUNTU, settings(), ["libnvidia-compute-580", "nvidia-utils-580", "nvidia-dkms-580-open"], "nvidia-driver-pinning-580"),
        (UBUNTU, settings(branch=590), ["libnvidia-compute", "nvidia-dkms-open"], "nvidia-driver-pinning-590"),
        (UBUNTU, settings(source="distro"), ["nvidia-utils-580-server", "nvidia-headless-no-dkms-580-server-open"], None),
    ],
)
def test_names_by_distribution_source_and_branch(distribution, asked, names, pin):
    found = selection.select(asked, distribution, TABLES[distribution["id"]])
    assert (found["packages"], found["pin"]) == (names, pin)


def test_prebuilt_modules_go_with_their_kernel():
    found = selection.select(settings(source="distro"), UBUNTU, TABLES["ubuntu"])
    assert found["modules"] == ["linux-modules-nvidia-580-server-open-generic"]
    assert not found["builds"]
    assert "linux-image-generic" in found["kernel"]


@pytest.mark.parametrize("version, folder", [("12", "debian12"), ("13", "debian13"), ("12.5", None)])
def test_the_folder_of_the_repository_is_the_distributions_major_number(version, folder):
    found = selection.select(settings(), {"id": "debian", "version_id": version}, TABLES["debian"])
    assert found["directory"] == folder


@pytest.mark.parametrize(
    "version, driver",
    [
        ("580.95.05-1", "580.95.05"),
        ("580.173.02-0ubuntu0.24.04.1", "580.173.02"),
        ("1:580.95.05-1", "580.95.05"),
        ("550.163.01-4~bpo13+1", "550.163.01"),
        ("6.8.0-60.63+1", None),
        ("580-1", None),
        (None, None),
        ("13.0.1-1", None),
    ],
)
def test_the_drivers_version_in_a_packages(version, driver):
    assert packages.upstream(version) == driver


def test_dpkg_is_read_with_holds_and_half_done_packages():
    text = "a\t1\tii \tX\nb\t2\thi \tX\nc\t3\tiF \tX\nd\t4\trc \tX\ne\t5\tun \tX\nf\t6\tiU \t\ng\t7\tiiR\tX\n"
    found = packages.parse_dpkg(text)
    assert sorted(found) == ["a", "b", "c", "f", "g"]
    assert [found[name]["ok"] for name in "abcfg"] == [True, True, False, False, False]
    assert [name for name in found if found[name]["held"]] == ["b"]


def test_indices():
    assert offers.parse_index("Package: a\nVersion: 1-1\nDepends: b\n\nPackage: a\nVersion: 2-1\n\nPackage: c\n") == {"a": ["1-1", "2-1"]}
    said = " nvidia-smi | 550.163.01-2 | http://x trixie/non-free amd64 Packages\n nvidia-smi | 550.163.01-2 | http://x trixie/non-free Sources\n"
    assert offers.parse_madison(said) == {"nvidia-smi": ["550.163.01-2"]}


# ---- what one transaction does ---------------------------------------------------------------------------------------


def test_a_first_installation_takes_the_newest_of_the_branch_and_its_headers():
    found = plan(settings(), host())
    assert (found["action"], found["target_version"], found["pin"]) == ("install", "580.126.09", "nvidia-driver-pinning-580")
    assert found["install"] == [
        "nvidia-driver-cuda=580.126.09-1",
        "nvidia-kernel-open-dkms=580.126.09-1",
        "nvidia-persistenced=580.126.09-1",
        "linux-headers-amd64",
    ]
    assert found["previous"] == []


def test_nothing_is_done_and_nobody_is_asked_where_the_driver_is_there():
    observed = with_driver("580.95.05", "580", held=["nvidia-driver-cuda"])
    chosen = selection.select(settings(), DEBIAN, TABLES["debian"])
    found = driver_plan.difference(settings(), chosen, observed, never)
    assert (found["action"], found["target_version"]) == ("none", "580.95.05")
    assert found["hold"] == ["libcuda1", "nvidia-driver-cuda", "nvidia-driver-pinning-580", "nvidia-kernel-open-dkms", "nvidia-persistenced"]
    assert found["unheld"] == [name for name in found["hold"] if name != "nvidia-driver-cuda"]


def test_an_upgrade_takes_along_what_came_with_the_old_driver():
    found = plan(settings(version="580.126.09", upgrade=True), with_driver(held=["libcuda1"]))
    assert found["action"] == "upgrade"
    assert "libcuda1=580.126.09-1" in found["install"]
    assert "libcuda1=580.95.05-1" in found["previous"]
    assert (found["previous_pin"], found["release"]) == ("nvidia-driver-pinning-580.95.05", ["libcuda1"])
    assert "linux-headers-amd64" not in found["install"]


def test_a_driver_is_not_replaced_by_the_way():
    assert codes(plan(settings(version="580.126.09"), with_driver())) == ["upgrade_not_asked"]
    assert codes(plan(settings(branch=590), with_driver())) == ["upgrade_not_asked"]
    assert codes(plan(settings(version="580.95.05", flavour="proprietary"), with_driver())) == ["upgrade_not_asked"]


def test_a_downgrade_has_a_switch_of_its_own():
    asked = settings(version="580.95.05", upgrade=True)
    assert codes(plan(asked, with_driver("580.126.09", "580.126.09"))) == ["downgrade_not_asked"]
    found = plan(dict(asked, downgrade=True), with_driver("580.126.09", "580.126.09"))
    assert (found["action"], found["problems"]) == ("downgrade", [])


@pytest.mark.parametrize("missing", ["nvidia__persistenced", "linux__headers__amd64", "nvidia__driver__pinning__580.95.05"])
def test_what_is_missing_is_repaired(missing):
    observed = with_driver()
    del observed["packages"][missing.replace("__", "-")]
    found = plan(settings(version="580.95.05"), observed)
    assert (found["action"], found["problems"]) == ("repair", [])


def test_a_pin_to_something_else_is_exchanged():
    observed = with_driver("580.95.05", "580.95.05", **{"nvidia__driver__pinning__590": "1"})
    assert plan(settings(version="580.95.05"), observed)["action"] == "repair"


def test_a_half_configured_package_is_repaired():
    observed = with_driver()
    observed["packages"]["libcuda1"]["ok"] = False
    assert plan(settings(version="580.95.05"), observed)["action"] == "repair"


def test_a_name_that_holds_another_branch_is_seen():
    """What was installed as 570 and is transitional to 580 counts as 580."""
    observed = host(UBUNTU, **{"libnvidia__compute__570": "580.126.09-1ubuntu1", "libnvidia__compute__580": "580.126.09-1ubuntu1"})
    assert packages.driver_version(observed, ["libnvidia-compute-570"]) == "580.126.09"


def test_the_newest_branch_is_not_taken_for_the_asked_one():
    assert plan(settings(branch=590), host())["target_version"] == "590.44.01"
    assert plan(settings(branch=580), host())["target_version"] == "580.126.09"


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, asked, observed, words",
    [
        ("no_such_source", settings(), host({"id": "fedora", "version_id": "44"}), ["fedora 44"]),
        ("no_such_source", settings(), host({"id": "debian", "version_id": "11"}), ["debian 11"]),
        ("branch_not_in_source", settings(branch=581), host(), ["581", "580.95.05", "590.44.01"]),
        ("branch_not_in_source", settings(version="580.1.1"), host(), ["580.1.1", "580.126.09"]),
        ("branch_not_in_source", settings(source="distro"), host(), ["580", "535"]),
        ("version_not_of_branch", settings(version="590.44.01"), host(), ["590", "580"]),
        ("toolkit_too_new", settings(branch=570, toolkit="13-0"), host(), ["13-0", "580", "570"]),
        ("toolkit_too_new", settings(toolkit="14-0"), host(), ["14-0"]),
        ("toolkit_not_in_source", settings(toolkit="13-7"), host(), ["cuda-toolkit-13-7"]),
        ("branch_too_old", settings(branch=535), host(), ["535", "550"]),
        ("open_on_old_card", settings(), host(cards=[0x1B80]), ["1b80", "proprietary"]),
        ("no_card", settings(), host(cards=[]), ["PCI"]),
        ("secure_boot", settings(), host(secure_boot=True), ["mokutil --import", "Secure Boot"]),
        ("two_sources", settings(), host(nvidia__smi="550.163.01-2"), ["nvidia-smi"]),
        ("two_sources", settings(), host(sources=["/etc/apt/sources.list.d/cuda-debian12-x86_64.list"]), ["cuda-debian12-x86_64.list"]),
        (
            "two_sources",
            settings(source="distro", branch=550),
            host({"id": "debian", "version_id": "13"}, nvidia__driver__cuda="580.95.05-1"),
            ["nvidia-driver-cuda"],
        ),
        ("two_sources", settings(source="distro"), host(UBUNTU, **{"libnvidia__compute__580": "580.95.05-1ubuntu1"}), ["libnvidia-compute-580"]),
        ("two_sources", settings(), host(UBUNTU, **{"nvidia__utils__580__server": "580.173.02-0ubuntu0.24.04.1"}), ["nvidia-utils-580-server"]),
    ],
)
def test_settings_that_cannot_be_met_are_refused_in_words(code, asked, observed, words):
    found = plan(asked, observed)
    assert code in codes(found)
    text = " ".join(problem["message"] for problem in found["problems"])
    for word in words:
        assert word in text
    assert found["install"] == []


def test_an_old_card_is_known_by_its_capability_too():
    assert codes(plan(settings(), host(cards=None), gpus=[{"name": "GTX 1080", "compute_capability": "6.1"}])) == ["open_on_old_card"]
    assert codes(plan(settings(flavour="proprietary"), host(cards=[0x1B80]))) == []


def test_prebuilt_modules_pass_secure_boot():
    offered = {name: ["580.173.02-0ubuntu0.24.04.1"] for name in ("nvidia-utils-580-server", "nvidia-headless-no-dkms-580-server-open")}
    offered["linux-modules-nvidia-580-server-open-generic"] = ["6.8.0-60.63+1"]
    found = plan(settings(source="distro"), host(UBUNTU, secure_boot=True), offered)
    assert (found["problems"], found["action"]) == ([], "install")
    assert "linux-modules-nvidia-580-server-open-generic" in found["install"]


def test_the_other_source_is_removed_when_asked():
    observed = host(nvidia__smi="550.163.01-2", libcuda1="550.163.01-2", sources=["/etc/apt/sources.list.d/x.list"])
    found = plan(settings(remove_other=True, upgrade=True), observed)
    assert (found["problems"], found["purge"]) == ([], ["libcuda1", "nvidia-smi"])


def test_a_source_that_is_not_enabled_says_what_to_enable():
    found = plan(settings(source="distro", branch=550), host({"id": "debian", "version_id": "13"}), offered={})
    assert "contrib, non-free and non-free-firmware" in found["problems"][0]["message"]


def test_foreign_sources_are_found_and_the_roles_own_is_not(tmp_path):
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (folder / "gpufleet-nvidia.sources").write_text("URIs: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/\n")
    (folder / "cuda-debian12-x86_64.list").write_text("deb https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /\n")
    (folder / "off.list").write_text("# deb https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /\n")
    assert packages.foreign_sources(tmp_path) == ["/etc/apt/sources.list.d/cuda-debian12-x86_64.list"]


def test_cards_of_the_pci_bus(tmp_path):
    assert packages.cards(tmp_path) is None
    for slot, vendor, kind, number in (("01", "0x10de", "0x030000", "0x2684"), ("02", "0x10de", "0x040300", "0x22ba"), ("03", "0x1a03", "0x030000", "0x2000")):
        folder = tmp_path / f"sys/bus/pci/devices/0000:{slot}:00.0"
        folder.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("class", kind), ("device", number)):
            (folder / name).write_text(text + "\n")
    assert packages.cards(tmp_path) == [0x2684]


def test_the_kernel_is_held_where_its_modules_are_prebuilt():
    there = {name: {"version": "580.95.05-1", "held": False, "ok": True} for name in ("nvidia-driver-cuda", "nvidia-driver-pinning-580")}
    there.update({name: {"version": "6.8.0.45", "held": False, "ok": True} for name in ("linux-modules-nvidia-580-open-generic", "linux-generic")})
    prebuilt = {"modules": ["linux-modules-nvidia-580-open-generic", "not-there"], "kernel": ["linux-generic"]}
    held = ["linux-generic", "linux-modules-nvidia-580-open-generic", "nvidia-driver-cuda", "nvidia-driver-pinning-580"]
    assert driver_plan.holds(prebuilt, {"packages": there}, "580.95.05") == held
    assert driver_plan.holds({"modules": [], "kernel": ["linux-generic"]}, {"packages": there}, "580.95.05") == held[2:]
