# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""HTTP for everything in this collection: one server that is asked often, and single downloads.

``Server`` keeps one connection to a server of ours (Ollama, Open WebUI, a gateway; also over a socket file), asks no
proxy and follows no redirect. ``opened()`` and ``get()`` read what lies elsewhere (a registry, a package mirror): by
the proxies of the environment, with redirects that never leave HTTPS.

Every failure is an ``HttpError``: one sentence of what was found, which the caller completes with what to do.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

BLOCK = 1024 * 1024
#: A longer answer, or line of an answer, comes from no server that this collection asks (a license may be long).
LONGEST_ANSWER = 256 * 1024 * 1024
LONGEST_LINE = 16 * 1024 * 1024
MAX_REDIRECTS = 5


class HttpError(Exception):
    """A request without an answer, or a download that the server refused.

    `kind`: refused, unreachable (name, route, socket file), timeout, tls, cut (the answer ends too early), not_http,
    too_long, status (only of downloads: HTTP 400 and above), redirect (one that is not followed).
    `sent`: whether the request, or a part of it, may have reached a server. `status`: HTTP's, where there was one.
    `reason`: the server's own words beside a status, in one line; "" where it has none.
    """

    def __init__(self, kind: str, message: str, sent: bool = True, status: int | None = None, reason: str = ""):
        super().__init__(message)
        self.kind, self.sent, self.status, self.reason = kind, sent, status, reason


# --- addresses -----------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a server is: scheme http, https or unix; host and port, or the socket's path; the prefix of each path."""

    scheme: str
    host: str
    port: int
    prefix: str


def parse_url(url: str, default_port: int = 80) -> Address:
    """The parts of a server's URL; ValueError says what is wrong with it.

    `host`, `host:port`, `[::1]:11434`, `http://…`, `https://…`, and `http+unix://` with a socket's path:
    percent-encoded where a host stands (`http+unix://%2Frun%2Follama.sock/prefix`) or plain
    (`http+unix:///run/ollama.sock`). `default_port` is for a bare host; with a scheme it is 80 or 443.
    """
    text = str(url).strip()
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "", text
    if scheme in ("http+unix", "unix"):
        return _socket_address(url, rest)
    if scheme not in ("", "http", "https"):
        raise ValueError(f"'{url}' has the scheme {scheme}; wanted http, https or http+unix.")
    netloc, slash, path = rest.partition("/")
    if netloc.count(":") > 1 and not netloc.startswith("["):
        netloc = f"[{netloc}]"
    try:
        parts = urllib.parse.urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, None
    if not host or parts is None or parts.username is not None:
        raise ValueError(f"'{url}' is no address of a server; wanted such as http://127.0.0.1:{default_port}")
    default = {"": default_port, "http": 80, "https": 443}[scheme]
    return Address(scheme or "http", host, port or default, (slash + path).rstrip("/"))


def _socket_address(url: str, rest: str) -> Address:
    host, _slash, path = rest.partition("/")
    if host:
        return Address("unix", urllib.parse.unquote(host), 0, ("/" + path).rstrip("/"))
    if not path:
        raise ValueError(f"'{url}' names no socket; wanted http+unix:///path/of/the.sock")
    return Address("unix", "/" + urllib.parse.unquote(path), 0, "")


def shown(url: str) -> str:
    """The URL without its password and query, which may be secrets."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def excerpt(raw: bytes) -> str:
    """The beginning of an answer, fit for a sentence."""
    text = " ".join(raw[:400].decode("utf-8", "replace").split())
    return repr(text[:120]) if text else "nothing"


# --- one server ----------------------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str, timeout: float):
        super().__init__("localhost", timeout=timeout, blocksize=BLOCK)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """One server. Keeps one connection; counts what it sends. Not for several threads, but for `abort`.

    `timeout_s` bounds the silence of the server (an answer that comes for an hour is fine, a minute without a byte
    may not be); `connect_timeout_s` the start of a connection. What cannot do a thing twice is sent `retries` more
    times when no server answers or the connection breaks: reads, and writes that never left. `ca_file` holds the
    certificates to trust instead of the host's. ValueError for a URL that is no server's.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        retries: int = 1,
        retry_wait_s: float = 0.3,
        default_port: int = 80,
        ca_file: str | None = None,
    ):
        self.url = str(url)
        self.address = parse_url(url, default_port)
        self.timeout_s, self.connect_timeout_s = timeout_s, connect_timeout_s
        self.retries, self.retry_wait_s, self.ca_file = retries, retry_wait_s, ca_file
        #: (method, path) of each request that was sent, in order.
        self.requests: list[tuple[str, str]] = []
        #: Requests that were not repeatable: they may have changed something.
        self.writes = 0
        #: Seconds from sending a request to the head of its answer, of all requests.
        self.seconds = 0.0
        self._connection: http.client.HTTPConnection | None = None
        self._silence_s = timeout_s

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Drop the connection from another thread: a request under way ends with an HttpError."""
        connection, self._connection = self._connection, None
        if connection is not None:
            sock = connection.sock
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
        repeatable: bool | None = None,
    ) -> http.client.HTTPResponse:
        """Send a request and return the head of its answer, whatever its status; read the rest by read() or lines().

        A dict or list as `body` goes as JSON, a file needs its Content-Length in `headers`. `repeatable` says that
        the request changes nothing; without it GET and HEAD are taken for such.
        """
        repeatable = method in ("GET", "HEAD") if repeatable is None else repeatable
        self._silence_s = self.timeout_s if timeout_s is None else timeout_s
        headers = {"Accept": "application/json", **(headers or {})}
        if isinstance(body, (dict, list)):
            body = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/json"
        attempts = self.retries + 1
        while True:
            attempts -= 1
            reused = self._connection is not None
            try:
                return self._attempt(method, path, body, headers, repeatable)
            except HttpError as failure:
                self.close()
                stale = reused and isinstance(failure.__cause__, ConnectionError)
                if repeatable and stale:
                    # The server closed an idle connection: that says nothing about the server.
                    attempts = max(attempts, 1)
                if attempts < 1 or not (repeatable or not failure.sent) or failure.kind in ("timeout", "tls"):
                    raise
                if not stale:
                    time.sleep(self.retry_wait_s)

    def read(self, response: http.client.HTTPResponse, longest: int = LONGEST_ANSWER) -> bytes:
        """The whole body of an answer."""
        try:
            raw = response.read(longest + 1)
            if len(raw) > longest:
                raise HttpError("too_long", f"The answer of the server at {self.url} does not end.")
            if response.length:
                # A read of at most so many bytes does not complain of too few.
                raise http.client.IncompleteRead(raw, response.length)
            return raw
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from error
        except HttpError:
            self.close()
            raise

    def lines(self, response: http.client.HTTPResponse, longest: int = LONGEST_LINE) -> Generator[bytes, None, None]:
        """The lines of an answer as they come, each with its line break; the last may have none."""
        ended = False
        try:
            while True:
                raw = response.readline(longest + 1)
                if not raw:
                    if response.length or (response.chunked and response.chunk_left is not None):
                        # readline() accepts an answer that is cut; chunk_left is None after the last chunk.
                        raise http.client.IncompleteRead(b"", response.length)
                    # Nor does it end an answer of known length of itself: the connection would seem busy.
                    response.close()
                    ended = True
                    return
                if len(raw) > longest:
                    raise HttpError("too_long", f"A line of the answer of the server at {self.url} does not end.")
                yield raw
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error
        finally:
            if not ended:
                self.close()

    def blocks(self, response: http.client.HTTPResponse, size: int = 65536) -> Iterator[bytes]:
        """What has arrived of an answer, in blocks of at most `size` bytes, as it comes."""
        ended = False
        try:
            while True:
                raw = response.read1(size)
                if not raw:
                    break
                yield raw
            # read1() does not end an answer of known length of itself: the connection would seem busy.
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            response.close()
            ended = True
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # ValueError, AttributeError: another thread dropped the connection.
            raise self._failure(error) from error
        finally:
            if not ended:
                self.close()

    def _attempt(self, method: str, path: str, body: Any, headers: dict[str, str], repeatable: bool):
        began = time.monotonic()
        sent = False
        try:
            connection = self._connected()
            sent = True
            # Counted when it goes out: a write that breaks off may have been done.
            self.writes += 0 if repeatable else 1
            self.requests.append((method, path))
            try:
                connection.request(method, self.address.prefix + path, body=body, headers=headers)
            except ConnectionError as error:
                return self._last_words(connection, error)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error, sent) from error
        finally:
            self.seconds += time.monotonic() - began

    @staticmethod
    def _last_words(connection: http.client.HTTPConnection, error: ConnectionError) -> http.client.HTTPResponse:
        """The answer of a server that hung up while a body was being sent: one whose disk is full says so."""
        try:
            return connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise error from None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None and not _is_fresh(self._connection):
            self.close()
        if self._connection is None:
            connection = self._new_connection()
            connection.connect()
            self._connection = connection
        self._connection.sock.settimeout(self._silence_s)
        return self._connection

    def _new_connection(self) -> http.client.HTTPConnection:
        address, timeout = self.address, self.connect_timeout_s
        if address.scheme == "unix":
            return _UnixConnection(address.host, timeout)
        if address.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file or None)
            return http.client.HTTPSConnection(
                address.host, address.port, timeout=timeout, blocksize=BLOCK, context=context
            )
        return http.client.HTTPConnection(address.host, address.port, timeout=timeout, blocksize=BLOCK)

    def _failure(self, error: Exception, sent: bool = True) -> HttpError:
        url = self.url
        if isinstance(error, ConnectionRefusedError):
            return HttpError("refused", f"Nothing answers at {url} (connection refused).", sent)
        if isinstance(error, ssl.SSLError):
            return HttpError("tls", f"TLS with {url} failed: {error}.", sent)
        if _is_timeout(error):
            what = f"said nothing for {self._silence_s:g} s"
            if not sent:
                what = f"did not take a connection within {self.connect_timeout_s:g} s"
            return HttpError("timeout", f"The server at {url} {what}.", sent)
        if not sent and isinstance(error, OSError):
            return HttpError("unreachable", f"{url} cannot be reached: {error.strerror or error}.", sent)
        if _is_not_http(error):
            return HttpError("not_http", f"What answers at {url} does not speak HTTP: {error}.", sent)
        told = str(error) or type(error).__name__
        return HttpError("cut", f"The server at {url} closed the connection in the middle of an answer ({told}).", sent)


def _is_fresh(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection is still open: a write must not be lost on one that the server closed."""
    if connection.sock is None:
        return False
    try:
        connection.sock.settimeout(0)
        connection.sock.recv(1, socket.MSG_PEEK)
        # Closed, or something that nobody asked for: either way not a connection to send on.
        return False
    except (BlockingIOError, ssl.SSLWantReadError, ValueError):
        # ValueError: TLS sockets take no flags; they are checked by the read that fails.
        return True
    except OSError:
        return False


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, (socket.timeout, TimeoutError)) or getattr(error, "errno", None) == errno.ETIMEDOUT


def _is_not_http(error: BaseException) -> bool:
    wrong = isinstance(error, (http.client.BadStatusLine, http.client.UnknownProtocol))
    return wrong and not isinstance(error, http.client.RemoteDisconnected)


# --- downloads -----------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to HTTP(S) only, and never from HTTPS to HTTP."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            told = f"{shown(req.full_url)} redirects to {shown(newurl)}, which is not followed"
            raise HttpError("redirect", f"{told}: only HTTPS, or HTTP from HTTP.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def opened(
    url: str, headers: dict[str, str] | None = None, what: str | None = None, silence_s: float = 15.0
) -> Iterator[Any]:
    """The answer (status, headers, geturl()) of a GET of something elsewhere; read it by read_at_most().

    `what` names it in errors; the URL itself is shown without password and query. HttpError, kind status, for HTTP
    400 and above.
    """
    what = what or shown(url)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise HttpError("unreachable", f"{what} is no HTTP(S) URL.", sent=False)
    opener = urllib.request.build_opener(
        _Redirects(), urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    fields = {"Accept-Encoding": "identity", "User-Agent": "gpufleet.llm", **(headers or {})}
    try:
        response = opener.open(urllib.request.Request(url, headers=fields), timeout=silence_s)
    except urllib.error.HTTPError as error:
        raise _refused(error, what) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _unreachable(what, reason if isinstance(reason, Exception) else error) from error
    with response:
        yield response


def _refused(error: urllib.error.HTTPError, what: str) -> HttpError:
    """The HttpError for a status of 400 and above, with the reason in the body."""
    with error:
        try:
            reason = _reason(error.read(16384))
        except (OSError, http.client.HTTPException, ValueError):
            reason = ""
    told = f"{what}: the server answers HTTP {error.code}"
    told += f": {reason.rstrip('.')}." if reason else "."
    return HttpError("status", told, status=error.code, reason=reason)


def _reason(raw: bytes) -> str:
    """The text of an error as registries and APIs send it.

    {errors: [{message}]}, {error}, {error: {message}} or {message}.
    """
    try:
        found = json.loads(raw)
        found = found["errors"][0] if found.get("errors") else found.get("error") or found
        found = found.get("message") if isinstance(found, dict) else found
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return ""
    return " ".join(found.split())[:200] if isinstance(found, str) else ""


def _unreachable(what: str, reason: Exception) -> HttpError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        told = f"{what} cannot be reached: its certificate is not trusted ({reason.verify_message})."
        hint = "Put the CA's certificate into this host's trust store (update-ca-certificates)."
        return HttpError("tls", f"{told} {hint}")
    told = f"{what} cannot be reached: {reason}. Check the address, the network and the proxy settings of this host."
    return HttpError("timeout" if _is_timeout(reason) else "unreachable", told)


def read_at_most(response: Any, count: int, deadline: float, what: str) -> bytes:
    """At most `count` bytes of an answer, before `deadline` (of time.monotonic()) however slowly they come."""
    blocks, have = [], 0
    while have < count:
        if time.monotonic() > deadline:
            told = f"{what} gave {have:,} of {count:,} bytes before the time was up"
            raise HttpError("timeout", f"{told}; it is too slow. Try again later.")
        try:
            block = response.read1(min(count - have, 65536))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HttpError("cut", f"{what}: the connection broke after {have:,} bytes: {error}. Try again.") from error
        if not block:
            break
        blocks.append(block)
        have += len(block)
    return b"".join(blocks)


def get(
    url: str,
    longest: int,
    headers: dict[str, str] | None = None,
    what: str | None = None,
    silence_s: float = 15.0,
    deadline_s: float = 60.0,
) -> bytes:
    """The whole body behind a URL, of at most `longest` bytes and within `deadline_s`; otherwise HttpError."""
    what = what or shown(url)
    deadline = time.monotonic() + deadline_s
    with opened(url, headers, what, min(silence_s, deadline_s)) as response:
        raw = read_at_most(response, longest + 1, deadline, what)
        length = response.headers.get("Content-Length")
    if len(raw) > longest:
        raise HttpError("too_long", f"{what} has more than {longest:,} bytes, so it is not what was asked for.")
    if length is not None and length.isdigit() and len(raw) < int(length):
        raise HttpError("cut", f"{what}: the connection broke after {len(raw):,} of {int(length):,} bytes. Try again.")
    return raw
