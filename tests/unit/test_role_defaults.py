# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every default of a role stands in defaults/main.yml and, with the same value, in meta/argument_specs.yml."""

from __future__ import annotations

import pathlib

import pytest
import yaml

ROLES = sorted(path for path in (pathlib.Path(__file__).resolve().parents[2] / "roles").iterdir() if path.is_dir())


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@pytest.fixture(params=ROLES, ids=lambda path: path.name)
def role(request):
    return request.param


def test_defaults_and_argument_specs_agree(role):
    defaults = load(role / "defaults" / "main.yml")
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    documented = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert documented == {name: value for name, value in defaults.items() if value is not None}
    assert {name for name, value in defaults.items() if value is None} <= set(options)


def test_every_option_has_a_default_or_is_explained_as_required(role):
    defaults = load(role / "defaults" / "main.yml")
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    for name, spec in options.items():
        assert name in defaults or spec.get("required") or "No default" in str(spec["description"]), name


def test_preflight_takes_the_same_options(role):
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    assert specs["preflight"]["options"] == specs["main"]["options"]


def test_names_carry_the_role(role):
    for name in load(role / "defaults" / "main.yml"):
        assert name.startswith(f"{role.name}_"), name
    for path in (role / "vars").glob("*.yml") if (role / "vars").is_dir() else ():
        for name in load(path):
            assert name.startswith(f"__{role.name}_"), f"{path.name}: {name}"


def test_defaults_are_prose(role):
    """Each variable is introduced by a comment: a reader of defaults/main.yml needs no other page."""
    lines = (role / "defaults" / "main.yml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith((" ", "#", "-")):
            above = lines[number - 1] if number else ""
            assert above.startswith("#") or (above and not above.startswith(" ")), f"{role.name}: {line}"
