# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pulls from a registry on loopback, without TLS (insecure), as the lab's and a LAN's are."""

from __future__ import annotations

import hashlib
import json

import pytest

pytestmark = pytest.mark.both


def pull(server, model: str, **fields):
    """Pull and return the answer."""
    return server.post("/api/pull", {"model": model, "insecure": True, **fields})


def test_a_pull(fresh, registry, name, gguf):
    server, size = fresh(), gguf["tiny"].stat().st_size
    entry = registry.publish(name, gguf["tiny"])
    registry.rules({"prefix": f"/v2/library/{name}/blobs/{entry['weights']}", "method": "GET", "bytes_per_s": size * 2})
    answer = pull(server, entry["name"])
    said = [line["status"] for line in answer.lines()]
    assert answer.status == 200 and said[0] == "pulling manifest" and said[-1] == "success"
    assert "verifying sha256 digest" in said and "writing manifest" in said
    short = entry["weights"][7:19]
    lines = [line for line in answer.lines() if line["status"] == f"pulling {short}"]
    assert lines and all((line["digest"], line["total"]) == (entry["weights"], size) for line in lines)
    assert [line.get("completed", 0) for line in lines] == sorted(line.get("completed", 0) for line in lines)


def test_the_digest_is_the_registrys_manifest(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    pull(server, entry["name"])
    assert server.digest(entry["name"]) == entry["digest"]
    body = (registry.root / "registry" / "manifests" / "library" / name / "latest").read_bytes()
    assert server.manifest(name, host=registry.host).read_bytes() == body


def test_a_second_pull_transfers_only_the_manifest(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    pull(server, entry["name"])
    registry.requests()
    assert pull(server, entry["name"]).lines()[-1] == {"status": "success"}
    assert [(one["method"], "manifests" in one["path"]) for one in registry.requests()] == [("GET", True)]


def test_a_blob_that_is_there_is_trusted_by_its_name(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"], template=name)
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    server.blob(digest).write_bytes(b"something else")
    assert pull(server, entry["name"]).lines()[-1] == {"status": "success"}
    assert not [one for one in registry.requests() if digest in one["path"]]
    assert server.blob(digest).read_bytes() == b"something else"


def test_weights_that_are_there_are_not_fetched(fresh, registry, name, gguf):
    server = fresh()
    entry = registry.publish(name, gguf["plain"])
    server.upload(gguf["plain"])
    assert pull(server, entry["name"]).lines()[-1] == {"status": "success"}
    assert not [one for one in registry.requests() if entry["weights"] in one["path"]]


def test_a_changed_model_is_pulled_anew_and_the_old_layers_go(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"], template=f"old {name}")
    pull(server, entry["name"])
    newer = registry.publish(name, gguf["tiny"], template=f"new {name}")
    answer = pull(server, entry["name"])
    assert "removing unused layers" in [line["status"] for line in answer.lines()]
    assert server.digest(entry["name"]) == newer["digest"] != entry["digest"]
    assert not server.blob("sha256:" + hashlib.sha256(f"old {name}".encode()).hexdigest()).exists()


def test_a_model_that_the_registry_does_not_have(server, registry, name):
    answer = pull(server, f"{registry.host}/library/{name}")
    assert answer.status == 200 and answer.lines()[0] == {"status": "pulling manifest"}
    assert answer.error() == "pull model manifest: file does not exist"


def test_the_same_without_a_stream(server, registry, name):
    answer = pull(server, f"{registry.host}/library/{name}", stream=False)
    assert (answer.status, answer.error()) == (500, "pull model manifest: file does not exist")


def test_an_error_of_the_registry(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    registry.rules({"prefix": "/v2/", "status": 503})
    answer = pull(server, entry["name"])
    assert answer.error().startswith("pull model manifest: 503: lab fault: 503")
    assert not server.digest(entry["name"])


def test_a_blob_without_location_header(server, registry, name, gguf):
    """A plain docker registry answers without it, and cannot be pulled from."""
    entry = registry.publish(name, gguf["tiny"], template=name)
    registry.rules({"prefix": f"/v2/library/{name}/blobs/", "no_location": True})
    assert pull(server, entry["name"]).error() == "http: no Location header in response"


def test_a_blob_with_other_bytes_is_refused_and_removed(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"], template=f"good {name}")
    digest = "sha256:" + hashlib.sha256(f"good {name}".encode()).hexdigest()
    registry.blob(digest).write_bytes(f"evil {name}".encode())
    assert "digest mismatch" in pull(server, entry["name"]).error()
    assert not server.blob(digest).exists() and not server.digest(entry["name"])


def test_a_cut_download_goes_on_where_it_stopped(fresh, registry, name, gguf):
    server = fresh()
    entry = registry.publish(name, gguf["tiny"])
    size = gguf["tiny"].stat().st_size
    registry.rules({"prefix": f"/v2/library/{name}/blobs/{entry['weights']}", "method": "GET", "cut_after": size // 2, "times": 2})
    assert pull(server, entry["name"]).lines()[-1] == {"status": "success"}
    ranges = [one["range"] for one in registry.requests() if entry["weights"] in one["path"] and one["range"]]
    assert len(ranges) > 1 and ranges[-1] != ranges[0]
    assert server.digest(entry["name"]) == entry["digest"]
    assert not [path for path in (server.models / "blobs").iterdir() if "partial" in path.name]


def test_without_insecure_it_is_https(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    answer = server.post("/api/pull", {"model": entry["name"]})
    assert "https://" in answer.error() and not registry.requests()


def test_a_scheme_in_the_name_is_dropped(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    answer = server.post("/api/pull", {"model": "http://" + entry["name"]})
    assert "https://" in answer.error() and not registry.requests()


def test_a_host_without_namespace_is_no_name(server, registry, name):
    answer = pull(server, f"{registry.host}/{name}")
    assert (answer.status, answer.error()) == (400, "invalid model name")


def test_a_copy_of_a_pulled_model_keeps_its_digest(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    pull(server, entry["name"])
    server.post("/api/copy", {"source": entry["name"], "destination": name})
    server.call("DELETE", "/api/delete", {"model": entry["name"]})
    assert server.digest(name) == entry["digest"]
    assert server.show(name)["details"]["parent_model"] == ""


def test_create_from_a_missing_base_does_not_use_insecure(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    answer = server.post("/api/create", {"model": f"{name}2", "from": entry["name"], "insecure": True})
    assert "pull model manifest" in answer.error() and not registry.requests()


def test_create_from_a_pulled_base(server, registry, name, gguf):
    entry = registry.publish(name, gguf["tiny"])
    pull(server, entry["name"])
    server.create(f"{name}2", **{"from": entry["name"], "parameters": {"num_ctx": 2048}})
    shown = server.show(f"{name}2")
    assert shown["details"]["parent_model"] == entry["name"]
    layers = json.loads(server.manifest(f"{name}2").read_text())["layers"]
    assert entry["weights"] in [layer["digest"] for layer in layers]


@pytest.mark.parametrize("fields", [{}, {"model": ""}])
def test_a_pull_of_nothing(server, fields):
    assert server.post("/api/pull", {"stream": False, **fields}).status == 400
