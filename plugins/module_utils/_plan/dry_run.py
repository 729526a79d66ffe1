# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Ask the engine that will serve a model what it would take: llama-server's own projection, before it allocates.

It is started on a header file (the first MiB of a GGUF, then a hole) with the flags and the environment that Ollama
gives it, and ended as soon as it has said "projected to use": about a second. On a real card it makes a CUDA
context for that second, so a card without ROOM_MIB free is left alone.

Sources: the flags are those of llm/llama_server.go of Ollama 0.32.15 (startLlamaServer, appendBatchArgs,
SetupLlamaServerCommandEnv); the table that is read is printed by common_memory_breakdown_print of llama.cpp, seen
on b10488. A table of any other form is refused, never guessed at.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import IO, cast

from .encode import write_header_files
from .ggml import GgufError

DEADLINE_S = 30.0
MAX_OUTPUT = 8 * 1024 * 1024
ROOM_MIB = 1024  # a CUDA context takes 300-500 MiB

# llama.cpp's build in a release of Ollama (the file LLAMA_CPP_VERSION of its tag), for engines that do not tell.
PINNED = {"0.30.0": 9452, "0.30.5": 9509, "0.31.2": 9888, "0.32.0": 9888, "0.32.6": 10242, "0.32.15": 10488}

# The released libraries for CUDA, the newer first: an older driver serves only the older.
VARIANTS = ("cuda_v13", "cuda_v12")

_SELF = r"\s*(?P<self>\d+)\s*=\s*(?P<model>\d+)\s*\+\s*(?P<context>\d+)\s*\+\s*(?P<compute>\d+)"
_DEVICE = re.compile(
    r"\|\s+- (?P<name>\S+) \(.*\)\s*\|\s*(?P<total>\d+)\s*=\s*(?P<free>\d+)\s*\+\s*\(" + _SELF + r"\)\s*\+\s*-?\d+\s*\|"
)
_HOST = re.compile(r"\|\s+- (?:Host|CPU\S*)\s*\|" + _SELF + r"\s*\|")
# What Ollama adds where it gives a model one of several cards. It hides the others from CUDA; those of an RPC server
# cannot be hidden.
ALONE = ["--split-mode", "none", "--main-gpu", "0"]

_PROJECTED = re.compile(r"projected to use (\d+) MiB of device memory vs\. (\d+) MiB of free device memory")
_FAILED = re.compile(
    r"(?:GGML_ASSERT|ggml[^\s:]*:\d+: fatal error|error loading model|failed to load model|exiting due to model)[^\n]*"
)


class DryRunError(Exception):
    """The engine cannot be used at all; the text is fit for an operator."""


def find(folder, environment=None, user=None):
    """The engine in a folder (lib/ollama of a release): {server, folder, environment, user, build | None, label}.

    None where there is no llama-server. user: whom it runs as when we are root; None or 'root' keeps root.
    """
    server = os.path.join(folder, "llama-server")
    if not os.access(server, os.X_OK):
        return None
    engine = {"server": server, "folder": folder, "environment": dict(environment or {}), "user": user}
    try:
        said = subprocess.run(
            [server, "--version"], env=_environment(engine, None), timeout=DEADLINE_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **_identity(engine),
        ).stdout.decode("utf-8", "replace")  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise DryRunError(
            f"{server} cannot be started: {error}. Install the engine again, or plan with method=formula."
        ) from error
    found = build_of(said, os.path.realpath(folder))
    version = re.search(r"version: (\S+)", said)
    return {
        **engine,
        "build": found,
        "label": f"b{found}" if found else f"unknown ({version[1] if version else 'no version printed'})",
    }


def build_of(version_text, path=""):
    """llama.cpp's build number as `llama-server --version` prints it, or by the release in the path; else None."""
    said = re.search(r"version: (\d+) \(", version_text) or re.search(r"\(build (\d+)[,)]", version_text)
    if said and int(said[1]):
        return int(said[1])
    return next((PINNED[part] for part in path.split(os.sep) if part in PINNED), None)


def _environment(engine, variant):
    """What SetupLlamaServerCommandEnv of Ollama would set, on a bare environment."""
    folders = [engine["folder"]]
    made = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C"}
    made.update({str(key): str(value) for key, value in engine["environment"].items()})
    if variant:
        folders.append(os.path.join(engine["folder"], variant))
        libraries = sorted(glob.glob(os.path.join(folders[1], "libggml-cuda.so*")))
        if libraries:
            made.setdefault("GGML_BACKEND_PATH", libraries[0])
    made["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *filter(None, [made.get("LD_LIBRARY_PATH")])])
    return made


def _identity(engine):
    """Arguments of Popen that give up root for the engine's user: a stranger's header is parsed by native code."""
    user = engine["user"]
    if os.geteuid() != 0 or user in (None, "root"):
        return {}
    try:
        about = pwd.getpwnam(user)
    except KeyError as error:
        raise DryRunError(
            f"The engine is to run as the user {user}, whom this host does not have. Create it, or set engine_user."
        ) from error
    return {"user": about.pw_uid, "group": about.pw_gid, "extra_groups": os.getgrouplist(user, about.pw_gid)}


def flags(path, port, model, num_batch):
    """The command line that Ollama would use for these settings."""
    total = model["context"] * model["slots"]
    return [
        "--model", path, "--port", str(port), "--host", "127.0.0.1", "--no-webui", "--offline",
        "-c", str(total), "-np", str(model["slots"]), "--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps",
        "--cache-type-k", model["kv_cache_type"], "--cache-type-v", model["kv_cache_type"],
        "--flash-attn", "on" if model["flash_attention"] else "off", "-b", str(num_batch), "-ub", str(num_batch),
    ]  # fmt: skip


def run(engine, model, cards, num_batch, given=False):
    """What the engine projects for a settled model of _plan on these cards, or {"refused": why}.

    {"weights_mib", "kv_mib", "compute_mib", "host_mib", "device_mib", "per_card_mib": [MiB of each device], "engine",
    "seconds"}

    device_mib: the engine's own sum over all devices, cut to whole MiB once; its terms are cut one by one, so they add
    up to less.

    given: the cards are not this host's own, so their room is not looked at; the figures do not depend on it.
    """
    for card in cards:
        free = card.get("free_mib")
        if not given and free is not None and free < ROOM_MIB:
            return {"refused": f"GPU {card['index']} has {free:,} MiB free, and a dry run takes {ROOM_MIB:,}."}
    folder = tempfile.mkdtemp(prefix="gpufleet-plan-")
    try:
        path = model.get("gguf")
        if not path or model["header"].get("parts"):
            path = write_header_files(folder, model["header"])
        os.chmod(folder, 0o711)
        present = [variant for variant in VARIANTS if os.path.isdir(os.path.join(engine["folder"], variant))]
        answer = {"refused": "the engine found no GPU."}
        choices: list[str | None] = [*present] or [None]
        for variant in choices:
            answer = _ask(engine, variant, path, model, cards, num_batch)
            if "refused" not in answer:
                return answer
        return answer
    except (GgufError, DryRunError, OSError) as error:
        return {"refused": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask(engine, variant, path, model, cards, num_batch):
    started = time.monotonic()
    environment = _environment(engine, variant)
    uuids = [card["uuid"] for card in cards if card.get("uuid")]
    if len(uuids) == len(cards) and uuids and "LLAMA_ARG_RPC" not in environment:
        environment.setdefault("CUDA_VISIBLE_DEVICES", ",".join(uuids))
    command = [engine["server"], *flags(path, _free_port(), model, num_batch)]
    if "LLAMA_ARG_RPC" in environment and len(cards) == 1:
        command += ALONE
    text = _output(command, environment, _identity(engine))
    answer = parse(text)
    if "refused" not in answer and len(answer["per_card_mib"]) != len(cards):
        return {
            "refused": f"the engine sees {len(answer['per_card_mib'])} GPUs; the plan has {len(cards)} for this model."
        }
    return (
        answer
        if "refused" in answer
        else {**answer, "engine": engine["label"], "seconds": round(time.monotonic() - started, 2)}
    )


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _output(command, environment, identity):
    """What the engine prints until it has said what it would take, bounded in time and length; then it is ended."""
    process = subprocess.Popen(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, **identity,
    )  # fmt: skip
    output = cast(IO[bytes], process.stdout)
    deadline, seen = time.monotonic() + DEADLINE_S, b""
    try:
        while len(seen) < MAX_OUTPUT:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                break
            block = os.read(output.fileno(), 65536)
            seen += block
            tail = seen[-len(block) - 4096 :]
            at = tail.find(b"projected to use")
            if not block or (at >= 0 and b"\n" in tail[at:]):
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()
    return seen.decode("utf-8", "replace")


def parse(text):
    """The terms of the first projection in the engine's output, or {"refused": why}.

    A refusal has "loads": False where the engine ended by an error.
    """
    projected = _PROJECTED.search(text)
    if not projected:
        if re.search(r"projected to use \d+ MiB of host memory", text):
            return {"refused": "the engine found no GPU."}
        failed = _FAILED.search(text)
        if failed:
            return {"refused": f"the engine does not load it: {failed[0].strip()[:200]}.", "loads": False}
        return {
            "refused": f"the engine did not say within {DEADLINE_S:g} s what it would take, or not in a known form."
        }
    before = text[: projected.start()]
    table = before[before.rfind("memory breakdown [MiB]") :] if "memory breakdown [MiB]" in before else ""
    devices = [
        {key: int(value) for key, value in found.groupdict().items() if key != "name"}
        for found in _DEVICE.finditer(table)
    ]
    hosts = [int(found["self"]) for found in _HOST.finditer(table)]
    lines = len(re.findall(r"\|\s+- ", table))
    if not devices or not hosts or lines != len(devices) + len(hosts):
        return {"refused": "the engine's table of memory has a form that is not known."}
    uneven = [one for one in devices if abs(one["self"] - one["model"] - one["context"] - one["compute"]) > 2]
    if uneven or abs(sum(one["self"] for one in devices) - int(projected[1])) > len(devices):
        return {"refused": "the engine's table of memory does not add up, so it is not what it was."}
    return {
        "weights_mib": sum(one["model"] for one in devices),
        "kv_mib": sum(one["context"] for one in devices),
        "compute_mib": sum(one["compute"] for one in devices),
        "host_mib": sum(hosts),
        "device_mib": int(projected[1]),
        "per_card_mib": [one["self"] for one in devices],
    }
