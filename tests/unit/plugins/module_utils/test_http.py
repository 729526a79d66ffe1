# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transport by itself, against servers that do what they are told; its callers test their own words."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils import _http
from ansible_collections.gpufleet.llm.tests.unit.plugins.ollama_server import chunked, free_port, http, scripted


def server(url, **options):
    return _http.Server(url, **{"retries": 0, "timeout_s": 5, **options})


def failure(call):
    with pytest.raises(_http.HttpError) as caught:
        call()
    return caught.value


def answered(asked, method="GET", path="/x", **options):
    return asked.read(asked.send(method, path, **options))


# --- one server ---


def test_a_request_carries_its_json_headers_and_prefix():
    with scripted(http(b"answer")) as (url, asked):
        found = server(f"{url}/sub/")
        assert answered(found, "POST", "/x", body={"a": "ä"}, headers={"Authorization": "Bearer t"}) == b"answer"
    head, _end, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /sub/x HTTP/1.1")
    assert b"Authorization: Bearer t" in head and b"Content-Type: application/json" in head
    assert body == '{"a": "ä"}'.encode()
    assert (found.requests, found.writes) == ([("POST", "/x")], 1)
    assert 0 < found.seconds < 5


def test_a_status_is_the_callers_to_judge():
    with scripted(http(b"why", "404 Not Found")) as (url, _asked):
        asking = server(url)
        response = asking.send("GET", "/x")
        assert (response.status, asking.read(response)) == (404, b"why")


@pytest.mark.parametrize(("repeatable", "sent"), [(None, 1), (True, 2), (False, 1)])
def test_only_what_changes_nothing_is_sent_again(repeatable, sent):
    with scripted(*[None, http(b"")][:sent]) as (url, _asked):
        found = server(url, retries=1, retry_wait_s=0)
        if sent == 1:
            assert failure(lambda: found.send("POST", "/x", repeatable=repeatable)).kind == "cut"
        else:
            answered(found, "POST", "/x", repeatable=repeatable)
    assert len(found.requests) == sent
    assert found.writes == (0 if repeatable else 1)


def test_retries_end():
    with scripted(None, None, None) as (url, _asked):
        found = server(url, retries=2, retry_wait_s=0)
        assert failure(lambda: found.send("GET", "/x")).kind == "cut"
    assert len(found.requests) == 3


def test_a_timeout_is_not_sent_again():
    with scripted(http(b""), hang=0.5) as (url, asked):
        error = failure(lambda: server(url, retries=3).send("GET", "/x", timeout_s=0.2))
        assert error.kind == "timeout" and error.sent
    assert "said nothing for 0.2 s" in str(error)
    assert len(asked) == 1


def test_what_never_left_says_so():
    error = failure(lambda: server(f"http://127.0.0.1:{free_port()}").send("POST", "/x"))
    assert (error.kind, error.sent) == ("refused", False)


def test_an_answer_longer_than_allowed_is_given_up():
    with scripted(http(b"x" * 11), http(b"x" * 10)) as (url, _asked):
        asking = server(url)
        assert failure(lambda: asking.read(asking.send("GET", "/x"), longest=10)).kind == "too_long"
        assert asking.read(asking.send("GET", "/x"), longest=10) == b"x" * 10


def test_lines_come_one_by_one_and_a_cut_is_told():
    with scripted(chunked(b"one\n", b"two"), chunked(b"one\n", whole=False), http(b"one\n", length=9), chunked(b"x" * 50)) as (url, _asked):
        asking = server(url)
        assert list(asking.lines(asking.send("GET", "/x"))) == [b"one\n", b"two"]
        for _cut in range(2):
            assert failure(lambda: list(asking.lines(asking.send("GET", "/x")))).kind == "cut"
        assert failure(lambda: list(asking.lines(asking.send("GET", "/x"), longest=40))).kind == "too_long"


@pytest.mark.parametrize("way", ["read", "lines", "blocks"])
def test_an_answer_read_to_its_end_leaves_the_connection_open(way):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _peer = listener.accept()
        with connection:
            for _request in range(2):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    asking = server(f"http://127.0.0.1:{listener.getsockname()[1]}")
    for _request in range(2):
        answer = getattr(asking, way)(asking.send("GET", "/x"))
        assert (answer if way == "read" else b"".join(answer)) == b"a\nb\n"
    thread.join(5)
    listener.close()
    assert not thread.is_alive()


@pytest.mark.parametrize("way", ["lines", "blocks"])
def test_an_answer_left_before_its_end_costs_the_connection(way):
    with scripted(http(b"a\nb\n" * 50_000), http(b"next")) as (url, asked):
        asking = server(url)
        parts = getattr(asking, way)(asking.send("GET", "/x"))
        next(parts)
        parts.close()
        assert answered(asking) == b"next"
    assert len(asked) == 2


def test_blocks_of_an_answer_that_ends_too_early():
    with scripted(http(b"abc", length=9)) as (url, _asked):
        asking = server(url)
        assert failure(lambda: list(asking.blocks(asking.send("GET", "/x")))).kind == "cut"


def test_another_thread_can_end_a_request():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asking = server(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=30)
        threading.Timer(0.2, asking.abort).start()
        began = time.monotonic()
        assert failure(lambda: asking.send("POST", "/x")).kind == "cut"
        assert time.monotonic() - began < 10


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *kind, *name, *files], check=True, capture_output=True)
    return folder


@pytest.fixture
def over_tls(certificate):
    """The URL of a server with a certificate of its own; it answers every connection once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                plain, _peer = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(http(b"secure"))
            except OSError:
                plain.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    listener.close()


def test_a_certificate_is_trusted_by_its_ca_only(over_tls, certificate):
    assert answered(server(over_tls, ca_file=str(certificate / "crt"))) == b"secure"
    assert failure(lambda: server(over_tls).send("GET", "/x")).kind == "tls"


# --- downloads ---


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def moved(to):
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_a_download_is_whole_and_bounded():
    with scripted(http(b"x" * 10), http(b"x" * 11), http(b"x" * 5, length=9)) as (url, asked):
        assert _http.get(url, 10, {"Accept": "a/b"}) == b"x" * 10
        assert failure(lambda: _http.get(url, 10)).kind == "too_long"
        assert failure(lambda: _http.get(url, 10)).kind == "cut"
    assert b"Accept: a/b" in asked[0] and b"Accept-Encoding: identity" in asked[0]


def test_a_refusal_carries_its_status():
    with scripted(http(b"no", "403 Forbidden")) as (url, _asked):
        error = failure(lambda: _http.get(f"{url}/secret?token=hidden", 10, what=None))
    assert (error.kind, error.status) == ("status", 403)
    assert "hidden" not in str(error)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"errors": [{"code": "MANIFEST_INVALID", "message": "the tag is not a quantization of this model"}]}, "the tag is not a quantization of this model"),
        ({"error": "Repository is gated.\nAsk for access"}, "Repository is gated. Ask for access"),
        ({"error": {"message": "too many"}}, "too many"),
        ({"message": "m" * 500}, "m" * 200),
        (b"<html><body>nginx</body></html>", ""),
        (b"", ""),
        (b"[" * 5000, ""),
        ({"errors": []}, ""),
        ({"error": 5}, ""),
    ],
)
def test_a_refusal_carries_the_servers_own_reason(body, reason):
    with scripted(http(body, "400 Bad Request")) as (url, _asked):
        error = failure(lambda: _http.get(url, 10))
    assert (error.status, error.reason) == (400, reason)
    assert str(error).endswith(f"answers HTTP 400: {reason.rstrip('.')}." if reason else "answers HTTP 400.")


def test_redirects_are_followed_to_http_only():
    with scripted(http(b"there")) as (there, _asked):
        with scripted(moved(f"{there}/x"), moved("ftp://h/x")) as (url, _first):
            assert _http.get(url, 10) == b"there"
            error = failure(lambda: _http.get(url, 10))
    assert error.kind == "redirect" and "not followed" in str(error)


def test_a_redirect_never_leaves_https():
    request = _http.urllib.request.Request("https://a.example/x")
    error = failure(lambda: _http._Redirects().redirect_request(request, None, 302, "", {}, "http://b.example/?t=hidden"))
    assert error.kind == "redirect" and "hidden" not in str(error)


def test_redirects_end():
    with scripted(*[moved(f"/{step}") for step in range(_http.MAX_REDIRECTS + 1)]) as (url, asked):
        assert failure(lambda: _http.get(url, 10)).status == 302
        assert len(asked) == _http.MAX_REDIRECTS + 1


def test_a_download_ends_at_its_deadline():
    with scripted(http(b"x", length=100), hang=1) as (url, _asked):
        began = time.monotonic()
        assert failure(lambda: _http.get(url, 200, deadline_s=0.3)).kind in ("timeout", "cut")
        assert time.monotonic() - began < 2


def test_a_download_from_a_ca_that_nobody_trusts(over_tls):
    error = failure(lambda: _http.get(over_tls, 10))
    assert error.kind == "tls" and "update-ca-certificates" in str(error)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/x", "x", ""])
def test_a_download_is_by_http_only(url):
    assert "no HTTP(S) URL" in str(failure(lambda: _http.get(url, 10)))


def test_nobody_there_is_unreachable():
    assert failure(lambda: _http.get(f"http://127.0.0.1:{free_port()}", 10)).kind == "unreachable"


def test_what_is_shown_of_a_url():
    assert _http.shown("https://me:hunter2@h.example:5/a/b?token=hidden#c") == "https://h.example:5/a/b"
    assert _http.excerpt(b" <p>\n a\xff</p>") == "'<p> a\ufffd</p>'"
    assert _http.excerpt(b" ") == "nothing"
