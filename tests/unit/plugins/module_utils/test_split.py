# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of a model is never planned as the whole: split files, several layers, headers without weights."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import threading

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import cards as plan_cards
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import encode as plan_encode
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import ggml as plan_ggml
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import make as plan_make
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import shape as plan_shape
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import sources as plan_sources

CARD = plan_cards.given([{"name": "NVIDIA GeForce RTX 4090", "total_mib": 24564}])
LAYERS = 5
KEYS = {
    "general.architecture": "qwen3",
    "qwen3.block_count": LAYERS,
    "qwen3.context_length": 40960,
    "qwen3.embedding_length": 1280,
    "qwen3.feed_forward_length": 3584,
    "qwen3.attention.head_count": 10,
    "qwen3.attention.head_count_kv": 2,
    "qwen3.attention.key_length": 128,
    "qwen3.attention.value_length": 128,
    "tokenizer.ggml.tokens": [f"token{index}" for index in range(3000)],
}


def tensors_of(layers=LAYERS):
    made = [{"name": "token_embd.weight", "type": "q8_0", "shape": [1280, 3000]}]
    for layer in range(layers):
        made += [
            {"name": f"blk.{layer}.attn_norm.weight", "type": "f32", "shape": [1280]},
            {"name": f"blk.{layer}.attn_q.weight", "type": "q8_0", "shape": [1280, 1280]},
            {"name": f"blk.{layer}.ffn_up.weight", "type": "q4_k", "shape": [1280, 3584]},
        ]
    return [*made, {"name": "output_norm.weight", "type": "f32", "shape": [1280]}]


TENSORS = tensors_of()


def size_of(tensors):
    return sum(plan_ggml.type_bytes(one["type"], one["shape"]) for one in tensors)


def split_keys(number, count, total=None):
    total = len(TENSORS) if total is None else total
    return {"split.no": number, "split.count": count, "split.tensors.count": total}


def write(path, keys, tensors):
    header = plan_encode.encode(keys, tensors)
    with open(path, "wb") as handle:
        handle.write(header)
        handle.truncate(len(header) + sum(plan_ggml.aligned(plan_ggml.type_bytes(one["type"], one["shape"]), 32) for one in tensors))
    return str(path)


def split(folder, cuts, name="model"):
    """The model in len(cuts) + 1 files, as llama-gguf-split names them; their paths in order."""
    bounds, count = [0, *cuts, len(TENSORS)], len(cuts) + 1
    return [
        write(
            folder / f"{name}-{number + 1:05}-of-{count:05}.gguf",
            {**(KEYS if number == 0 else {}), **split_keys(number, count)},
            TENSORS[bounds[number] : bounds[number + 1]],
        )
        for number in range(count)
    ]


def plan(header, **changes):
    model = {"name": "m", "header": header, "num_ctx": 8192, "num_parallel": 1, "kv_cache_type": "f16", "flash_attention": True}
    return plan_make.make([{**model, "num_batch": 512, **changes}], CARD)


@pytest.fixture
def whole(tmp_path):
    return plan(plan_sources.read_file(write(tmp_path / "whole.gguf", KEYS, TENSORS)))["models"][0]


# --- files ---


@pytest.mark.parametrize("named", [0, 1, 2])
def test_the_parts_beside_a_file_are_found_and_summed(tmp_path, whole, named):
    header = plan_sources.read_file(split(tmp_path, [4, 9])[named])
    assert header["keys"]["general.architecture"] == "qwen3"
    assert [one["name"] for one in header["tensors"]] == [one["name"] for one in TENSORS]
    made = plan(header)
    assert made["fits"] is True and made["models"][0]["weights_mib"] == whole["weights_mib"]
    assert abs(header["file_bytes"] - whole["file_bytes"]) < 4096


def test_a_first_part_without_tensors_has_those_of_the_others(tmp_path, whole):
    made = plan(plan_sources.read_file(split(tmp_path, [0, 9])[0]))
    assert made["fits"] is True and made["models"][0]["weights_mib"] == whole["weights_mib"]


def test_parts_in_any_order_of_the_alphabet_of_a_folder_with_others(tmp_path, whole):
    split(tmp_path, [4, 9], "other")
    made = plan(plan_sources.read_file(split(tmp_path, [2, 7, 11])[0]))
    assert made["models"][0]["weights_mib"] == whole["weights_mib"]


def undecided(made, *words):
    assert made["fits"] is None and made["models"][0]["fits"] is None
    (warning,) = made["warnings"]
    assert warning.startswith(("Model m cannot be planned, because only a part of it was read: ", "Model m is planned by the server's dry run only"))
    for word in words:
        assert word in warning
    return True


def test_a_part_that_is_missing_leaves_the_plan_undecided(tmp_path):
    paths = split(tmp_path, [4, 9])
    os.unlink(paths[1])
    assert undecided(plan(plan_sources.read_file(paths[0])), "part 2 of its 3", "cannot be read")


def test_a_part_that_was_renamed_leaves_the_plan_undecided(tmp_path):
    paths = split(tmp_path, [4, 9])
    os.rename(paths[0], tmp_path / "renamed.gguf")
    assert undecided(plan(plan_sources.read_file(str(tmp_path / "renamed.gguf"))), "part 1 of 3", "-00001-of-00003.gguf")


def test_a_part_of_another_model_is_refused(tmp_path):
    paths = split(tmp_path, [4, 9])
    write(paths[1], split_keys(1, 4), TENSORS[4:9])
    assert undecided(plan(plan_sources.read_file(paths[0])), "part 2 of its 3", "split.no=1, split.count=4")


def test_parts_with_fewer_tensors_than_they_promise(tmp_path):
    paths = split(tmp_path, [4, 9])
    write(paths[1], split_keys(1, 3), TENSORS[5:9])
    assert undecided(plan(plan_sources.read_file(paths[0])), f"{len(TENSORS) - 1} tensors", f"{len(TENSORS)} were announced")


@pytest.mark.parametrize("count", [0, "many", -1, 1.5, True, [2], 1 << 20])
def test_absurd_counts_end_in_an_error_or_no_decision(tmp_path, count):
    path = write(tmp_path / "m-00001-of-00002.gguf", {**KEYS, **split_keys(0, 2), "split.count": count}, TENSORS)
    with contextlib.suppress(plan_ggml.GgufError):
        assert plan(plan_sources.read_file(path))["fits"] is (True if count == 0 else None)


def test_a_part_too_large_by_itself_does_not_fit_whatever_the_others_hold(tmp_path):
    paths = split(tmp_path, [4, 9])
    os.unlink(paths[2])
    assert plan(plan_sources.read_file(paths[0]), num_ctx=4_000_000, kv_cache_type="f32")["fits"] is not True


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_plan_of_parts_is_at_least_the_sum_of_all_tensors_or_not_true(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("split")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(TENSORS)), min_size=1, max_size=5)))
    paths = split(folder, cuts)
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=2)):
        with contextlib.suppress(OSError):
            os.unlink(path)
    there = [path for path in paths if os.path.exists(path)]
    named = data.draw(st.sampled_from(there or paths))
    try:
        made = plan(plan_sources.read_file(named))
    except (plan_ggml.GgufError, plan_shape.VramError):
        event("refused")
        return
    event(f"fits: {made['fits']}")
    # The input embedding stays on the host; the output is a copy of it.
    assert made["fits"] is not True or made["models"][0]["weights_mib"] >= size_of(TENSORS) // 2**20
    assert (made["fits"] is True) == (len(there) == len(paths))


# --- the web and a registry ---


@pytest.fixture
def web(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(self.path)
            if path in routes:
                body = routes[path]
                self.send_response(200)
            else:
                try:
                    with open(tmp_path / path.lstrip("/").replace(":", "_"), "rb") as handle:
                        first, last = (int(one) for one in self.headers["Range"][len("bytes=") :].split("-"))
                        size = os.fstat(handle.fileno()).st_size
                        handle.seek(first)
                        body = handle.read(last - first + 1)
                except OSError:
                    self.send_error(404)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{size}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    routes, asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", routes, asked
    server.shutdown()
    server.server_close()


def test_the_parts_beside_a_url_are_found_and_summed(tmp_path, web, whole):
    url, _routes, asked = web
    split(tmp_path, [4, 9])
    header = plan_sources.read_url(f"{url}/model-00001-of-00003.gguf?download=true")
    made = plan(header)
    assert made["fits"] is True and made["models"][0]["weights_mib"] == whole["weights_mib"]
    assert set(asked) == {f"/model-0000{number}-of-00003.gguf?download=true" for number in (1, 2, 3)}
    assert header["requests"] == len(asked)


def test_a_part_that_the_server_does_not_have(tmp_path, web):
    url, _routes, _asked = web
    os.unlink(split(tmp_path, [4, 9])[2])
    assert undecided(plan(plan_sources.read_url(f"{url}/model-00001-of-00003.gguf")), "part 3 of its 3", "HTTP 404")


def manifest(*layers):
    media = "application/vnd.ollama.image."
    return json.dumps({"layers": [{"mediaType": media + kind, "digest": digest, "size": size} for kind, digest, size in layers]}).encode()


def test_a_registrys_model_of_several_layers_is_their_sum(tmp_path, web, whole):
    url, routes, _asked = web
    paths, layers = split(tmp_path, [4, 9]), []
    (tmp_path / "v2/library/m/blobs").mkdir(parents=True)
    for number, path in enumerate(paths):
        digest = f"sha256:{number:064x}"
        os.rename(path, tmp_path / "v2/library/m/blobs" / digest.replace(":", "_"))
        layers.append(("model", digest, os.path.getsize(tmp_path / "v2/library/m/blobs" / digest.replace(":", "_"))))
    random.Random(7).shuffle(layers)
    routes["/v2/library/m/manifests/latest"] = manifest(*layers)
    made = plan(plan_sources.read_registry(f"{url}/library/m"))
    assert made["fits"] is True and made["models"][0]["weights_mib"] == whole["weights_mib"]
    routes["/v2/library/m/manifests/latest"] = manifest(*layers[:2])
    with contextlib.suppress(plan_shape.VramError):
        undecided(plan(plan_sources.read_registry(f"{url}/library/m")), "of 3")


# --- headers without weights, and those of a server ---


def test_a_vocabulary_file_is_no_model(tmp_path):
    with pytest.raises(plan_shape.VramError, match="has no tensors.*vocabulary"):
        plan(plan_sources.read_file(write(tmp_path / "vocab.gguf", KEYS, [])))


def test_layers_without_tensors_leave_the_plan_undecided(tmp_path):
    header = plan_sources.read_file(write(tmp_path / "half.gguf", KEYS, tensors_of(3)))
    assert undecided(plan(header), "layers 3 to 4 have no tensors")


def test_the_files_of_a_server_are_parts_and_projectors(tmp_path, whole):
    paths = split(tmp_path, [4, 9])
    blobs = [str(tmp_path / f"sha256-{number}") for number in range(3)]
    for path, blob in zip([paths[2], paths[0], paths[1]], blobs):
        os.rename(path, blob)
    projector = write(tmp_path / "sha256-p", {"general.architecture": "clip"}, [{"name": "v.x", "type": "f32", "shape": [1280, 1024]}])
    adapter = write(tmp_path / "sha256-a", {"general.architecture": "qwen3"}, [{"name": "x", "type": "f32", "shape": [1280, 2048]}])
    made = plan(plan_sources.read_blobs([*blobs, projector], [adapter]))
    assert made["fits"] is True and made["models"][0]["weights_mib"] == whole["weights_mib"] + 5 + 10
    assert undecided(plan(plan_sources.read_blobs([blobs[1], blobs[2]])), "only a part of it was read: 2 of 3 parts are there")


def test_a_model_in_one_file_is_read_as_it_is(tmp_path):
    path = write(tmp_path / "whole.gguf", {**KEYS, **split_keys(0, 1)}, TENSORS)
    for header in (plan_sources.read_file(path), plan_sources.read_blobs([path])):
        assert header["raw"] and "parts" not in header and "incomplete" not in header


def test_a_projector_of_unknown_size_leaves_the_plan_undecided():
    keys = {key: value for key, value in KEYS.items() if not key.startswith("tokenizer")}
    answer = {"model_info": keys, "tensors": TENSORS, "projector_info": {"general.architecture": "clip"}}
    assert undecided(plan(plan_given.from_show(answer)), "has a projector")


def test_no_dry_run_is_asked_about_a_part(tmp_path):
    paths = split(tmp_path, [4, 9])
    os.unlink(paths[2])

    def dry_run(*asked):
        raise AssertionError(f"asked about {asked}")

    header = plan_sources.read_file(paths[0])
    model = {"name": "m", "header": header, "num_ctx": 8192, "num_parallel": 1, "kv_cache_type": "f16", "flash_attention": True, "num_batch": 512}
    assert plan_make.make([model], CARD, dry_run=dry_run)["fits"] is None


def test_the_dry_run_gets_every_part_under_the_names_that_llama_cpp_looks_for(tmp_path):
    header = plan_sources.read_file(split(tmp_path, [4, 9])[0])
    folder = tmp_path / "dry"
    folder.mkdir()
    path = plan_encode.write_header_files(str(folder), header)
    assert sorted(os.listdir(folder)) == [f"header-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    again = plan_sources.read_file(path)
    assert [one["name"] for one in again["tensors"]] == [one["name"] for one in TENSORS] and not again.get("incomplete")


@pytest.mark.parametrize(
    ("changes", "fits"), [({}, True), (split_keys(0, 6, 40), None), ({"split.count": 2}, None), (split_keys(0, 3), True), (split_keys(0, 1), True)]
)
def test_the_answer_of_a_server_may_be_of_one_part(changes, fits):
    keys = {key: value for key, value in KEYS.items() if not key.startswith("tokenizer")}
    made = plan(plan_given.from_show({"model_info": {**keys, **changes}, "tensors": TENSORS}))
    assert made["fits"] is fits
    if fits is None:
        assert "part" in made["warnings"][0]
