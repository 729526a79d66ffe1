# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of models: what is one, how it is written back, where case matters."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.both


@pytest.mark.parametrize("bad", ["", "a b", "-x", ".x", "x:", ":tag", "a//b", "x" * 81, "x:" + "t" * 81, "na.me/x", "a/b/c/d", "x@y"])
def test_what_is_no_name_is_refused(server, bad):
    answer = server.post("/api/create", {"model": bad, "from": "base"})
    assert (answer.status, answer.error()) == (400, "invalid model name")


@pytest.mark.parametrize(("given", "shown"), [
    ("{}", "{}:latest"), ("{}:v1", "{}:v1"), ("library/{}", "{}:latest"), ("some/{}:a", "some/{}:a"),
    ("registry.ollama.ai/library/{}:b", "{}:b"), ("lan:5000/ns/{}:c", "lan:5000/ns/{}:c"), ("_{}", "_{}:latest"),
])  # fmt: skip
def test_names_are_shown_in_their_shortest_form(server, name, given, shown):
    server.create(given.format(name), **{"from": "base"})
    assert shown.format(name) in server.tags()
    assert server.call("DELETE", "/api/delete", {"model": given.format(name)}).status == 200


def test_unknown_model_is_404_in_show(server):
    answer = server.post("/api/show", {"model": "nobody"})
    assert (answer.status, answer.json()) == (404, {"error": "model 'nobody:latest' not found"})


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_unknown_model_is_404_in_inference(server, path):
    answer = server.post(path, {"model": "nobody"})
    assert (answer.status, answer.json()) == (404, {"error": "model 'nobody' not found"})


@pytest.mark.real
def test_unknown_model_is_404_in_embed(server):
    answer = server.post("/api/embed", {"model": "nobody", "input": "x"})
    assert answer.status == 404 and "nobody" in answer.json()["error"] and "not found" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/api/show", "/api/chat"])
def test_no_model_at_all_is_400(server, path):
    answer = server.post(path, {"verbose": False})
    assert (answer.status, answer.json()) == (400, {"error": "model is required"})


def test_show_finds_a_name_in_another_case(server, name):
    server.create(name, **{"from": "base"})
    assert server.post("/api/show", {"model": name.upper()}).status == 200


def test_create_writes_to_the_existing_name_in_another_case(server, name):
    server.create(name, **{"from": "base"})
    server.create(name.upper(), **{"from": "base", "system": "new"})
    assert f"{name.upper()}:latest" not in server.tags()
    assert server.show(name)["system"] == "new"


def test_from_is_not_folded_to_an_existing_case(server, name):
    """A base in another case is pulled, not found: here from a port where nobody listens."""
    server.create(f"127.0.0.1:1/library/{name}", **{"from": "base"})
    answer = server.post("/api/create", {"model": f"{name}2", "from": f"127.0.0.1:1/library/{name.upper()}"})
    assert "connection refused" in answer.error()
    assert not server.digest(f"{name}2")


def test_the_deprecated_field_name_is_understood(server):
    assert server.post("/api/show", {"name": "base"}).status == 200


def test_a_model_called_cloud_can_be_made_but_not_shown(server, name):
    server.create(f"{name}:cloud", **{"from": "base"})
    assert server.post("/api/show", {"model": f"{name}:cloud"}).status != 200
