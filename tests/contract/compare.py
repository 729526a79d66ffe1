#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501  (a table of requests, one a line)
"""Ask the stand-in and a real server the same and print where their answers differ: status, headers, keys, texts.

    compare.py [VERSION]      VERSION of a built real server, default the newest

The contract's cases say what the collection relies on; this finds what nobody thought of. Digests of weights (the real
one rewrites them by llama-quantize), times, sizes and the words of answers are blanked. Exit status 1 if anything differs.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import Process, Registry, make_mirror, shapes, with_keys  # noqa: E402

CHAT = [{"role": "user", "content": "hello there"}]
TWO = {"num_predict": 2, "seed": 1, "temperature": 0}
WORDS = ("response", "content", "thinking", "text", "reasoning")
NUMBERS = re.compile(r"(duration|_count|tokens|created|size|size_vram|total|completed)$")


def requests(registry: dict) -> list:
    """Return [(method, path, body)] of everything that is asked, in order."""
    create, show, generate, chat = "/api/create", "/api/show", "/api/generate", "/api/chat"
    post = [
        (create, {"model": "a", "from": "plain", "system": "S", "parameters": {"num_ctx": 2048, "stop": ["x", "y"]}}),
        (create, {"model": "a", "from": "plain", "system": "S", "parameters": {"num_ctx": 2048, "stop": ["x", "y"]}}),
        (create, {"model": "b", "from": "a", "template": "{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Prompt }}", "license": ["1", "", "2"]}),
        (create, {"model": "c", "from": "base", "renderer": "qwen3-coder", "parser": "qwen3-coder", "requires": "0.1.0", "stream": False}),
        (create, {"model": "d", "from": "base", "template": "{{ .System }} {{ .Prompt }}"}),
        (create, {"model": "e", "from": "base", "messages": [{"role": "USER", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        (create, {"model": "f", "from": "base", "messages": [{"role": "robot", "content": "x"}]}),
        (create, {"model": "g", "from": "base", "license": 3}), (create, {"model": "g", "from": "base", "license": [3]}),
        (create, {"model": "g", "from": "base", "license": {"x": 1}}), (create, {"model": "h", "from": "base", "parameters": []}),
        (create, {"model": "h", "from": "base", "parameters": {"deep": {"b": 1, "a": [1, "x"]}}}), (show, {"model": "h"}),
        (create, {"model": "i", "from": "base", "info": {"context_length": 1234, "capabilities": ["tools"]}}), (show, {"model": "i"}),
        (create, {"model": "i", "from": "base", "info": {"context_length": "x"}}), (create, {"model": "j", "files": ["x"]}),
        (create, {"model": "j", "from": 3}), (create, {"model": 3}), (create, []), (create, "x"), (create, {"from": "base"}),
        (create, {"model": "j", "from": "a b"}), (create, {"model": "j", "from": "base", "template": "{{ .X }} {{ nonsense }}"}),
        (create, {"model": "j", "from": "base", "template": "{{ range .Messages }}"}), (create, {"model": "j", "from": "base", "quantize": "q4_K_M"}),
        (create, {"model": "j", "from": "base", "quantize": "f99"}), (create, {"model": "j", "from": "base:cloud"}),
        (create, {"model": "j", "from": "base:local"}), (create, {"model": "j", "files": {"../x": "sha256:" + "0" * 64}}),
        (create, {"model": "j", "files": {"a/./b": "sha256:" + "0" * 64}}), (create, {"model": "j", "files": {"x": "nodigest"}}),
        (create, {"model": "j", "files": {"x.gguf": "sha256:" + "0" * 64}}), (create, {"model": "j", "adapters": {"x.gguf": "sha256:" + "0" * 64}}),
        (create, {"model": "j", "from": "base", "adapters": {"x.gguf": "sha256:" + "0" * 64}}),
        (create, {"model": "j", "from": "base", "adapters": {"x.gguf": ""}}), (create, {"model": "j", "from": "base", "adapters": {}}),
        (create, {"model": "k", "files": {"m.gguf": registry["blob"]}, "system": "S"}), (show, {"model": "k"}),
        (create, {"model": "k", "files": {"m.gguf": registry["blob"]}, "quantize": "f16"}),
        (create, {"model": "k", "files": {"m.safetensors": registry["blob"]}}), (create, {"model": "k", "files": {"m": registry["text"]}}),
        (show, {"model": "a"}), (show, {"model": "b"}), (show, {"model": "c"}), (show, {"model": "d"}), (show, {"model": "e"}), (show, {"model": "base"}),
        (show, {"model": "vectors"}), (show, {"model": "a b"}), (show, {"model": "plain:cloud"}), (show, {"model": "plain:local"}),
        (show, {"model": "plain:x:local"}), (show, {"model": "h/o/s/t"}), (show, {"model": None}), (show, {"model": "plain", "options": {"top_k": 3}}),
        ("/api/copy", {"source": "plain", "destination": "copy"}), ("/api/copy", {"source": "plain"}), ("/api/copy", {}),
        ("/api/copy", {"source": "none", "destination": "x"}), ("/api/pull", {"model": registry["name"], "insecure": True}),
        ("/api/pull", {"model": registry["name"], "insecure": True}), ("/api/pull", {"model": registry["none"], "insecure": True, "stream": False}),
        ("/api/pull", {"model": "a b"}), ("/api/pull", {}), ("/api/pull", {"model": "127.0.0.1:1/x/y"}), ("/api/push", {}),
        ("/api/push", {"model": "nobody", "stream": False}), (generate, {}), (generate, {"model": ""}), (generate, {"model": "a b"}),
        (generate, {"model": "plain"}), (generate, {"model": "plain", "prompt": "x", "options": TWO}),
        (generate, {"model": "plain", "prompt": "x", "options": TWO, "stream": False}),
        (generate, {"model": "plain", "prompt": "x", "options": TWO, "stream": False, "raw": True}),
        (generate, {"model": "plain", "prompt": "x", "options": {"stop": "x"}}), (generate, {"model": "plain", "prompt": "x", "options": {"seed": 1.5, **TWO}, "stream": False}),
        (generate, {"model": "plain", "prompt": "x", "options": "x"}), (generate, {"model": "plain", "prompt": 3}),
        (generate, {"model": "plain", "keep_alive": "x"}), (generate, {"model": "plain", "keep_alive": []}), (generate, {"model": "plain", "keep_alive": "5"}),
        (generate, {"model": "plain", "prompt": "x", "suffix": "y"}), (generate, {"model": "plain", "prompt": "x", "think": True}),
        (generate, {"model": "plain", "prompt": "x", "think": "high"}), (generate, {"model": "plain", "stream": "yes"}),
        (generate, {"model": "plain", "prompt": "x", "context": [1, 2], "options": TWO, "stream": False}),
        (generate, {"model": "plain", "prompt": "x", "format": "json", "options": TWO, "stream": False}),
        (generate, {"model": "plain", "prompt": "x", "format": "nonsense", "options": TWO, "stream": False}),
        (generate, {"model": "vectors", "prompt": "x"}), (generate, {"model": "vectors"}), (generate, {"model": "plain", "keep_alive": 0}),
        (chat, {}), (chat, {"model": "nobody", "messages": CHAT}), (chat, {"model": "plain"}), (chat, {"model": "plain", "messages": []}),
        (chat, {"model": "plain", "messages": CHAT, "options": TWO}), (chat, {"model": "plain", "messages": CHAT, "options": TWO, "stream": False}),
        (chat, {"model": "base", "messages": CHAT, "options": TWO, "stream": False, "think": False}), (chat, {"model": "plain", "messages": "x"}),
        (chat, {"model": "plain", "messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}),
        (chat, {"model": "plain", "messages": [{"role": "user"}], "options": TWO, "stream": False}), (chat, {"model": "plain", "keep_alive": 0}),
        (chat, {"model": "plain", "messages": CHAT, "keep_alive": 0, "options": TWO, "stream": False}),
        ("/api/embed", {}), ("/api/embed", {"model": "vectors"}), ("/api/embed", {"model": "vectors", "input": "x", "dimensions": 4}),
        ("/api/embed", {"model": "vectors", "input": [1]}), ("/api/embed", {"model": "plain", "input": "x"}), ("/api/embeddings", {"model": "vectors", "prompt": "x"}),
        ("/api/embeddings", {"model": "vectors"}), ("/v1/chat/completions", {"model": "plain", "messages": CHAT, "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "plain", "messages": []}), ("/v1/chat/completions", {"messages": CHAT}), ("/v1/chat/completions", {"model": "nobody", "messages": CHAT}),
        ("/v1/chat/completions", {"model": "plain", "messages": CHAT, "max_tokens": 2, "stream": True}),
        ("/v1/chat/completions", {"model": "vectors", "messages": CHAT}), ("/v1/completions", {"model": "plain", "prompt": "x", "max_tokens": 2}),
        ("/v1/completions", {"model": "plain", "prompt": "x", "max_tokens": 2, "stream": True}), ("/v1/completions", {"model": "plain", "max_tokens": 2}),
        ("/v1/embeddings", {"model": "vectors", "input": ["x", "y"]}), ("/v1/embeddings", {"model": "vectors"}), ("/v1/embeddings", {"model": "vectors", "input": ""}),
    ]  # fmt: skip
    get = [
        "/",
        "/api/version",
        "/api/tags",
        "/api/ps",
        "/api/status",
        "/v1/models",
        "/v1/models/plain",
        "/v1/models/nobody",
        "/nothing",
        "/api/generate",
        "/api/blobs/x",
    ]
    asked = [("POST", *one) for one in post] + [("GET", path, None) for path in get]
    asked += [("DELETE", "/api/delete", body) for body in ({"model": "a"}, {"model": "a"}, {"model": ""}, {}, {"name": "b"}, {"model": "x y"})]
    asked += [
        ("HEAD", "/api/blobs/sha256:" + "0" * 64, None),
        ("POST", "/api/blobs/sha256:" + "0" * 64, b"x"),
        ("POST", "/api/blobs/zz", b"x"),
        ("OPTIONS", "/api/tags", None),
        ("GET", "/api/tags", None),
    ]
    return asked


def blank(value, key: str = ""):
    """Return a JSON value without what must differ."""
    if isinstance(value, dict):
        return {name: blank(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        if key in ("models", "data", "tensors"):
            return sorted((blank(item, key) for item in value), key=lambda item: str(item.get("name") or item.get("id")))
        if value and all(isinstance(item, (int, float)) for item in value):
            return ["numbers"]
        return [blank(item, key) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if key in WORDS and value:
        return "words"
    if isinstance(value, (int, float)) and NUMBERS.search(key):
        return "number" if value else 0
    if isinstance(value, str):
        if key in ("created_at", "modified_at", "expires_at") or value.startswith(("chatcmpl-", "cmpl-")):
            return re.sub(r"\d+", "9", value)[:10]
        if key == "parameters":
            return sorted(value.splitlines())
        if key == "modelfile":
            lines = re.sub(r"/\S*blobs/", "BLOBS/", value).splitlines()
            fixed = [line for line in lines if not line.startswith("PARAMETER")]
            return re.sub(r"[0-9a-f]{64}", "HEX", "\n".join(fixed + sorted(set(lines) - set(fixed))))
        value = re.sub(r"/\S*/\.ollama/models", "MODELS", value)
        value = re.sub(r"[0-9a-f]{64}", "HEX", value)
        return re.sub(r"\b[0-9a-f]{12}\b", "HEX12", re.sub(r"127\.0\.0\.1:\d{4,5}", "REGISTRY", value))
    return value


def told(answer, method: str) -> list:
    """Return an answer as comparable lines."""
    lines = [f"{answer.status} {answer.headers.get('Content-Type', '')}"]
    if method == "HEAD":
        return lines
    text = answer.body.decode("utf-8", "replace")
    progress = []
    for line in text.splitlines():
        prefix, body = ("data: ", line[6:]) if line.startswith("data: ") else ("", line)
        try:
            value = blank(json.loads(body))
        except ValueError:
            progress.append(prefix + body)
            continue
        shown = prefix + json.dumps(value, sort_keys=True, ensure_ascii=False)
        if isinstance(value, dict) and str(value.get("status", "")).startswith("pulling HEX12"):
            continue  # how many of these there are is a matter of time
        if not progress or progress[-1] != shown:
            progress.append(shown)
    return lines + progress


def spread(lines: list) -> list:
    """Return long JSON lines as one line a value, so that a difference can be seen."""
    found = []
    for line in lines:
        try:
            found += json.dumps(json.loads(line), indent=1, sort_keys=True).splitlines() if len(line) > 300 else [line]
        except ValueError:
            found.append(line)
    return found


def ask(server: Process, method: str, path: str, body) -> list:
    """Return what a request was told; a connection that breaks is an answer too."""
    try:
        return told(server.call(method, path, body, timeout=60), method)
    except (OSError, http.client.HTTPException) as error:
        return [repr(error)]


def main(argv: list) -> int:
    """Compare; return 1 if anything differs."""
    real = make_mirror.real_releases(None)
    version = argv[0] if argv else next(iter(real), "")
    if version not in real:
        sys.stderr.write("compare: no real server is built (make real-server)\n")
        return 1
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tiny = folder / "tiny.gguf"
        shapes.write(shapes.TINY, tiny)
        plain = with_keys(tiny, folder / "plain.gguf", {"tokenizer.chat_template": None})
        vectors = with_keys(plain, folder / "vectors.gguf", {"qwen3.pooling_type": 3})
        registry = Registry(folder / "registry")
        import threading

        threading.Thread(target=registry.listener.serve_forever, daemon=True).start()
        entry = registry.publish("tiny", tiny)
        said = []
        for command in (make_mirror.unpack_standin(folder / "standin", version), real[version] / "bin" / "ollama"):
            server = Process(command, folder / f"home{len(said)}").start()
            for name, path in (("base", tiny), ("plain", plain), ("vectors", vectors)):
                server.create(name, files={"m.gguf": server.upload(path)})
            text = b"hello" * 100
            server.call("POST", "/api/blobs/sha256:" + hashlib.sha256(text).hexdigest(), text)
            known = {
                "name": entry["name"],
                "none": f"{registry.host}/library/none",
                "blob": server.upload(plain),
                "text": "sha256:" + hashlib.sha256(text).hexdigest(),
            }
            said.append([(method, path, body, ask(server, method, path, body)) for method, path, body in requests(known)])
            server.stop()
        registry.listener.shutdown()
    differing = 0
    for (method, path, body, ours), (_method, _path, _body, theirs) in zip(*said):
        if ours != theirs:
            differing += 1
            print(f"--- {method} {path} {body if isinstance(body, bytes) else json.dumps(body)}")
            for line in difflib.unified_diff(spread(ours), spread(theirs), "standin", "real", lineterm="", n=0):
                if not line.startswith(("---", "+++", "@@")):
                    print("   ", line[:300])
    print(f"{len(said[0])} requests to {version}, {differing} answered differently")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
