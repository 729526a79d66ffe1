# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents that nobody builds a site of: links of the README lead somewhere, translations are of the present text."""

from __future__ import annotations

import hashlib
import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
BLOB = "https://github.com/gpufleet/gpufleet.llm/"
SITE = "https://gpufleet.github.io/gpufleet.llm/"
RAW = "https://raw.githubusercontent.com/gpufleet/gpufleet.llm/main/"
TRANSLATIONS = {"README.zh-CN.md": "README.md", "docs/guides/first_host.zh-CN.md": "docs/guides/first_host.md"}
GALAXY_AND_GITHUB = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "SECURITY.md"]
GUIDES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/guides").glob("*.md"))]


def sections(text):
    """[(heading, body)] of a Markdown text; what stands above the first second-level heading belongs to the title."""
    outside, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (match := re.match(r"##? (.+)", line)):
            outside.append((match[1], []))
        elif outside:
            outside[-1][1].append(line)
    return [(heading, "\n".join(lines).strip()) for heading, lines in outside]


def fingerprint(body):
    """Eight hexadecimal digits of a section's text."""
    return hashlib.sha256(body.encode()).hexdigest()[:8]


@pytest.mark.parametrize("translation", TRANSLATIONS)
def test_a_translation_is_of_the_present_text(translation):
    source = sections((ROOT / TRANSLATIONS[translation]).read_text(encoding="utf-8"))
    translated = sections((ROOT / translation).read_text(encoding="utf-8"))
    marks = [re.match(r"<!-- source: (.+) ([0-9a-f]{8}) -->\n", body + "\n") for _heading, body in translated]
    wanted = [(heading, fingerprint(body)) for heading, body in source]
    assert [mark and (mark[1], mark[2]) for mark in marks] == wanted, "translate the sections that differ, then write these marks"


@pytest.mark.parametrize("translation", TRANSLATIONS)
def test_a_translation_has_the_commands_of_its_source(translation):
    def commands(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        return [re.sub(r"\s*#.*", "", line) for block in re.findall(r"```\w+\n(.*?)```", text, re.S) for line in block.splitlines()]

    assert commands(translation) == commands(TRANSLATIONS[translation])


def target(link):
    """The file of this repository that an absolute link leads to; None for any other link."""
    link = link.split("#")[0]
    if link.startswith(RAW):
        return ROOT / link.removeprefix(RAW)
    if match := re.match(re.escape(BLOB) + r"(?:blob|tree)/main/(.+)", link):
        return ROOT / match[1]
    if link.startswith(SITE + "guides/"):
        return ROOT / "docs" / link.removeprefix(SITE).replace(".html", ".md")
    if match := re.fullmatch(re.escape(SITE) + r"reference/(\w+)_module.html", link):
        return ROOT / "plugins" / "modules" / f"{match[1]}.py"
    return None


@pytest.mark.parametrize("name", [*GALAXY_AND_GITHUB, "docs/docsite/index.md", *GUIDES])
def test_a_link_to_this_repository_leads_to_a_file(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((https?://[^)\s]+)\)|<(https?://[^>\s]+)>", text)
    for link in (one or other for one, other in links):
        there = target(link)
        assert there is None or there.exists(), f"{name}: {link}"


@pytest.mark.parametrize("name", GALAXY_AND_GITHUB)
def test_a_link_of_a_page_that_galaxy_or_github_shows_is_absolute(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert link.startswith("https://"), f"{name}: {link}"


def test_what_is_told_apart_as_sections():
    text = "# A\none\n## B\n```sh\n## no heading\n```\n### C\ntwo\n"
    assert sections(text) == [("A", "one"), ("B", "```sh\n## no heading\n```\n### C\ntwo")]


def test_the_example_inventory_declares_the_default_model_and_measures_it():
    example = yaml.safe_load((ROOT / "inventory/example/group_vars/gpu_hosts/main.yml").read_text(encoding="utf-8"))
    default = yaml.safe_load((ROOT / "roles/models/defaults/main.yml").read_text(encoding="utf-8"))["models_declared"]
    default[0]["parameters"]["num_ctx"] = example["ollama_context_length"]
    assert example["models_declared"] == default
