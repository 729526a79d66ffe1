# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual environment: complete or not there, built with the host's own pip configuration."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import venv

STAMP = venv.wanted_stamp("0.12.4", "slim", "list")


def done(stdout="", code=0, stderr=""):
    return subprocess.CompletedProcess([], code, stdout, stderr)


class Machine:
    """Plays the programs: notes what was run, makes the tree that uv would make."""

    def __init__(self, path, fail_at=None):
        self.path, self.fail_at, self.ran, self.env = path, fail_at, [], {}

    def __call__(self, argv, env=None, **_options):
        line = " ".join(argv)
        self.ran.append(line)
        if self.fail_at and self.fail_at in line:
            return done("Collecting\nerror: no such package\n  hint: look\n", 2)
        if "config list" in line:
            return done("global.index-url='https://mirror.example/simple'\nglobal.cert='/etc/ca.crt'\n")
        if "uv venv" in line:
            site = os.path.join(self.path, "lib", "python3.11", "site-packages")
            os.makedirs(os.path.join(site, "open_webui-0.12.4.dist-info"))
            os.makedirs(os.path.join(self.path, "bin"))
            os.symlink("/bin/sh", os.path.join(self.path, "bin", "python"))
            with open(os.path.join(site, "requirements-slim.txt"), "w", encoding="utf-8"):
                pass
        self.env = env
        return done()


@pytest.mark.parametrize(
    ("requirements", "package_set", "last"),
    [
        ("/locks/list.txt", "slim", "--no-deps --require-hashes --compile-bytecode -r /locks/list.txt"),
        (None, "slim", "--compile-bytecode -r {site}/requirements-slim.txt"),
        (None, "full", "--compile-bytecode open-webui==0.12.4"),
    ],
)
def test_build(tmp_path, requirements, package_set, last):
    path = str(tmp_path / "0.12.4")
    stamp = venv.wanted_stamp("0.12.4", package_set, None)
    machine = Machine(path)
    facts = venv.build(path, stamp, "/usr/bin/python3.11", requirements, "/locks/uv.txt", run=machine)
    assert machine.ran[-1].endswith(last.format(site=os.path.join(path, "lib", "python3.11", "site-packages")))
    assert facts["packages"] == 1 and venv.difference(venv.observe(path), stamp) == ""
    assert machine.env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple" and machine.env["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert sorted(os.listdir(tmp_path)) == ["0.12.4"], "no cache and no installer are left"


@pytest.mark.parametrize("step", ["-m venv", "uv.txt", "uv venv", "list.txt"])
def test_a_build_that_fails_says_where_and_leaves_no_stamp(tmp_path, step):
    path = str(tmp_path / "0.12.4")
    with pytest.raises(venv.VenvError, match="failed with status 2: error: no such package hint: look"):
        venv.build(path, STAMP, "/usr/bin/python3.11", "/locks/list.txt", "/locks/uv.txt", run=Machine(path, step))
    assert venv.observe(path)["stamp"] is None
    venv.build(path, STAMP, "/usr/bin/python3.11", "/locks/list.txt", "/locks/uv.txt", run=Machine(path))
    assert venv.difference(venv.observe(path), STAMP) == ""


def test_a_tree_without_a_stamp_is_incomplete(tmp_path):
    assert venv.difference(venv.observe(str(tmp_path)), STAMP) == "an incomplete tree lies there"
    assert venv.difference(venv.observe(str(tmp_path / "x")), STAMP) == "it is not there"


def test_a_tree_whose_python_went_away_is_incomplete(tmp_path):
    path = str(tmp_path / "0.12.4")
    venv.build(path, STAMP, "/usr/bin/python3.11", "/l", "/u", run=Machine(path))
    os.unlink(os.path.join(path, "bin", "python"))
    os.symlink("/usr/bin/python-that-went", os.path.join(path, "bin", "python"))
    assert venv.difference(venv.observe(path), STAMP) == "an incomplete tree lies there"


def test_other_settings_make_a_difference(tmp_path):
    path = str(tmp_path / "0.12.4")
    venv.build(path, STAMP, "/usr/bin/python3.11", "/l", "/u", run=Machine(path))
    assert "package_set is slim, not full" in venv.difference(venv.observe(path), venv.wanted_stamp("0.12.4", "full", "list"))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("global.index-url='https://a/s'\n:env:.index-url='https://b/s'", "UV_DEFAULT_INDEX", "https://b/s"),
        ("install.find-links='/a\\n/b'", "UV_FIND_LINKS", "/a,/b"),
        ("global.extra-index-url='https://a https://b'", "UV_INDEX", "https://a https://b"),
        ("global.extra-index-url='https://a'", "UV_INDEX_STRATEGY", "unsafe-best-match"),
        ("global.no-index='true'", "UV_NO_INDEX", "1"),
        ("global.trusted-host='a'", "UV_INSECURE_HOST", "a"),
        ("", "UV_DEFAULT_INDEX", None),
        ("global.index-url=broken'", "UV_DEFAULT_INDEX", None),
    ],
)
def test_pips_configuration_holds_for_uv(text, name, value):
    assert venv.uv_environment(text).get(name) == value


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (done("3 10"), "is Python 3.10; Open WebUI needs 3.11 or 3.12"),
        (done("3 13"), "is Python 3.13"),
        (done("", 127, "not found"), "is no Python .not found."),
        (OSError("no such file"), "does not run"),
    ],
)
def test_pythons_that_cannot_carry_it(answer, said):
    def run(argv, **options):
        assert argv[0] == "/usr/bin/python3" and options["timeout"] > 0 and not options.get("shell")
        if isinstance(answer, OSError):
            raise answer
        return answer

    with pytest.raises(venv.VenvError, match=said):
        venv.python_version("/usr/bin/python3", run)


def test_a_second_build_waits_and_then_gives_up(tmp_path):
    moments = iter(range(100))
    with venv.alone(str(tmp_path)), pytest.raises(venv.VenvError, match="has been at work"):
        with venv.alone(str(tmp_path), wait_s=3, clock=lambda: next(moments), sleep=lambda _s: None):
            pass
    with venv.alone(str(tmp_path), wait_s=0):
        pass
