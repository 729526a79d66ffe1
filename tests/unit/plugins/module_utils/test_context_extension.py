# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A longer context: another header before the same weights, and a place in the store."""

from __future__ import annotations

import hashlib
import json
import os
import pwd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import extension as declared_extension
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import context_extension as extension
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import encode, ggml, sources
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given

YARN2 = declared_extension.Extension("yarn", 2.0)
KEYS = {
    "general.architecture": "qwen3",
    "qwen3.context_length": 40960,
    "qwen3.block_count": 3,
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(3000)],
    "general.name": "Tiny",
}
TENSORS = [{"name": "a", "type": "q8_0", "shape": [64, 7]}, {"name": "b", "type": "f32", "shape": [33]}]
SIZES = [64 * 7 // 32 * 34, 33 * 4]


def weights():
    """The tensors' data, each padded to 32 bytes, with a tail that no tensor owns."""
    data = b"".join(bytes((7 * index + 3) % 251 for index in range(size)).ljust(-(-size // 32) * 32, b"\0") for size in SIZES)
    return data + b"tail"


def model(path, keys=None, data=None):
    path.write_bytes(encode.encode({**KEYS, **(keys or {})}, TENSORS) + (weights() if data is None else data))
    return path


def test_the_header_asks_for_the_longer_context_and_keeps_all_else(tmp_path):
    digest, size = extension.rewrite(str(model(tmp_path / "m.gguf")), str(tmp_path), YARN2)
    made = tmp_path / digest.replace(":", "-")
    before, after = sources.read_file(str(tmp_path / "m.gguf")), sources.read_file(str(made))
    assert after["keys"] == {
        **before["keys"],
        "qwen3.context_length": 65536,
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": 2.0,
        "qwen3.rope.scaling.original_context_length": 32768,
    }
    assert after["tensors"] == before["tensors"]
    assert made.read_bytes()[after["header_bytes"] :] == weights()
    assert size == made.stat().st_size
    assert digest == "sha256:" + hashlib.sha256(made.read_bytes()).hexdigest()


def test_the_strings_of_the_vocabulary_keep_their_bytes(tmp_path):
    raw = sources.read_file(str(model(tmp_path / "m.gguf")))["raw"]
    new = extension.replaced(raw, {"qwen3.context_length": 65536}, "m")
    tokens = raw[raw.index(b"tokenizer.ggml.tokens") : raw.index(b"general.name")]
    assert len(tokens) > 3000 and tokens in new


def test_the_same_file_gives_the_same_digest_and_leaves_nothing_else(tmp_path):
    path = str(model(tmp_path / "m.gguf"))
    first, second = extension.rewrite(path, str(tmp_path), YARN2), extension.rewrite(path, str(tmp_path), YARN2)
    assert first == second
    assert sorted(os.listdir(tmp_path)) == sorted(["m.gguf", first[0].replace(":", "-")])


def test_holes_stay_holes(tmp_path):
    path = tmp_path / "m.gguf"
    tensors = [{"name": "a", "type": "f32", "shape": [1 << 20, 64]}]
    head = encode.encode(KEYS, tensors)
    with open(path, "wb") as handle:
        handle.write(head + b"begin")
        handle.seek(100 << 20)
        handle.write(b"middle")
        handle.truncate(len(head) + (1 << 28))
    digest, size = extension.rewrite(str(path), str(tmp_path), YARN2)
    made = tmp_path / digest.replace(":", "-")
    assert made.stat().st_blocks * 512 < 8 << 20 < size
    hasher = hashlib.sha256()
    with open(made, "rb") as handle:
        while block := handle.read(1 << 24):
            hasher.update(block)
    assert digest == "sha256:" + hasher.hexdigest()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40000)), min_size=1, max_size=6),
    st.dictionaries(st.text(min_size=1, max_size=30).map("x.{}".format), st.one_of(st.integers(0, 99), st.text(max_size=200), st.booleans()), max_size=8),
)
def test_any_layout_of_data_and_holes_gives_the_bytes_behind_another_header(tmp_path_factory, parts, more):
    folder = tmp_path_factory.mktemp("any")
    length = sum(size for _hole, size in parts)
    head = encode.encode({**KEYS, **more}, [{"name": "a", "type": "i8", "shape": [length]}])
    path = folder / "m.gguf"
    with open(path, "wb") as handle:
        handle.write(head)
        for hole, size in parts:
            if hole:
                handle.seek(size, os.SEEK_CUR)
            else:
                handle.write(os.urandom(size))
        handle.truncate(len(head) + length)
    digest, size = extension.rewrite(str(path), str(folder), YARN2)
    made = (folder / digest.replace(":", "-")).read_bytes()
    assert made.endswith(path.read_bytes()[len(head) :]) and len(made) == size
    assert sources.read_file(str(folder / digest.replace(":", "-")))["keys"]["qwen3.context_length"] == 65536


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"general.architecture": "gemma3", "gemma3.context_length": 32768}, "of the architecture gemma3; a context can be extended"),
        ({"qwen3.rope.scaling.type": "yarn"}, "already carries rope scaling"),
        ({"qwen3.context_length": 262144}, "trained context of 262144"),
    ],
)
def test_models_for_which_it_is_wrong_are_refused_and_nothing_is_written(tmp_path, keys, told):
    path = model(tmp_path / "m.gguf", keys)
    with pytest.raises(declared_extension.ExtensionError, match=told):
        extension.rewrite(str(path), str(tmp_path), YARN2)
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_scaling_of_none_is_replaced(tmp_path):
    header = sources.read_file(str(model(tmp_path / "m.gguf", {"qwen3.rope.scaling.type": "none"})))
    assert extension.extended_header(header, YARN2)["keys"]["qwen3.rope.scaling.type"] == "yarn"


def test_no_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    path = model(tmp_path / "m.gguf")
    monkeypatch.setattr(extension, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(declared_extension.ExtensionError, match="MiB free; .* are needed"):
        extension.rewrite(str(path), str(tmp_path), YARN2)
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_file_that_ends_early_leaves_nothing(tmp_path):
    path = model(tmp_path / "m.gguf", data=weights()[:40])
    with pytest.raises(ggml.GgufError, match="cut short"):
        extension.rewrite(str(path), str(tmp_path), YARN2)
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_the_extended_header_is_what_the_file_begins_with(tmp_path):
    header = sources.read_file(str(model(tmp_path / "m.gguf")))
    digest, size = extension.rewrite(str(tmp_path / "m.gguf"), str(tmp_path), YARN2)
    told, read = extension.extended_header(header, YARN2), sources.read_file(str(tmp_path / digest.replace(":", "-")))
    for key in ("keys", "tensors", "header_bytes", "file_bytes", "raw"):
        assert told[key] == read[key], key
    assert told["file_bytes"] == size


def test_given_keys_are_extended_without_bytes():
    header = plan_given.from_metadata({**KEYS, "tensors": TENSORS})
    assert extension.extended_header(header, YARN2)["keys"]["qwen3.context_length"] == 65536


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("yarn", "a dictionary of method and factor was wanted"),
        ({"method": "yarn"}, "a dictionary of method and factor was wanted"),
        ({"method": "linear", "factor": 2}, "has to be one of yarn"),
        ({"method": "yarn", "factor": 1}, "above 1 and up to 4"),
        ({"method": "yarn", "factor": 4.5}, "above 1 and up to 4"),
        ({"method": "yarn", "factor": "nan"}, "above 1 and up to 4"),
        ({"method": "yarn", "factor": None}, "above 1 and up to 4"),
    ],
)
def test_what_cannot_be_declared(entry, told):
    with pytest.raises(declared_extension.ExtensionError, match=told):
        declared_extension.declared(entry)


def test_what_can_be_declared():
    assert declared_extension.declared(None) is None
    assert declared_extension.declared({"method": "yarn", "factor": "2"}) == YARN2
    assert (YARN2.text, declared_extension.Extension("yarn", 2.5).text) == ("yarn2", "yarn2_5")


# --- the store ---


def store(folder):
    blobs, manifests = folder / "blobs", folder / "manifests/registry.ollama.ai/library/qwen3"
    blobs.mkdir(parents=True)
    manifests.mkdir(parents=True)
    path = model(folder / "m.gguf")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blobs / f"sha256-{digest}")
    layers = [
        {"mediaType": extension.MODEL_LAYER, "digest": f"sha256:{digest}", "size": 3},
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64, "size": 5},
    ]
    (manifests / "14b").write_text(json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:" + "2" * 64, "size": 7}, "layers": layers}))
    return manifests


def test_the_model_is_placed_beside_its_base_with_its_other_layers(tmp_path):
    manifests = store(tmp_path)
    before = (manifests / "14b").read_text()
    told = extension.place(str(tmp_path), "qwen3:14b", "qwen3:14b.src-0123456789ab-yarn2", YARN2)
    made = json.loads((manifests / "14b.src-0123456789ab-yarn2").read_text())
    assert made["layers"][0] == {"mediaType": extension.MODEL_LAYER, "digest": told["digest"], "size": told["bytes"]}
    assert made["layers"][1]["size"] == 5 and made["config"]["size"] == 7
    assert (tmp_path / "blobs" / told["digest"].replace(":", "-")).stat().st_size == told["bytes"]
    assert (manifests / "14b").read_text() == before


@pytest.mark.parametrize(
    ("text", "told"), [("{", "no manifest of qwen3:14b that can be read"), ('{"layers": []}', "has 0 files of weights"), ('{"layers": [1]}', "no manifest")]
)
def test_a_manifest_that_cannot_be_used(tmp_path, text, told):
    (store(tmp_path) / "14b").write_text(text)
    with pytest.raises(declared_extension.ExtensionError, match=told):
        extension.place(str(tmp_path), "qwen3:14b", "qwen3:x", YARN2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a store to another user")
def test_root_works_as_the_owner_of_the_store(tmp_path):
    manifests = store(tmp_path)
    nobody = pwd.getpwnam("nobody")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o11)
    told = extension.place(str(tmp_path), "qwen3:14b", "qwen3:long", YARN2)
    assert (tmp_path / "blobs" / told["digest"].replace(":", "-")).stat().st_uid == nobody.pw_uid
    assert (manifests / "long").stat().st_uid == nobody.pw_uid
    (manifests / "14b").unlink()
    (manifests / "14b").symlink_to("/etc/shadow")
    with pytest.raises(declared_extension.ExtensionError, match="Permission denied"):
        extension.place(str(tmp_path), "qwen3:14b", "qwen3:long", YARN2)
