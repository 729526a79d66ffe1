#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what serve.py serves: Ollama releases and a model registry.

    make_mirror.py --root DIR [--server auto|real|standin] [--real-dir DIR] [--shape full|small]

    DIR/releases/vX/ollama-linux-amd64.tar.zst, sha256sum.txt
    DIR/registry/manifests/library/qwen3/14b …, DIR/registry/blobs/sha256-…
    DIR/place.json, DIR/headers/     the large blobs for place_blob.py
    DIR/server.json                  {"server": "real"|"standin", "versions": [newest first], "shape", "models"}

Server: `real` packs every release that lab/real/build has finished (or that lies in --real-dir as
VERSION/{bin,lib}), `standin` packs lab/standin as two versions, `auto` takes the real one if it is there.

Models, under the names that users use:

    qwen3:14b            Qwen3-14B, q4_K_M in the library's mix    9.3 GB, or 1.5 GB with two layers (--shape small)
    qwen3:14b-q8_0       Qwen3-14B, q8_0                          15.7 GB, or 2.3 GB
    qwen3-tiny:latest    random weights, two narrow layers         0.6 MB; real bytes, fetched like any model
    qwen3-tiny:next      the same with another template: what :latest becomes when a publisher changes it

Weights are holes (lab/real/shapes.py), so a model takes a few MB of disk here. Their digests are in
known_digests.json by header and length: nobody has to hash 25 GB of zeros; a shape that is not there is hashed once.
Archives and digests are cached in $GPUFLEET_CACHE/mirror (default ~/.cache/gpufleet/mirror) by the content that they
are made of; a second run takes a fraction of a second. Needs the zstd command.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"
STANDIN = HERE.parent / "standin"
KNOWN = HERE / "known_digests.json"
STANDIN_VERSIONS = ("0.32.15", "0.32.6")
ASSET = "ollama-linux-amd64.tar.zst"
LARGE = {"14b": "qwen3-14b-q4_K_M-library", "14b-q8_0": "qwen3-14b-q8_0"}
"""Tag of qwen3 in the registry: shape that is published under it."""
MEDIA = "application/vnd.ollama.image."
BLOCK = 4 * 1024 * 1024

TEMPLATE = """\
{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- if .Tools }}<|im_start|>system
Functions: {{ .Tools }}<|im_end|>
{{ end }}
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .Thinking }}<think>{{ .Thinking }}</think>
{{ end }}{{ .Content }}
{{- range .ToolCalls }}<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}</tool_call>
{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
PARAMETERS = {"repeat_penalty": 1, "stop": ["<|im_start|>", "<|im_end|>"], "temperature": 0.6, "top_k": 20, "top_p": 0.95}
LICENSE = "Lab model: the shape of Qwen3 without its weights.\nThe text of this licence is as long as it needs to be.\n"


class MirrorError(Exception):
    """Something that the mirror needs is missing; the text says how to get it."""


def cache_folder() -> Path:
    """Return the folder for archives and digests, made."""
    base = os.environ.get("GPUFLEET_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "gpufleet")
    folder = Path(base) / "mirror"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shapes():
    """Return the module that writes GGUF files of a true shape."""
    sys.path.insert(0, str(REAL))
    try:
        import shapes as module
    except ImportError as error:
        raise MirrorError(f"{REAL}/shapes.py, which describes the models, is not there: {error}") from error
    finally:
        sys.path.remove(str(REAL))
    return module


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(BLOCK), b""):
            sha.update(block)
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Releases


def real_releases(real_dir: str | None) -> dict:
    """Return {version: folder with bin and lib} of the real servers that are there, newest first."""
    if real_dir:
        folders = [path for path in Path(real_dir).iterdir() if (path / "bin" / "ollama").is_file()]
    else:
        build = REAL / "build"
        if not build.exists():
            return {}
        said = subprocess.run([sys.executable, str(build), "--path", "all"], capture_output=True, text=True, check=False)
        folders = [Path(line) for line in said.stdout.splitlines() if line]
    key = lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split(".")]  # noqa: E731
    return {path.name: path for path in sorted(folders, key=key, reverse=True)}


def standin_tree(version: str) -> dict:
    """Return {path in the archive: (content, mode)} of the stand-in, a zipapp that says it is that version."""
    start = f'import standin\nstandin.VERSION = "{version}"\nfrom standin.main import main\nraise SystemExit(main())\n'
    body = io.BytesIO(b"")
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), start)
        for path in sorted(STANDIN.glob("*.*")):
            archive.writestr(zipfile.ZipInfo(f"standin/{path.name}"), path.read_bytes())
    program = b"#!/usr/bin/python3 -sE\n" + body.getvalue()
    return {"bin/ollama": (program, 0o755), "lib/ollama/llama-server": (program, 0o755)}


def real_tree(folder: Path) -> dict:
    """Return {path in the archive: (file or link target, mode)} of a built release: bin and lib, not the lab's tools."""
    tree = {}
    for top in ("bin", "lib"):
        for path in sorted((folder / top).rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_symlink():
                tree[name] = (os.readlink(path), None)
            elif path.is_file():
                tree[name] = (path, 0o755 if os.access(path, os.X_OK) else 0o644)
    return tree


def tree_digest(tree: dict) -> str:
    """Return a digest of a tree's content."""
    sha = hashlib.sha256(b"tar.zst 1")
    for name, (content, mode) in sorted(tree.items()):
        body = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else sha256_file(content).encode()
        sha.update(f"{name}\0{mode}\0{len(body)}\0".encode() + body)
    return sha.hexdigest()


def write_archive(tree: dict, target: Path) -> None:
    """Write a tree as .tar.zst: root's files without a top folder, the same bytes for the same content."""
    if not shutil.which("zstd"):
        raise MirrorError("The zstd command is missing: `apt install zstd`.")
    half = target.with_name(target.name + ".new")
    with (
        open(half, "wb") as out,
        subprocess.Popen(["zstd", "-q", "-3", "-T0", "-c"], stdin=subprocess.PIPE, stdout=out) as squeeze,
    ):
        with tarfile.open(fileobj=squeeze.stdin, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for name, (content, mode) in sorted(tree.items()):
                info = tarfile.TarInfo("./" + name)
                info.uname = info.gname = "root"
                if isinstance(content, str):
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
                    tar.addfile(info)
                    continue
                info.mode = mode
                body = io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")  # noqa: SIM115  (closed just below)
                with body:
                    info.size = body.seek(0, os.SEEK_END)
                    body.seek(0)
                    tar.addfile(info, body)
        squeeze.stdin.close()
        if squeeze.wait() != 0:
            raise MirrorError(f"zstd ended with {squeeze.returncode} while packing {target}.")
    os.replace(half, target)


def pack(version: str, tree: dict, root: Path) -> None:
    """Put a release under upstream's path, from the cache if it was packed before."""
    packed = cache_folder() / f"{tree_digest(tree)[:24]}.tar.zst"
    if not packed.exists():
        write_archive(tree, packed)
    folder = root / "releases" / f"v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    copy(packed, folder / ASSET)
    line = f"{sha256_file(packed)}  ./{ASSET}\n"
    write_if_changed(folder / "sha256sum.txt", line.encode())


def copy(source: Path, target: Path) -> None:
    """Copy a file with its holes unless it is there. No hard link: a test may spoil what is served, never the cache."""
    have, want = target.stat() if target.exists() else None, source.stat()
    if have and (have.st_size, have.st_mtime_ns) == (want.st_size, want.st_mtime_ns):
        return
    half = target.with_name(target.name + ".new")
    subprocess.run(["cp", "--sparse=always", "--preserve=timestamps", str(source), str(half)], check=True)
    os.replace(half, target)


def write_if_changed(path: Path, body: bytes) -> None:
    """Write a file unless it has that content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() == body:
        return
    half = path.with_name(path.name + ".new")
    half.write_bytes(body)
    os.replace(half, path)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def hole_digest(header: bytes, size: int) -> str:
    """Return the sha256 of a header followed by zeros up to a size: from the table, the cache, or by hashing."""
    key = f"{hashlib.sha256(header).hexdigest()}:{size}"
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    cached = cache_folder() / "digests.json"
    mine = json.loads(cached.read_text(encoding="utf-8")) if cached.exists() else {}
    if key in known or key in mine:
        return known.get(key) or mine[key]
    sha, left, zeros = hashlib.sha256(header), size - len(header), bytes(BLOCK)
    if left > 2**30:
        print(f"make_mirror: hashing {left / 1e9:.1f} GB of zeros once (about {left / 4e8:.0f} s)", flush=True)
    while left > 0:
        sha.update(zeros if left >= BLOCK else zeros[:left])
        left -= BLOCK
    mine[key] = sha.hexdigest()
    write_if_changed(cached, (json.dumps(mine, indent=1, sort_keys=True) + "\n").encode())
    return mine[key]


def model_file(shape: str, layers: int | None) -> dict:
    """Return {"path", "digest", "size", "header"} of a shape's file in the cache; header is None for one with real bytes."""
    module = shapes()
    sources = b"".join((REAL / name).read_bytes() for name in ("gguf_file.py", "models.json", "shapes.py", "vocabulary.py"))
    recipe = hashlib.sha256(sources + f"{shape}:{layers}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{shape}-{layers or 'all'}-{recipe}.gguf"
    facts = path.with_suffix(".json")
    if not (path.exists() and facts.exists()):
        half = path.with_suffix(".new")
        made = module.write(shape, half, layers)
        os.replace(half, path)
        for old in path.parent.glob(f"{shape}-{layers or 'all'}-*"):
            if old not in (path, facts):
                old.unlink()
        header = made["header_bytes"]
        sparse = shape != module.TINY
        with open(path, "rb") as handle:
            head = handle.read(header)
        digest = hole_digest(head, made["bytes"]) if sparse else sha256_file(path)
        write_if_changed(facts, json.dumps({"digest": digest, "size": made["bytes"], "header": header if sparse else None}).encode())
    return {"path": path, **json.loads(facts.read_text(encoding="utf-8"))}


def record_digests() -> None:
    """Write known_digests.json again for what shapes.py writes today."""
    found = {}
    for shape in LARGE.values():
        file = model_file(shape, None)
        with open(file["path"], "rb") as handle:
            found[f"{hashlib.sha256(handle.read(file['header'])).hexdigest()}:{file['size']}"] = file["digest"]
    write_if_changed(KNOWN, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())


def describe(path: Path) -> dict:
    """Return the config of a model's image, read from its GGUF header as a server would."""
    sys.path.insert(0, str(STANDIN.parent))
    try:
        from standin import gguf
    finally:
        sys.path.remove(str(STANDIN.parent))
    return {**gguf.Gguf(str(path)).facts(), "architecture": "amd64", "os": "linux"}


def compact(value) -> bytes:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def publish(root: Path, name: str, tag: str, file: dict, template: str = TEMPLATE) -> dict:
    """Put a model into the registry; return its entry for server.json."""
    blobs = root / "registry" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    weights = blobs / f"sha256-{file['digest']}"
    copy(file["path"], weights)
    layers = [{"mediaType": MEDIA + "model", "digest": f"sha256:{file['digest']}", "size": file["size"]}]
    for kind, body in (("template", template.encode()), ("license", LICENSE.encode()), ("params", compact(PARAMETERS))):
        layers.append(blob(blobs, MEDIA + kind, body))
    config = describe(file["path"])
    config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": blob(blobs, "application/vnd.docker.container.image.v1+json", compact(config)), "layers": layers,
    }  # fmt: skip
    body = compact(manifest)
    write_if_changed(root / "registry" / "manifests" / "library" / name / tag, body)
    size = sum(layer["size"] for layer in layers) + manifest["config"]["size"]
    return {
        "name": f"{name}:{tag}",
        "digest": hashlib.sha256(body).hexdigest(),
        "size": size,
        "weights": f"sha256:{file['digest']}",
    }


def blob(folder: Path, media: str, body: bytes) -> dict:
    """Put bytes into the registry; return their layer."""
    digest = hashlib.sha256(body).hexdigest()
    write_if_changed(folder / f"sha256-{digest}", body)
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(body)}


# ---------------------------------------------------------------------------------------------------------------------


def make(root: Path, server: str = "auto", real_dir: str | None = None, shape: str = "full") -> dict:
    """Write everything; return what is written to server.json."""
    root.mkdir(parents=True, exist_ok=True)
    real = real_releases(real_dir) if server in ("auto", "real") else {}
    if server == "real" and not real:
        raise MirrorError("No real server is built: `make real-server` (20 minutes, once), or --server standin.")
    if real:
        for version, folder in real.items():
            pack(version, real_tree(folder), root)
    else:
        for version in STANDIN_VERSIONS:
            pack(version, standin_tree(version), root)
    versions = list(real) or list(STANDIN_VERSIONS)
    for folder in (root / "releases").iterdir():
        if folder.name not in {f"v{version}" for version in versions}:
            shutil.rmtree(folder)
    layers = 2 if shape == "small" else None
    tiny = model_file(shapes().TINY, None)
    large = {tag: model_file(name, layers) for tag, name in LARGE.items()}
    models = [publish(root, "qwen3", tag, file) for tag, file in large.items()]
    models.append(publish(root, "qwen3-tiny", "latest", tiny))
    models.append(publish(root, "qwen3-tiny", "next", tiny, template="{{ .System }} {{ .Prompt }}"))
    places = []
    for file in large.values():
        with open(file["path"], "rb") as handle:
            write_if_changed(root / "headers" / file["digest"], handle.read(file["header"]))
        places.append({"digest": f"sha256:{file['digest']}", "size": file["size"], "header_file": f"headers/{file['digest']}"})
    for old in (root / "headers").iterdir():
        if old.name not in {file["digest"] for file in large.values()}:
            old.unlink()
    write_if_changed(root / "place.json", (json.dumps(places, indent=1) + "\n").encode())
    facts = {"server": "real" if real else "standin", "versions": versions, "shape": shape, "models": models}
    write_if_changed(root / "server.json", (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def main(argv: list | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where to write it")
    parser.add_argument("--server", choices=("auto", "real", "standin"), default=os.environ.get("LAB_SERVER") or "auto")
    parser.add_argument("--real-dir", help="folder of VERSION/{bin,lib} instead of the cache of lab/real/build")
    parser.add_argument("--shape", choices=("full", "small"), default="full")
    parser.add_argument("--record", action="store_true", help="write the digests of the full shapes to known_digests.json")
    parser.add_argument("--unpack", metavar="DIR", help="only write the stand-in as a release is unpacked: DIR/bin, DIR/lib")
    parser.add_argument("--version", default=STANDIN_VERSIONS[0], help="the version that --unpack stamps (%(default)s)")
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        if args.unpack:
            unpack_standin(Path(args.unpack), args.version)
            return 0
        if args.record:
            record_digests()
            return 0
        if args.root is None:
            parser.error("--root is missing")
        facts = make(args.root, args.server, args.real_dir, args.shape)
    except (MirrorError, OSError) as error:
        sys.stderr.write(f"make_mirror: {error}\n")
        return 1
    took = time.monotonic() - started
    print(f"lab mirror: {facts['server']} server {', '.join(facts['versions'])}; {len(facts['models'])} models ({took:.1f} s)")
    return 0


def unpack_standin(target: Path, version: str) -> Path:
    """Write the stand-in as a release is unpacked; return the command."""
    for name, (content, mode) in standin_tree(version).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as half:
            half.write(content)
        os.chmod(half.name, mode)
        os.replace(half.name, path)
    return target / "bin" / "ollama"


if __name__ == "__main__":
    sys.exit(main())
