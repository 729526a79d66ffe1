# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import hashlib
import socket
import socketserver
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils import _http
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import names as ollama_names
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import registry as ollama_registry
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import sources as ollama_sources
from ansible_collections.gpufleet.llm.tests.unit.plugins.ollama_server import chunked, free_port, http, scripted, whole_request


@pytest.mark.parametrize(
    ("given_name", "short"),
    [
        ("qwen3", "qwen3:latest"),
        ("qwen3:14b", "qwen3:14b"),
        ("registry.ollama.ai/library/qwen3:14b", "qwen3:14b"),
        ("someone/qwen3", "someone/qwen3:latest"),
        ("lan.example:5000/library/m:t", "lan.example:5000/library/m:t"),
        ("https://lan.example/ns/m", "lan.example/ns/m:latest"),
        ("Qwen3:14B", "Qwen3:14B"),
    ],
)
def test_names(given_name, short):
    assert ollama_names.short_name(given_name) == short


@pytest.mark.parametrize("name", ["", None, 7, "a b", "lan:5000/m", "a:b:c", "/m", "m:", "x:cloud", "x:7b-cloud", "x:local", "é", "a" * 81, "n.s/m/"])
def test_names_that_the_server_refuses(name):
    with pytest.raises(ValueError, match="no model name|keeps for its cloud"):
        ollama_names.parse_name(name)


def test_names_are_the_same_whatever_their_case():
    assert ollama_names.same_name("QWEN3", "qwen3:latest")
    assert not ollama_names.same_name("qwen3:8b", "qwen3:14b")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1", ("http", "127.0.0.1", 11434, "")),
        ("host:80", ("http", "host", 80, "")),
        ("http://host", ("http", "host", 80, "")),
        ("https://host/ollama/", ("https", "host", 443, "/ollama")),
        ("[::1]:11434", ("http", "::1", 11434, "")),
        ("http://[::1]:1", ("http", "::1", 1, "")),
        ("::1", ("http", "::1", 11434, "")),
        ("http+unix:///run/ollama.sock", ("unix", "/run/ollama.sock", 0, "")),
        ("http+unix://%2Frun%2Fo.sock/sub", ("unix", "/run/o.sock", 0, "/sub")),
    ],
)
def test_urls(url, address):
    assert _http.parse_url(url, ollama_client.DEFAULT_PORT) == address


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://u:p@h", "http://h:99999", "http+unix://", "http://[::1"])
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match="wanted"):
        _http.parse_url(url)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_hostile_names_and_urls(text):
    for parse in (ollama_names.parse_name, _http.parse_url):
        with contextlib.suppress(ValueError):
            parse(text)


def client(url, **options):
    return ollama_client.Client(url, **{"retries": 0, "timeout": 5, **options})


def failure(call):
    with pytest.raises(ollama_client.OllamaError) as caught:
        call()
    return caught.value


def test_nothing_listens():
    error = failure(client(f"http://127.0.0.1:{free_port()}").version)
    assert (error.kind, error.down) == ("refused", True)
    assert "connection refused" in str(error)


def test_no_such_socket(tmp_path):
    assert failure(client(f"http+unix://{tmp_path}/none.sock").version).kind == "unreachable"


def test_a_name_that_does_not_resolve():
    assert failure(client("http://nowhere.invalid:1").version).kind == "unreachable"


def test_a_server_that_says_nothing():
    with scripted(http({"version": "1"}), hang=0.6) as (url, _asked):
        error = failure(client(url, timeout=0.3).version)
    assert error.kind == "timeout"
    assert not error.down
    assert "0.3 s" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "not_ollama"),
        (http(b"<html>hello</html>"), "not_ollama"),
        (http({"models": []}), "not_ollama"),
        (http({"version": 5}), "not_ollama"),
        (http([1]), "not_ollama"),
        (http(b"<html>", "404 Not Found"), "not_ollama"),
        (http({"error": "no"}, "404 Not Found"), "not_found"),
        (http({"error": "boom"}, "500 Internal Server Error"), "server"),
        (http({"error": "server busy"}, "503 Service Unavailable"), "busy"),
        (http(b"", "502 Bad Gateway"), "unreachable"),
        (http({"error": "denied"}, "403 Forbidden"), "forbidden"),
        (http({"version": "1"}, length=500), "cut"),
        (None, "cut"),
    ],
)
def test_each_way_to_be_wrong_has_a_kind(answer, kind):
    with scripted(answer) as (url, _asked):
        error = failure(client(url).version)
    assert error.kind == kind
    assert url in str(error)


def test_a_stream_ends_in_an_error_inside_http_200():
    lines = chunked({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"})
    with scripted(lines) as (url, _asked):
        error = failure(lambda: client(url).pull("nothing"))
    assert error.kind == "not_found"
    assert "check the spelling" in str(error)
    assert "nothing" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        chunked({"status": "writing manifest"}),
        chunked({"status": "writing manifest"}, whole=False),
        chunked(b'{"status": "succ', whole=False),
        chunked(),
    ],
)
def test_a_stream_that_just_ends_is_a_failure(answer):
    with scripted(answer) as (url, _asked):
        error = failure(lambda: client(url).create({"model": "x", "from": "y"}))
    assert error.kind == "cut"


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_stream_of_something_else(line):
    with scripted(chunked(line)) as (url, _asked):
        assert failure(lambda: client(url).create({"model": "x"})).kind == "not_ollama"


def test_disk_full_says_what_to_do():
    with scripted(chunked({"error": "write /x/blobs: no space left on device"})) as (url, _asked):
        assert "free space there" in str(failure(lambda: client(url).create({"model": "x"})))


def test_the_servers_words_end_without_its_line_break():
    with scripted(chunked({"error": "pull model manifest: 500: broken\n"})) as (url, _asked):
        assert "500: broken. Check the model's name" in str(failure(lambda: client(url).create({"model": "x"})))


def test_bytes_of_a_pull_count_what_was_added():
    lines = chunked(
        {"status": "pulling manifest"},
        {"status": "pulling aaa", "digest": "sha256:a", "total": 100, "completed": 40},
        {"status": "pulling aaa", "digest": "sha256:a", "total": 100, "completed": 100},
        {"status": "pulling bbb", "digest": "sha256:b", "total": 7, "completed": 7},
        {"status": "success"},
    )
    with scripted(lines) as (url, _asked):
        assert client(url).pull("x") == {"bytes": 60, "statuses": ["pulling manifest", "pulling aaa", "pulling bbb", "success"]}


def test_a_chat_gives_its_lines_and_needs_its_end():
    lines = ({"message": {"content": "a"}}, {"message": {"content": "b"}, "done": True})
    with scripted(chunked(*lines), chunked(lines[0])) as (url, _asked):
        talk = client(url)
        assert [line["message"]["content"] for line in talk.chat("m", [])] == ["a", "b"]
        assert failure(lambda: list(talk.chat("m", []))).kind == "cut"


def test_reads_are_tried_again_and_writes_are_not():
    with scripted(None, http({"version": "1"}), None) as (url, asked):
        talk = client(url, retries=1, retry_wait=0)
        assert talk.version() == "1"
        assert failure(lambda: talk.delete("x")).kind == "cut"
    assert len(asked) == 1
    assert [method for method, _path in talk.server.requests] == ["GET", "GET", "DELETE"]
    assert talk.server.writes == 1


def test_a_write_that_was_refused_before_it_was_sent_is_tried_again():
    port = free_port()
    talk = client(f"http://127.0.0.1:{port}", retries=20, retry_wait=0.1)

    def late():
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as listener:
            connection, _peer = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(http({}))

    thread = threading.Thread(target=late)
    thread.start()
    talk.delete("x")
    thread.join()
    assert talk.server.writes == 1


class Kept(socketserver.StreamRequestHandler):
    """Answers two requests on a connection, then drops it without a word."""

    def handle(self):
        for _number in range(2):
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"version":"1"}')


def test_an_idle_connection_that_the_server_closed_is_no_failure():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Kept) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        talk = client(f"http://127.0.0.1:{server.server_address[1]}")
        for _number in range(5):
            assert talk.version() == "1"
        talk.close()
        server.shutdown()


def test_over_ipv6_and_a_socket_file(tmp_path):
    families = []
    if socket.has_ipv6:
        with open("/proc/net/if_inet6", encoding="ascii") as source:
            families = [socket.AF_INET6] if "00000000000000000000000000000001" in source.read() else []
    for family in [*families, socket.AF_UNIX]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind(("::1", 0) if family == socket.AF_INET6 else str(tmp_path / "o.sock"))
        listener.listen(1)
        url = f"http://[::1]:{listener.getsockname()[1]}" if family == socket.AF_INET6 else f"http+unix://{tmp_path}/o.sock"

        def serve(listener=listener):
            connection, _peer = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(http({"version": "1"}))

        thread = threading.Thread(target=serve)
        thread.start()
        assert client(url).version() == "1"
        thread.join()
        listener.close()


def test_a_blob_goes_up_once(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"12345")
    digest = ollama_sources.file_digest(str(path))
    assert digest == "sha256:5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    with scripted(http(b"", "404 Not Found"), http(b"", "201 Created")) as (url, asked):
        assert client(url).push_blob(str(path), digest) == 5
    assert asked[1].endswith(b"12345")
    with scripted(http(b"")) as (url, asked):
        assert client(url).push_blob(str(path), digest) == 0
    with scripted(http(b"", "404 Not Found"), http({"error": "digest mismatch, expected x"}, "400 Bad Request")) as (
        url,
        asked,
    ):
        assert "run again" in str(failure(lambda: client(url).push_blob(str(path), digest)))


def test_what_a_server_says_before_it_hangs_up_on_an_upload(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 30_000_000)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for answer in (http(b"", "404 Not Found"), http({"error": "write /blobs/x: no space left on device"}, "500 Internal Server Error")):
            connection, _address = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    error = failure(lambda: client(url).push_blob(str(path), "sha256:1"))
    thread.join()
    listener.close()
    assert "no space left on device (HTTP 500). The disk of the model store is full" in str(error)


def test_what_follows_an_upload_is_not_lost_on_a_connection_that_the_server_drops(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"12345")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve():
        first, _peer = listener.accept()
        with first:
            whole_request(first)
            first.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            whole_request(first)
            first.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            first.recv(1)  # the next request, or that the client has hung up
        second, _peer = listener.accept()
        with second:
            whole_request(second)
            second.sendall(chunked({"status": "success"}))

    thread = threading.Thread(target=serve)
    thread.start()
    talk = client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    talk.push_blob(str(path), "sha256:1")
    assert talk.create({"model": "x", "files": {}}) == ["success"]
    thread.join(10)
    listener.close()


def test_an_embedding_model_is_loaded_by_an_embedding():
    refusal = http({"error": '"bert" does not support generate'}, "400 Bad Request")
    with scripted(refusal, http({"embeddings": []})) as (url, asked):
        client(url).generate_load("bert", "5m")
    assert b"POST /api/embed" in asked[1]
    assert b'"keep_alive": "5m"' in asked[1]


def test_a_line_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(_http.Server.lines, "__defaults__", (1000,))
    with scripted(chunked(b"x" * 3000)) as (url, _asked):
        assert failure(lambda: client(url).create({"model": "x"})).kind == "not_ollama"


def test_the_digest_in_the_registry():
    body = b'{"layers": []}'
    with scripted(http(body)) as (url, asked):
        host = url[len("http://") :]
        assert ollama_registry.digest(f"{host}/ns/m:t", insecure=True) == hashlib.sha256(body).hexdigest()
    assert asked[0].startswith(b"GET /v2/ns/m/manifests/t ")
    with scripted(http({"errors": [{"message": "unknown tag"}]}, "400 Bad Request")) as (url, _asked):
        told = failure(lambda: ollama_registry.digest(f"{url[len('http://') :]}/ns/m:t", insecure=True))
    assert "HTTP 400 (unknown tag) for" in str(told)
    for answer, kind in ((http(b"", "404 Not Found"), "not_found"), (http(b"{}"), "not_ollama"), (None, "unreachable")):
        with scripted(answer) as (url, _asked):
            host = url[len("http://") :]
            assert failure(lambda host=host: ollama_registry.digest(f"{host}/ns/m:t", insecure=True)).kind == kind
