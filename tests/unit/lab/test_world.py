# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's reading of the machine's world, and what it accepts as hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[3] / "molecule" / "lab"
if not LAB.is_dir():
    pytest.skip("the lab is not part of the built collection", allow_module_level=True)
sys.path.insert(0, str(LAB))

from labkit import fleet, image, world  # noqa: E402
from labkit.shell import LabError  # noqa: E402

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
    assert world.debian_sources(rows, suite) == wanted


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
    ("hosts", "said"),
    [
        ([{"name": "a", "colour": "red"}], "unknown keys colour"),
        ([{"name": "A b"}], "cannot be a host"),
        ([{"name": "mirror"}], "cannot be a host"),
        ([{}], "cannot be a host"),
        ([{"name": "a", "image": "debian11"}], "'debian11'"),
        ([{"name": "a"}, {"name": "a"}], "same name"),
    ],
)
def test_a_host_that_is_not_understood_is_refused(hosts, said):
    """Before anything is started."""
    with pytest.raises(LabError, match=said):
        fleet.check_hosts(hosts)


def test_hosts_get_their_defaults():
    """null counts as not said: Molecule's inventory hands it on."""
    assert fleet.check_hosts([{"name": "a", "image": None, "card": None}]) == [{"name": "a", "image": "debian12", "card": None, "tmpfs": {}, "front": None}]
    assert fleet.parse_host("a:debian13:small.json") == {"name": "a", "image": "debian13", "card": "small.json"}


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
