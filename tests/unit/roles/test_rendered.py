# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles render, with usual values and with hostile ones: a value never becomes another directive.

Every variable that a template of these roles writes as it is has bounds (``gpufleet.llm.role_vars``); a value within
its bounds changes no other line of what is rendered, and systemd takes the unit.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, meta

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment
from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_options

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"
RENDERING = ("cuda", "ollama", "open_webui", "vram_guard")

# What the host answers, and what the play knows; none of it is the inventory's.
FOUND = {"systemd": 257, "architecture": "x86_64", "gpus": [{"uuid": "GPU-4d1c9a3e-0000"}], "driver": {"distribution": {"id": "debian"}}}
KNOWN = {
    "ansible_managed": "Managed",
    **{f"__{role}_{word}": FOUND for role in RENDERING for word in ("host", "state")},
    "__open_webui_mirrors": {"stdout_lines": ["http://mirror.example/debian/ trixie", "http://mirror.example/debian/ trixie-updates"]},
    "__open_webui_pin_models": ["qwen3-14b-4090"],
    "open_webui_python_release": "bookworm",
    "open_webui_retention_days": 30,
    "cuda_power_limit_w": 350,
}
# Rendered by to_nice_json or environment_file, which quote; these have tests of their own.
QUOTED = {"vram-guard.json.j2", "open-webui-retention.json.j2", "pin_policy.js.j2"}


class Anything(dict):
    """Filters and tests of Ansible's that jinja2 alone does not know: for finding names only."""

    def __contains__(self, _name):
        return True

    def __getitem__(self, _name):
        return lambda *_a, **_k: None

    def get(self, _name, _default=None):
        return self[_name]


def load(role, part):
    path = ROLES / role / part / "main.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@functools.cache
def defaults(role):
    """The defaults of a role, with those of the role ollama, which others read."""
    return {**load("ollama", "defaults"), **load(role, "defaults")}


def bounds(role):
    found = load(role, "vars").get(f"__{role}_bounds", {})
    return {name: bound for name, bound in found.items() if bound}


def texts(value):
    """All texts in a value of lists and dicts."""
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in [str(key), *texts(one)]]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def names_in(role, text):
    """The variables of the inventory that a text is made of, through the role's own variables."""
    environment = Environment(autoescape=False)  # noqa: S701
    environment.filters, environment.tests = Anything(), Anything()
    private, found, open_names = load(role, "vars"), set(), [text]
    seen = set()
    while open_names:
        for name in meta.find_undeclared_variables(environment.parse(open_names.pop())):
            if name in seen:
                continue
            seen.add(name)
            if name in private:
                open_names += [one for one in texts(private[name]) if "{{" in one or "{%" in one]
            elif name in defaults(role):
                found.add(name)
    return found


TEMPLATES = [(role, path.name) for role in RENDERING for path in sorted((ROLES / role / "templates").iterdir())]


def render(role, template, **changed):
    """The text of a template as Ansible renders it."""
    loader = DataLoader()
    loader.set_basedir(str(ROLES / role))
    variables = {}
    for part in (defaults(role), load(role, "vars"), KNOWN, {"role_path": str(ROLES / role)}, changed):
        variables.update(part)
    trusted = {name: _trust(value) if name not in changed else value for name, value in variables.items()}
    text = (ROLES / role / "templates" / template).read_text(encoding="utf-8")
    return Templar(loader=loader, variables=trusted).template(trust_as_template(text), escape_backslashes=False)


def _trust(value):
    if isinstance(value, dict):
        return {key: _trust(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_trust(one) for one in value]
    return trust_as_template(value) if isinstance(value, str) else value


@pytest.mark.parametrize(("role", "template"), TEMPLATES)
def test_every_template_renders_with_what_the_roles_default_to(role, template):
    text = render(role, template)
    assert "{{" not in text and "{%" not in text
    assert text.strip()


@pytest.mark.parametrize(("role", "template"), TEMPLATES)
def test_every_variable_that_is_written_as_it_is_has_bounds(role, template):
    names = names_in(role, (ROLES / role / "templates" / template).read_text(encoding="utf-8"))
    specs = load_specs(role)
    free = {name for name in names if specs.get(name, {}).get("type") not in ("bool",) and not specs.get(name, {}).get("choices")}
    without = sorted(free - set(bounds(role)) - ELSEWHERE)
    assert template in QUOTED or without == []


# The first is refused by a condition of its own (the preflight of the role cuda); the others reach a file as JSON only.
ELSEWHERE = {"cuda_power_limit_w", "ollama_load_timeout_s", "vram_guard_fine_tuning"}


def load_specs(role):
    found = {}
    for one in sorted({role, "ollama"}):
        specs = yaml.safe_load((ROLES / one / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        for entry in specs.values():
            found.update(entry.get("options", {}))
    return found


# --- hostile values ------------------------------------------------------------------------------

INJECTIONS = [
    "\nUser=root", "\n[Service]\nUser=root", "\r\nExecStartPre=/bin/evil", "\n", "\n\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\0",
    " /", " -x", "\t/", "\\", "\\\nUser=root", "%h", "%n", "$HOME", "${HOME}", "$(id)", "`id`", ";id", "; rm -rf /", "|id", "&id", ">x", "'", '"',
    "' id '", '" id "', "#", " # x", "{{ 1 }}", "{% raw %}", "*", "?", "~", "!", ",", "=x", ":/evil", "/..", "/../etc", "/.", "//", "@", "@evil",
    "\u0661", "\u00e9",
]  # fmt: skip


def usual(role, name):
    value = {**defaults(role), **KNOWN}.get(name)
    if value is None:
        return "/srv/metrics" if "kind" in bounds(role)[name] else 1024
    templar = Templar(loader=DataLoader(), variables={key: _trust(one) for key, one in defaults(role).items()})
    return templar.template(_trust(value))


def hostile(value):
    """Values that are a usual one with an injection in it: behind, in front, in the middle; in a list, as an element and in one."""
    if isinstance(value, list):
        for one in hostile(str(value[0])):
            yield [*value[1:], one]
    else:
        text = str(value)
        for injection in INJECTIONS:
            yield text + injection
            yield injection + text
            yield text[: len(text) // 2] + injection + text[len(text) // 2 :]


WRITTEN = [
    (role, template, name)
    for role, template in TEMPLATES
    for name in sorted(names_in(role, (ROLES / role / "templates" / template).read_text(encoding="utf-8")))
    if name in bounds(role) and template not in QUOTED
]


def directives(text):
    """What a unit, a program or a file of APT says: its lines without their values."""
    lines = re.split(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", text)
    return [line.split("=", 1)[0].split(":", 1)[0] if re.match(r"[A-Za-z-]+[=:]", line) else line.split(" ", 1)[0] for line in lines]


@pytest.mark.parametrize(("role", "template", "name"), WRITTEN)
def test_a_hostile_value_is_refused_or_stays_in_its_line(role, template, name):
    value, bound, refused = usual(role, name), bounds(role)[name], 0
    assert role_options.bound_problem(name, value, bound) == ""
    whole = directives(render(role, template, **{name: value}))
    for attack in hostile(value):
        if role_options.bound_problem(name, attack, bound):
            refused += 1
            continue
        rendered = render(role, template, **{name: attack})
        assert directives(rendered) == whole, attack
        shown = attack[-1] if isinstance(attack, list) else attack
        assert re.fullmatch(r"[A-Za-z0-9@._+:/~%-]+", str(shown)), attack
    assert refused > 3 * len(INJECTIONS) // 2, "the attacks never reached the bounds"


def test_something_is_written_as_it_is():
    assert len(WRITTEN) > 25
    assert ("ollama", "ollama.service.j2", "ollama_ip_allow") in WRITTEN


# --- what systemd says ----------------------------------------------------------------------------

UNITS = [(role, template) for role, template in TEMPLATES if template.endswith((".service.j2", ".timer.j2", ".path.j2"))]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize(("role", "template"), UNITS)
def test_systemd_takes_every_unit_and_knows_every_directive(role, template, tmp_path):
    unit = tmp_path / template[: -len(".j2")]
    unit.write_text(render(role, template), encoding="utf-8")
    if unit.suffix in (".timer", ".path"):
        unit.with_suffix(".service").write_text("[Service]\nExecStart=/bin/true\n")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    # The programs and users are not on this machine.
    told = [line for line in done.stderr.splitlines() if unit.name in line and not re.search(r"is not executable|Failed to|not found|Unit .* could not", line)]
    assert told == []


# --- environment files ------------------------------------------------------------------------------


def read_as_systemd(text):
    """systemd's reading of an EnvironmentFile (load_env_file of src/basic/env-file.c), for what this collection writes: bare or in double quotes."""
    found, rest = {}, text
    while rest:
        key, _equals, rest = rest.partition("=")
        if rest.startswith('"'):
            value, rest = "", rest[1:]
            while not rest.startswith('"'):
                if rest[0] == "\\":
                    value += rest[1] if rest[1] in '"\\`$' else "" if rest[1] == "\n" else rest[:2]
                    rest = rest[2:]
                else:
                    value, rest = value + rest[0], rest[1:]
            assert rest[1] == "\n"
            rest = rest[2:]
        else:
            value, _newline, rest = rest.partition("\n")
            assert not set(value) & set(" \t'\"\\#;$`\r"), value
        found[key] = value
    return found


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.one_of(st.text(max_size=30), st.sampled_from(INJECTIONS)), max_size=6))
def test_an_environment_file_says_what_was_meant_and_nothing_more(values):
    try:
        text = ollama_environment.environment_file(values)
    except ollama_environment.EnvError:
        assert any("\0" in value for value in values.values())
        return
    assert read_as_systemd(text) == values


@pytest.mark.parametrize("key", ["", "A B", "A\nB", "A=B", "1A", "A\n", "É", 'A"'])
def test_a_name_that_is_none_is_refused(key):
    with pytest.raises(ollama_environment.EnvError, match="name"):
        ollama_environment.environment_file({key: "1"})


@pytest.mark.parametrize(("injection", "key"), list(itertools.product(INJECTIONS, ["OLLAMA_ORIGINS", "HTTPS_PROXY", "OLLAMA_DEBUG", "CUDA_VISIBLE_DEVICES"])))
def test_the_servers_environment_has_one_line_for_each_name(injection, key):
    try:
        made = ollama_environment.render({"OLLAMA_HOST": "127.0.0.1:11434"}, {key: "x" + injection + "x"})
    except ollama_environment.EnvError:
        return
    assert set(read_as_systemd(ollama_environment.environment_file(made))) == {"OLLAMA_HOST", key}


def test_json_is_json_whatever_is_in_it():
    for injection in INJECTIONS:
        made = json.loads(render("vram_guard", "vram-guard.json.j2", ollama_user="x" + injection))
        assert made["user"] == "x" + injection
