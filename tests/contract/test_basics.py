# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every client meets first: addresses, methods, who may ask, bodies that are none."""

from __future__ import annotations

import contextlib
import http.client
import json
import re

import pytest

pytestmark = pytest.mark.both


def test_root_says_that_it_runs(server):
    answer = server.get("/")
    assert (answer.status, answer.body) == (200, b"Ollama is running")


def test_head_root(server):
    assert server.call("HEAD", "/").status == 200


def test_version_is_one_field(server):
    body = server.get("/api/version").json()
    assert list(body) == ["version"] and re.fullmatch(r"\d+\.\d+\.\d+.*", body["version"])


@pytest.mark.parametrize("path", ["/metrics", "/health", "/debug/pprof/", "/api/nothing"])
def test_unknown_path_is_404(server, path):
    assert server.get(path).status == 404


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/generate"), ("POST", "/api/tags"), ("POST", "/api/delete"), ("GET", "/api/show")])
def test_wrong_method_is_405(server, method, path):
    assert server.call(method, path).status == 405


def test_foreign_origin_is_403(server):
    assert server.get("/api/tags", headers={"Origin": "http://evil.example"}).status == 403


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "app://x"])
def test_local_origin_is_let_in(server, origin):
    assert server.get("/api/tags", headers={"Origin": origin}).status == 200


def test_foreign_host_is_403_on_loopback(server):
    assert server.get("/api/tags", headers={"Host": "evil.example"}).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:11434", "127.0.0.1", "10.1.2.3:80", "node.local", "192.168.7.7"])
def test_own_host_is_let_in(server, host):
    assert server.get("/api/tags", headers={"Host": host}).status == 200


def test_any_host_is_let_in_when_bound_to_all(fresh):
    server = fresh(start=False)
    server.environment["OLLAMA_HOST"] = f"0.0.0.0:{server.port}"
    server.start()
    assert server.get("/api/tags", headers={"Host": "evil.example"}).status == 200


@pytest.mark.parametrize(
    "path", ["/api/show", "/api/create", "/api/generate", "/api/pull", "/api/copy", "/api/chat", pytest.param("/api/embed", marks=pytest.mark.real)]
)
def test_empty_body_is_400(server, path):
    answer = server.call("POST", path, b"")
    assert (answer.status, answer.json()) == (400, {"error": "missing request body"})


@pytest.mark.parametrize("path", ["/api/show", "/api/create", "/api/generate"])
def test_broken_json_is_400(server, path):
    answer = server.call("POST", path, b"{no json")
    assert answer.status == 400 and "invalid character" in answer.json()["error"]


@pytest.mark.real
def test_model_of_a_wrong_type_is_400(server):
    answer = server.post("/api/show", {"model": 3})
    assert answer.status == 400 and "cannot unmarshal number" in answer.json()["error"]


def test_nothing_loaded_is_an_empty_list(fresh):
    assert fresh().get("/api/ps").json() == {"models": []}


def test_no_models_is_an_empty_list(fresh):
    assert fresh().get("/api/tags").json() == {"models": []}


def test_cloud_can_be_switched_off(server):
    assert server.get("/api/status").json()["cloud"]["disabled"] is True


def test_no_authentication(server):
    assert server.get("/api/tags", headers={"Authorization": "Bearer nonsense"}).status == 200


@pytest.mark.parametrize("path", ["/api/nothing", "/api/tags", "/api/show"])
def test_a_refused_body_leaves_the_connection_usable(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        for _time in range(2):
            connection.request("POST", path, b'{"model": "nobody"}')
            response = connection.getresponse()
            assert response.status >= 400 and response.read()
        connection.request("GET", "/api/version")
        assert json.loads(connection.getresponse().read())["version"]
