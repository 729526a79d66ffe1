# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import struct
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._plan import encode as plan_encode
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import ggml as plan_ggml
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import header as plan_header
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import sources as plan_sources

KEYS = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 2,
    "qwen3.embedding_length": 256,
    "qwen3.rope.freq_base": 1e6,
    "qwen3.use": True,
    "per.layer": [8, 8],
    "tokenizer.ggml.tokens": [f"token{index}" for index in range(5000)],
    "tokenizer.ggml.scores": [float(index) for index in range(5000)],
}
TENSORS = [
    {"name": "token_embd.weight", "type": "q4_k", "shape": [256, 5000]},
    {"name": "blk.0.odd.bias", "type": "f32", "shape": [7]},
    {"name": "blk.0.attn_q.weight", "type": "q8_0", "shape": [96, 5]},
    {"name": "blk.0.odd.weight", "type": "bf16", "shape": [3, 11, 2]},
    {"name": "output_norm.weight", "type": "f32", "shape": [256]},
]
HEADER = plan_encode.encode(KEYS, TENSORS)


def whole(header, tensors=None):
    tensors = TENSORS if tensors is None else tensors
    size = sum(plan_ggml.aligned(plan_ggml.type_bytes(one["type"], one["shape"]), 32) for one in tensors)
    return len(header) + size


def place(path, header=HEADER, size=None):
    with open(path, "wb") as handle:
        handle.write(header)
        handle.truncate(whole(header) if size is None else size)
    return str(path)


# --- files ---


def test_a_file_gives_keys_shapes_and_sizes(tmp_path):
    read = plan_sources.read_file(place(tmp_path / "m.gguf"))
    assert read["keys"]["general.architecture"] == "qwen3" and read["keys"]["qwen3.use"] is True
    assert read["keys"]["per.layer"] == [8, 8]
    assert read["keys"]["tokenizer.ggml.tokens"] == {"array": "str", "length": 5000}
    assert read["keys"]["tokenizer.ggml.scores"] == {"array": "f32", "length": 5000}
    assert [(one["name"], one["type"], one["shape"]) for one in read["tensors"]] == [(one["name"], one["type"], one["shape"]) for one in TENSORS]
    assert read["tensors"][0]["bytes"] == 256 * 5000 // 256 * 144
    assert (read["version"], read["file_bytes"], read["header_bytes"]) == (3, whole(HEADER), len(HEADER))


@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_tensors_begin_at_the_alignment_that_the_file_declares(tmp_path, alignment):
    header = plan_encode.encode({**KEYS, "general.alignment": alignment}, TENSORS, alignment)
    read = plan_sources.read_file(place(tmp_path / "m.gguf", header, 1 << 24))
    expected, offsets = 0, []
    for one in TENSORS:
        offsets.append(expected)
        expected += -(-plan_ggml.type_bytes(one["type"], one["shape"]) // alignment) * alignment
    assert [one["offset"] for one in read["tensors"]] == offsets
    assert read["header_bytes"] == len(header) and len(header) % alignment == 0
    with pytest.raises(plan_ggml.GgufError, match="its tensors need"):
        plan_sources.read_file(place(tmp_path / "cut.gguf", header, len(header) + expected - alignment - 1))


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [("f32", [7], 28), ("bf16", [3, 11, 2], 132), ("q8_0", [96, 5], 510), ("q4_k", [256, 3], 432), ("mxfp4", [32, 3], 51), ("i8", [1, 1, 1, 5], 5)],
)
def test_bytes_of_a_tensor(kind, shape, size):
    assert plan_ggml.type_bytes(kind, shape) == size


def test_another_reader_agrees(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = place(tmp_path / "m.gguf")
    theirs = {one.name: ([int(size) for size in one.shape], int(one.n_bytes), int(one.data_offset)) for one in gguf.GGUFReader(path).tensors}
    ours = plan_sources.read_file(path)
    assert theirs == {one["name"]: (one["shape"], one["bytes"], ours["header_bytes"] + one["offset"]) for one in ours["tensors"]}


def test_the_table_of_types_is_that_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    assert {int(kind): (kind.name.lower(), *size) for kind, size in gguf.GGML_QUANT_SIZES.items()} == plan_ggml.TYPES


def test_a_header_file_reads_as_the_file_it_stands_for(tmp_path):
    first = plan_sources.read_file(place(tmp_path / "m.gguf"))
    plan_encode.write_header_file(str(tmp_path / "h.gguf"), first)
    second = plan_sources.read_file(str(tmp_path / "h.gguf"))
    assert {**first, "source": ""} == {**second, "source": ""}
    assert os.stat(tmp_path / "h.gguf").st_blocks * 512 < 1 << 20


def test_given_keys_make_a_header_file_too(tmp_path):
    given_keys = {key: value for key, value in KEYS.items() if not key.startswith("tokenizer")}
    header = plan_given.from_metadata({**given_keys, "tensors": TENSORS})
    plan_encode.write_header_file(str(tmp_path / "h.gguf"), header)
    read = plan_sources.read_file(str(tmp_path / "h.gguf"))
    assert read["keys"]["tokenizer.ggml.model"] == "none" and read["keys"]["qwen3.vocab_size"] == 5000
    assert read["tensors"] == header["tensors"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"PK\3\4" + data[4:], "is not a GGUF: it begins with"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1; versions 2 and 3"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "claims 1,152,921,504,606,846,976 tensors"),
        (lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:], "keys; no model has more"),
        (lambda data: data[:24] + struct.pack("<Q", 1 << 60) + data[32:], "claims 1,152,921,504,606,846,976 more bytes"),
        (lambda data: data[:1000], "more than its header can hold"),
        (lambda data: data[:-100], "ends at byte"),
        (lambda data: data[:3], "ends at byte 3"),
        (lambda data: b"", "ends at byte 0"),
        (lambda data: data.replace(b"qwen3.embedding_length", b"qwen3.block_countXXXXX"), None),
        (lambda data: data.replace(b"output_norm.weight" + struct.pack("<I", 1), b"output_norm.weight" + struct.pack("<I", 9)), "with 9 dimensions"),
        (lambda data: data.replace(struct.pack("<QQ", 256, 5000), struct.pack("<QQ", 256, 0)), "impossible shape"),
        (lambda data: data.replace(struct.pack("<QQ", 256, 5000), struct.pack("<QQ", 1 << 40, 1 << 40)), "impossible shape"),
        (lambda data: data.replace(struct.pack("<QQ", 256, 5000), struct.pack("<QQ", 255, 5000)), "cannot be of type q4_k"),
        (lambda data: data.replace(struct.pack("<QQI", 256, 5000, 12), struct.pack("<QQI", 256, 5000, 99)), "unknown type 99"),
        (lambda data: data.replace(struct.pack("<QQIQ", 256, 5000, 12, 0), struct.pack("<QQIq", 256, 5000, 12, -32)), "puts the tensor"),
    ],
)
def test_a_damaged_file_is_told_apart(tmp_path, change, says):
    path = tmp_path / "m.gguf"
    path.write_bytes(change(HEADER))
    with pytest.raises(plan_ggml.GgufError) as told:
        plan_sources.read_file(str(path))
    assert says is None or says in str(told.value)


def test_a_file_that_is_cut_in_its_weights_is_told(tmp_path):
    with pytest.raises(plan_ggml.GgufError, match="its tensors need"):
        plan_sources.read_file(place(tmp_path / "m.gguf", size=len(HEADER) + 100))


def test_a_doubled_key_or_tensor_is_refused(tmp_path):
    doubled = plan_encode.encode(KEYS, [TENSORS[-1], TENSORS[-1]])
    with pytest.raises(plan_ggml.GgufError, match="'output_norm.weight' twice"):
        plan_sources.read_file(place(tmp_path / "m.gguf", doubled))
    two_keys = plan_encode.encode({"aa": 1, "ab": 2}, TENSORS).replace(b"ab", b"aa")
    with pytest.raises(plan_ggml.GgufError, match="the key 'aa' twice"):
        plan_sources.read_file(place(tmp_path / "m.gguf", two_keys))


def test_no_file_and_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (("absent", "cannot be read"), ("pipe", "not a plain file"), (".", "not a plain file")):
        with pytest.raises(plan_ggml.GgufError, match=says):
            plan_sources.read_file(str(tmp_path / path))


@examples(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_headers_end_in_a_header_or_an_error(tmp_path_factory, data):
    small = plan_encode.encode({key: KEYS[key] for key in list(KEYS)[:6]}, TENSORS)
    mutated = bytearray(small)
    for _index in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 9))
        piece = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.integers(0, (1 << 64) - 1).map(lambda number: struct.pack("<Q", number))))
        mutated[at : at + len(piece)] = piece
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    place(path, bytes(mutated[: data.draw(st.integers(0, len(mutated)))]), None if data.draw(st.booleans()) else 1 << 34)
    try:
        plan_sources.read_file(str(path))
    except plan_ggml.GgufError as error:
        assert len(str(error)) < 700


@examples(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_after_the_magic_end_in_a_header_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    place(path, b"GGUF\3\0\0\0" + data, 1 << 34)
    with contextlib.suppress(plan_ggml.GgufError):
        plan_sources.read_file(str(path))


def claimed(kind, count):
    """A header whose only key is an array of so many values."""
    return struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(("kind", "count"), [(8, 1 << 21), (8, (1 << 21) + 1), (8, 1 << 60), (12, 1 << 22), (0, 1 << 26), (12, 1 << 61)])
def test_a_header_of_nothing_but_claims_is_bounded_in_time(tmp_path, kind, count):
    started = time.monotonic()
    with pytest.raises(plan_ggml.GgufError):
        plan_sources.read_file(place(tmp_path / "m.gguf", claimed(kind, count), 1 << 40))
    assert time.monotonic() - started < 10


def test_a_header_of_nothing_but_claims_is_bounded_in_memory(tmp_path):
    path = place(tmp_path / "m.gguf", claimed(12, (1 << 23) - 100), 1 << 40)
    tracemalloc.start()
    with pytest.raises(plan_ggml.GgufError):
        plan_sources.read_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * plan_header.MAX_HEADER


# --- the web ---


class Web(http.server.BaseHTTPRequestHandler):
    """A file server with Range; ``routes`` gives {path: bytes | (status, headers, body)}, ``sent`` counts body bytes."""

    routes: dict = {}
    asked: list = []
    sent = 0

    def do_GET(self):
        Web.asked.append((self.path, self.headers.get("Range")))
        answer = self.routes.get(self.path)
        if answer is None:
            self.reply(404, {}, b"")
        elif isinstance(answer, tuple):
            self.reply(*answer)
        else:
            path, ranged = answer if isinstance(answer, list) else [answer, True]
            size = os.path.getsize(path)
            first, last = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "bytes=0-0").groups()
            with open(path, "rb") as handle:
                if not ranged:
                    self.reply(200, {"Content-Length": str(size)}, handle.read(1000))
                    return
                handle.seek(int(first))
                body = handle.read(int(last) - int(first) + 1)
            self.reply(206, {"Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{size}"}, body)

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        Web.sent += len(body)
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def web():
    Web.routes, Web.asked, Web.sent = {}, [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def large(tmp_path):
    """A file of 9 GB apparent size whose header is about 6 MiB, as Qwen3-14B's."""
    keys = {**KEYS, "tokenizer.ggml.tokens": ["token" * 7] * 140000}
    tensors = [*TENSORS, {"name": "blk.0.ffn_up.weight", "type": "q8_0", "shape": [8192, 1024 * 1024]}]
    header = plan_encode.encode(keys, tensors)
    return place(tmp_path / "large.gguf", header, whole(header, tensors)), len(header)


def test_a_url_costs_a_few_ranged_reads(tmp_path, web):
    path, length = large(tmp_path)
    Web.routes["/m.gguf"] = path
    started = time.process_time()  # of this process, which is the server too: the clock on the wall tells how busy the machine is
    read = plan_sources.read_url(f"{web}/m.gguf")
    assert time.process_time() - started < 2
    assert 5 * 2**20 < length < Web.sent <= 8 * 2**20
    assert read["bytes_read"] == Web.sent and read["requests"] == len(Web.asked) <= 6
    assert read["file_bytes"] == os.path.getsize(path) > 9e9
    assert Web.asked[0][1] == "bytes=0-65535"
    assert {**read, "source": ""} == {**plan_sources.read_file(path), "source": ""}


def test_a_redirect_is_followed_once(tmp_path, web):
    Web.routes.update({"/old": (307, {"Location": "/m.gguf"}, b""), "/m.gguf": place(tmp_path / "m.gguf")})
    assert plan_sources.read_url(f"{web}/old")["keys"]["qwen3.block_count"] == 2
    assert [path for path, _range in Web.asked].count("/old") == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((404, {}, b""), "there is nothing of that name"),
        ((403, {}, b""), "it refuses access"),
        ((500, {}, b""), "HTTP 500"),
        ((400, {}, b'{"error": "no such revision"}'), r"HTTP 400 \(no such revision\); try again"),
        ((302, {"Location": "ftp://h/x"}, b""), "which is not followed"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "HTTP 302"),
        ((302, {"Location": "/m"}, b""), "HTTP 302"),
        ((206, {}, b"GGUF"), "another part of the file"),
        ((206, {"Content-Range": "bytes 7-10/99"}, b"GGUF"), "another part of the file"),
        ((206, {"Content-Range": "bytes 0-65535/99999999"}, b""), "in the middle of its header"),
    ],
)
def test_what_a_server_may_answer(web, answer, says):
    Web.routes["/m"] = answer
    with pytest.raises(plan_ggml.GgufError, match=says):
        plan_sources.read_url(f"{web}/m")


def test_a_server_without_range_costs_nothing(tmp_path, web):
    Web.routes["/m"] = [large(tmp_path)[0], False]
    with pytest.raises(plan_ggml.GgufError, match="ignored the request for a part"):
        plan_sources.read_url(f"{web}/m")
    assert Web.sent <= 1000 and len(Web.asked) == 1


def test_nobody_there():
    with pytest.raises(plan_ggml.GgufError, match="cannot be reached"):
        plan_sources.read_url("http://127.0.0.1:9/m")
    with pytest.raises(plan_ggml.GgufError, match="no HTTP"):
        plan_sources.read_url("file:///etc/passwd")


def test_a_slow_server_is_given_up(web, monkeypatch):
    def trickle(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-65535/99999999")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _index in range(200):
                handler.wfile.write(b"G")
                handler.wfile.flush()
                time.sleep(0.02)

    monkeypatch.setattr(Web, "do_GET", trickle)
    started = time.monotonic()
    with pytest.raises(plan_ggml.GgufError, match="too slow"):
        plan_sources.read_url(f"{web}/m", deadline_s=0.3)
    assert time.monotonic() - started < 2


def test_a_password_in_the_url_is_not_shown(web):
    with pytest.raises(plan_ggml.GgufError) as told:
        plan_sources.read_url(web.replace("http://", "http://me:hunter2@") + "/m?token=secret")
    assert "hunter2" not in str(told.value) and "secret" not in str(told.value)


# --- a registry ---


def manifest(path, **changes):
    digest = "sha256:" + "ab" * 32
    layer = {"mediaType": plan_sources.MODEL_LAYER, "digest": digest, "size": os.path.getsize(path), **changes}
    return digest, json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.license", "digest": digest, "size": 3}, layer]}).encode()


def test_a_model_by_name(tmp_path, web):
    path, _length = large(tmp_path)
    digest, body = manifest(path)
    Web.routes.update({"/v2/library/qwen3/manifests/14b": (200, {}, body), f"/v2/library/qwen3/blobs/{digest}": path})
    read = plan_sources.read_registry(f"{web}/library/qwen3:14b")
    assert read["file_bytes"] == os.path.getsize(path) and read["digest"] == digest
    assert Web.sent <= 8 * 2**20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>", "its manifest is not one of a model"),
        (b"[]", "its manifest is not one of a model"),
        (b'{"layers": [{"mediaType": "x", "digest": "y", "size": 3}]}', "has no GGUF layer"),
        (b"x" * (2 << 20), "has more than 1,048,576 bytes"),
        (json.dumps({"layers": [{"mediaType": plan_sources.MODEL_LAYER, "digest": "sha256:../../x", "size": 3}]}).encode(), "has no GGUF layer"),
        (json.dumps({"layers": [{"mediaType": plan_sources.MODEL_LAYER, "digest": "sha256:" + "ab" * 32, "size": -3}]}).encode(), "has no GGUF layer"),
    ],
)
def test_what_a_registry_may_answer(web, body, says):
    Web.routes["/v2/library/m/manifests/latest"] = (200, {}, body)
    with pytest.raises(plan_ggml.GgufError, match=says):
        plan_sources.read_registry(f"{web}/library/m")


def test_a_registry_whose_blob_has_another_size(tmp_path, web):
    path = place(tmp_path / "m.gguf")
    digest, body = manifest(path, size=123456789)
    Web.routes.update({"/v2/library/m/manifests/latest": (200, {}, body), f"/v2/library/m/blobs/{digest}": path})
    with pytest.raises(plan_ggml.GgufError, match="where 123,456,789 were announced"):
        plan_sources.read_registry(f"{web}/library/m")


def test_names_that_are_none():
    for name in ("", "a b", "host:5000/model", "x:cloud"):
        with pytest.raises(plan_ggml.GgufError):
            plan_sources.read_registry(name)


# --- given ---


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "tensors is missing"),
        ({"tensors": [{"name": "x"}]}, "is no tensor"),
        ({"tensors": [{"name": "x", "type": "fp8", "shape": [32]}]}, "Tensor type 'fp8' is not known"),
        ({"tensors": [{"name": "x", "type": "q8_0", "shape": [-32]}]}, "impossible shape"),
        ({"tensors": TENSORS, "file_bytes": "many"}, "no number of bytes"),
    ],
)
def test_given_metadata_that_is_wrong(metadata, says):
    with pytest.raises(plan_ggml.GgufError, match=says):
        plan_given.from_metadata(metadata)
