# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds of the settings of the role cuda: what no host can meet is refused before a host is asked."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_options

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "cuda"
BOUNDS = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))["__cuda_bounds"]
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))


def problem(name, value):
    return role_options.bound_problem(name, value, BOUNDS[name])


@pytest.mark.parametrize("name", BOUNDS)
def test_the_default_is_within_its_bounds(name):
    assert problem(name, DEFAULTS[name]) == ""


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("cuda_driver_source", "nvidia", "none, nvidia_repo or distro"),
        ("cuda_driver_source", "", "one source"),
        ("cuda_driver_branch", "580.95", "such as 580"),
        ("cuda_driver_branch", 58, "such as 580"),
        ("cuda_driver_version", "580", "580.126.09"),
        ("cuda_driver_version", "latest", "580.126.09"),
        ("cuda_driver_flavour", "Open", "open or proprietary"),
        ("cuda_toolkit", "13.0", "13-0"),
        ("cuda_repo_url", "ftp://mirror.example.org", "https://"),
        ("cuda_repo_url", "https://", "https://"),
        ("cuda_repo_url", "https://a/b\nTypes: deb", "https://"),
        ("cuda_repo_key_checksum", "0" * 63, "64 hexadecimal digits"),
        ("cuda_driver_branch", "580\n", "such as 580"),
        ("cuda_repo_key_fingerprints", [], "40 hexadecimal digits"),
        ("cuda_repo_key_fingerprints", ["EB693B30"], "40 hexadecimal digits"),
        ("cuda_repo_key_fingerprints", ["g" * 40], "40 hexadecimal digits"),
        ("cuda_power_limit_w", -1, "watts"),
        ("cuda_power_limit_w", "350 W", "watts"),
        ("cuda_reboot", "later", "null (report and stop), true or false"),
        ("cuda_nvidia_ml_py_version", "13", "13.615.71"),
        ("cuda_nvidia_ml_py_version", "", "13.615.71"),
        ("cuda_venv", "/opt", "at least two folders"),
        ("cuda_venv", "opt/gpufleet", "absolute path"),
        ("cuda_venv", "/opt/../etc", "absolute path"),
    ],
)
def test_a_setting_that_no_host_can_meet_is_named(name, value, word):
    sentence = problem(name, value)
    assert sentence.startswith(name)
    assert word in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cuda_driver_branch", "590"),
        ("cuda_driver_version", "580.95.05"),
        ("cuda_driver_version", 590.44),  # YAML takes it for a number
        ("cuda_toolkit", "13-0"),
        ("cuda_repo_key_checksum", "A0" * 32),
        ("cuda_repo_key_fingerprints", ["EB69 3B30 35CD 5710 E231  E123 A4B4 6996 3BF8 63CC"]),
        ("cuda_power_limit_w", "350"),
        ("cuda_reboot", True),
        ("cuda_reboot", "no"),
    ],
)
def test_what_a_setting_may_be(name, value):
    assert problem(name, value) == ""
