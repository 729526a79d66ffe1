# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/api/create: determinism, inheritance, the absence of validation, errors."""

from __future__ import annotations

import hashlib
import json

import pytest

pytestmark = pytest.mark.both

FULL = {
    "from": "base", "parameters": {"num_ctx": 4096, "stop": ["a", "b<"], "temperature": 0.7, "top_k": 20},
    "system": "Be brief.",
    "template": "{{ .System }}|{{ .Prompt }}", "license": ["L1", "L2"], "messages": [{"role": "user", "content": "hi"}],
}  # fmt: skip


def test_status_lines_of_a_create(server, name):
    lines = server.create(name, **FULL).lines()
    said = [line["status"] for line in lines]
    assert said[-2:] == ["writing manifest", "success"]
    assert all(text.startswith(("using existing layer sha256:", "creating new layer sha256:")) for text in said[:-2])


def test_a_repeat_gives_the_same_digest(server, name):
    server.create(name, **FULL)
    first = server.digest(name)
    server.create(name, **FULL)
    assert first and server.digest(name) == first


def test_the_order_of_parameters_does_not_matter(server, name):
    server.create(name, **FULL)
    first = server.digest(name)
    server.create(name, **{**FULL, "parameters": dict(reversed(list(FULL["parameters"].items())))})
    assert server.digest(name) == first


def test_the_same_under_another_name_has_the_same_digest(server, name):
    server.create(name, **FULL)
    server.create(f"{name}2", **FULL)
    assert server.digest(name) == server.digest(f"{name}2")


def test_the_order_of_a_list_matters(server, name):
    server.create(name, **FULL)
    first = server.digest(name)
    server.create(name, **{**FULL, "parameters": {**FULL["parameters"], "stop": ["b<", "a"]}})
    assert server.digest(name) != first


def test_the_same_weights_under_another_base_give_another_digest(server, name):
    server.post("/api/copy", {"source": "base", "destination": f"{name}-base"})
    server.create(name, **FULL)
    first = server.digest(name)
    server.create(name, **{**FULL, "from": f"{name}-base"})
    assert server.digest(name) != first
    assert server.show(name)["details"]["parent_model"] == f"{name}-base:latest"


@pytest.mark.real
def test_parameters_are_stored_sorted_and_compact(server, name):
    server.create(name, **{**FULL, "from": "plain"})
    manifest = json.loads(server.manifest(name).read_text())
    layer = next(one for one in manifest["layers"] if one["mediaType"].endswith("image.params"))
    text = server.blob(layer["digest"]).read_text()
    assert text == '{"num_ctx":4096,"stop":["a","b\\u003c"],"temperature":0.7,"top_k":20}\n'


def test_layout_of_a_manifest(server, name):
    server.create(name, **FULL)
    raw = server.manifest(name).read_bytes()
    manifest = json.loads(raw)
    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers"] and manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert set(kinds) == {"model", "template", "system", "license", "params", "messages"}
    for layer in [manifest["config"], *manifest["layers"]]:
        body = server.blob(layer["digest"]).read_bytes()
        assert layer["digest"] == "sha256:" + hashlib.sha256(body).hexdigest() and layer["size"] == len(body)
    assert server.digest(name) == hashlib.sha256(raw).hexdigest()


def test_layout_of_a_config(server, name):
    server.create(name, **FULL)
    manifest = json.loads(server.manifest(name).read_text())
    config = json.loads(server.blob(manifest["config"]["digest"]).read_text())
    wanted = {
        "model_format": "gguf", "model_family": "qwen3", "model_families": ["qwen3"], "file_type": "F16",
        "architecture": "amd64", "os": "linux",
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted


def test_nothing_is_validated(server, name):
    server.create(name, **{"from": "plain", "parameters": {"cache_type": "q8_0", "log_level": "debug", "num_ctx": 2048}})
    found = server.parameters(name)
    assert found["cache_type"] == ['"q8_0"'] and found["log_level"] == ['"debug"']


@pytest.mark.parametrize(("parameters", "text"), [
    ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
    ({"temperature": "0.5"}, 'option "temperature" must be of type float32'),
    ({"stop": "x"}, 'option "stop" must be of type array'),
    ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ({"use_mmap": "yes"}, 'option "use_mmap" must be of type boolean'),
])  # fmt: skip
def test_a_wrong_type_is_stored_and_breaks_every_request(server, name, parameters, text):
    server.create(name, **{"from": "plain", "parameters": parameters})
    answer = server.post("/api/generate", {"model": name, "prompt": "x"})
    assert answer.status == 500 and text in answer.error()


def test_a_null_parameter_is_stored(server, name):
    server.create(name, **{"from": "plain", "parameters": {"num_ctx": None}})
    assert server.parameters(name)["num_ctx"] == ["<nil>"]


def test_the_old_field_modelfile_is_ignored(server, name):
    answer = server.post("/api/create", {"model": name, "modelfile": "FROM base"})
    assert (answer.status, answer.json()) == (400, {"error": "neither 'from' or 'files' was specified"})


def test_unknown_fields_are_ignored(server, name):
    server.create(name, **{"from": "base", "nonsense": {"x": 1}})


def test_parameters_merge_by_key_and_cannot_be_removed(server, name):
    server.create(name, **{"from": "plain", "parameters": {"num_ctx": 2048, "stop": ["a", "b"], "top_k": 5}})
    server.create(f"{name}2", **{"from": name, "parameters": {"num_ctx": 1024, "stop": ["c"]}})
    assert server.parameters(f"{name}2") == {"num_ctx": ["1024"], "stop": ['"c"'], "top_k": ["5"]}


def test_from_itself_keeps_what_was_there(server, name):
    server.create(name, **{"from": "plain", "parameters": {"top_k": 5}, "license": "L"})
    server.create(name, **{"from": name, "parameters": {"num_ctx": 2048}, "license": "L"})
    assert server.parameters(name) == {"num_ctx": ["2048"], "top_k": ["5"]}
    assert server.show(name)["license"] == "L\nL"


@pytest.mark.parametrize("empty", ["", None])
def test_system_and_template_are_inherited_when_empty(server, name, empty):
    server.create(name, **{"from": "plain", "system": "S", "template": "T {{ .Prompt }}"})
    server.create(f"{name}2", **{"from": name, "system": empty, "template": empty})
    shown = server.show(f"{name}2")
    assert (shown["system"], shown["template"]) == ("S", "T {{ .Prompt }}")


def test_system_and_template_are_replaced(server, name):
    server.create(name, **{"from": "plain", "system": "S", "template": "T {{ .Prompt }}"})
    server.create(f"{name}2", **{"from": name, "system": "S2", "template": "T2 {{ .Prompt }}"})
    shown = server.show(f"{name}2")
    assert (shown["system"], shown["template"]) == ("S2", "T2 {{ .Prompt }}")


@pytest.mark.parametrize("given", ["L2", ["L2"]])
def test_licences_are_appended(server, name, given):
    server.create(name, **{"from": "plain", "license": "L1"})
    server.create(f"{name}2", **{"from": name, "license": given})
    assert server.show(f"{name}2")["license"] == "L1\nL2"


def test_messages_are_replaced_as_a_whole(server, name):
    server.create(name, **{"from": "plain", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    server.create(f"{name}2", **{"from": name, "messages": [{"role": "user", "content": "c"}]})
    server.create(f"{name}3", **{"from": name})
    assert server.show(f"{name}2")["messages"] == [{"role": "user", "content": "c"}]
    assert len(server.show(f"{name}3")["messages"]) == 2


def test_renderer_parser_and_requires_are_inherited(server, name):
    server.create(name, **{"from": "plain", "renderer": "qwen3-coder", "parser": "qwen3-coder", "requires": "0.1.0"})
    server.create(f"{name}2", **{"from": name})
    shown = server.show(f"{name}2")
    assert shown["requires"] == "0.1.0"
    assert "RENDERER qwen3-coder" in shown["modelfile"] and "PARSER qwen3-coder" in shown["modelfile"]


def test_requires_is_not_enforced(server, name):
    server.create(name, **{"from": "plain", "requires": "99.0.0"})
    assert server.post("/api/generate", {"model": name}).status == 200
    server.unload_all()


@pytest.mark.real
@pytest.mark.parametrize("template", ["{{ .Prompt", "{{ if .System }}x", "{{ end }}"])
def test_a_broken_template_is_refused(server, name, template):
    answer = server.post("/api/create", {"model": name, "from": "base", "template": template, "stream": False})
    assert answer.status == 400 and answer.error().startswith("template error: template: :1: ")
    assert not server.digest(name)


def test_an_error_after_the_first_line_comes_with_status_200(server, name):
    answer = server.post("/api/create", {"model": name, "from": f"127.0.0.1:1/library/{name}"})
    assert answer.status == 200 and answer.lines()[0] == {"status": "pulling manifest"}
    assert "pull model manifest" in answer.error() and not server.digest(name)


def test_the_same_error_without_a_stream_has_a_status(server, name):
    answer = server.post("/api/create", {"model": name, "from": f"127.0.0.1:1/library/{name}", "stream": False})
    assert answer.status == 500 and "pull model manifest" in answer.error()


def test_without_a_stream_the_answer_is_the_last_status(server, name):
    answer = server.post("/api/create", {"model": name, "from": "base", "stream": False})
    assert (answer.status, answer.json()) == (200, {"status": "success"})


# -- from files


def test_from_a_file_has_no_parent(server, name, gguf):
    server.create(name, files={"m.gguf": server.upload(gguf["plain"])})
    assert server.show(name)["details"]["parent_model"] == ""


@pytest.mark.parametrize("kind", ["plain", "unstamped", "tiny"])
def test_from_a_file_is_deterministic_and_a_fixpoint(server, name, gguf, kind):
    """The file is rewritten, so its digest is not the layer's; but twice the same, and a copy of the copy is the copy."""
    digest = server.upload(gguf[kind])
    server.create(name, files={"m.gguf": digest})
    first = json.loads(server.manifest(name).read_text())["layers"][0]["digest"]
    server.upload(gguf[kind])
    server.create(f"{name}2", files={"m.gguf": digest})
    server.create(f"{name}3", files={"m.gguf": first})
    again = [json.loads(server.manifest(name + number).read_text())["layers"][0]["digest"] for number in ("2", "3")]
    assert again == [first, first]


def test_status_lines_of_a_file(server, name, gguf):
    said = [line["status"] for line in server.create(name, files={"m.gguf": server.upload(gguf["plain"])}).lines()]
    assert said[0] == "parsing GGUF" and "verifying conversion" in said


def test_an_absolute_file_name_is_refused(server, name, gguf):
    answer = server.post("/api/create", {"model": name, "files": {"/m.gguf": server.upload(gguf["plain"])}})
    assert (answer.status, answer.json()) == (400, {"error": "file path must be relative"})


def test_a_file_without_digest_is_refused(server, name):
    answer = server.post("/api/create", {"model": name, "files": {"m.gguf": ""}})
    assert (answer.status, answer.json()) == (400, {"error": "invalid digest format"})


def test_a_blob_that_is_not_there(server, name):
    answer = server.post("/api/create", {"model": name, "files": {"m.gguf": "sha256:" + "0" * 64}, "stream": False})
    assert answer.status >= 400 and "no such file" in answer.error()


def test_a_file_that_is_no_gguf(server, name, tmp_path):
    (tmp_path / "x").write_bytes(b"hello" * 200)
    answer = server.post("/api/create", {"model": name, "files": {"m.gguf": server.upload(tmp_path / "x")}, "stream": False})
    assert answer.status == 400 and "not in GGUF format" in answer.error()


def test_no_files_at_all(server, name):
    answer = server.post("/api/create", {"model": name, "files": {}, "stream": False})
    assert answer.status == 400


@pytest.mark.real
def test_an_unknown_quantisation(server, name, gguf):
    digest = server.upload(gguf["plain"])
    answer = server.post("/api/create", {"model": name, "files": {"m.gguf": digest}, "quantize": "q9_9", "stream": False})
    assert answer.status >= 400 and "unsupported quantization type Q9_9" in answer.error()


@pytest.mark.real
@pytest.mark.parametrize(("license_", "kind"), [(3, "number"), ({"x": 1}, "object")])
def test_a_licence_of_a_wrong_type(server, name, license_, kind):
    answer = server.post("/api/create", {"model": name, "from": "base", "license": license_, "stream": False})
    assert answer.status == 500 and f"cannot unmarshal {kind}" in answer.error() and not server.digest(name)


@pytest.mark.real
def test_an_unknown_function_in_a_template(server, name):
    answer = server.post("/api/create", {"model": name, "from": "base", "template": "{{ nonsense }}", "stream": False})
    assert (answer.status, answer.error()) == (400, 'template error: template: :1: function "nonsense" not defined')


@pytest.mark.parametrize("path", ["../x.gguf", "a//b.gguf", "./x.gguf"])
def test_a_file_name_that_leads_out(server, name, gguf, path):
    answer = server.post("/api/create", {"model": name, "files": {path: server.upload(gguf["plain"])}})
    assert (answer.status, answer.json()) == (400, {"error": "file path must be relative"})


@pytest.mark.real
def test_quantising_from_a_model(server, name):
    """It works from a model, too, if that is not quantised yet; the type is then the new one."""
    server.create(name, **{"from": "plain", "quantize": "q8_0"})
    assert server.show(name)["details"]["quantization_level"] == "Q8_0"
    answer = server.post("/api/create", {"model": f"{name}2", "from": name, "quantize": "q4_K_M", "stream": False})
    assert answer.status == 500 and "only supported for F16, BF16 and F32" in answer.error()


def test_a_chat_template_in_the_file_is_used(server, name):
    """base has one in its GGUF; a model without stored TEMPLATE shows it."""
    assert "im_start" in server.show("base")["template"]
    assert server.show("plain")["template"] == "{{ .Prompt }}"
