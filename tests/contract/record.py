#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record the shapes of the real server's OpenAI routes for the stand-in: lab/standin/recorded.json.

record.py [VERSION]      VERSION of a built real server, default the newest
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import REPOSITORY, Process, make_mirror, shapes, with_keys  # noqa: E402

TARGET = REPOSITORY / "lab" / "standin" / "recorded.json"
ASKED = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "completion": ("/v1/completions", {"prompt": "hello"}),
}


def record(server: Process) -> dict:
    """Return {name: answer}: each route whole, and a first and a last chunk of its stream."""
    found = {}
    for name, (path, asked) in ASKED.items():
        body = {**asked, "model": "plain", "max_tokens": 2, "seed": 1}
        found[name] = server.post(path, body).json()
        events = server.post(path, {**body, "stream": True}).body.decode().split("\n\n")
        chunks = [json.loads(event[len("data: ") :]) for event in events if event.startswith("data: {")]
        found[f"{name}_chunk"], found[f"{name}_last"] = chunks[0], chunks[-1]
    return found


def main() -> int:
    """Start the server on a tiny model, ask it, write the file."""
    there = make_mirror.real_releases(None)
    version = sys.argv[1] if len(sys.argv) > 1 else next(iter(there), "")
    if version not in there:
        print(f"no real server {version} is built: make real-server", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.gguf"
        shapes.write(shapes.TINY, tiny)
        plain = with_keys(tiny, Path(folder) / "plain.gguf", {"tokenizer.chat_template": None})
        server = Process(there[version] / "bin" / "ollama", Path(folder)).start()
        try:
            server.create("plain", files={"plain.gguf": server.upload(plain)})
            answers = record(server)
        finally:
            server.stop()
    rows = [f" {json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(answers.items())]
    TARGET.write_text(f'{{"version": "{version}", "answers": {{\n' + ",\n".join(rows) + "\n}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
