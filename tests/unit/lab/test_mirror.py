# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's release mirror and registry: what is laid out, how it is served, how it goes wrong."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
SERVICES = REPO / "lab/services"
sys.path.insert(0, str(SERVICES))

import make_mirror  # noqa: E402
import place_blob  # noqa: E402
import serve  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd command")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A mirror laid out from an empty cache, with the committed digests."""
    folder = tmp_path_factory.mktemp("mirror")
    before = os.environ.get("GPUFLEET_CACHE")
    os.environ["GPUFLEET_CACHE"] = str(folder / "cache")
    make_mirror.make(folder / "root", "standin")
    yield folder / "root"
    if before is None:
        del os.environ["GPUFLEET_CACHE"]
    else:
        os.environ["GPUFLEET_CACHE"] = before


@pytest.fixture
def served(root):
    """The mirror on a loopback port; its faults are gone afterwards."""
    mirror = serve.Mirror(str(root))
    listener = serve.listeners(mirror, "127.0.0.1", None, 0, "", "")[0]
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    listener.root = root
    yield listener
    listener.shutdown()
    listener.server_close()
    for name in ("faults.json", "access.log"):
        (root / name).unlink(missing_ok=True)


def ask(listener, method, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", listener.server_address[1], timeout=10)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    try:
        body = response.read()
    except http.client.IncompleteRead as error:
        body = error.partial
    connection.close()
    return response, body


def entries(listener, count=1):
    """The log once it has so many lines: each is written after its answer."""
    log, deadline = listener.root / "access.log", time.monotonic() + 5
    while True:
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_nothing_had_to_be_hashed(root):
    """The digests of the full shapes are committed: 25 GB of zeros are not read on each new machine."""
    mine = pathlib.Path(os.environ["GPUFLEET_CACHE"]) / "mirror" / "digests.json"
    assert not mine.exists(), "shapes.py writes other headers now: `make_mirror.py --record`"


def test_releases_unpack_to_a_command_that_knows_its_version(root, tmp_path):
    facts = json.loads((root / "server.json").read_text())
    assert facts["server"] == "standin" and facts["versions"] == ["0.32.15", "0.32.6"]
    for version in facts["versions"]:
        folder = root / "releases" / f"v{version}"
        digest, name = (folder / "sha256sum.txt").read_text().split()
        archive = folder / name
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == digest and name == "./ollama-linux-amd64.tar.zst"
        with (
            subprocess.Popen(["zstd", "-dc", str(archive)], stdout=subprocess.PIPE) as plain,
            tarfile.open(fileobj=plain.stdout, mode="r|") as tar,
        ):
            members = {}
            for member in tar:
                members[member.name] = (member.mode, member.uid)
                tar.extract(member, tmp_path / version)
        assert members == {"./bin/ollama": (0o755, 0), "./lib/ollama/llama-server": (0o755, 0)}
        said = subprocess.run(
            [str(tmp_path / version / "bin/ollama"), "--version"],
            env={"OLLAMA_HOST": "127.0.0.1:1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert said.endswith(f"client version is {version}\n")


def test_a_second_run_changes_no_file(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != "access.log"}
    make_mirror.make(root, "standin")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_spoilt_release_does_not_spoil_the_cache(root):
    archive = root / "releases" / "v0.32.6" / make_mirror.ASSET
    good = archive.read_bytes()
    archive.write_bytes(b"spoilt")
    make_mirror.make(root, "standin")
    assert archive.read_bytes() == good


def test_models_are_whole_images(root):
    registry = root / "registry"
    names = {f"{path.parent.name}:{path.name}" for path in (registry / "manifests" / "library").glob("*/*")}
    assert names == {"qwen3:14b", "qwen3:14b-q8_0", "qwen3-tiny:latest", "qwen3-tiny:next"}
    for path in (registry / "manifests" / "library").glob("*/*"):
        manifest = json.loads(path.read_text())
        for layer in [manifest["config"], *manifest["layers"]]:
            blob = registry / "blobs" / layer["digest"].replace(":", "-")
            assert blob.stat().st_size == layer["size"]
            if layer["size"] < 10**6:
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"][7:]
        config = json.loads((registry / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_text())
        assert config["model_family"] == "qwen3" and config["file_type"] in ("Q4_K_M", "Q8_0", "F16")


def test_the_large_ones_are_holes(root):
    weights = [path for path in (root / "registry" / "blobs").iterdir() if path.stat().st_size > 10**9]
    assert len(weights) == 2 and all(path.stat().st_blocks * 512 < 50 * 10**6 for path in weights)


def test_a_digest_of_a_hole_is_the_files(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUFLEET_CACHE", str(tmp_path))
    head, size = b"header", 9 * 10**6 + 1
    assert make_mirror.hole_digest(head, size) == hashlib.sha256(head + bytes(size - len(head))).hexdigest()
    assert json.loads((tmp_path / "mirror" / "digests.json").read_text())


def test_a_release_is_served_under_upstreams_path(served):
    response, body = ask(served, "GET", "/ollama/ollama/releases/download/v0.32.15/sha256sum.txt")
    assert response.status == 200 and body.endswith(b"./ollama-linux-amd64.tar.zst\n")
    assert ask(served, "GET", "/ollama/ollama/releases/download/v9.9.9/sha256sum.txt")[0].status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/library/qwen3/manifests/none",
        "/v2/library/../../server.json",
        "/server.json",
        "/ollama/ollama/releases/download/v0.32.15/../../../server.json",
        "/v2/x/y/blobs/sha256:zz",
    ],
)
def test_everything_else_is_404(served, path):
    assert ask(served, "GET", path)[0].status == 404


def tiny(served):
    """Return (path, bytes) of the tiny model's weights."""
    manifest = json.loads(ask(served, "GET", "/v2/library/qwen3-tiny/manifests/latest")[1])
    digest = manifest["layers"][0]["digest"]
    return f"/v2/library/qwen3-tiny/blobs/{digest}", (served.root / "registry" / "blobs" / digest.replace(":", "-")).read_bytes()


def test_a_blob_names_itself_in_location(served):
    path, body = tiny(served)
    response, nothing = ask(served, "HEAD", path)
    assert (response.status, int(response.headers["Content-Length"]), nothing) == (200, len(body), b"")
    response, got = ask(served, "GET", path)
    assert got == body and response.headers["Location"] == path


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-5", slice(-5, None)), ("bytes=5-5", slice(5, 6))],
)
def test_a_part_of_a_blob(served, header, part):
    path, body = tiny(served)
    response, got = ask(served, "GET", path, {"Range": header})
    assert response.status == 206 and got == body[part]
    assert response.headers["Content-Range"].endswith(f"/{len(body)}")


def test_a_part_that_is_not_there(served):
    path, body = tiny(served)
    assert ask(served, "GET", path, {"Range": f"bytes={len(body)}-"})[0].status == 416


def test_a_part_of_a_hole(served):
    manifest = json.loads(ask(served, "GET", "/v2/library/qwen3/manifests/14b")[1])
    weights = manifest["layers"][0]
    last = weights["size"] - 1
    response, body = ask(served, "GET", f"/v2/library/qwen3/blobs/{weights['digest']}", {"Range": f"bytes={last - 999}-{last}"})
    assert response.status == 206 and body == bytes(1000)


def test_the_log_counts(served):
    path, _body = tiny(served)
    ask(served, "GET", path, {"Range": "bytes=0-99"})
    last = entries(served, 2)[-1]
    assert (last["method"], last["path"], last["status"], last["bytes"], last["fault"]) == ("GET", path, 206, 100, False)


def rules(served, *given):
    (served.root / "faults.json").write_text(json.dumps({"rules": list(given)}))


def test_a_rule_sets_the_status_for_a_prefix(served):
    rules(served, {"prefix": "/v2/", "status": 503})
    assert ask(served, "GET", "/v2/library/qwen3/manifests/14b")[0].status == 503
    assert ask(served, "GET", "/ollama/ollama/releases/download/v0.32.6/sha256sum.txt")[0].status == 200
    assert [entry["fault"] for entry in entries(served, 2)] == [True, False]


def test_a_rule_cuts(served):
    path, body = tiny(served)
    rules(served, {"prefix": path, "cut_after": 1000})
    assert ask(served, "GET", path)[1] == body[:1000]
    assert entries(served, 2)[-1]["bytes"] == 1000


def test_a_rule_for_so_many_times(served):
    rules(served, {"prefix": "/v2/", "status": 500, "times": 2})
    assert [ask(served, "GET", "/v2/library/qwen3/manifests/14b")[0].status for _call in range(3)] == [500, 500, 200]


def test_a_rule_for_a_method(served):
    path, _body = tiny(served)
    rules(served, {"prefix": "/v2/", "method": "GET", "status": 500})
    assert ask(served, "HEAD", path)[0].status == 200 and ask(served, "GET", path)[0].status == 500


def test_tls(root, tmp_path):
    pem = tmp_path / "mirror.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=github.com",
    ]
    names = ["-addext", "subjectAltName=DNS:github.com,DNS:localhost", "-keyout", str(tmp_path / "key"), "-out", str(pem)]
    subprocess.run(["openssl", *words, *names], check=True, capture_output=True)
    listener = serve.listeners(serve.Mirror(str(root)), "127.0.0.1", 0, None, str(pem), str(tmp_path / "key"))[0]
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        context = ssl.create_default_context(cafile=str(pem))
        connection = http.client.HTTPSConnection("localhost", listener.server_address[1], context=context, timeout=10)
        connection.request("GET", "/ollama/ollama/releases/download/v0.32.6/sha256sum.txt", headers={"Host": "github.com"})
        assert connection.getresponse().status == 200
        connection.close()
        plain = http.client.HTTPConnection("127.0.0.1", listener.server_address[1], timeout=10)
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.request("GET", "/")
            plain.getresponse()
        plain.close()
    finally:
        listener.shutdown()
        listener.server_close()


def test_placed_blobs_are_the_registrys(root, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    first = place_blob.place(str(models), str(root / "place.json"))
    assert len(first["placed"]) == 2 and not first["present"]
    for entry in json.loads((root / "place.json").read_text()):
        placed = models / "blobs" / entry["digest"].replace(":", "-")
        source = root / "registry" / "blobs" / placed.name
        assert placed.stat().st_size == source.stat().st_size and placed.stat().st_blocks * 512 < 50 * 10**6
        with open(placed, "rb") as one, open(source, "rb") as other:
            assert one.read(10**7) == other.read(10**7)
    assert place_blob.place(str(models), str(root / "place.json")) == {"placed": [], "present": first["placed"]}


def test_placing_waits_only_so_long(tmp_path, capsys):
    assert place_blob.main([str(tmp_path / "none"), "x", "--wait", "0.2"]) == 1
    assert "did not come" in capsys.readouterr().err


def test_a_real_server_that_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(make_mirror.MirrorError, match="make real-server"):
        make_mirror.make(tmp_path / "root", "real", str(tmp_path / "empty"))


def test_a_real_server_is_packed_as_it_lies(tmp_path, root):
    for path, body in (
        ("bin/ollama", b"server"),
        ("lib/ollama/llama-server", b"engine"),
        ("lab/ggml-rpc-server", b"not for hosts"),
    ):
        target = tmp_path / "real" / "1.2.3" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
        target.chmod(0o755)
    (tmp_path / "real/1.2.3/lib/ollama/libx.so").symlink_to("libx.so.1")
    facts = make_mirror.make(tmp_path / "root", "auto", str(tmp_path / "real"))
    assert facts["server"] == "real" and facts["versions"] == ["1.2.3"]
    listed = subprocess.run(
        ["tar", "--zstd", "-tf", str(tmp_path / "root/releases/v1.2.3" / make_mirror.ASSET)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(listed.split()) == ["./bin/ollama", "./lib/ollama/libx.so", "./lib/ollama/llama-server"]
