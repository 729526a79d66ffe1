#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user of Open WebUI who wants its disk, or its time: page_user.py fill | stall URL CA MODEL, with the session in TOKEN.

fill uploads files of 20 MB until it is refused, and prints {"statuses": [...], "files": [ids]}. stall sends histories that
were made for slow patterns, and prints the longest that /health took to answer meanwhile, {"statuses": [...], "worst_s": s}.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

UPLOADS = 60
HISTORIES = ('<details type="reasoning">', "<think>", "<details ", "<")


class Caller:
    """Somebody with a session."""

    def __init__(self, url, ca):
        self.url, self.context = url, ssl.create_default_context(cafile=ca)

    def ask(self, path, body=None, content_type="application/json", timeout=120):
        """(status, decoded answer or None)."""
        headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": content_type}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None


def fill(caller, _model):
    """Upload until it is refused."""
    mark, content = uuid.uuid4().hex, os.urandom(20_000_000)
    statuses, files = [], []
    for number in range(UPLOADS):
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{number}.bin"\r\nContent-Type: application/octet-stream\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        status, answer = caller.ask("/api/v1/files/?process=false", body, f"multipart/form-data; boundary={mark}")
        statuses.append(status)
        if status == 200:
            files.append(answer["id"])
        else:
            break
        time.sleep(0.5)
    return {"statuses": statuses, "files": files}


def stall(caller, model):
    """Send what is slow to look through, and look at what others have to wait meanwhile."""
    statuses, worst, ended = [], [0.0], threading.Event()

    def watch():
        while not ended.is_set():
            began = time.monotonic()
            caller.ask("/health")
            worst[0] = max(worst[0], time.monotonic() - began)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for unit in HISTORIES:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": unit * (1_000_000 // len(unit))}, {"role": "user", "content": "b"}]
        body = json.dumps({"model": model, "stream": False, "max_tokens": 2, "messages": messages}).encode()
        statuses.append(caller.ask("/api/chat/completions", body, timeout=600)[0])
    ended.set()
    watcher.join()
    return {"statuses": statuses, "worst_s": round(worst[0], 2)}


if __name__ == "__main__":
    print(json.dumps({"fill": fill, "stall": stall}[sys.argv[1]](Caller(*sys.argv[2:4]), sys.argv[4])))
