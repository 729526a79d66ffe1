#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's release mirror and model registry: one static server over what make_mirror.py wrote.

    serve.py --root DIR [--cert FILE --key FILE --port 443] [--http-port 80] [--bind ADDRESS]

It answers the paths of three upstreams, whatever Host is asked for:

    /ollama/ollama/releases/download/vX/FILE       root/releases/vX/FILE
    /v2/NAMESPACE/MODEL/manifests/TAG              root/registry/manifests/NAMESPACE/MODEL/TAG
    /v2/NAMESPACE/MODEL/blobs/sha256:HEX           root/registry/blobs/sha256-HEX
    /compute/cuda/repos/SYSTEM/x86_64/FILE         root/packages/cuda/SYSTEM/FILE
    /kernel/SYSTEM/FILE                            root/packages/kernel/SYSTEM/FILE (the lab's own: kernels of its hosts)

A blob is answered with a Location header that names itself, without which Ollama refuses it, and by
Range. A hole in a file costs the disk nothing and is sent as zeros.

root/access.log gets one JSON line a request: time, client, host, method, path, range, status, bytes (of the body, as
sent), seconds, fault.

root/faults.json is read again at each request: {"rules": [{"prefix": "/v2/", …}, …]}; the first rule whose prefix fits
and whose method, if it has one, is the request's, is applied:

    status        answer with this status instead
    cut_after     close the connection after so many bytes of the body
    delay_s       wait before answering
    bytes_per_s   send no faster
    no_location   leave the Location header out, as a plain docker registry does
    times         apply the rule so many times only (counted since the file was last changed)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import ssl
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1024 * 1024
RELEASE = re.compile(r"/ollama/ollama/releases/download/(v[0-9][A-Za-z0-9.+-]*)/([A-Za-z0-9_.-]+)")
MANIFEST = re.compile(r"/v2/([A-Za-z0-9_-]+)/([A-Za-z0-9_][A-Za-z0-9_.-]*)/manifests/([A-Za-z0-9_][A-Za-z0-9_.:-]*)")
BLOB = re.compile(r"/v2/[A-Za-z0-9_-]+/[A-Za-z0-9_][A-Za-z0-9_.-]*/blobs/sha256[:-]([0-9a-f]{64})")
# APT puts a slash of its own between a flat repository's address and a file.
CUDA = re.compile(r"/compute/cuda/repos/([a-z0-9]+)/x86_64//?(?:\./)?([A-Za-z0-9][A-Za-z0-9_.+~-]*)")
KERNEL = re.compile(r"/kernel/([a-z0-9]+)//?(?:\./)?([A-Za-z0-9][A-Za-z0-9_.+~-]*)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def locate(root: str, path: str) -> tuple[str, str, bool] | None:
    """Return (file, content type, whether it is a blob) for the path of a request, None for paths of no upstream."""
    found = RELEASE.fullmatch(path)
    if found:
        return os.path.join(root, "releases", found.group(1), found.group(2)), "application/octet-stream", False
    found = MANIFEST.fullmatch(path)
    if found:
        return os.path.join(root, "registry", "manifests", *found.groups()), MANIFEST_TYPE, False
    found = BLOB.fullmatch(path)
    if found:
        return os.path.join(root, "registry", "blobs", "sha256-" + found.group(1)), "application/octet-stream", True
    for kind, pattern in (("cuda", CUDA), ("kernel", KERNEL)):
        found = pattern.fullmatch(path)
        if found:
            return os.path.join(root, "packages", kind, *found.groups()), "application/octet-stream", False
    return None


def wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (first, last) of a Range header; the whole file without one or with one of another form; None for no such part."""
    found = RANGE.fullmatch(header or "")
    if not found or found.groups() == ("", ""):
        return 0, size - 1
    first, last = found.groups()
    if first == "":
        return max(size - int(last), 0), size - 1
    start, stop = int(first), min(int(last), size - 1) if last else size - 1
    return (start, stop) if start < size and start <= stop else None


class Rules:
    """The faults of root/faults.json, and how often each was applied since the file was changed."""

    def __init__(self, path: str):
        self.path = path
        self.stamp = None
        self.used: dict = {}
        self.lock = threading.Lock()

    def match(self, method: str, path: str) -> dict:
        """Return the rule for a request, {} without one."""
        with self.lock:
            try:
                stat = os.stat(self.path)
                with open(self.path, encoding="utf-8") as handle:
                    rules = json.load(handle).get("rules", [])
            except FileNotFoundError:
                return {}
            except (ValueError, AttributeError, OSError) as error:
                sys.stderr.write(f"serve: {self.path}: {error}\n")
                return {}
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp != self.stamp:
                self.stamp, self.used = stamp, {}
            for number, rule in enumerate(rules):
                if not path.startswith(rule.get("prefix", "/")) or rule.get("method", method) != method:
                    continue
                if "times" in rule and self.used.get(number, 0) >= rule["times"]:
                    continue
                self.used[number] = self.used.get(number, 0) + 1
                return rule
            return {}


class Mirror:
    """What all requests share: the folder, its faults, its log."""

    def __init__(self, root: str):
        self.root = os.path.abspath(root)
        self.rules = Rules(os.path.join(self.root, "faults.json"))
        self.log_path = os.path.join(self.root, "access.log")
        self.lock = threading.Lock()

    def log(self, entry: dict) -> None:
        """Append one line; a line is written at once, so that a test can count while the server runs."""
        with self.lock, open(self.log_path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "lab-mirror"
    mirror: Mirror
    timeout = 300

    def log_message(self, format, *args):
        """Keep standard error for what goes wrong; requests are in access.log."""

    def do_GET(self):
        """Answer a request for a file or a part of one."""
        started = time.monotonic()
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        rule = self.mirror.rules.match(self.command, path)
        self.sent, self.code = 0, 0
        try:
            time.sleep(float(rule.get("delay_s", 0)))
            if "status" in rule:
                self.plain(int(rule["status"]), f"lab fault: {rule['status']}\n")
            else:
                self.file(path, rule)
        except (BrokenPipeError, ConnectionError, ssl.SSLError, TimeoutError):
            self.close_connection = True
        finally:
            self.mirror.log({
                "time": round(time.time(), 3), "client": self.client_address[0], "host": self.headers.get("Host", ""),
                "method": self.command, "path": path, "range": self.headers.get("Range", ""), "status": self.code,
                "bytes": self.sent, "seconds": round(time.monotonic() - started, 3), "fault": bool(rule),
            })  # fmt: skip

    do_HEAD = do_GET  # noqa: N815  (http.server's name)

    def plain(self, status: int, text: str) -> None:
        """Answer with a status and a sentence."""
        body = text.encode()
        self.code = status
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent = len(body)

    def file(self, path: str, rule: dict) -> None:
        """Send a file or the part that Range names."""
        if path in ("/v2/", "/v2"):
            self.plain(200, "{}")
            return
        found = locate(self.mirror.root, path)
        if found is None or not os.path.isfile(found[0]):
            self.plain(404, "not found\n")
            return
        name, kind, is_blob = found
        with open(name, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            part = wanted_range(self.headers.get("Range"), size)
            if part is None:
                self.plain(416, "no such part\n")
                return
            first, last = part
            partial = self.headers.get("Range") is not None and (first, last) != (0, size - 1)
            self.code = 206 if partial else 200
            self.send_response(self.code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            if is_blob and not rule.get("no_location"):
                self.send_header("Location", path)
            self.end_headers()
            if self.command != "HEAD":
                handle.seek(first)
                self.send_part(handle, last - first + 1, rule)

    def send_part(self, handle, length: int, rule: dict) -> None:
        """Send so many bytes, slower or fewer if the rule says so."""
        left = min(length, int(rule["cut_after"])) if "cut_after" in rule else length
        speed = float(rule.get("bytes_per_s", 0))
        block = min(BLOCK, max(int(speed / 10), 1)) if speed else BLOCK
        while left > 0:
            data = handle.read(min(block, left))
            if not data:
                break
            self.wfile.write(data)
            self.sent += len(data)
            left -= len(data)
            if speed:
                time.sleep(len(data) / speed)
        if self.sent < length:
            self.wfile.flush()
            self.close_connection = True


class Listener(ThreadingHTTPServer):
    """One port; with TLS the handshake is each connection's own, so that a slow client delays nobody."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple, mirror: Mirror, context: ssl.SSLContext | None = None):
        super().__init__(address, type("BoundHandler", (Handler,), {"mirror": mirror}))
        self.context = context

    def finish_request(self, request, client_address):
        """Shake hands in the connection's thread, then answer."""
        if self.context is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(30)
        try:
            wrapped = self.context.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError) as error:
            sys.stderr.write(f"serve: no TLS with {client_address[0]}: {error}\n")
            return
        try:
            super().finish_request(wrapped, client_address)
        finally:
            wrapped.close()

    def handle_error(self, request, client_address):
        """Say in one line what went wrong with a connection."""
        sys.stderr.write(f"serve: {client_address[0]}: {sys.exc_info()[1]}\n")


def listeners(mirror: Mirror, bind: str, port: int | None, http_port: int | None, cert: str, key: str) -> list:
    """Return the ports that were asked for, open; port 0 takes a free one."""
    found = []
    if port is not None and cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key or cert)
        found.append(Listener((bind, port), mirror, context))
    if http_port is not None:
        found.append(Listener((bind, http_port), mirror))
    return found


def main(argv: list | None = None) -> int:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--cert", default="", help="certificate chain, PEM")
    parser.add_argument("--key", default="", help="its key; default: in the same file")
    parser.add_argument("--port", type=int, help="TLS port, 0 for a free one")
    parser.add_argument("--http-port", type=int, help="port without TLS, 0 for a free one")
    parser.add_argument("--bind", default="0.0.0.0", help="address to listen on (the lab's own network)")
    args = parser.parse_args(argv)
    if args.port is not None and not args.cert:
        parser.error("--port needs --cert")
    if args.port is None and args.http_port is None:
        parser.error("nothing to listen on: --port or --http-port")
    open_ports = listeners(Mirror(args.root), args.bind, args.port, args.http_port, args.cert, args.key)
    for one in open_ports:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        print(f"lab mirror: {'https' if one.context else 'http'} on {one.server_address[0]}:{one.server_address[1]}", flush=True)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: done.set())
    done.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
