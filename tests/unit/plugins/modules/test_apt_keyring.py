# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""apt_keyring as Ansible runs it, with keys of gpg's; what it wrote is judged by apt-get itself."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

pytestmark = pytest.mark.skipif(not (shutil.which("gpg") and shutil.which("apt-get")), reason="no gpg or no apt-get")

MODULE = "ansible_collections.gpufleet.llm.plugins.modules.apt_keyring"
# The module's own process, with an answer instead of the network.
RUN = f"""
import io, os, {MODULE} as module
def open_url(url, **_more):
    answer = io.BytesIO(open(os.environ["SERVED"], "rb").read())
    answer.geturl = lambda: os.environ.get("LED_TO") or url
    return answer
module.open_url = open_url
module.main()
"""
URL = "https://repository.example/keyring.gpg"


def gpg(home, *words):
    return subprocess.run(["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", "", *words], capture_output=True, check=True).stdout


def owner_of_a_key(folder, name):
    """{home, binary, armored, fingerprint} of a new key."""
    home = folder / name
    home.mkdir(mode=0o700)
    gpg(home, "--quick-generate-key", name, "ed25519", "sign", "never")
    listed = gpg(home, "--with-colons", "--list-keys").decode()
    fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
    return types.SimpleNamespace(home=home, binary=gpg(home, "--export"), armored=gpg(home, "--armor", "--export"), fingerprint=fingerprint)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The vendor and a stranger, each with a key."""
    folder = tmp_path_factory.mktemp("keys")
    found = types.SimpleNamespace(vendor=owner_of_a_key(folder, "vendor"), stranger=owner_of_a_key(folder, "stranger"))
    yield found
    for one in (found.vendor, found.stranger):
        subprocess.run(["gpgconf", "--homedir", str(one.home), "--kill", "all"], check=False)


@pytest.fixture
def host(tmp_path):
    """A function that runs the module on what a server sends, and returns its answer; ``host.dest`` is the keyring."""

    def run(served, expected, check_mode=False, led_to="", **options):
        (tmp_path / "served").write_bytes(served)
        options = dict({"url": URL, "dest": str(run.dest), "fingerprints": [expected]}, **options)
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": dict(options, _ansible_check_mode=check_mode, _ansible_remote_tmp=str(tmp_path))}),
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ, SERVED=str(tmp_path / "served"), LED_TO=led_to, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    run.dest = tmp_path / "etc" / "keyring.gpg"
    return run


def apt_accepts(folder, signer, keyring):
    """Whether `apt-get update` takes a repository that ``signer`` has signed, with this keyring in Signed-By."""
    repository, apt = folder / "repository", folder / "apt"
    # With the lists of another try apt-get would keep those and succeed.
    shutil.rmtree(apt, ignore_errors=True)
    for path in (repository, apt / "lists/partial", apt / "cache/archives/partial"):
        path.mkdir(parents=True, exist_ok=True)
    (repository / "Packages").write_text("")
    (repository / "Release").write_text(
        "Origin: test\nSuite: test\nDate: Sat, 28 Nov 2026 00:00:00 UTC\nSHA256:\n"
        " e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 Packages\n"
    )
    gpg(signer.home, "--yes", "--clearsign", "--output", str(repository / "InRelease"), str(repository / "Release"))
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] file:{repository} ./\n")
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::AllowInsecureRepositories": "false",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    done = subprocess.run(["apt-get", "update", *words], capture_output=True, text=True, check=False, env=dict(os.environ, LC_ALL="C"))
    refused = "is not signed" in done.stderr or "NO_PUBKEY" in done.stderr + done.stdout
    assert refused != (done.returncode == 0), done.stdout + done.stderr
    return done.returncode == 0


def packet(kind, body):
    """A packet in the newer form with a length of five octets."""
    return bytes([0xC0 | kind, 0xFF]) + len(body).to_bytes(4, "big") + body


def armored(data):
    return subprocess.run(["gpg", "--batch", "--enarmor"], input=data, capture_output=True, check=True).stdout.replace(
        b"PGP ARMORED FILE", b"PGP PUBLIC KEY BLOCK"
    )


def attacks(keys):
    """{name: bytes}: each holds the stranger's key, and the vendor's where a careless reader finds it."""
    vendor, stranger = keys.vendor, keys.stranger
    hidden = packet(60, b"\n" + vendor.armored)
    return {
        "armor in armor": armored(stranger.binary + hidden),
        "armor in binary": stranger.binary + hidden,
        "armor in a user ID": stranger.binary + packet(13, b"\n" + vendor.armored),
        "armor beside armor": vendor.armored + stranger.armored,
        "armor of the stranger's behind": vendor.armored.rstrip() + b"\n" + stranger.binary,
        "binary behind text": vendor.armored + armored(stranger.binary),
        "both": vendor.binary + stranger.binary,
        "subkey": vendor.binary + packet(14, first_body(stranger.binary)),
        "secret key": vendor.binary + packet(5, first_body(stranger.binary)),
    }


def first_body(binary):
    """Body of a keyring's first packet: gpg exports the older form with a length of one octet here."""
    assert binary[0] == 0x98
    return binary[2 : 2 + binary[1]]


NAMES = [
    "armor in armor",
    "armor in binary",
    "armor in a user ID",
    "armor beside armor",
    "armor of the stranger's behind",
    "binary behind text",
    "both",
    "subkey",
    "secret key",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_strangers_key_gets_in_and_apt_says_so(host, keys, tmp_path, name):
    answer = host(attacks(keys)[name], keys.vendor.fingerprint)
    if host.dest.exists():
        assert not apt_accepts(tmp_path, keys.stranger, host.dest), answer
    else:
        assert answer["failed"], answer
        assert "Nothing was changed" in answer["msg"], answer


@pytest.mark.parametrize("form", ["binary", "armored"])
def test_the_vendors_key_gets_in_once_and_apt_takes_its_repository(host, keys, tmp_path, form):
    served = getattr(keys.vendor, form)
    assert host(served, keys.vendor.fingerprint, check_mode=True)["changed"] is True
    assert not host.dest.exists()
    answer = host(served, keys.vendor.fingerprint.lower())
    assert (answer["changed"], answer["fingerprints"]) == (True, [keys.vendor.fingerprint])
    assert apt_accepts(tmp_path, keys.vendor, host.dest)
    assert not apt_accepts(tmp_path, keys.stranger, host.dest)
    assert host.dest.stat().st_mode & 0o777 == 0o644
    assert host(b"nobody asks", keys.vendor.fingerprint)["changed"] is False


@pytest.mark.parametrize("name", ["armor in binary", "both", "subkey"])
def test_a_keyring_that_is_there_is_judged_as_strictly(host, keys, tmp_path, name):
    host.dest.parent.mkdir()
    host.dest.write_bytes(attacks(keys)[name])
    answer = host(keys.vendor.binary, keys.vendor.fingerprint)
    assert apt_accepts(tmp_path, keys.vendor, host.dest), answer
    assert not apt_accepts(tmp_path, keys.stranger, host.dest)


def test_an_address_without_tls_is_refused_or_pinned(host, keys):
    import hashlib

    plain = URL.replace("https", "http")
    good = hashlib.sha256(keys.vendor.binary).hexdigest()
    for refused in ({"url": plain}, {"led_to": plain}, {"url": plain, "checksum": "0" * 64}, {"checksum": "0" * 64}, {"url": "file:///etc/passwd"}):
        answer = host(keys.vendor.binary, keys.vendor.fingerprint, **refused)
        assert answer["failed"], (refused, answer)
        assert not host.dest.exists(), refused
    assert host(keys.vendor.binary, keys.vendor.fingerprint, url=plain, checksum=good.upper())["changed"] is True


def test_the_keyring_is_roots_own_and_no_link(host, keys):
    host(keys.vendor.binary, keys.vendor.fingerprint)
    aside = pathlib.Path(f"{host.dest}.aside")
    host.dest.rename(aside)
    host.dest.symlink_to(aside)
    assert host(keys.vendor.binary, keys.vendor.fingerprint)["changed"] is True
    assert not host.dest.is_symlink()
    host.dest.chmod(0o666)
    assert host(keys.vendor.binary, keys.vendor.fingerprint)["changed"] is True
    assert host.dest.stat().st_mode & 0o777 == 0o644
    if os.geteuid() == 0:
        os.chown(host.dest, 65534, 65534)
        assert host(keys.vendor.binary, keys.vendor.fingerprint)["changed"] is True
        assert host.dest.stat().st_uid == 0
    assert host(b"nobody asks", keys.vendor.fingerprint)["changed"] is False
    assert sorted(path.name for path in host.dest.parent.iterdir()) == ["keyring.gpg", "keyring.gpg.aside"]
