#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands before Ollama on a lab host and writes down what reaches it: one JSON line for each request that a model answers.

recorder.py PORT OLLAMA_PORT FILE. It passes every byte on as it comes; what it counts is in ``record()``.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import sys
import threading

ANSWERED = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions")
LOCK = threading.Lock()


def record(path, request, answer, runners):
    """What one line says; ``answer`` is the last object of the server's stream, which carries its own counts."""
    messages = request.get("messages") or []
    thoughts = [message.get(key) or "" for message in messages for key in ("thinking", "reasoning", "reasoning_content")]
    tools = request.get("tools") or []
    return {
        "path": path,
        "model": request.get("model"),
        "messages": len(messages),
        "roles": [message.get("role") for message in messages],
        "last": str(messages[-1].get("content"))[:60] if messages else str(request.get("prompt"))[:60],
        "content_bytes": sum(len(str(message.get("content") or "").encode()) for message in messages),
        "thought_bytes": sum(len(text.encode()) for text in thoughts),
        "tools": len(tools),
        "tools_bytes": len(json.dumps(tools, separators=(",", ":")).encode()) if tools else 0,
        "options": request.get("options") or {},
        "keep_alive": request.get("keep_alive"),
        "prompt_tokens": answer.get("prompt_eval_count"),
        "answer_tokens": answer.get("eval_count"),
        "error": answer.get("error"),
        "runners": runners,
    }


def runners():
    """PIDs of the processes that hold a model; another one than before is a reload."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm", encoding="utf-8") as handle:
                if handle.read().strip() == "llama-server":
                    found.append(int(name))
        except OSError:
            continue
    return sorted(found)


class Relay(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        """Quiet."""

    def pass_on(self):
        """Ask the server, hand its answer over as it comes, write the line."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=1800)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "accept-encoding")}
        upstream.request(self.command, self.path, body or None, headers)
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tail = b""
        while piece := answer.read1(65536):
            tail = (tail + piece)[-65536:]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        upstream.close()
        if self.path in ANSWERED:
            self.write_down(body, tail)

    do_GET = do_POST = do_DELETE = pass_on  # noqa: N815 (the names that http.server calls)

    def write_down(self, body, tail):
        try:
            last = json.loads(tail.strip().splitlines()[-1])
        except (ValueError, IndexError):
            last = {}
        with LOCK, open(self.server.file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(record(self.path, json.loads(body or b"{}"), last, runners())) + "\n")


def main(port, upstream, file):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Relay)
    server.daemon_threads = True
    server.upstream, server.file = int(upstream), file
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:4])
