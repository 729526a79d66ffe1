# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's reading of the machine's world, and what it accepts as hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import problems as driver_problems

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / "lab"
if not LAB.is_dir():
    pytest.skip("the lab is not part of the built collection", allow_module_level=True)
sys.path.insert(0, str(LAB))

from kit import engine, hosts, image, world  # noqa: E402
from kit.shell import LabError  # noqa: E402

A = "http://one.example/debian/"
S = "http://two.example/debian-security/"


def row(uri, release, component="main", origin="Debian", label="Debian"):
    """Return a line of `apt-get indextargets` as _targets() gives it."""
    return (uri, release, component, origin, label)


@pytest.mark.parametrize(
    ("rows", "suite", "wanted"),
    [
        ([row(A, "bookworm")], "bookworm", [(A, "bookworm")]),
        (
            [row(S, "bookworm-security", label="Debian-Security"), row(A, "bookworm"), row(A, "bookworm-updates")],
            "trixie",
            [(A, "trixie"), (A, "trixie-updates"), (S, "trixie-security")],
        ),
        # apt without its lists knows neither origin nor label
        ([row(A, "trixie", origin="$(ORIGIN)", label="$(LABEL)")], "bookworm", [(A, "bookworm")]),
        # not Debian, not main, not a suite that an image can be made of
        ([row(A, "jammy", origin="Ubuntu", label="Ubuntu")], "bookworm", []),
        ([row(A, "bookworm", component="contrib")], "bookworm", []),
        ([row(A, "bookworm", origin="Somebody", label="Somebody")], "bookworm", []),
        ([row(A, "bookworm-backports")], "bookworm", []),
        ([row(S, "bookworm-security", label="Debian-Security")], "bookworm", []),
    ],
)
def test_debian_sources_come_from_the_machines_own(rows, suite, wanted):
    """The first row of each kind counts, the suite is replaced."""
    assert world.own_sources(rows, "debian", suite) == wanted


U = "http://three.example/ubuntu/"


def ubuntu(release, uri=U, **more):
    """Return a row of Ubuntu's."""
    return row(uri, release, **{"origin": "Ubuntu", "label": "Ubuntu", **more})


@pytest.mark.parametrize(
    ("rows", "suite", "wanted"),
    [
        (
            [ubuntu("noble"), ubuntu("noble", component="universe"), ubuntu("noble-security", "http://four.example/ubuntu/"), ubuntu("noble-updates")],
            "jammy",
            [(U, "jammy"), (U, "jammy-updates"), ("http://four.example/ubuntu/", "jammy-security")],
        ),
        ([ubuntu("jammy", origin="$(ORIGIN)", label="$(LABEL)")], "resolute", [(U, "resolute")]),
        # Debian's rows, somebody's archive for Ubuntu, a suite of neither, and addresses that a container cannot follow
        ([row(A, "bookworm")], "noble", []),
        ([ubuntu("noble", origin="Somebody")], "noble", []),
        ([ubuntu("noble-backports")], "noble", []),
        ([ubuntu("noble", "mirror+file:/etc/apt/apt-mirrors.txt/")], "noble", []),
        ([ubuntu("noble", "file:/srv/ubuntu/")], "noble", []),
    ],
)
def test_ubuntus_sources_come_from_the_machines_own(rows, suite, wanted):
    """Ubuntu's rows serve Ubuntu only, and only those that a container can reach."""
    assert world.own_sources(rows, "ubuntu", suite) == wanted


def test_a_named_mirror_serves_its_own_distribution_only(monkeypatch):
    """LAB_UBUNTU_MIRROR says nothing about Debian."""
    monkeypatch.setattr(world, "_targets", list)
    monkeypatch.delenv("LAB_DEBIAN_MIRROR", raising=False)
    monkeypatch.setenv("LAB_UBUNTU_MIRROR", U)
    assert world.apt_sources("ubuntu2604") == [(U, "resolute")]
    assert world.apt_sources("debian13") == []


@pytest.mark.parametrize(
    ("given", "sources", "wanted"),
    [
        ("", [(A, "bookworm")], "debootstrap"),
        ("", [], "registry"),
        ("auto", [], "registry"),
        ("registry", [(A, "bookworm")], "registry"),
        ("debootstrap", [], "debootstrap"),
    ],
)
def test_the_way_to_a_bare_image(monkeypatch, given, sources, wanted):
    """LAB_BASE says it, else it is debootstrap where there is a source."""
    monkeypatch.setenv("LAB_BASE", given)
    assert world.way_to_base(sources) == wanted


def test_a_way_that_does_not_exist_is_refused(monkeypatch):
    """A typing error is not taken for the default."""
    monkeypatch.setenv("LAB_BASE", "regitsry")
    with pytest.raises(LabError, match="regitsry"):
        world.way_to_base([])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nUBUNTU_CODENAME=jammy\n', "ubuntu2204"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "ubuntu2404"),
        ("ID=ubuntu\nVERSION_ID='26.04'\n", "ubuntu2604"),
        ('VERSION_ID="12"\nID=debian\n', "debian12"),
        ('ID=debian\nVERSION_ID="13"\n', "debian13"),
        ('ID=ubuntu\nVERSION_ID="12"\n', None),
        ('ID=linuxmint\nID_LIKE=ubuntu\nVERSION_ID="22.04"\n', None),
        ("ID=debian\n", None),
        ("", None),
    ],
)
def test_a_platform_is_read_from_os_release(text, wanted):
    """Distribution and version both count; a relative of Ubuntu is not Ubuntu."""
    assert world.platform_of(text) == wanted


def test_the_engine_is_asked_for_the_official_name(monkeypatch):
    """LAB_BASE_PREFIX goes in front of it."""
    monkeypatch.delenv("LAB_BASE_PREFIX", raising=False)
    assert [world.base_image(name) for name in world.PLATFORMS] == ["debian:12", "debian:13", "ubuntu:22.04", "ubuntu:24.04", "ubuntu:26.04"]
    monkeypatch.setenv("LAB_BASE_PREFIX", "local/")
    assert world.base_image("debian12") == "local/debian:12"


def test_the_roles_accept_what_the_lab_builds():
    """The list of the role cuda and the lab's platforms are the same."""
    built = {}
    for platform in world.PLATFORMS.values():
        built.setdefault(platform["distribution"], []).append(platform["version"])
    assert {name: list(versions) for name, versions in driver_problems.SUPPORTED.items()} == built


@pytest.mark.parametrize("role", ["cuda", "ollama", "models", "open_webui", "vram_guard"])
def test_a_roles_metadata_names_the_same_systems(role):
    """roles/*/meta/main.yml lists every platform that the lab can build a host of."""
    meta = yaml.safe_load((ROOT / "roles" / role / "meta" / "main.yml").read_text(encoding="utf-8"))
    said = {(entry["name"].lower(), suite) for entry in meta["galaxy_info"]["platforms"] for suite in entry["versions"]}
    assert said == {(platform["distribution"], platform["suite"]) for platform in world.PLATFORMS.values()}


def test_ubuntus_hosts_get_universe(monkeypatch):
    """python3-venv is there, and the role cuda installs it."""
    monkeypatch.setattr(world, "apt_configuration", list)
    laid = image._apt_files("ubuntu2404", [(U, "noble"), (U, "noble-updates")], "/etc/apt/sources.list")
    assert laid["/etc/apt/sources.list"][0] == f"deb {U} noble main universe\ndeb {U} noble-updates main universe\n"
    laid = image._apt_files("debian12", [(A, "bookworm")], "/etc/apt/sources.list")
    assert laid["/etc/apt/sources.list"][0] == f"deb {A} bookworm main\n"


def test_a_suite_younger_than_debootstrap_gets_its_distributions_script(tmp_path):
    """Debian 12's debootstrap knows no noble; without a mirror it could not guess one either."""
    (tmp_path / "jammy").touch()
    assert image.debootstrap_words("ubuntu", "jammy", [(U, "jammy")], tmp_path) == [U]
    assert image.debootstrap_words("ubuntu", "noble", [(U, "noble")], tmp_path) == [U, str(tmp_path / "gutsy")]
    with pytest.raises(LabError, match="LAB_UBUNTU_MIRROR"):
        image.debootstrap_words("ubuntu", "noble", [], tmp_path)


class Official:
    """An engine that has every image, and containers of it that print this os-release."""

    def __init__(self, os_release):
        self.containers, self.os_release = self, os_release

    def run(self, _image, command, **_settings):
        assert command == ["cat", "/etc/os-release"]
        return self.os_release.encode()


def test_an_image_of_another_system_is_refused(monkeypatch):
    """What a prefix leads to is looked at, not believed."""
    monkeypatch.setattr(engine, "image", lambda tag: tag)
    monkeypatch.setattr(engine, "client", lambda: Official('ID=debian\nVERSION_ID="13"\n'))
    with pytest.raises(LabError, match=r'VERSION_ID="13".*debian12 was wanted'):
        image._base_from_registry("debian12", [])


def test_cgroup_v1_is_offered_only_to_a_systemd_that_takes_it():
    """256 and 257 want a word for it, 258 and later have it no more."""
    assert cgroup_settings(1, "debian12")[1] == [hosts.INIT]
    assert cgroup_settings(1, "ubuntu2404")[1] == [hosts.INIT]
    assert cgroup_settings(1, "debian13")[1] == [hosts.INIT, "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]
    with pytest.raises(LabError, match="cgroup v2"):
        cgroup_settings(1, "ubuntu2604")
    assert cgroup_settings(2, "ubuntu2604") == ({"cgroupns": "private"}, [hosts.INIT])


def cgroup_settings(machine, image_name, wanted=None):
    return hosts.cgroup_settings(machine, {"image": image_name, "cgroup": wanted})


def test_a_host_may_have_cgroup_v2_where_the_machine_has_v1():
    """On a machine with v2 it is a host like any other."""
    assert cgroup_settings(1, "ubuntu2604", 2) == ({}, ["/usr/local/lib/lab/init-v2"])
    assert cgroup_settings(2, "debian13", 2) == cgroup_settings(2, "debian13")


def test_a_container_is_made_of_the_hosts_data(monkeypatch, tmp_path):
    """Nothing of it is privileged; only a host that may reboot comes back by itself."""
    monkeypatch.setenv("GPUFLEET_CACHE", str(tmp_path))
    (plain, bare) = hosts.check([{"name": "a", "tmpfs": {"/x": "size=1m"}}, {"name": "b", "image": "debian13", "bare": True}])
    settings, command = hosts.container_settings("l", plain, 1)
    assert (settings["name"], settings["hostname"], command) == ("gpufleet-l-a", "a", [hosts.INIT])
    assert settings["tmpfs"] == {"/run": "", "/run/lock": "", "/tmp": "exec", "/x": "size=1m"}
    assert settings["volumes"][0] == "/sys/fs/cgroup/systemd:/sys/fs/cgroup/systemd:rw" and len(settings["volumes"]) == 3
    assert not {"privileged", "restart_policy"} & set(settings)
    assert hosts.container_settings("l", bare, 2)[0]["restart_policy"] == {"Name": "unless-stopped"}


def test_the_scenario_leaves_open_webui_out_where_its_python_is_missing():
    """The inventory's list is what the platforms' Python says: 3.11 or 3.12."""
    said = yaml.safe_load((ROOT / "molecule" / "default" / "inventory" / "hosts.yml").read_text(encoding="utf-8"))["all"]["vars"]
    able = [name for name, platform in world.PLATFORMS.items() if platform["python"] in ("3.11", "3.12")]
    assert said["open_webui_enabled"] == "{{ lab_image in " + repr(able) + " }}"


def test_pip_options_are_read_in_pips_own_order():
    """The environment wins over files; options of single commands do not count."""
    listing = "\n".join(
        [
            "global.index-url='https://a.example/simple'",
            "global.timeout='15'",
            "install.no-deps='true'",
            "download.timeout='1'",
            ":env:.index-url='https://b.example/simple'",
            "no equals sign",
        ]
    )
    assert world.effective_pip(listing) == {"index-url": "https://b.example/simple", "timeout": "15", "no-deps": "true"}


def test_a_hosts_pip_gets_the_way_to_the_registry_and_nothing_of_the_controllers_disk():
    """Paths of the controller stay out; the certificate bundle is the host's own."""
    text = world.pip_configuration(
        {
            "cert": "/home/me/ca.pem",
            "find-links": "/opt/wheels https://links.example/",
            "default-timeout": "180",
            "extra-index-url": "https://x.example https://y.example",
            "cache-dir": "/home/me/cache",
        }
    )
    assert text == (
        "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nextra-index-url = https://x.example\n    https://y.example\n"
        "find-links = https://links.example/\ntimeout = 180\n"
    )


def test_proxies_leave_the_mirror_out(monkeypatch):
    """A container reaches the mirror directly and everything else as the controller does."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ftp_proxy", "FTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert world.proxies(["mirror"]) == {}
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intern.example")
    found = world.proxies(["mirror"])
    assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert found["no_proxy"] == "intern.example,localhost,127.0.0.1,mirror"
    monkeypatch.setenv("http_proxy", "http://user:pass@127.0.0.1:3128")
    with pytest.raises(LabError, match="loopback") as caught:
        world.proxies(["mirror"])
    assert "pass" not in str(caught.value).split("loopback")[1]


def test_a_bundle_is_split_into_certificates():
    """update-ca-certificates takes one certificate a file."""
    one = "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n"
    two = "-----BEGIN CERTIFICATE-----\nBBB\n-----END CERTIFICATE-----\n"
    assert world.split_pem("# first\n" + one + "# second\n" + two) == [one, two]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([{"name": "a", "colour": "red"}], "unknown keys colour"),
        ([{"name": "A b"}], "cannot be a host"),
        ([{"name": "mirror"}], "cannot be a host"),
        ([{}], "cannot be a host"),
        ([{"name": "a", "image": "debian11"}], "'debian11'"),
        ([{"name": "a"}, {"name": "a"}], "same name"),
    ],
)
def test_a_host_that_is_not_understood_is_refused(asked, said):
    """Before anything is started."""
    with pytest.raises(LabError, match=said):
        hosts.check(asked)


def test_hosts_get_their_defaults():
    """null counts as not said: Molecule's inventory hands it on."""
    (host,) = hosts.check([{"name": "a", "image": None, "card": None}])
    assert host == {"name": "a", "image": "debian12", "card": None, "tmpfs": {}, "front": None, "cgroup": None, "bare": None}
    assert hosts.parse("a:debian13:small.json") == {"name": "a", "image": "debian13", "card": "small.json"}


def test_an_archive_is_the_same_whenever_it_is_made():
    """Its bytes are part of nothing but the host; its entries belong to root."""
    import io
    import tarfile

    data = image.archive({"/etc/x": ("text", 0o600), "/etc/link": ("->", "/etc/x")})
    assert data == image.archive({"/etc/link": ("->", "/etc/x"), "/etc/x": ("text", 0o600)})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(one.name, one.mode, one.uid, one.linkname) for one in tar] == [
            ("etc/link", 0o644, 0, "/etc/x"),
            ("etc/x", 0o600, 0, ""),
        ]
