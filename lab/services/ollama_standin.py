#!/usr/bin/python3 -sE
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's stand-in for Ollama: the same command, HTTP API, store and processes, and no inference.

One file, Python 3.9, standard library only. `make_mirror.py` packs it twice into an archive of the shape
of an upstream release: as `bin/ollama` (the server and its client) and as `lib/ollama/llama-server` (the
child process that holds a loaded model). What it imitates was measured on the real server and is checked
by tests/contract, which runs unchanged against both.

What it imitates beyond the API:

* VRAM. A loaded model is a child process called llama-server that maps /dev/zero privately and never
  touches it: docs/development/README.md, "Simulated VRAM". The sizes are the formula's (facts: weights per tensor,
  KV cache per layer, compute buffer of a dense model), placed as llama.cpp's `--fit` would place them on the
  card that NVML shows. Without libnvidia-ml.so.1 everything is placed on the CPU and size_vram is 0.
  The file offset of a mapping, in pages, is the index of the card.
* What goes wrong. lab-faults.json beside the models folder (or $OLLAMA_LAB_FAULTS) is read again at every
  request; see Faults.

Where it knowingly differs: answers are nonsense (the same for the same prompt, seed and model), Go templates
are checked for balance but not run, quantising and safetensors are refused, and every answer carries the
header `X-Lab-Server: standin`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import hashlib
import http.client
import json
import mmap
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Stamped by make_mirror.py with the version that the archive is packed as.
VERSION = "0.0.0"

MIB = 1024 * 1024
DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
CUDA_CONTEXT_MIB = 457  # what the real server itself assumes for a CUDA context
GRACE_S = 3600  # unreferenced blobs younger than this survive a start (since 0.21.0)
FOREVER_S = float(2**63 - 1) / 1e9
MEDIA = "application/vnd.ollama.image."
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


class ApiError(Exception):
    """An error that a client is to see: HTTP status and text."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


class NotFoundError(Exception):
    """A manifest or blob that is not in the store."""


# ---------------------------------------------------------------------------------------------------------
# The way Go reads and writes values
# ---------------------------------------------------------------------------------------------------------


def go_bool(text: str) -> bool | None:
    """strconv.ParseBool; None for what it refuses."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    return None


_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def go_duration(text: str) -> float:
    """Seconds of a Go duration such as "5m" or "1h30m"; ValueError in Go's words for anything else."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0.0
    total, at = 0.0, 0
    for part in _DURATION.finditer(body):
        if part.start() != at:
            break
        total += float(part.group(1)) * _UNIT_S[part.group(2)]
        at = part.end()
    if not body or at != len(body):
        if re.fullmatch(r"(\d+\.?\d*|\.\d+)", body):
            raise ValueError(f'time: missing unit in duration "{text}"')
        raise ValueError(f'time: invalid duration "{text}"')
    return -total if text.startswith("-") else total


def go_number(value: float) -> str:
    """A float64 as encoding/json writes it."""
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    if "e" in text:
        mantissa, exponent = text.split("e")
        sign = exponent[0] if exponent[0] == "-" else "+"
        return f"{mantissa}e{sign}{exponent.lstrip('+-').lstrip('0')}"
    if abs(value) < 1e-6:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return text


def go_g(value: float) -> str:
    """A float64 as fmt writes it for %v and %#v: 4096, 0.7, 1.048576e+06."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.17e}".split("e")
    for precision in range(17):
        mantissa, exponent = f"{value:.{precision}e}".split("e")
        if float(f"{mantissa}e{exponent}") == value:
            break
    digits = len(mantissa.replace("-", "").replace(".", ""))
    power = int(exponent)
    if power < -4 or power >= 6:
        return f"{mantissa}e{exponent[0]}{exponent[1:].zfill(2)}"
    if power >= digits - 1:
        return str(int(value))
    return f"{value:.{digits - 1 - power}f}"


_QUOTED = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def go_quote(text: str) -> str:
    """strconv.Quote."""
    out = ['"']
    for char in text:
        if char in ('"', "\\"):
            out.append("\\" + char)
        elif char in _QUOTED:
            out.append(_QUOTED[char])
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\x{ord(char):02x}")
        elif char == " " or (char.isprintable() and unicodedata.category(char) != "Zs"):
            out.append(char)
        elif ord(char) < 0x10000:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(f"\\U{ord(char):08x}")
    return "".join(out) + '"'


def go_value(value, sharp: bool) -> str:
    """A decoded JSON value as %#v (sharp) or %v."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return go_g(float(value))
    if isinstance(value, str):
        return go_quote(value) if sharp else value
    if isinstance(value, dict):
        pairs = sorted(value.items())
        if sharp:
            return "map[string]interface {}{" + ", ".join(f"{go_quote(k)}:{go_value(v, True)}" for k, v in pairs) + "}"
        return "map[" + " ".join(f"{k}:{go_value(v, False)}" for k, v in pairs) + "]"
    if sharp:
        return "[]interface {}{" + ", ".join(go_value(v, True) for v in value) + "}"
    return "[" + " ".join(go_value(v, False) for v in value) + "]"


def go_json(value) -> str:
    """encoding/json: no spaces, HTML escaped, map keys as given (sort them before, where Go has a map)."""
    return _go_json(value)


def _go_json(value) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_go_json(str(k))}:{_go_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_go_json(v) for v in value) + "]"
    if isinstance(value, float):
        return go_number(value)
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        for char in "<>&\u2028\u2029":
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def sorted_maps(value):
    """A JSON value with every object's keys sorted, as Go writes a map."""
    if isinstance(value, dict):
        return {key: sorted_maps(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [sorted_maps(item) for item in value]
    return value


def go_time(seconds: float) -> str:
    """RFC 3339 with nanoseconds in the local zone, as Go writes a time.Time."""
    if seconds > 10_000_000_000:  # keep_alive -1: now plus the largest duration, in the year 2319 or so
        seconds = 11_000_000_000
    local = time.localtime(seconds)
    nanos = f"{int((seconds % 1) * 1e9):09d}".rstrip("0")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", local) + ("." + nanos if nanos else "")
    offset = local.tm_gmtoff or 0
    if offset == 0:
        return stamp + "Z"
    sign = "-" if offset < 0 else "+"
    return f"{stamp}{sign}{abs(offset) // 3600:02d}:{abs(offset) % 3600 // 60:02d}"


def utc_now() -> str:
    """created_at of an answer."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def human_number(count: int) -> str:
    """8.19B, 494.03M, 12K: how a parameter count is shown."""
    for unit, letter, places in ((1e9, "B", 1), (1e6, "M", 2)):
        if count >= unit:
            scaled = count / unit
            return f"{scaled:.0f}{letter}" if scaled == int(scaled) else f"{scaled:.{places}f}{letter}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


# ---------------------------------------------------------------------------------------------------------
# Environment and log
# ---------------------------------------------------------------------------------------------------------


def log(level: str, message: str, **fields) -> None:
    """One line in the server's own form on standard error."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
    extra = "".join(f" {key}={json.dumps(str(value)) if ' ' in str(value) else value}" for key, value in fields.items())
    sys.stderr.write(f"time={now} level={level} source=standin.py msg={json.dumps(message)}{extra}\n")
    sys.stderr.flush()


def env(name: str) -> str:
    """A variable as the server reads it: trimmed of spaces and of quotes around it."""
    return os.environ.get(name, "").strip().strip("\"'")


def env_bool(name: str, default: bool = False) -> bool:
    """Unset: the default. What strconv.ParseBool refuses counts as true."""
    text = env(name)
    if not text:
        return default
    parsed = go_bool(text)
    return True if parsed is None else parsed


def env_uint(name: str, default: int) -> int:
    """Unset or unreadable: the default, the latter with a warning."""
    text = env(name)
    if not text:
        return default
    if not re.fullmatch(r"\d+", text):
        log("WARN", "invalid environment variable, using default", key=name, value=text, default=default)
        return default
    return int(text)


def env_duration(name: str, default_s: float) -> float:
    """A duration or a number of seconds; negative means for ever."""
    text = env(name)
    if not text:
        return default_s
    try:
        seconds = go_duration(text)
    except ValueError:
        if not re.fullmatch(r"[+-]?\d+", text):
            return default_s
        seconds = float(text)
    return FOREVER_S if seconds < 0 else seconds


def host_and_port() -> tuple[str, int]:
    """OLLAMA_HOST as a pair; scheme and path are only for clients."""
    text = env("OLLAMA_HOST")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    default = {"http": 80, "https": 443}.get(scheme, 11434) if found else 11434
    rest = rest.partition("/")[0]
    port_text = ""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*):(.*)", rest)
    if match:
        host, port_text = match.group(1).strip("[]"), match.group(2)
    else:
        host = rest.strip("[]") or "127.0.0.1"
    port = default
    if port_text:
        if re.fullmatch(r"\d+", port_text) and int(port_text) <= 65535:
            port = int(port_text)
        else:
            log("WARN", "invalid port, using default", port=port_text, default=default)
    return host, port


def home() -> str:
    """$HOME; without it the real server does not start either."""
    found = os.environ.get("HOME", "")
    if not found:
        if not env("OLLAMA_MODELS"):
            sys.stderr.write("panic: $HOME is not defined\n\ngoroutine 1 [running]:\n")
            raise SystemExit(2)
        sys.stderr.write("Error: $HOME is not defined\n")
        raise SystemExit(1)
    return found


def models_dir() -> str:
    """$OLLAMA_MODELS or ~/.ollama/models."""
    return env("OLLAMA_MODELS") or os.path.join(home(), ".ollama", "models")


ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY", "HTTP_PROXY", "LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET", "NO_PROXY",
    "OLLAMA_CONTEXT_LENGTH", "OLLAMA_DEBUG", "OLLAMA_FLASH_ATTENTION", "OLLAMA_GPU_OVERHEAD", "OLLAMA_HOST",
    "OLLAMA_KEEP_ALIVE", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_LLM_LIBRARY", "OLLAMA_LOAD_TIMEOUT",
    "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_QUEUE", "OLLAMA_MODELS", "OLLAMA_NO_CLOUD", "OLLAMA_NOHISTORY",
    "OLLAMA_NOPRUNE", "OLLAMA_NUM_PARALLEL", "OLLAMA_ORIGINS", "OLLAMA_REMOTES", "OLLAMA_SCHED_SPREAD",
)  # fmt: skip


class Faults:
    """What is to go wrong, from a JSON file that is read again at each question.

    leak_mib_per_request      the runner maps so much more at each generation
    trapped_mib_after_unload  the server goes on holding so much after each unload
    stuck_stopping            an unload never comes to its end: /api/ps lists the model, expired
    refuse_connections        the port is closed
    status_500                true, or a list of path prefixes, that answer 500
    hang                      true, or a list of path prefixes, that never answer
    slow_start_s              seconds before the port opens
    slow_load_s               seconds more for each load
    token_delay_s             seconds between two tokens (0.002)
    answer_tokens             length of an answer that no limit cuts (32)
    thought_tokens            how many of them, at its head, a thinking model thinks (4)
    pull_retry_base_s         first pause between attempts of a download (1, as the real one)
    """

    def __init__(self, path: str):
        self.path = path

    def all(self) -> dict:
        """Return the faults that are on."""
        if not self.path:
            return {}
        try:
            with open(self.path, encoding="utf-8") as handle:
                found = json.load(handle)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log("WARN", "lab faults not readable", path=self.path, error=error)
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, name: str, default=0):
        return self.all().get(name, default)

    def hits(self, name: str, path: str) -> bool:
        """Whether a fault that may be limited to paths concerns this one."""
        value = self.get(name, False)
        if isinstance(value, list):
            return any(path.startswith(prefix) for prefix in value)
        return bool(value)


def faults_path() -> str:
    """$OLLAMA_LAB_FAULTS or lab-faults.json beside the models folder."""
    return env("OLLAMA_LAB_FAULTS") or os.path.join(os.path.dirname(os.path.abspath(models_dir())), "lab-faults.json")


# ---------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------


def nvml_cards() -> list:
    """[{"total": bytes, "free": bytes}] of every GPU that NVML shows; [] without driver or library.

    Asked anew each time: initialised, read, shut down, so that a card that comes or goes is noticed.
    """
    if env("CUDA_VISIBLE_DEVICES") == "-1":
        return []
    try:
        import ctypes

        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return []
    except (ImportError, OSError, AttributeError, MemoryError):
        return []
    cards = []
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
                continue
            if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
                continue
            cards.append({"total": memory[0], "free": memory[1]})
    finally:
        library.nvmlShutdown()
    return cards


def map_vram(size: int, card: int):
    """Hold so many bytes of the simulated card's VRAM: a private mapping of /dev/zero, never touched."""
    if size <= 0:
        return None
    with open("/dev/zero", "rb") as zero:
        return mmap.mmap(zero.fileno(), size, flags=mmap.MAP_PRIVATE, prot=0, offset=card * mmap.PAGESIZE)


# ---------------------------------------------------------------------------------------------------------
# GGUF
# ---------------------------------------------------------------------------------------------------------

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
# type number: (name, values in a block, bytes of a block), of ggml.h
_TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS",
    32: "BF16",
}  # fmt: skip


class GgufError(Exception):
    """Not a GGUF file that can be read."""


def shortest_float32(value: float) -> float:
    """The shortest decimal that is this float32, which is how Go writes one."""
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == struct.pack("<f", value):
            return float(text)
    return value


class Strings:
    """A GGUF array of strings, read only when somebody wants to see it."""

    def __init__(self, path: str, start: int, end: int, count: int):
        self.path, self.start, self.end, self.count = path, start, end, count

    def read(self) -> list:
        with open(self.path, "rb") as handle:
            handle.seek(self.start)
            body = handle.read(self.end - self.start)
        found, at = [], 0
        for _index in range(self.count):
            length = struct.unpack_from("<Q", body, at)[0]
            found.append(body[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape"))
            at += 8 + length
        return found


class Gguf:
    """Header of a GGUF file: kv (arrays as lists, those of strings as Strings), tensors [(name, shape, type, offset)]."""

    def __init__(self, path: str):
        self.path = path
        self.kv: dict = {}
        self.tensors: list = []
        self.at = 4
        self.size = os.path.getsize(path)
        if self.size < 24:
            raise GgufError("invalid file magic")
        with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as self.map:
            if self.map[:4] != b"GGUF":
                raise GgufError("invalid file magic")
            try:
                self._read()
            except (struct.error, KeyError, UnicodeDecodeError, OverflowError, IndexError) as error:
                raise GgufError("unexpected EOF") from error

    def _take(self, form: str):
        value = struct.unpack_from(form, self.map, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._take("<Q")
        if length > self.size - self.at:
            raise GgufError("unexpected EOF")
        text = self.map[self.at : self.at + length].decode("utf-8", "surrogateescape")
        self.at += length
        return text

    def _value(self, kind: int):
        if kind == 8:
            return self._string()
        if kind == 6:
            return shortest_float32(self._take("<f"))
        if kind != 9:
            return self._take(_SCALARS[kind])
        inner, count = self._take("<I"), self._take("<Q")
        if count > self.size - self.at:
            raise GgufError("unexpected EOF")
        if inner in _SCALARS:
            form = f"<{count}{_SCALARS[inner][1]}"
            values = struct.unpack_from(form, self.map, self.at)
            self.at += struct.calcsize(form)
            return list(values)
        if inner == 8:  # a vocabulary: only walked over here
            start, at, length = self.at, self.at, struct.Struct("<Q").unpack_from
            for _index in range(count):
                at += 8 + length(self.map, at)[0]
            self.at = at
            return Strings(self.path, start, at, count)
        return [self._value(inner) for _index in range(count)]

    def _read(self) -> None:
        self.version = self._take("<I")
        if self.version not in (2, 3):
            raise GgufError(f"unsupported version {self.version}")
        tensors, pairs = self._take("<Q"), self._take("<Q")
        for _index in range(pairs):
            key = self._string()
            self.kv[key] = self._value(self._take("<I"))
        self.kv_end = self.at
        for _index in range(tensors):
            name = self._string()
            shape = [self._take("<Q") for _dim in range(self._take("<I"))]
            self.tensors.append((name, shape, self._take("<I"), self._take("<Q")))
        self.alignment = int(self.kv.get("general.alignment", 32))
        self.header_end = self.at
        self.data_offset = -(-self.at // self.alignment) * self.alignment

    @property
    def arch(self) -> str:
        return self.kv.get("general.architecture", "unknown")

    def get(self, key: str, default=0):
        """A key of the architecture, such as block_count."""
        return self.kv.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: int, pick=max) -> int:
        """A key that may be one number or one per layer."""
        value = self.get(key, default)
        if isinstance(value, list):
            return int(pick(value)) if value else default
        return int(value)

    def file_type(self) -> str:
        return _FILE_TYPES.get(int(self.kv.get("general.file_type", 0) or 1024), "unknown")

    def parameter_count(self) -> int:
        total = 0
        for _name, shape, _kind, _offset in self.tensors:
            count = 1
            for dim in shape:
                count *= dim
            total += count
        return total

    def tensor_bytes(self, shape: list, kind: int) -> int:
        _name, block, size = _TENSOR_TYPES.get(kind, ("?", 1, 4))
        count = 1
        for dim in shape:
            count *= dim
        return count // block * size

    def kind(self) -> str:
        return self.kv.get("general.type", "unknown")


_GGUF_CACHE: dict = {}
_GGUF_LOCK = threading.Lock()


def read_gguf(path: str) -> Gguf:
    """Gguf of a file, remembered by size and time."""
    stat = os.stat(path)
    key = (path, stat.st_size, stat.st_mtime_ns)
    with _GGUF_LOCK:
        if key not in _GGUF_CACHE:
            _GGUF_CACHE[key] = Gguf(path)
        return _GGUF_CACHE[key]


def rewrite_gguf(source: Gguf, out_path: str, file_type: int | None = None) -> None:
    """What `llama-quantize … COPY` does to a file as far as a client can see: the bytes change once.

    general.quantization_version is set where it is missing (and general.file_type where another one is asked for) and
    the data moved behind the longer header, so the digest of a model made from a file is not the file's, is the same
    each time, and a copy of the copy is the copy. Holes stay holes.
    """
    added = {}
    if "general.quantization_version" not in source.kv:
        added["general.quantization_version"] = 2
    if file_type is not None:
        added["general.file_type"] = file_type
    with open(source.path, "rb") as original, open(out_path, "r+b") as out:
        if not added:
            copy_sparse(original, out, 0, 0, source.size)
            return
        extra = b"".join(struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, value) for key, value in added.items())
        head = original.read(8) + struct.pack("<QQ", len(source.tensors), len(source.kv) + len(added))
        original.seek(24)
        head += original.read(source.kv_end - 24) + extra
        head += original.read(source.header_end - source.kv_end)
        head += b"\0" * (-len(head) % source.alignment)
        out.write(head)
        copy_sparse(original, out, source.data_offset, len(head), source.size - source.data_offset)


def copy_sparse(source, out, at: int, to: int, length: int) -> None:
    """Copy a range of one open file into another, leaving holes as holes."""
    end, position, handle = at + length, at, source.fileno()
    while position < end:
        try:
            start = os.lseek(handle, position, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            break
        if start >= end:
            break
        stop = min(os.lseek(handle, start, os.SEEK_HOLE), end)
        out.seek(to + start - at)
        while start < stop:
            block = os.pread(handle, min(stop - start, MIB), start)
            if not block:
                break
            out.write(block)
            start += len(block)
        position = stop
    out.flush()
    out.truncate(to + max(length, 0))


# ---------------------------------------------------------------------------------------------------------
# How much memory a model takes, and where it goes
# ---------------------------------------------------------------------------------------------------------

CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q4_0": 0.5625, "q4_1": 0.625, "iq4_nl": 0.5625,
    "q5_0": 0.6875, "q5_1": 0.75,
}  # fmt: skip


def memory_plan(gguf: Gguf, flags: dict, cards: list) -> dict:
    """Where llama-server would put a model: bytes per card and on the host, layers on cards.

    flags: ctx (of all slots), parallel, ubatch, cache_k, cache_v, flash, gpu_layers (-1: as many as fit),
    fit_target (bytes to leave free on each card). Formulas, measured on llama.cpp b10488:
    compute = ubatch·(4·(3·ff + k·hidden) + 2·ctx per slot), k = 2 with a quantised cache and 3 with f16;
    without flash attention heads·ctx·ubatch·4 more; the input embedding stays on the host.
    """
    layers = int(gguf.get("block_count", 0))
    hidden = int(gguf.get("embedding_length", 0))
    heads = max(gguf.number("attention.head_count", 1), 1)
    kv_heads = gguf.number("attention.head_count_kv", heads)
    key = int(gguf.get("attention.key_length", 0) or hidden // heads)
    value = int(gguf.get("attention.value_length", 0) or hidden // heads)
    ff = gguf.number("feed_forward_length", 0)
    slots = max(flags["parallel"], 1)
    per_slot = -(-(flags["ctx"] // slots) // 256) * 256
    embedding_model = f"{gguf.arch}.pooling_type" in gguf.kv

    weights = [0] * (layers + 1)  # one per layer, the last for the output
    host_weights, embedding = 0, 0
    for name, shape, kind, _offset in gguf.tensors:
        size = gguf.tensor_bytes(shape, kind)
        match = re.match(r"blk\.(\d+)\.", name)
        if match and int(match.group(1)) < layers:
            weights[int(match.group(1))] += size
        elif name.startswith("token_embd"):
            host_weights += size
            if name == "token_embd.weight":
                embedding = size
        else:
            weights[layers] += size
    if embedding and not any(name == "output.weight" for name, _s, _k, _o in gguf.tensors):
        weights[layers] += embedding  # tied: the output is a second copy on the card

    cache = int(kv_heads * (key * CACHE_BYTES[flags["cache_k"]] + value * CACHE_BYTES[flags["cache_v"]]) * per_slot * slots)
    cache = 0 if embedding_model else cache
    spread = 3 if flags["cache_k"] in ("f32", "f16", "bf16") else 2
    compute = flags["ubatch"] * (4 * (3 * ff + spread * hidden) + 2 * per_slot)
    if not flags["flash"]:
        compute += heads * per_slot * flags["ubatch"] * 4
    host_compute = flags["ubatch"] * (8 * hidden + 2 * per_slot)

    everything = sum(weights) + cache * layers
    wanted = everything + compute
    budgets = [max(card["free"] - CUDA_CONTEXT_MIB * MIB - flags["fit_target"], 0) for card in cards]
    asked = flags["gpu_layers"]
    on_card = 0
    places: list = [0] * len(cards)
    if cards and asked != 0:
        order = sorted(range(len(cards)), key=lambda index: -budgets[index])
        single = [index for index in order if budgets[index] >= wanted]
        use = single[:1] or order
        limit = layers + 1 if asked < 0 else min(asked, layers + 1)
        # llama.cpp fills from the output backwards; with several cards each has its own compute buffer
        room = {index: budgets[index] - compute for index in use}
        queue = list(use)
        for number in range(limit):
            index = layers - number
            size = weights[index] + (cache if index < layers else 0)
            if asked < 0:
                while queue and room[queue[0]] < size:
                    queue.pop(0)
                if not queue:
                    break
            card = queue[0]
            if places[card] == 0:
                places[card] = compute
            places[card] += size
            room[card] -= size
            on_card += 1
        if asked > 0 and any(places[i] + CUDA_CONTEXT_MIB * MIB > cards[i]["free"] for i in range(len(cards))):
            raise MemoryError("cudaMalloc failed: out of memory")
    vram = sum(places)
    full = on_card == layers + 1
    host = host_weights + host_compute
    if not full:
        host += sum(weights[: layers + 1 - on_card]) + cache * max(layers + 1 - max(on_card, 1), 0)
        host += 0 if on_card else compute
    return {
        "places": places, "vram": vram, "size": vram if full else vram + host, "on_card": on_card,
        "layers": layers + 1, "host": host, "wanted": wanted, "model": sum(weights), "cache": cache * layers,
        "compute": compute, "host_weights": host_weights, "host_compute": host_compute,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# llama-server: the child process that holds a model
# ---------------------------------------------------------------------------------------------------------

WORDS = (  # noqa: SIM905  (a text, not a table)
    "the card holds a layer of quiet numbers and every token finds its place in the cache while one slot waits "
    "for another prompt to arrive from the host where a plan was written down before any weight was moved so "
    "nothing here is measured twice and what was predicted stays true until somebody turns the fan off again"
).split()


def nonsense(seed_text: str, count: int) -> list:
    """The same words for the same text: tokens of an answer."""
    state = int.from_bytes(hashlib.sha256(seed_text.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    words = []
    for index in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        words.append(("" if index == 0 else " ") + WORDS[(state >> 33) % len(WORDS)])
    return words


def parse_llama_args(argv: list) -> dict:
    """The flags that Ollama passes to llama-server, and LLAMA_ARG_* for those that it does not."""
    known = {
        "--model": "model", "-m": "model", "--port": "port", "-c": "ctx", "--ctx-size": "ctx", "-np": "parallel",
        "--parallel": "parallel", "-b": "batch", "--batch-size": "batch", "-ub": "ubatch", "--ubatch-size": "ubatch",
        "--cache-type-k": "cache_k", "-ctk": "cache_k", "--cache-type-v": "cache_v", "-ctv": "cache_v",
        "--flash-attn": "flash", "-fa": "flash", "-ngl": "gpu_layers", "--n-gpu-layers": "gpu_layers",
        "--gpu-layers": "gpu_layers", "--fit-target": "fit_target", "--fit": "fit", "-fit": "fit", "--host": "host",
        "--lab-faults": "faults",
    }  # fmt: skip
    flags = {
        "ctx": 0, "parallel": 1, "batch": 2048, "ubatch": 512, "port": 8080, "host": "127.0.0.1", "gpu_layers": -1,
        "cache_k": env("LLAMA_ARG_CACHE_TYPE_K") or "f16", "cache_v": env("LLAMA_ARG_CACHE_TYPE_V") or "f16",
        "flash": env("LLAMA_ARG_FLASH_ATTN") or "auto", "fit": env("LLAMA_ARG_FIT") or "on",
        "fit_target": env("LLAMA_ARG_FIT_TARGET") or "1024", "faults": "", "model": "", "lab_parent": False,
    }  # fmt: skip
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--lab-parent":
            flags["lab_parent"] = True
        elif word in known and words:
            flags[known[word]] = words.pop(0)
    for name in ("ctx", "parallel", "batch", "ubatch", "port"):
        flags[name] = int(flags[name])
    text = str(flags["gpu_layers"])
    flags["gpu_layers"] = -1 if text == "auto" else 10**6 if text == "all" else int(text)
    flags["fit_target"] = int(str(flags["fit_target"]).split(",")[0]) * MIB
    if str(flags["fit"]).lower() in ("off", "0", "false"):
        flags["fit_target"] = -(2**62)  # as many layers as asked for, whatever is free
    return flags


def say(text: str) -> None:
    """One line of llama-server's own log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def free_port() -> int:
    """A port of loopback that nobody listens on; the real server gives its runners one the same way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def runner_main(argv: list) -> int:
    """llama-server: say what will be taken, take it, answer on a loopback port until killed."""
    flags = parse_llama_args(argv)
    if "--version" in argv:
        print("version: 10488 (lab stand-in)")
        return 0
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write("llama-server")
    except OSError:
        pass
    for name in ("cache_k", "cache_v"):
        if flags[name] not in CACHE_BYTES:
            say(f'error while handling argument "--cache-type-{name[-1]}": Unsupported cache type: {flags[name]}')
            return 1
    try:
        gguf = Gguf(flags["model"])
    except (GgufError, OSError) as error:
        say(f"llama_model_load: error loading model: {error}")
        return 1
    flash = str(flags["flash"]).lower() not in ("off", "0", "false")
    if not flash and flags["cache_v"] not in ("f32", "f16", "bf16"):
        say("llama_init_from_model: quantized V cache requires flash_attn to be enabled")
        return 1
    train = int(gguf.get("context_length", 0))
    if not flags["ctx"]:
        flags["ctx"] = train * max(flags["parallel"], 1)
    cards = nvml_cards()
    try:
        plan = memory_plan(gguf, dict(flags, flash=flash), cards)
    except MemoryError as error:
        say(f"ggml_backend_cuda_buffer_type_alloc_buffer: {error}")
        return 1

    free = sum(card["free"] for card in cards) - CUDA_CONTEXT_MIB * MIB * len(cards)
    total = sum(card["total"] for card in cards)
    if cards:
        say("common_memory_breakdown_print: | memory breakdown [MiB] | total   free     self   model   context   compute    unaccounted |")
        say(
            f"common_memory_breakdown_print: |   - CUDA0 (NVIDIA) | {total // MIB} = {free // MIB} + "
            f"({plan['wanted'] // MIB} = "
            f"{plan['model'] // MIB} + {plan['cache'] // MIB} + {plan['compute'] // MIB}) + {(total - free) // MIB} |"
        )
        host = plan["host_weights"] + plan["host_compute"]
        say(f"common_memory_breakdown_print: |   - Host            | {host // MIB} = {plan['host_weights'] // MIB} + 0 + {plan['host_compute'] // MIB} |")
        say(f"common_params_fit_impl: projected to use {plan['wanted'] // MIB} MiB of device memory vs. {free // MIB} MiB of free device memory")
    faults = Faults(flags["faults"])
    time.sleep(float(faults.get("slow_load_s", 0)))
    held = [map_vram(size + CUDA_CONTEXT_MIB * MIB, card) for card, size in enumerate(plan["places"]) if size]
    say(f"load_tensors: offloaded {plan['on_card']}/{plan['layers']} layers to GPU")
    say(f"llama_kv_cache: size = {plan['cache'] / MIB:.2f} MiB ({flags['ctx']} cells, {plan['layers'] - 1} layers)")

    count = max(flags["parallel"], 1)
    slots = threading.Semaphore(count)
    processing = []
    card = next((index for index, size in enumerate(plan["places"]) if size), 0)

    class RunnerHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, format, *args):  # noqa: A002  (the name is the base class's)
            pass

        def do_GET(self):
            said = {"status": "ok"}
            if self.path == "/slots":
                busy = len(processing)
                said = [{"id": slot, "n_ctx": flags["ctx"] // count, "speculative": False, "is_processing": slot < busy} for slot in range(count)]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            leak = int(float(faults.get("leak_mib_per_request", 0)) * MIB)
            if leak and plan["vram"]:
                held.append(map_vram(leak, card))
            self.send_response(200)
            self.end_headers()
            with slots:
                processing.append(self)
                try:
                    for word in asked["words"]:
                        self.wfile.write(word.encode("utf-8", "surrogateescape") + b"\0")
                        self.wfile.flush()
                        time.sleep(float(asked["delay"]))
                finally:
                    processing.remove(self)

    class RunnerServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            """A client that went away is no news."""

    server = RunnerServer((str(flags["host"]), flags["port"]), RunnerHandler)
    say(f"main: server is listening on http://{flags['host']}:{server.server_address[1]}")
    if flags["lab_parent"]:
        facts = {"port": server.server_address[1], "size": plan["size"], "vram": plan["vram"], "cards": len(cards)}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    server.serve_forever(poll_interval=60)
    return 0


# ---------------------------------------------------------------------------------------------------------
# Names and the store
# ---------------------------------------------------------------------------------------------------------

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_MISSING = "!MISSING!"


class Name:
    """[host/][namespace/]model[:tag] with the defaults filled in."""

    def __init__(self, host: str, namespace: str, model: str, tag: str, scheme: str = "https"):
        self.host, self.namespace, self.model, self.tag, self.scheme = host, namespace, model, tag, scheme

    @classmethod
    def parse(cls, text: str) -> Name:
        tag = ""
        if text.rfind(":") > text.rfind("/"):
            text, _colon, tag = text.rpartition(":")
            text, tag = text or _MISSING, tag or _MISSING
        rest, slash, model = text.rpartition("/")
        namespace = host = ""
        scheme = "https"
        if slash:
            rest, model = rest or _MISSING, model or _MISSING
            rest, slash, namespace = rest.rpartition("/")
            if slash:
                rest, namespace = rest or _MISSING, namespace or _MISSING
                before, separator, after = rest.partition("://")
                scheme, host = (before, after) if separator else ("https", before)
        return cls(host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag or "latest", scheme)

    def valid(self) -> bool:
        return (
            len(self.host) <= 350
            and all(len(part) <= 80 for part in (self.namespace, self.model, self.tag))
            and bool(_HOST.fullmatch(self.host))
            and bool(_NAMESPACE.fullmatch(self.namespace))
            and bool(_PART.fullmatch(self.model))
            and bool(_PART.fullmatch(self.tag))
        )

    def short(self) -> str:
        """The shortest form that means this model."""
        if self.host.lower() != DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.namespace.lower() != DEFAULT_NAMESPACE:
            prefix = f"{self.namespace}/"
        else:
            prefix = ""
        return f"{prefix}{self.model}:{self.tag}"

    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def path(self) -> str:
        return os.path.join(self.host, self.namespace, self.model, self.tag)


def cut_source(text: str) -> tuple[str, str]:
    """(name without it, "cloud" | "local" | "") of the reserved suffixes of a model reference."""
    before, colon, suffix = text.rpartition(":")
    if colon:
        low = suffix.strip().lower()
        if low in ("cloud", "local"):
            return before, low
        if "/" not in suffix and low.endswith("-cloud"):
            return text[: -len("-cloud")], "cloud"
    return text, ""


def model_reference(text: str) -> tuple[Name, str]:
    """(name, source) of a reference in a request; ValueError where it is none."""
    text = (text or "").strip()
    if not text:
        raise ValueError("model is required")
    base, source = cut_source(text)
    if source and cut_source(base)[1]:
        raise ValueError(f'use either :local or :cloud, not both: "{text}"')
    name = Name.parse(base)
    if not name.valid():
        raise ValueError("invalid model name")
    return name, source


class Manifest:
    """One manifest file: config and layers as in the file, digest and time of the file."""

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as handle:
            body = handle.read()
            self.modified = os.fstat(handle.fileno()).st_mtime
        found = json.loads(body.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a manifest")
        self.config = found.get("config") or {}
        self.layers = found.get("layers") or []
        self.digest = hashlib.sha256(body).hexdigest()

    def everything(self) -> list:
        return self.layers + ([self.config] if self.config.get("digest") else [])

    def size(self) -> int:
        return sum(int(layer.get("size", 0)) for layer in self.everything())


class Store:
    """The models folder: manifests and blobs, laid out as the real server lays them out."""

    def __init__(self, root: str):
        self.root = root
        self.lock = threading.RLock()

    def manifests_dir(self) -> str:
        path = os.path.join(self.root, "manifests")
        os.makedirs(path, mode=0o755, exist_ok=True)
        return path

    def blobs_dir(self) -> str:
        path = os.path.join(self.root, "blobs")
        os.makedirs(path, mode=0o755, exist_ok=True)
        return path

    def blob(self, digest: str) -> str:
        """Path of a blob; ApiError for what is not a digest."""
        if not re.fullmatch(r"sha256[:-][0-9a-fA-F]{64}", digest):
            raise ApiError(400, "invalid digest format")
        return os.path.join(self.blobs_dir(), digest.replace(":", "-"))

    def manifest(self, name: Name) -> Manifest:
        try:
            return Manifest(os.path.join(self.manifests_dir(), name.path()))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(name.full()) from error

    def names(self) -> list:
        """Names of all manifests, whatever is in them."""
        root, found = self.manifests_dir(), []
        for host in sorted(os.listdir(root)):
            for namespace in _folders(os.path.join(root, host)):
                for model in _folders(os.path.join(root, host, namespace)):
                    for tag in _folders(os.path.join(root, host, namespace, model)):
                        name = Name(host, namespace, model, tag)
                        if name.valid() and os.path.isfile(os.path.join(root, name.path())):
                            found.append(name)
        return found

    def manifests(self, strict: bool = False) -> list:
        """[(name, manifest)] of all that can be read; strict raises ValueError for one that cannot."""
        found = []
        for name in self.names():
            try:
                found.append((name, self.manifest(name)))
            except NotFoundError:
                continue
            except ValueError as error:
                if strict:
                    raise
                log("WARN", "bad manifest", name=name.full(), error=error)
        return found

    def existing(self, name: Name) -> Name:
        """The name with every part spelt as an existing model spells it."""
        for other, _manifest in self.manifests():
            for part in ("host", "namespace", "model", "tag"):
                if getattr(other, part).lower() == getattr(name, part).lower():
                    setattr(name, part, getattr(other, part))
        return name

    def in_use(self) -> set:
        return {layer.get("digest") for _name, manifest in self.manifests() for layer in manifest.everything()}

    def put(self, body: bytes, media: str) -> dict:
        """A layer of these bytes, made unless it is there."""
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        path = self.blob(digest)
        status = "using existing layer"
        with self.lock:
            if not os.path.exists(path):
                status = "creating new layer"
                handle, temporary = tempfile.mkstemp(prefix="sha256-", dir=self.blobs_dir())
                with os.fdopen(handle, "wb") as out:
                    out.write(body)
                os.chmod(temporary, 0o644)
                os.rename(temporary, path)
            os.utime(path)
        return {"mediaType": media, "digest": digest, "size": len(body), "status": f"{status} {digest}"}

    def put_stream(self, read, length: int | None) -> str:
        """Digest of a blob made from a stream; nothing is left of one that breaks off."""
        sha, left = hashlib.sha256(), length
        handle, temporary = tempfile.mkstemp(prefix="sha256-", dir=self.blobs_dir())
        try:
            with os.fdopen(handle, "wb") as out:
                while left is None or left > 0:
                    block = read(MIB if left is None else min(MIB, left))
                    if not block:
                        break
                    sha.update(block)
                    out.write(block)
                    left = None if left is None else left - len(block)
            if left:
                raise ApiError(500, "unexpected EOF")
            return self.adopt(temporary, "sha256:" + sha.hexdigest())
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def adopt(self, temporary: str, digest: str) -> str:
        """Give a finished file its name in the store."""
        path = self.blob(digest)
        with self.lock:
            if not os.path.exists(path):
                os.chmod(temporary, 0o644)
                os.rename(temporary, path)
            os.utime(path)
        return digest

    def reuse(self, digest: str, media: str, origin: str) -> dict:
        """A layer that points at a blob that is there."""
        path = self.blob(digest)
        try:
            size = os.stat(path).st_size
            os.utime(path)
        except FileNotFoundError as error:
            raise ApiError(500, f"stat {path}: no such file or directory") from error
        layer = {"mediaType": media, "digest": digest, "size": size, "status": f"using existing layer {digest}"}
        if origin:
            layer["from"] = origin
        return layer

    def write_manifest(self, name: Name, config: dict, layers: list) -> None:
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _layer_json(config),
            "layers": [_layer_json(layer) for layer in layers],
        }
        path = os.path.join(self.manifests_dir(), name.path())
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "wb") as handle:
            handle.write((go_json(body) + "\n").encode())

    def remove(self, name: Name) -> None:
        """Delete a manifest, folders that are empty then, and layers that nobody else uses."""
        with self.lock:
            manifest = self.manifest(name)
            os.unlink(manifest.path)
            self.prune_folders()
            self.remove_unused(manifest.everything())

    def prune_folders(self) -> None:
        root = self.manifests_dir()
        for folder, _folders_in, _files in os.walk(root, topdown=False):
            if folder != root and not os.listdir(folder):
                os.rmdir(folder)

    def remove_unused(self, layers: list) -> None:
        with self.lock:
            used = self.in_use()
            for layer in layers:
                if layer.get("digest") and layer["digest"] not in used:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.blob(layer["digest"]))

    def prune(self) -> None:
        """What a start cleans up: old blobs that no manifest names, and halves of downloads."""
        try:
            self.manifests(strict=True)
        except ValueError as error:
            log("WARN", "corrupt manifests detected, skipping prune operation.  Re-pull or delete to clear", error=error)
            return
        used, removed = self.in_use(), 0
        for entry in os.scandir(self.blobs_dir()):
            if entry.is_dir() or time.time() - entry.stat().st_mtime < GRACE_S:
                continue
            digest = entry.name.replace("-", ":", 1)
            if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", digest) or digest not in used:
                os.unlink(entry.path)
                removed += 1
        log("INFO", f"total unused blobs removed: {removed}")
        self.prune_folders()


def _folders(path: str) -> list:
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def _layer_json(layer: dict) -> dict:
    kept = {"mediaType": layer["mediaType"], "digest": layer["digest"], "size": layer["size"]}
    for key in ("from", "name"):
        if layer.get(key):
            kept[key] = layer[key]
    return kept


# ---------------------------------------------------------------------------------------------------------
# A model as the store describes it
# ---------------------------------------------------------------------------------------------------------

TEMPLATE_WORDS = set(
    (  # noqa: SIM905  (a text, not a table)
        "if else range with end define block template break continue nil true false and or not len index slice print printf "
        "println html js urlquery call eq ne lt le gt ge json currentDate yesterdayDate toTypeScriptType"
    ).split()
)
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.S)


def check_template(text: str) -> None:
    """Refuse what Go's template parser would refuse first: open actions and unbalanced blocks."""
    at, depth, line = 0, 0, 1
    while True:
        start = text.find("{{", at)
        if start < 0:
            break
        line = text.count("\n", 0, start) + 1
        stop = text.find("}}", start)
        if stop < 0:
            raise ApiError(400, f"template error: template: :{line}: unclosed action")
        action = text[start + 2 : stop].strip("- \t\r\n")
        word = action.split(" ")[0]
        for called in re.findall(r"(?:^|[|(])\s*([A-Za-z_]\w*)", re.sub(r'"(?:\\.|[^"\\])*"|`[^`]*`', '""', action)):
            if called not in TEMPLATE_WORDS and not action.startswith("/*"):
                raise ApiError(400, f'template error: template: :{line}: function "{called}" not defined')
        if word in ("if", "range", "with", "block", "define"):
            depth += 1
        elif word == "end":
            depth -= 1
            if depth < 0:
                raise ApiError(400, f"template error: template: :{line}: unexpected {{{{end}}}}")
        at = stop + 2
    if depth:
        raise ApiError(400, f"template error: template: :{text.count(chr(10)) + 1}: unexpected EOF")


def template_names(text: str) -> set:
    """Names that a Go template reads, in lower case."""
    return {found.lower() for action in _ACTION.findall(text) for found in re.findall(r"\.([A-Za-z]+)", action)}


def chat_template_capabilities(text: str) -> list:
    """tools and thinking, as the real server guesses them from a GGUF's chat template."""
    found = []
    if "tools" in text or "tool_call" in text:
        found.append("tools")
    if "<think>" in text and "</think>" in text:
        found.append("thinking")
    return found


def go_template_capabilities(text: str) -> list:
    """The same from a stored Go template."""
    names, found = template_names(text), []
    if "tools" in names:
        found.append("tools")
    if "suffix" in names:
        found.append("insert")
    if "thinking" in names and "<think>" in text:
        found.append("thinking")
    return found


THINKING_PARSERS = ("qwen3", "qwen3-thinking", "qwen3-vl-thinking", "deepseek3", "harmony", "olmo3-think", "gemma4")


class Model:
    """What a manifest and its blobs say about one model."""

    def __init__(self, store: Store, name: Name):
        self.name = name
        manifest = store.manifest(name)
        self.manifest = manifest
        self.digest = manifest.digest
        self.config: dict = {}
        if manifest.config.get("digest"):
            self.config = json.loads(_read_text(store.blob(manifest.config["digest"])))
        self.path = self.parent = self.system = ""
        self.template = "{{ .Prompt }}"
        self.has_template = False
        self.licenses: list = []
        self.messages: list = []
        self.options: dict = {}
        self.adapters: list = []
        self.projectors: list = []
        for layer in manifest.layers:
            kind, path = layer["mediaType"].replace(MEDIA, ""), store.blob(layer["digest"])
            if kind == "model":
                self.path, self.parent = path, layer.get("from", "")
            elif kind == "adapter":
                self.adapters.append(path)
            elif kind == "projector":
                self.projectors.append(path)
            elif kind in ("template", "prompt"):
                self.template, self.has_template = _read_text(path), True
            elif kind == "system":
                self.system = _read_text(path)
            elif kind == "params":
                self.options = json.loads(_read_text(path), parse_int=float) or {}
            elif kind == "messages":
                self.messages = json.loads(_read_text(path)) or []
            elif kind == "license":
                self.licenses.append(_read_text(path))
        self.gguf = None
        if self.path:
            try:
                self.gguf = read_gguf(self.path)
            except (GgufError, OSError) as error:
                log("ERROR", "couldn't open model file", error=error)
        self.chat_template = self.gguf.kv.get("tokenizer.chat_template", "") if self.gguf else ""

    def rendered_by_template(self) -> bool:
        """Whether the stored TEMPLATE, renderer or parser is used, not the GGUF's own chat template."""
        if self.config.get("renderer") or self.config.get("parser"):
            return True
        if not self.has_template:
            return False
        if env("OLLAMA_GO_TEMPLATE"):
            return env_bool("OLLAMA_GO_TEMPLATE", True)
        theirs, ours = chat_template_capabilities(self.chat_template), go_template_capabilities(self.template)
        return not (self.chat_template and len(theirs) > len(ours))

    def shown_template(self) -> str:
        if self.chat_template and not self.rendered_by_template():
            return self.chat_template
        return self.template

    def capabilities(self) -> list:
        found = list(self.config.get("capabilities") or [])
        if self.gguf:
            if not self.rendered_by_template():
                found += chat_template_capabilities(self.chat_template)
            found.append("embedding" if f"{self.gguf.arch}.pooling_type" in self.gguf.kv else "completion")
            if f"{self.gguf.arch}.vision.block_count" in self.gguf.kv or self.projectors:
                found.append("vision")
        if not self.has_template or self.rendered_by_template():
            found += go_template_capabilities(self.template)
        if self.config.get("parser"):
            found += ["tools", "thinking"] if self.config["parser"] in THINKING_PARSERS else ["tools"]
        return list(dict.fromkeys(found))

    def listed_capabilities(self) -> list:
        """The capabilities of /api/tags, which never looks at a GGUF's chat template."""
        found = []
        if self.gguf:
            found.append("embedding" if f"{self.gguf.arch}.pooling_type" in self.gguf.kv else "completion")
        found += self.config.get("capabilities") or []
        found += go_template_capabilities(self.template)
        if self.config.get("parser"):
            found += ["tools", "thinking"] if self.config["parser"] in THINKING_PARSERS else ["tools"]
        return list(dict.fromkeys(found + (["vision"] if self.projectors else [])))

    def details(self, with_lengths: bool = False, parent: bool = True) -> dict:
        config = self.config
        found = {
            "parent_model": self.parent if parent else "",
            "format": config.get("model_format", ""),
            "family": config.get("model_family", ""),
            "families": config.get("model_families"),
            "parameter_size": config.get("model_type", ""),
            "quantization_level": config.get("file_type", ""),
        }
        if with_lengths and self.gguf:
            for key in ("context_length", "embedding_length"):
                value = config.get(key) or self.gguf.get(key)
                if value:
                    found[key] = int(value)
        return found

    def modelfile(self) -> str:
        """The text of the `modelfile` field: for people, with its lossy quoting."""
        lines = [f"FROM {self.path}"]
        lines += [f"ADAPTER {_modelfile_quote(path)}" for path in self.adapters]
        lines += [f"FROM {path}" for path in self.projectors]
        lines.append(f"TEMPLATE {_modelfile_quote(self.template)}")
        if self.system:
            lines.append(f"SYSTEM {_modelfile_quote(self.system)}")
        for word in ("renderer", "parser"):
            if self.config.get(word):
                lines.append(f"{word.upper()} {_modelfile_quote(self.config[word])}")
        for key, value in _shuffled(self.options):
            for item in value if isinstance(value, list) else [value]:
                lines.append(f"PARAMETER {key} {_modelfile_quote(go_value(item, False))}")
        lines += [f"LICENSE {_modelfile_quote(text)}" for text in self.licenses]
        lines += [f"MESSAGE {m.get('role', '')} {_modelfile_quote(m.get('content', ''))}" for m in self.messages]
        head = f'# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM {self.name.short()}\n\n'
        return head + "\n".join(lines) + "\n"

    def parameters_text(self) -> str:
        """The text of the `parameters` field; the order of keys is a map's, so it varies."""
        lines = []
        for key, value in _shuffled(self.options):
            for item in value if isinstance(value, list) else [value]:
                lines.append(f"{key:<30} {go_value(item, True)}")
        return "\n".join(lines)


def _shuffled(options: dict) -> list:
    pairs = list(options.items())
    random.shuffle(pairs)
    return pairs


def _modelfile_quote(text: str) -> str:
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as handle:
        return handle.read()


# ---------------------------------------------------------------------------------------------------------
# Options of a request
# ---------------------------------------------------------------------------------------------------------

OPTION_TYPES = {
    "num_ctx": "integer", "num_batch": "integer", "num_gpu": "integer", "main_gpu": "integer", "num_thread": "integer",
    "draft_num_predict": "integer", "use_mmap": "boolean", "num_keep": "integer", "seed": "integer",
    "num_predict": "integer", "top_k": "integer", "repeat_last_n": "integer", "top_p": "float32", "min_p": "float32",
    "typical_p": "float32", "temperature": "float32", "repeat_penalty": "float32", "presence_penalty": "float32",
    "frequency_penalty": "float32", "stop": "array",
}  # fmt: skip
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")


def merge_options(target: dict, given: dict | None) -> None:
    """Put given options into target; names that do not exist are logged, wrong types are errors."""
    for key, value in (given or {}).items():
        kind = OPTION_TYPES.get(key)
        if kind is None:
            log("WARN", "invalid option provided", option=key)
            continue
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = is_number if kind in ("integer", "float32") else isinstance(value, bool) if kind == "boolean" else isinstance(value, list)
        if not good:
            raise ApiError(500, f'option "{key}" must be of type {kind}')
        if kind == "array" and not all(isinstance(item, str) for item in value):
            raise ApiError(500, f'option "{key}" must be of an array of strings')
        target[key] = int(value) if kind == "integer" else float(value) if kind == "float32" else value


# ---------------------------------------------------------------------------------------------------------
# Loaded models
# ---------------------------------------------------------------------------------------------------------


class Runner:
    """One loaded model and its process."""

    def __init__(self, model: Model, wanted: dict, keep_s: float):
        self.model = model
        self.key = model.path
        self.wanted = wanted
        self.session_s = keep_s
        self.expires_at = time.time() + min(keep_s, FOREVER_S)
        self.references = 0
        self.timer: threading.Timer | None = None
        self.process: subprocess.Popen | None = None
        self.port = self.size = self.vram = self.cards = 0
        self.going = False

    def request(self, method: str, path: str, body: dict | None = None, timeout: float | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, None if body is None else json.dumps(body))
        return connection, connection.getresponse()

    def alive(self) -> bool:
        """Whether the process answers; one that hangs is waited for 10 s, as the real scheduler does."""
        try:
            connection, response = self.request("GET", "/health", timeout=10)
            connection.close()
            return response.status == 200
        except OSError:
            return False


class Scheduler:
    """Which models are loaded. Keyed by the GGUF's path: two names on the same weights share a process."""

    def __init__(self, faults: Faults, program: str):
        self.faults = faults
        self.program = program
        self.loaded: dict = {}
        self.change = threading.Condition()
        self.pending = threading.Lock()
        self.maximum = env_uint("OLLAMA_MAX_LOADED_MODELS", 0)
        self.trapped: list = []
        self.waiting = 0
        total = sum(card["total"] for card in nvml_cards())
        tier = 262144 if total >= 47 * 1024 * MIB else 32768 if total >= 23 * 1024 * MIB else 4096
        self.default_ctx = tier
        log("INFO", "vram-based default context", total_vram=f"{total / 1024 / MIB:.1f} GiB", default_num_ctx=tier)

    # -- asking for a runner

    def options(self, model: Model, asked: dict | None) -> dict:
        """All options in force: defaults, the model's, the request's."""
        length = env_uint("OLLAMA_CONTEXT_LENGTH", 0)
        found = {
            "num_ctx": length or self.default_ctx, "num_batch": 512, "num_gpu": -1, "main_gpu": None, "use_mmap": None,
            "num_thread": 0, "draft_num_predict": 0, "num_predict": -1, "seed": -1, "stop": [],
        }  # fmt: skip
        merge_options(found, model.options)
        merge_options(found, asked)
        return found

    def wish(self, model: Model, options: dict, asked: dict | None, shift) -> dict:
        """What a runner must have been started with to serve this request."""
        explicit = set(model.options) | set(asked or {})
        train = int(model.gguf.get("context_length", 0)) if model.gguf else 0
        wanted = {name: options[name] for name in RUNNER_OPTIONS}
        wanted["num_ctx"] = max(wanted["num_ctx"], 4)
        if "vision" in model.capabilities():
            wanted["num_ctx"] = max(wanted["num_ctx"], 2048)
        if train:
            wanted["num_ctx"] = min(wanted["num_ctx"], train)
        return {
            "options": wanted,
            "ctx_auto": "num_ctx" not in explicit and not env_uint("OLLAMA_CONTEXT_LENGTH", 0),
            "batch_auto": "num_batch" not in explicit,
            "shift": True if shift is None else bool(shift),
            "adapters": model.adapters,
            "projectors": model.projectors,
        }

    @staticmethod
    def differs(runner: Runner, wanted: dict) -> bool:
        """Whether the request needs another process than the one that runs."""
        have, want = dict(runner.wanted["options"]), dict(wanted["options"])
        for key, auto in (("num_ctx", "ctx_auto"), ("num_batch", "batch_auto")):
            if runner.wanted[auto] and wanted[auto]:
                want[key] = have[key]
        if want["use_mmap"] is None:
            want["use_mmap"] = have["use_mmap"]
        if want["num_gpu"] < 0:
            want["num_gpu"] = have["num_gpu"] = -1
        return have != want or any(runner.wanted[key] != wanted[key] for key in ("shift", "adapters", "projectors"))

    def acquire(self, model: Model, options: dict, asked: dict | None, keep_s: float | None, shift=None) -> Runner:
        """A runner for the request, loaded if need be; to be released."""
        if not model.path or model.gguf is None:
            raise ApiError(500, f"unable to load model: {model.path}")
        wanted = self.wish(model, options, asked, shift)
        runner = self.loaded.get(model.path)
        if runner and not runner.going and not self.differs(runner, wanted) and runner.alive() and self.use(runner, keep_s):
            return runner
        with self.change:
            if self.waiting >= env_uint("OLLAMA_MAX_QUEUE", 512):
                raise ApiError(503, "server busy, please try again.  maximum pending requests exceeded")
            self.waiting += 1
        try:
            with self.pending:
                return self.place(model, wanted, keep_s)
        finally:
            with self.change:
                self.waiting -= 1

    def place(self, model: Model, wanted: dict, keep_s: float | None) -> Runner:
        """Make room as the real scheduler does, then load; one at a time."""
        while True:
            runner = self.loaded.get(model.path)
            if runner:
                if not runner.going and not self.differs(runner, wanted) and runner.alive():
                    if self.use(runner, keep_s):
                        return runner
                    continue
                self.expire(runner, wait=True)
                continue
            cards = nvml_cards()
            if not self.maximum:
                self.maximum = 3 * max(len(cards), 1)
            if len(self.loaded) >= self.maximum or (self.loaded and cards and self.too_big(model, wanted, cards)):
                victim = min(self.loaded.values(), key=lambda r: (r.references > 0, r.session_s, r.expires_at))
                self.expire(victim, wait=True)
                continue
            return self.load(model, wanted, keep_s, cards)

    @staticmethod
    def predicted(model: Model, num_ctx: int, parallel: int) -> int:
        """The scheduler's own coarse estimate: file size and an f16 cache."""
        gguf = model.gguf
        heads = max(gguf.number("attention.head_count", 1), 1)
        head = int(gguf.get("embedding_length", 0)) // heads
        kv_heads = gguf.number("attention.head_count_kv", 1, min) or 1
        return gguf.size + 4 * int(gguf.get("block_count", 0)) * kv_heads * head * num_ctx * parallel

    def too_big(self, model: Model, wanted: dict, cards: list) -> bool:
        parallel = max(env_uint("OLLAMA_NUM_PARALLEL", 1), 1)
        free = sum(card["free"] for card in cards)
        return self.predicted(model, wanted["options"]["num_ctx"], parallel) > free * 80 // 100

    def batch(self, model: Model, wanted: dict, cards: list, parallel: int) -> int:
        """num_batch where nobody set one: larger with a longer context, as far as the card has room."""
        if not wanted["batch_auto"] or "completion" not in model.capabilities():
            return wanted["options"]["num_batch"]
        context = wanted["options"]["num_ctx"] * parallel
        size = 2048 if context > 32768 else 1024 if context > 4096 else 512
        need = self.predicted(model, wanted["options"]["num_ctx"], parallel)
        free = sum(card["free"] for card in cards)
        while size > 512 and free and need > free * {2048: 60, 1024: 75}[size] // 100:
            size //= 2
        return size

    def load(self, model: Model, wanted: dict, keep_s: float | None, cards: list) -> Runner:
        """Start the child and wait for it."""
        keep = env_duration("OLLAMA_KEEP_ALIVE", 300.0) if keep_s is None else keep_s
        parallel = max(env_uint("OLLAMA_NUM_PARALLEL", 1), 1)
        if "completion" not in model.capabilities():
            parallel = 1
        options = wanted["options"]
        options["num_batch"] = self.batch(model, wanted, cards, parallel)
        if wanted["batch_auto"]:
            wanted["batch_auto"] = True
        argv = [
            "--model", model.path, "--port", str(free_port()), "--host", "127.0.0.1", "--no-webui", "--offline", "-c",
            str(options["num_ctx"] * parallel), "-np", str(parallel), "-b", str(options["num_batch"]), "-ub",
            str(options["num_batch"]), "--keep", "4", "--log-verbosity", "4", "--lab-parent", "--lab-faults", self.faults.path,
        ]  # fmt: skip
        cache = env("OLLAMA_KV_CACHE_TYPE").lower()
        if cache:
            argv += ["--cache-type-k", cache, "--cache-type-v", cache]
        flash = env("OLLAMA_FLASH_ATTENTION")
        argv += ["--flash-attn", "auto" if not flash else "on" if env_bool("OLLAMA_FLASH_ATTENTION") else "off"]
        if options["num_gpu"] >= 0:
            argv += ["-ngl", str(options["num_gpu"])]
        if options["num_thread"] > 0:
            argv += ["-t", str(options["num_thread"])]
        argv += ["--context-shift"] if wanted["shift"] else []
        beside = os.path.join(os.path.dirname(os.path.dirname(self.program)), "lib", "ollama", "llama-server")
        if os.path.exists(beside):
            command = [beside, "-sE", beside, *argv]
        else:
            command = ["llama-server", "-sE", self.program, "--as-llama-server", *argv]
        log("INFO", "starting llama-server", cmd=" ".join([command[0], *command[3:]]))
        runner = Runner(model, wanted, keep)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Where the program of a runner matters, the lab lays an interpreter beside it (lab/faults/orphan).
        interpreter = os.path.join(os.path.dirname(beside), "interpreter")
        process = subprocess.Popen(command, executable=interpreter if os.path.exists(interpreter) else sys.executable, **streams)
        runner.process = process
        tail: list = []
        threading.Thread(target=self.relay, args=(process, tail), daemon=True).start()
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            time.sleep(0.05)
            died = f"exit status {code}" if code >= 0 else f"signal: {signal.strsignal(-code).lower()}"
            reason = [text for text in tail if "error" in text or "requires" in text or "out of memory" in text]
            raise ApiError(500, f"llama-server process has terminated: {died}" + (f": {reason[-1]}" if reason else ""))
        facts = json.loads(line)
        runner.port, runner.size, runner.vram, runner.cards = facts["port"], facts["size"], facts["vram"], facts["cards"]
        threading.Thread(target=process.wait, daemon=True).start()
        with self.change:
            runner.references = 1
            self.loaded[runner.key] = runner
        log("INFO", "loaded runners", count=len(self.loaded))
        return runner

    @staticmethod
    def relay(process: subprocess.Popen, tail: list) -> None:
        """The child's log goes into the server's; the last lines explain a death."""
        for raw in process.stderr:
            text = raw.decode("utf-8", "replace").rstrip("\n")
            tail.append(text)
            del tail[:-20]
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    # -- using and leaving it

    def use(self, runner: Runner, keep_s: float | None) -> bool:
        with self.change:
            if self.loaded.get(runner.key) is not runner or runner.going:
                return False
            runner.references += 1
            if runner.timer:
                runner.timer.cancel()
                runner.timer = None
            if keep_s is not None:
                runner.session_s = keep_s
            return True

    def release(self, runner: Runner) -> None:
        with self.change:
            runner.references -= 1
            self.change.notify_all()
            if runner.references > 0 or runner.going:
                return
            if runner.session_s <= 0:
                threading.Thread(target=self.expire, args=(runner, False), daemon=True).start()
                return
            runner.expires_at = time.time() + runner.session_s
            if runner.session_s < threading.TIMEOUT_MAX:
                runner.timer = threading.Timer(runner.session_s, self.expire, args=(runner, False))
                runner.timer.daemon = True
                runner.timer.start()

    def expire(self, runner: Runner, wait: bool) -> None:
        """Unload when nobody uses it any more; with wait, until its VRAM is seen to be free (at most 5 s)."""
        with self.change:
            runner.session_s = 0
            runner.expires_at = min(runner.expires_at, time.time())
            if runner.timer:
                runner.timer.cancel()
                runner.timer = None
            while runner.references > 0 and self.loaded.get(runner.key) is runner:
                self.change.wait(1)
            if self.loaded.get(runner.key) is not runner:
                return
            first = not runner.going
            runner.going = True
        if not first:
            while self.loaded.get(runner.key) is runner:
                time.sleep(0.05)
            return
        while self.faults.get("stuck_stopping", False):
            time.sleep(0.25)
        before = sum(card["free"] for card in nvml_cards()) if runner.vram else 0
        self.kill(runner)
        trapped = int(float(self.faults.get("trapped_mib_after_unload", 0)) * MIB)
        if trapped and runner.vram:
            self.trapped.append(map_vram(trapped, 0))
        with self.change:
            if self.loaded.get(runner.key) is runner:
                del self.loaded[runner.key]
            self.change.notify_all()
        deadline = time.monotonic() + 5
        while wait and runner.vram and time.monotonic() < deadline:
            time.sleep(0.25)
            if sum(card["free"] for card in nvml_cards()) - before > runner.vram * 0.75:
                break

    @staticmethod
    def kill(runner: Runner) -> None:
        if runner.process and runner.process.poll() is None:
            runner.process.kill()
        if runner.process:
            runner.process.wait()

    def unload_all(self) -> None:
        for runner in list(self.loaded.values()):
            self.kill(runner)


# ---------------------------------------------------------------------------------------------------------
# The registry
# ---------------------------------------------------------------------------------------------------------


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follow redirects on the same host; hand the others to the caller."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).hostname == urllib.parse.urlsplit(req.full_url).hostname:
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        return None


class Registry:
    """Pulls from a registry as the real server does: https, the system's trust store, proxies of the environment."""

    def __init__(self, store: Store, faults: Faults):
        self.store = store
        self.faults = faults
        self.downloads: dict = {}
        self.lock = threading.RLock()
        self.trust: tuple | None = None

    def opener(self):
        """How to reach a registry; made anew when the system's certificates changed, for reading them takes 0.2 s."""
        bundle = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        stamp = os.stat(bundle).st_mtime_ns if os.path.exists(bundle) else 0
        with self.lock:
            if self.trust is None or self.trust[0] != stamp:
                handlers = (urllib.request.HTTPSHandler(context=ssl.create_default_context()), _SameHost())
                self.trust = (stamp, urllib.request.build_opener(*handlers))
            return self.trust[1]

    def open(self, method: str, url: str, headers: dict | None = None):
        """Response of a request; ApiError in the server's words."""
        opener = self.opener()
        request = urllib.request.Request(url, method=method, headers={"User-Agent": f"ollama/{VERSION}", **(headers or {})})
        try:
            return opener.open(request, timeout=30)
        except urllib.error.HTTPError as error:
            if error.code == 307:
                return error
            if error.code == 404:
                raise ApiError(500, "file does not exist") from error
            body = error.read().decode("utf-8", "replace").strip()
            raise ApiError(500, f"{error.code}: {body}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ApiError(500, f'{method.capitalize()} "{url}": {_go_net_error(reason, url)}') from error

    def pull(self, name: Name, insecure: bool):
        """Progress of a pull, one dict a line."""
        scheme = "http" if insecure else name.scheme
        base = f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}"
        old = []
        with contextlib.suppress(NotFoundError, ValueError):
            old = self.store.manifest(name).everything()
        if name.scheme == "http" and not insecure:
            raise ApiError(500, "insecure protocol http")
        yield {"status": "pulling manifest"}
        try:
            with self.open("GET", f"{base}/manifests/{name.tag}", {"Accept": MANIFEST_TYPE}) as response:
                body = response.read()
            manifest = json.loads(body)
        except ApiError as error:
            raise ApiError(500, f"pull model manifest: {error.message}") from error
        except ValueError as error:
            raise ApiError(500, "pull model manifest: invalid character '<' looking for beginning of value") from error
        layers = list(manifest.get("layers") or [])
        if (manifest.get("config") or {}).get("digest"):
            layers.append(manifest["config"])
        fresh = []
        for layer in layers:
            path = self.store.blob(layer["digest"])
            if os.path.exists(path):
                size = os.path.getsize(path)
                yield _progress(layer["digest"], size, size)
            else:
                fresh.append(layer["digest"])
                yield from self.download(f"{base}/blobs/{layer['digest']}", layer["digest"], path)
        yield {"status": "verifying sha256 digest"}
        for digest in fresh:
            path = self.store.blob(digest)
            found = file_digest(path)
            if found != digest:
                os.unlink(path)
                raise ApiError(500, f"digest mismatch, file must be downloaded again: want {digest}, got {found}")
        yield {"status": "writing manifest"}
        path = os.path.join(self.store.manifests_dir(), name.path())
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(body)
        kept = {layer["digest"] for layer in layers}
        unused = [layer for layer in old if layer.get("digest") not in kept]
        if unused and not env_bool("OLLAMA_NOPRUNE"):
            yield {"status": "removing unused layers"}
            self.store.remove_unused(unused)
        yield {"status": "success"}

    def download(self, url: str, digest: str, path: str):
        """One blob in parts that are remembered on disk; requests for the same blob share the download."""
        with self.lock:
            work = self.downloads.get(digest)
            if work is None:
                work = Download(self, url, digest, path)
                work.prepare()
                self.downloads[digest] = work
                work.start()
            work.references += 1
        try:
            while not work.done.wait(0.06):
                yield _progress(digest, work.total, work.completed)
            if work.error:
                raise work.error
        finally:
            with self.lock:
                work.references -= 1
                if work.references == 0:
                    work.cancelled = True
                    self.downloads.pop(digest, None)


def _progress(digest: str, total: int, completed: int, status: str = "") -> dict:
    line: dict = {"status": status or f"pulling {digest[7:19]}", "digest": digest}
    if total:
        line["total"] = total
    if completed:
        line["completed"] = completed
    return line


def _go_net_error(reason, url: str) -> str:
    host = urllib.parse.urlsplit(url)
    where = f"{host.hostname}:{host.port or (443 if host.scheme == 'https' else 80)}"
    if isinstance(reason, ConnectionRefusedError):
        return f"dial tcp {where}: connect: connection refused"
    if isinstance(reason, socket.gaierror):
        return f"dial tcp: lookup {host.hostname}: no such host"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    if isinstance(reason, (ConnectionResetError, http.client.RemoteDisconnected)):
        return "EOF"
    return str(reason)


def go_path_error(error: OSError) -> str:
    """What Go says of a file that could not be written: `write: no space left on device`."""
    return f"{'open ' + str(error.filename) if error.filename else 'write'}: {os.strerror(error.errno or errno.EIO).lower()}"


def told(events):
    """Events, with what the disk refuses told as the real server tells it."""
    try:
        yield from events
    except (ConnectionError, socket.timeout):
        raise
    except OSError as error:
        raise ApiError(500, go_path_error(error)) from error


def file_digest(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(MIB), b""):
            sha.update(block)
    return "sha256:" + sha.hexdigest()


class Download(threading.Thread):
    """One blob on its way: <blob>-partial for the bytes, <blob>-partial-N for how far part N is."""

    RETRIES = 6

    def __init__(self, registry: Registry, url: str, digest: str, path: str):
        super().__init__(daemon=True)
        self.registry, self.url, self.digest, self.path = registry, url, digest, path
        self.parts: list = []
        self.total = self.completed = self.references = 0
        self.cancelled = False
        self.error: ApiError | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.fetch()
        except ApiError as error:
            self.error = error
        except OSError as error:
            self.error = ApiError(500, go_path_error(error))
        finally:
            with self.registry.lock:
                self.registry.downloads.pop(self.digest, None)
            self.done.set()

    def prepare(self) -> None:
        number = 0
        while os.path.exists(f"{self.path}-partial-{number}"):
            with open(f"{self.path}-partial-{number}", encoding="utf-8") as handle:
                self.parts.append(json.load(handle))
            number += 1
        if not self.parts:
            with self.registry.open("HEAD", self.url) as response:
                total = int(response.headers.get("Content-Length") or 0)
            size = min(max(total // 16, 100_000_000), 1_000_000_000)
            for number, offset in enumerate(range(0, total, size)):
                self.parts.append({"N": number, "Offset": offset, "Size": min(size, total - offset), "Completed": 0})
                self.remember(self.parts[-1])
        self.total = sum(part["Size"] for part in self.parts)
        self.completed = sum(part["Completed"] for part in self.parts)

    def remember(self, part: dict) -> None:
        with open(f"{self.path}-partial-{part['N']}", "w", encoding="utf-8") as handle:
            json.dump(part, handle)
            handle.write("\n")

    def direct_url(self) -> str:
        """Where the bytes are: the Location header, which must be there whether redirected or not."""
        deadline, pause = time.monotonic() + 30, 0.01
        while True:
            try:
                with self.registry.open("GET", self.url) as response:
                    where = response.headers.get("Location")
                break
            except ApiError:
                if time.monotonic() > deadline or self.cancelled:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 10)
        if not where:
            raise ApiError(500, "http: no Location header in response")
        return urllib.parse.urljoin(self.url, where)

    def fetch(self) -> None:
        with open(f"{self.path}-partial", "ab"):
            pass
        with open(f"{self.path}-partial", "r+b") as out:
            out.truncate(self.total)
            direct = self.direct_url()
            base = float(self.registry.faults.get("pull_retry_base_s", 1))
            for part in self.parts:
                attempt = 0
                while part["Completed"] < part["Size"]:
                    try:
                        self.chunk(direct, out, part)
                    except ApiError as error:
                        if self.cancelled:
                            raise ApiError(499, "context canceled") from error
                        attempt += 1
                        log("INFO", f"{self.digest[7:19]} part {part['N']} attempt {attempt - 1} failed: {error.message}")
                        if attempt >= self.RETRIES:
                            raise ApiError(500, f"max retries exceeded: {error.message}") from error
                        time.sleep(base * 2 ** (attempt - 1))
        for part in self.parts:
            os.unlink(f"{self.path}-partial-{part['N']}")
        os.rename(f"{self.path}-partial", self.path)

    def chunk(self, url: str, out, part: dict) -> None:
        start, stop = part["Offset"] + part["Completed"], part["Offset"] + part["Size"]
        with self.registry.open("GET", url, {"Range": f"bytes={start}-{stop - 1}"}) as response:
            if response.status not in (200, 206):
                raise ApiError(500, f"unexpected status code {response.status}")
            out.seek(start)
            try:
                while part["Completed"] < part["Size"]:
                    if self.cancelled:
                        raise ApiError(499, "context canceled")
                    block = response.read(min(MIB, part["Size"] - part["Completed"]))
                    if not block:
                        raise ApiError(500, "unexpected EOF")
                    out.write(block)
                    part["Completed"] += len(block)
                    self.completed += len(block)
            except (http.client.HTTPException, ssl.SSLError, ConnectionError, socket.timeout) as error:
                raise ApiError(500, "unexpected EOF") from error
            finally:
                out.flush()
                self.remember(part)


# ---------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------

CHATML_JINJA = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance, by which the real server recognises a known chat template (below 100)."""
    if abs(len(one) - len(other)) >= 100:
        return 100
    row = list(range(len(other) + 1))
    for number, left in enumerate(one, 1):
        before, row[0] = row[0], number
        for column, right in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (left != right))
    return row[-1]


CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


class Server:
    """Everything that the API does, apart from HTTP itself. Handlers return a dict or yield dicts."""

    def __init__(self, program: str):
        self.faults = Faults(faults_path())
        self.store = Store(models_dir())
        self.scheduler = Scheduler(self.faults, program)
        self.registry = Registry(self.store, self.faults)
        self.shown: dict = {}

    # -- looking

    def get_model(self, text: str, missing_status: int = 404, missing: str = "", bad_status: int | None = None) -> Model:
        """The model of a request, or the error that this route gives."""
        message = missing or f"model '{text}' not found"
        try:
            name, source = model_reference(text)
        except ValueError as error:
            if text.strip():
                raise ApiError(400, str(error)) from error
            raise ApiError(bad_status or missing_status, message) from error
        if source == "cloud":
            raise ApiError(403, "ollama cloud is disabled: remote inference is unavailable")
        try:
            return Model(self.store, self.store.existing(name))
        except NotFoundError as error:
            raise ApiError(404, missing or f"model '{text}' not found") from error

    def tags(self) -> dict:
        found = []
        for name, manifest in self.store.manifests():
            try:
                model = Model(self.store, name)
            except (NotFoundError, OSError, ValueError):
                continue
            found.append({
                "name": name.short(), "model": name.short(), "modified_at": go_time(manifest.modified),
                "size": manifest.size(), "digest": manifest.digest,
                "details": model.details(with_lengths=True), "capabilities": model.listed_capabilities(),
            })  # fmt: skip
        random.shuffle(found)  # the real one walks a map and sorts by whole seconds
        found.sort(key=lambda item: item["modified_at"][:19], reverse=True)
        return {"models": found}

    def ps(self) -> dict:
        found = []
        for runner in sorted(self.scheduler.loaded.values(), key=lambda r: -r.expires_at):
            model = runner.model
            expires = runner.expires_at
            if runner.references and not runner.going:
                expires = time.time() + min(runner.session_s, FOREVER_S)
            found.append({
                "name": model.name.short(), "model": model.name.short(), "size": runner.size, "digest": model.digest,
                "details": model.details(parent=False), "expires_at": go_time(expires),
                "size_vram": runner.vram, "context_length": runner.wanted["options"]["num_ctx"],
            })  # fmt: skip
        return {"models": found}

    def show(self, body: dict) -> dict:
        text = body.get("model") or body.get("name") or ""
        if not text:
            raise ApiError(400, "model is required")
        try:
            name, source = model_reference(text)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        if source == "cloud":
            raise ApiError(403, "ollama cloud is disabled: remote model details are unavailable")
        name = self.store.existing(name)
        try:
            model = Model(self.store, name)
        except NotFoundError as error:
            raise ApiError(404, f"model '{name.short()}' not found") from error
        if model.digest not in self.shown:  # the order of parameters is drawn once for a manifest
            self.shown[model.digest] = (model.parameters_text(), model.modelfile())
        parameters, modelfile = self.shown[model.digest]
        if body.get("options"):
            model.options = {**model.options, **body["options"]}
            modelfile = model.modelfile()
        modelfile = re.sub(r"(?m)^# FROM .*$", lambda _match: f"# FROM {name.short()}", modelfile, count=1)
        answer = {
            "license": "\n".join(model.licenses), "modelfile": modelfile, "parameters": parameters,
            "template": model.shown_template(), "system": body.get("system") or model.system,
            "details": model.details(),
            "messages": [{"role": m.get("role", ""), "content": m.get("content", "")} for m in model.messages],
            "model_info": {},
        }  # fmt: skip
        for key in ("license", "parameters", "template", "system", "messages"):
            if not answer[key]:
                del answer[key]
        if model.gguf:
            verbose = bool(body.get("verbose"))
            info = {}
            for key, value in sorted({**model.gguf.kv, "general.parameter_count": model.gguf.parameter_count()}.items()):
                if key in ("general.name", "tokenizer.chat_template"):
                    continue
                if isinstance(value, (list, Strings)) and not verbose:
                    info[key] = None
                else:
                    info[key] = value.read() if isinstance(value, Strings) else value
            answer["model_info"] = info
            answer["tensors"] = [
                {"name": tensor, "type": _TENSOR_TYPES.get(kind, ("unknown",))[0], "shape": shape} for tensor, shape, kind, _offset in model.gguf.tensors
            ]
        if model.projectors:
            kv = read_gguf(model.projectors[0]).kv
            answer["projector_info"] = {key: None if isinstance(value, (list, Strings)) else value for key, value in kv.items()}
        answer["capabilities"] = model.capabilities()
        answer["modified_at"] = go_time(model.manifest.modified)
        if model.config.get("requires"):
            answer["requires"] = model.config["requires"]
        return answer

    # -- changing

    def create(self, body: dict):
        config = {
            "renderer": body.get("renderer") or "",
            "parser": body.get("parser") or "",
            "requires": body.get("requires") or "",
        }
        for path, digest in (body.get("files") or {}).items():
            if not _valid_path(path):
                raise ApiError(400, "file path must be relative")
            if not digest:
                raise ApiError(400, "invalid digest format")
        if not all((body.get("adapters") or {"": "x"}).values()):
            raise ApiError(400, "invalid digest format")
        name = Name.parse(body.get("model") or body.get("name") or "")
        if not name.valid():
            raise ApiError(400, "invalid model name")
        name = self.store.existing(name)
        return self._create(name, body, config)

    def _create(self, name: Name, body: dict, config: dict):
        try:
            old = self.store.manifest(name).everything()
        except (NotFoundError, ValueError):
            old = []
        layers: list = []
        source = ""
        if body.get("from"):
            try:
                base_name, source = model_reference(body["from"])
            except ValueError as error:
                raise ApiError(400, "invalid model name") from error
        if source == "cloud":
            config.update(remote_host="https://ollama.com:443", remote_model=cut_source(body["from"].strip())[0])
        elif body.get("from"):
            try:
                base = self.store.manifest(base_name)
            except NotFoundError:
                yield from self._pull_quietly(base_name)
                base = self.store.manifest(base_name)
            for layer in base.layers:
                kept = self.store.reuse(layer["digest"], layer["mediaType"], base_name.short())
                if layer.get("name"):
                    kept["name"] = layer["name"]
                layers.append(kept)
            inherited = json.loads(_read_text(self.store.blob(base.config["digest"]))) if base.config.get("digest") else {}
            for key in ("renderer", "parser", "requires", "capabilities"):
                config[key] = config.get(key) or inherited.get(key) or ""
            config["model_format"] = inherited.get("model_format", "")
        elif body.get("files") is not None:
            layers += yield from self._from_files(body["files"])
        else:
            raise ApiError(400, "neither 'from' or 'files' was specified")
        if body.get("adapters") is not None:
            layers += yield from self._from_files(body["adapters"], adapter=True)
        self._info(body.get("info") or {}, config)
        quantize = (body.get("quantize") or body.get("quantization") or "").upper()
        for number, layer in enumerate(layers):
            if layer["mediaType"] == MEDIA + "model" and (quantize or layer.get("uploaded")):
                layers[number] = yield from self._rewrite(read_gguf(self.store.blob(layer["digest"])), layer, quantize)
        families: list = []
        for layer in layers:
            if layer["mediaType"] == MEDIA + "model":
                gguf = read_gguf(self.store.blob(layer["digest"]))
                config["model_format"] = config.get("model_format") or "gguf"
                config["model_family"] = config.get("model_family") or gguf.arch
                config["model_type"] = config.get("model_type") or human_number(gguf.parameter_count())
                config["file_type"] = config.get("file_type") or gguf.file_type()
                families.append(gguf.arch)
        config["model_families"] = families or None

        if body.get("template"):
            check_template(body["template"])
            layers = self._replace(layers, "template", body["template"].encode("utf-8", "surrogateescape"))
        if body.get("system"):
            layers = self._replace(layers, "system", body["system"].encode("utf-8", "surrogateescape"))
        license_given = body.get("license")
        if not isinstance(license_given, (str, list, type(None))):
            kind = json_kind(license_given)
            raise ApiError(500, f"json: cannot unmarshal {kind} into Go value of type []string")
        for text in [license_given] if isinstance(license_given, str) else license_given or []:
            if not isinstance(text, str):
                raise ApiError(500, "json: cannot unmarshal number into Go value of type string")
            if text or not isinstance(license_given, str):
                layers.append(self.store.put(text.encode("utf-8", "surrogateescape"), MEDIA + "license"))
        parameters = dict(body.get("parameters") or {})
        for layer in layers:
            if layer["mediaType"] == MEDIA + "params":
                for key, value in (json.loads(_read_text(self.store.blob(layer["digest"])), parse_int=float) or {}).items():
                    parameters.setdefault(key, value)
        if parameters:
            layers = self._replace(layers, "params", (go_json(sorted_maps(parameters)) + "\n").encode("utf-8", "surrogateescape"))
        if body.get("messages"):
            messages = []
            for message in body["messages"]:
                kept = {"role": str(message.get("role", "")).lower(), "content": message.get("content", "")}
                for key in ("thinking", "images", "tool_calls", "tool_name", "tool_call_id"):
                    if message.get(key):
                        kept[key] = message[key]
                messages.append(kept)
            layers = self._replace(layers, "messages", (go_json(messages) + "\n").encode("utf-8", "surrogateescape"))
        ordered = {key: config.get(key) or "" for key in ("model_format", "model_family")}
        ordered["model_families"] = config["model_families"]
        ordered.update({key: config.get(key) or "" for key in ("model_type", "file_type")})
        for key in (
            "renderer",
            "parser",
            "requires",
            "remote_host",
            "remote_model",
            "capabilities",
            "context_length",
            "embedding_length",
            "base_name",
        ):
            if config.get(key):
                ordered[key] = config[key]
        ordered.update({"architecture": "amd64", "os": "linux"})
        config_layer = self.store.put((go_json(ordered) + "\n").encode(), CONFIG_TYPE)
        for layer in layers:
            if layer.get("status"):
                yield {"status": layer["status"]}
        yield {"status": "writing manifest"}
        with self.store.lock:
            self.store.write_manifest(name, config_layer, layers)
            if old and not env_bool("OLLAMA_NOPRUNE"):
                self.store.remove_unused(old)
        yield {"status": "success"}

    @staticmethod
    def _info(info: dict, config: dict) -> None:
        """The overrides that no Modelfile can express."""
        given = [item if isinstance(item, str) else "" for item in info.get("capabilities") or [] if isinstance(info["capabilities"], list)]
        if given:
            config["capabilities"] = [*(config.get("capabilities") or []), *given]
        for field, key in (
            ("model_family", "model_family"),
            ("base_name", "base_name"),
            ("quantization_level", "file_type"),
            ("parameter_size", "model_type"),
        ):
            if field in info:
                if not isinstance(info[field], str):
                    raise ApiError(400, f'info field "{field}" must be a string')
                config[key] = info[field]
        for field in ("context_length", "embedding_length"):
            if field in info:
                if isinstance(info[field], bool) or not isinstance(info[field], float):
                    raise ApiError(400, f'info field "{field}" must be a number')
                if info[field] < 0 or info[field] != int(info[field]):
                    raise ApiError(400, f'info field "{field}" must be a non-negative integer')
                config[field] = int(info[field])

    def _pull_quietly(self, name: Name):
        """Pull a base that is missing; its `success` is part of the create's lines."""
        yield from self.registry.pull(name, insecure=False)

    def _replace(self, layers: list, kind: str, body: bytes) -> list:
        kept = [layer for layer in layers if layer["mediaType"] != MEDIA + kind]
        removed = [layer for layer in layers if layer["mediaType"] == MEDIA + kind]
        made = self.store.put(body, MEDIA + kind)
        self.store.remove_unused([layer for layer in removed if layer["digest"] != made["digest"]])
        return [*kept, made]

    def _from_files(self, files: dict, adapter: bool = False):
        """Layers from uploaded blobs; yields progress, returns layers."""
        kind = ""
        for name, digest in files.items():
            if name.endswith((".safetensors", ".gguf")):
                kind = name.rpartition(".")[2]
                break
            try:
                with open(self.store.blob(digest), "rb") as handle:
                    kind = "gguf" if handle.read(4) == b"GGUF" else ""
            except (ApiError, OSError):
                break
        if kind == "safetensors":
            yield {"status": "converting model" if not adapter else "converting adapter"}
            raise ApiError(500, "the lab stand-in does not convert safetensors")
        if kind != "gguf":
            raise ApiError(400, "unknown type")
        if adapter and len(files) > 1:
            raise ApiError(400, "only one adapter is currently supported")
        layers = []
        for name, digest in sorted(files.items()):
            yield {"status": "parsing GGUF"}
            path = self.store.blob(digest)
            try:
                with open(path, "rb") as handle:
                    if handle.read(4) != b"GGUF":
                        raise ApiError(400, "supplied file was not in GGUF format")
                gguf = read_gguf(path)
            except FileNotFoundError as error:
                raise ApiError(500, f"open {path}: no such file or directory") from error
            except GgufError as error:
                raise ApiError(500, str(error)) from error
            media = {"adapter": "adapter", "projector": "projector", "mmproj": "projector"}.get(gguf.kind(), "model")
            layers.append({**self.store.reuse(digest, MEDIA + media, name), "uploaded": True})
        for layer in list(layers):
            template = read_gguf(self.store.blob(layer["digest"])).kv.get("tokenizer.chat_template", "")
            if not adapter and "<|im_start|>" in template and edit_distance(template, CHATML_JINJA) < 100:
                made = self.store.put(CHATML.encode(), MEDIA + "template")
                made["status"] = "using autodetected template chatml"
                stop = self.store.put(b'{"stop":["\\u003c|im_start|\\u003e","\\u003c|im_end|\\u003e"]}\n', MEDIA + "params")
                layers += [made, stop]
        return layers

    def _rewrite(self, gguf: Gguf, layer: dict, quantize: str):
        """The pass through llama-quantize: every uploaded file is copied by it once, and quantised on request.

        What quantising changes here is the name of the type and so the digest, not the size.
        """
        have = gguf.file_type()
        if quantize:
            supported = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")
            if quantize not in (*supported, "BF16", "Q4_K"):
                raise ApiError(500, f"unsupported quantization type {quantize} - supported types are {', '.join(supported)}")
            if have not in ("F16", "BF16", "F32"):
                raise ApiError(500, "quantization is only supported for F16, BF16 and F32 models")
        wanted = {"": have, "Q4_K": "Q4_K_M"}.get(quantize, quantize)
        if wanted == have and not layer.get("uploaded"):
            return layer
        total = layer["size"]
        if total > 64 * MIB:
            status = f"quantizing {have} model to {quantize}" if wanted != have else "validating GGUF model"
            for share in (0.0, 0.5, 1.0):
                yield _progress("0000000000000000000", total, int(total * share), status)
        handle, temporary = tempfile.mkstemp(prefix="COPY", dir=self.store.blobs_dir())
        os.close(handle)
        try:
            rewrite_gguf(
                gguf,
                temporary,
                None if wanted == have else next(number for number, name in _FILE_TYPES.items() if name == wanted),
            )
            yield {"status": "verifying conversion"}
            digest = file_digest(temporary)
            status = "using existing layer" if os.path.exists(self.store.blob(digest)) else "creating new layer"
            size = os.path.getsize(temporary)
            self.store.adopt(temporary, digest)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        return {"mediaType": layer["mediaType"], "digest": digest, "size": size, "status": f"{status} {digest}"}

    def pull(self, body: dict):
        text = body.get("model") or body.get("name") or ""
        try:
            name, source = model_reference(text)
        except ValueError as error:
            raise ApiError(400, str(error) if "use either" in str(error) else "invalid model name") from error
        if source == "cloud":
            raise ApiError(403, "ollama cloud is disabled")
        name = self.store.existing(name)
        name.scheme = "https"  # the real one formats and parses the name again, which drops a scheme
        return self.registry.pull(name, bool(body.get("insecure")))

    def delete(self, body: dict) -> None:
        text = body.get("model") or body.get("name") or ""
        try:
            name, _source = model_reference(text)
        except ValueError as error:
            message = str(error)
            raise ApiError(400, f'name "{text}" is invalid' if message == "invalid model name" else message) from error
        name = self.store.existing(name)
        try:
            self.store.remove(name)
        except NotFoundError as error:
            raise ApiError(404, f"model '{text}' not found") from error

    def copy(self, body: dict) -> None:
        names = []
        for role in ("source", "destination"):
            name = Name.parse(body.get(role) or "")
            if not name.valid():
                raise ApiError(400, f'{role} "{body.get(role) or ""}" is invalid')
            names.append(self.store.existing(name))
        source, target = (os.path.join(self.store.manifests_dir(), name.path()) for name in names)
        if source == target:
            return
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError as error:
            self.store.prune_folders()
            raise ApiError(404, f'model "{body.get("source")}" not found') from error

    # -- inference

    @staticmethod
    def keep_alive(body: dict) -> float | None:
        """Seconds, None where not given; ApiError for what is no duration."""
        value = body.get("keep_alive")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            kind = {"bool": "bool", "list": "[]interface {}"}.get(type(value).__name__, "map[string]interface {}")
            raise ApiError(400, f"Unsupported type: '{kind}'")
        if isinstance(value, str):
            try:
                seconds = go_duration(value)
            except ValueError as error:
                raise ApiError(400, str(error)) from error
        else:
            seconds = float(value)
        return FOREVER_S if seconds < 0 else seconds

    def unload(self, model: Model) -> None:
        runner = self.scheduler.loaded.get(model.path)
        if runner is None:
            return
        with self.scheduler.change:
            runner.session_s = 0
            runner.expires_at = time.time()
        thread = threading.Thread(target=self.scheduler.expire, args=(runner, False), daemon=True)
        thread.start()

    def run(self, model: Model, body: dict, keep_s: float | None, prompt: str, verb: str):
        """(runner, options) for a generation after the checks that the real server makes."""
        if "completion" not in model.capabilities():
            raise ApiError(400, f'"{body.get("model", "")}" does not support {verb}')
        asked = body.get("options")
        options = self.scheduler.options(model, asked)
        return self.scheduler.acquire(model, options, asked, keep_s, body.get("shift")), options

    @staticmethod
    def check_format(body: dict) -> None:
        """format is "json" or a schema."""
        given = body.get("format")
        if given not in (None, "", "json") and not isinstance(given, dict):
            raise ApiError(500, f'invalid format: {go_quote(go_json(given))}; expected "json" or a valid JSON Schema object')

    def words(self, runner: Runner, options: dict, text: str):
        """Tokens of an answer from the child: yields (token or None at the end, done_reason)."""
        limit = options["num_predict"]
        natural = int(self.faults.get("answer_tokens", 32))
        count = natural if limit < 0 else min(limit, natural)
        seed = options["seed"] if options["seed"] >= 0 else 0
        words = nonsense(f"{os.path.basename(runner.key)}|{seed}|{text}", count)
        body = {"words": words, "delay": float(self.faults.get("token_delay_s", 0.002))}
        try:
            connection, response = runner.request("POST", "/completion", body)
        except OSError as error:
            raise ApiError(500, "an error was encountered while running the model: EOF") from error
        buffer, seen, said = b"", 0, ""
        try:
            while seen < count:
                block = response.read1(4096)
                if not block:
                    raise ApiError(500, "an error was encountered while running the model: unexpected EOF")
                buffer += block
                while b"\0" in buffer:
                    raw, _zero, buffer = buffer.partition(b"\0")
                    word = raw.decode("utf-8", "surrogateescape")
                    seen += 1
                    said += word
                    hit = next((stop for stop in options["stop"] if stop and stop in said), None)
                    if hit is not None:
                        yield None, "stop"
                        return
                    yield word, ""
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(500, "an error was encountered while running the model: unexpected EOF") from error
        finally:
            connection.close()
        yield None, "length" if 0 <= limit <= natural else "stop"

    def thought_tokens(self) -> int:
        """Tokens at the head of an answer that a thinking model thinks."""
        return int(self.faults.get("thought_tokens", 4))

    @staticmethod
    def metrics(started: float, loaded: float, prompt: str, count: int) -> dict:
        now = time.monotonic()
        return {
            "total_duration": int((now - started) * 1e9), "load_duration": int((loaded - started) * 1e9),
            "prompt_eval_count": max(len(prompt.split()), 1), "prompt_eval_duration": 1_000_000,
            "eval_count": count, "eval_duration": max(int((now - loaded) * 1e9), 1),
        }  # fmt: skip

    def generate(self, body: dict):
        started = time.monotonic()
        text = body.get("model", "")
        model = self.get_model(text)
        keep_s = self.keep_alive(body)
        prompt = body.get("prompt") or ""
        head = {"model": text, "created_at": utc_now(), "response": ""}
        if not prompt and keep_s == 0:
            self.unload(model)
            return dict(head, done=True, done_reason="unload")
        if body.get("raw") and (body.get("template") or body.get("system") or body.get("context")):
            raise ApiError(400, "raw mode does not support template, system, or context")
        thinking = "thinking" in model.capabilities()
        if body.get("think") and not thinking:
            raise ApiError(400, f'"{text}" does not support thinking')
        if body.get("suffix") and "insert" not in model.capabilities():
            raise ApiError(400, f"{model.name.full()} does not support insert")
        self.check_format(body)
        runner, options = self.run(model, body, keep_s, prompt, "generate")
        if not prompt:
            self.scheduler.release(runner)
            return dict(head, done=True, done_reason="load")
        thinks = thinking and body.get("think", True) is not False
        return self._generate(runner, options, body, prompt, started, thinks)

    def _generate(self, runner: Runner, options: dict, body: dict, prompt: str, started: float, thinks: bool):
        loaded, count = time.monotonic(), 0
        system = body.get("system") or runner.model.system
        try:
            for word, reason in self.words(runner, options, f"{system}|{prompt}"):
                line = {"model": body["model"], "created_at": utc_now(), "response": ""}
                if word is None:
                    line.update(done=True, done_reason=reason)
                    if not body.get("raw"):
                        line["context"] = list(range(1, count + len(prompt.split()) + 1))
                    line.update(self.metrics(started, loaded, prompt, count))
                else:
                    count += 1
                    line["thinking" if thinks and count <= self.thought_tokens() else "response"] = word
                    line["done"] = False
                yield line
        finally:
            self.scheduler.release(runner)

    def chat(self, body: dict):
        started = time.monotonic()
        text = body.get("model", "")
        if not (text or "").strip():
            raise ApiError(400, "model is required")
        model = self.get_model(text, bad_status=400)
        keep_s = self.keep_alive(body)
        messages = body.get("messages") or []
        head = {"model": text, "created_at": utc_now(), "message": {"role": "assistant", "content": ""}}
        if not messages and keep_s == 0:
            self.unload(model)
            return dict(head, done=True, done_reason="unload")
        capabilities = model.capabilities()
        if body.get("tools") and "tools" not in capabilities:
            raise ApiError(400, f"{model.name.full()} does not support tools")
        if body.get("think") and "thinking" not in capabilities:
            raise ApiError(400, f'"{text}" does not support thinking')
        self.check_format(body)
        # The lab's template shows every message's thoughts, so they are part of what is read and counted.
        prompt = "\n".join(f"{m.get('role')}: {m.get('thinking') or ''}{m.get('content')}" for m in [*model.messages, *messages])
        runner, options = self.run(model, body, keep_s, prompt, "chat")
        if not messages:
            self.scheduler.release(runner)
            return dict(head, done=True, done_reason="load")
        thinks = "thinking" in capabilities and body.get("think", True) is not False
        return self._chat(runner, options, body, prompt, started, thinks)

    def _chat(self, runner: Runner, options: dict, body: dict, prompt: str, started: float, thinks: bool):
        loaded, count = time.monotonic(), 0
        try:
            for word, reason in self.words(runner, options, f"{runner.model.system}|{prompt}"):
                line = {"model": body["model"], "created_at": utc_now(), "message": {"role": "assistant", "content": ""}}
                if word is None:
                    line.update(done=True, done_reason=reason)
                    line.update(self.metrics(started, loaded, prompt, count))
                else:
                    count += 1
                    line["message"]["thinking" if thinks and count <= self.thought_tokens() else "content"] = word
                    line["done"] = False
                yield line
        finally:
            self.scheduler.release(runner)

    def embed(self, body: dict) -> dict:
        started = time.monotonic()
        text = body.get("model", "")
        given = body.get("input")
        if given is not None and not isinstance(given, (str, list)):
            raise ApiError(400, "invalid input type")
        inputs = [given] if isinstance(given, str) and given else [] if isinstance(given, str) else given or []
        if not all(isinstance(item, str) for item in inputs):
            raise ApiError(400, "invalid input type")
        model = self.get_model(text)
        asked = body.get("options")
        options = self.scheduler.options(model, asked)
        runner = self.scheduler.acquire(model, options, asked, self.keep_alive(body))
        try:
            loaded = time.monotonic()
            if not inputs:
                return {"model": text, "embeddings": []}
            if "embedding" not in model.capabilities():
                raise ApiError(501, "This server does not support embeddings. Start it with `--embeddings`")
            width = int(model.gguf.get("embedding_length", 8))
            vectors = [self.vector(item, min(int(body.get("dimensions") or width) or width, width)) for item in inputs]
            return {
                "model": text, "embeddings": vectors, "total_duration": int((time.monotonic() - started) * 1e9),
                "load_duration": int((loaded - started) * 1e9),
                "prompt_eval_count": sum(max(len(item.split()), 1) for item in inputs),
            }  # fmt: skip
        finally:
            self.scheduler.release(runner)

    @staticmethod
    def vector(text: str, width: int) -> list:
        """A unit vector, the same for the same text."""
        drawn = random.Random(text)
        values = [drawn.gauss(0, 1) for _index in range(width)]
        norm = sum(value * value for value in values) ** 0.5 or 1.0
        return [round(value / norm, 8) for value in values]


def _valid_path(path: str) -> bool:
    """fs.ValidPath: relative, clean, without dots that lead out."""
    return bool(path) and all(part not in ("", ".", "..") for part in path.split("/")) or path == "."


# ---------------------------------------------------------------------------------------------------------
# HTTP
# ---------------------------------------------------------------------------------------------------------

ROUTES = {
    "/": ("GET", "HEAD"), "/api/version": ("GET", "HEAD"), "/api/status": ("GET",), "/api/tags": ("GET", "HEAD"),
    "/api/ps": ("GET",), "/api/show": ("POST",), "/api/create": ("POST",), "/api/pull": ("POST",), "/api/push": ("POST",),
    "/api/copy": ("POST",), "/api/delete": ("DELETE",), "/api/generate": ("POST",), "/api/chat": ("POST",),
    "/api/embed": ("POST",), "/api/embeddings": ("POST",), "/v1/chat/completions": ("POST",),
    "/v1/completions": ("POST",), "/v1/embeddings": ("POST",), "/v1/models": ("GET",), "/api/me": ("POST",),
}  # fmt: skip
BARE_JSON = "application/json"
REQUESTS = {
    "/api/create": "CreateRequest", "/api/generate": "GenerateRequest", "/api/chat": "ChatRequest", "/api/pull": "PullRequest",
    "/api/show": "ShowRequest", "/api/copy": "CopyRequest", "/api/delete": "DeleteRequest", "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest", "/api/push": "PushRequest",
}  # fmt: skip
# field of a request: (Python type, Go type)
TEXT, SWITCH, MAP, FILES = (str, "string"), (bool, "bool"), (dict, "map[string]interface {}"), (dict, "map[string]string")
FIELDS = {
    "model": TEXT, "name": TEXT, "from": TEXT, "prompt": TEXT, "suffix": TEXT, "system": TEXT, "template": TEXT, "source": TEXT,
    "destination": TEXT, "quantize": TEXT, "renderer": TEXT, "parser": TEXT, "requires": TEXT, "remote_host": TEXT,
    "stream": SWITCH, "insecure": SWITCH, "raw": SWITCH, "verbose": SWITCH, "options": MAP, "parameters": MAP, "info": MAP,
    "files": FILES, "adapters": FILES, "messages": (list, "[]api.Message"), "tools": (list, "api.Tools"),
}  # fmt: skip
ORIGIN_SCHEMES = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")


def json_kind(value) -> str:
    """What encoding/json calls a value of a wrong type."""
    return {str: "string", float: "number", int: "number", list: "array", bool: "bool", dict: "object"}.get(type(value), "value")


def openai_error(error: ApiError) -> dict:
    """An error as OpenAI's clients expect it."""
    kind = {404: "not_found_error", 400: "invalid_request_error"}.get(error.status, "api_error")
    return {"message": error.message, "type": kind, "param": None, "code": None}


class Handler(BaseHTTPRequestHandler):
    """One connection. The routes and their status codes; what they do is Server's."""

    protocol_version = "HTTP/1.1"
    server_version = "ollama-standin"
    api: Server
    timeout = 3600

    def log_message(self, format, *args):  # noqa: A002  (the name is the base class's)
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- answers

    def answer(self, status: int, body: bytes, kind: str = "application/json; charset=utf-8") -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.common_headers()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def common_headers(self) -> None:
        self.send_header("X-Lab-Server", "standin")
        origin = self.headers.get("Origin")
        if origin:
            self.send_header("Access-Control-Allow-Origin", origin)

    def send_response(self, code, message=None):
        self.status = code
        super().send_response(code, message)

    def json(self, value, status: int = 200, kind: str = "application/json; charset=utf-8") -> None:
        if self.path.startswith("/v1/"):
            kind = BARE_JSON
        self.answer(status, go_json(value).encode("utf-8", "surrogateescape"), kind)

    def fail(self, error: ApiError, kind: str = "application/json; charset=utf-8") -> None:
        if self.path.startswith("/v1/"):
            self.json({"error": openai_error(error)}, error.status)
        else:
            self.json({"error": error.message}, error.status, kind)

    def lines(self, events, stream: bool, fold=None) -> None:
        """Events as a stream of JSON lines, or folded into one answer.

        An error before the first line has its own status; one after it is a last line in an HTTP 200.
        """
        events = told(events)
        try:
            collected = [] if stream else list(events)
            first = next(events, None) if stream else None
        except ApiError as error:
            self.fail(error, "application/json; charset=utf-8" if fold and not stream else BARE_JSON)
            return
        if not stream:
            self.json(fold(collected)) if fold else self.json(collected[-1], kind=BARE_JSON)
            return
        self.begin_stream("application/x-ndjson")
        try:
            if first is not None:
                self.chunk(go_json(first) + "\n")
            for event in events:
                self.chunk(go_json(event) + "\n")
        except ApiError as error:
            self.chunk(go_json({"error": error.message}) + "\n")
        self.chunk("")

    def begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.common_headers()
        self.end_headers()

    def chunk(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def body(self) -> dict:
        """The request's JSON object, every number a float64 as in Go."""
        raw = self.read_all()
        if not raw.strip():
            raise ApiError(400, "missing request body")
        try:
            found = json.loads(raw, parse_int=float)
        except ValueError as error:
            at = getattr(error, "pos", 0)
            text = raw.decode("utf-8", "replace")
            char = text[at] if at < len(text) else ""
            raise ApiError(400, f"invalid character '{char}' looking for beginning of value" if char else "unexpected EOF") from error
        request = REQUESTS.get(self.path, "Request")
        if not isinstance(found, dict):
            raise ApiError(400, f"json: cannot unmarshal {json_kind(found)} into Go value of type api.{request}")
        for key, kind in FIELDS.items():
            value = found.get(key)
            if value is not None and not isinstance(value, kind[0]):
                raise ApiError(400, f"json: cannot unmarshal {json_kind(value)} into Go struct field {request}.{key} of type {kind[1]}")
        return found

    def read_all(self) -> bytes:
        out = bytearray()
        read, length = self.reader()
        while length is None or len(out) < length:
            block = read(MIB if length is None else min(MIB, length - len(out)))
            if not block:
                break
            out += block
        return bytes(out)

    def reader(self):
        """(read function, length or None) of the request's body, chunked or not."""
        if "chunked" not in (self.headers.get("Transfer-Encoding") or "").lower():
            return self.rfile.read, int(self.headers.get("Content-Length") or 0)
        state = {"left": 0, "end": False}

        def read(limit: int) -> bytes:
            if state["end"]:
                return b""
            if state["left"] == 0:
                state["left"] = int(self.rfile.readline().split(b";")[0] or b"0", 16)
                if state["left"] == 0:
                    state["end"] = True
                    self.rfile.readline()
                    return b""
            block = self.rfile.read(min(limit, state["left"]))
            state["left"] -= len(block)
            if state["left"] == 0:
                self.rfile.readline()
            return block

        return read, None

    # -- who may ask

    def allowed(self) -> bool:
        origin = self.headers.get("Origin")
        if origin and not self.origin_allowed(origin):
            return False
        address = self.server.server_address[0]
        if not (address.startswith("127.") or address == "::1"):
            return True
        host = self.headers.get("Host", "")
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d+)?", host)
        host = (match.group(1) if match else host).strip("[]").lower()
        if re.fullmatch(r"[\d.]+", host) or ":" in host:
            return bool(re.match(r"(127\.|10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|0\.0\.0\.0$)", host)) or host in (
                "::1",
                "::",
            )
        return host in ("", "localhost", socket.gethostname().lower()) or host.endswith((".localhost", ".local", ".internal"))

    def origin_allowed(self, origin: str) -> bool:
        parts = urllib.parse.urlsplit(origin)
        if parts.netloc and parts.netloc == self.headers.get("Host"):
            return True
        listed = [item.strip() for item in env("OLLAMA_ORIGINS").split(",") if item.strip()]
        if origin in listed or "*" in listed:
            return True
        for item in listed:
            if "*" in item and re.fullmatch(re.escape(item).replace(r"\*", ".*"), origin):
                return True
        return origin.startswith(ORIGIN_SCHEMES) or (parts.scheme in ("http", "https") and parts.hostname in ("localhost", "127.0.0.1", "0.0.0.0"))

    # -- dispatch

    def handle_any(self) -> None:
        started, self.status = time.monotonic(), 0
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.path = path
        try:
            self.route(path)
        except ApiError as error:
            self.fail(error)
        except (BrokenPipeError, ConnectionResetError, socket.timeout):
            self.close_connection = True
            self.status = self.status or 499
        except OSError as error:
            self.close_connection = True
            if not self.status:
                self.fail(ApiError(500, go_path_error(error)))
                # As Go does: who still sends the body gets to read this before the connection is reset (rstAvoidanceDelay).
                self.connection.shutdown(socket.SHUT_WR)
                time.sleep(0.5)
        except Exception as error:  # whatever was sent, the server lives on, and its log says where it gave up
            self.close_connection = True
            log("ERROR", "request failed", path=path, error=repr(error), at=traceback.format_exc().splitlines()[-3].strip())
            if not self.status:
                self.json({"error": str(error)}, 500)
        stamp = time.strftime("%Y/%m/%d - %H:%M:%S")
        took = (time.monotonic() - started) * 1000
        client = self.client_address[0] if self.client_address else ""
        sys.stderr.write(f'[GIN] {stamp} | {self.status} | {took:12.6f}ms | {client:>15} | {self.command:<8} "{path}"\n')
        sys.stderr.flush()

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = handle_any  # noqa: N815  (http.server's names)

    def route(self, path: str) -> None:
        if not self.allowed():
            self.read_all()
            self.answer(403, b"", "text/plain")
            return
        while self.api.faults.hits("hang", path):
            time.sleep(0.25)
        if self.api.faults.hits("status_500", path):
            self.read_all()
            raise ApiError(500, "lab fault: status_500")
        if self.command == "OPTIONS" and self.headers.get("Origin"):
            self.answer(204, b"", "")
            return
        if path.startswith("/api/blobs/") and self.command in ("HEAD", "POST"):
            self.blob(path[len("/api/blobs/") :])
            return
        if path.startswith("/v1/models/") and self.command == "GET":
            asked = path[len("/v1/models/") :]
            name = Name.parse(asked)
            model = self.api.get_model(asked, missing=f"model '{name.short()}' not found")
            self.json({**self.openai_model(model), "id": asked})
            return
        if path not in ROUTES and not path.startswith("/api/blobs/"):
            self.read_all()
            self.answer(404, b"404 page not found", "text/plain")
            return
        if self.command not in ROUTES.get(path, ()):
            self.read_all()
            self.answer(405, b"405 method not allowed", "text/plain")
            return
        name = "root" if path == "/" else path.strip("/").replace("/", "_").replace("api_", "")
        getattr(self, f"on_{name}")()

    def on_root(self) -> None:
        self.answer(200, b"Ollama is running", "text/plain; charset=utf-8")

    def on_version(self) -> None:
        self.json({"version": VERSION})

    def on_status(self) -> None:
        off = env_bool("OLLAMA_NO_CLOUD")
        self.json({"cloud": {"disabled": off, "source": "env" if off else "none"}})

    def on_me(self) -> None:
        self.read_all()
        self.json({"error": "unauthorized"}, 401)

    def on_tags(self) -> None:
        self.json(self.api.tags())

    def on_ps(self) -> None:
        self.json(self.api.ps())

    def on_show(self) -> None:
        self.json(self.api.show(self.body()))

    def on_create(self) -> None:
        body = self.body()
        self.lines(self.api.create(body), body.get("stream") is not False)

    def on_pull(self) -> None:
        body = self.body()
        self.lines(self.api.pull(body), body.get("stream") is not False)

    def on_push(self) -> None:
        body = self.body()
        text = body.get("model") or body.get("name") or ""
        if not text:
            raise ApiError(400, "model is required")
        path = os.path.join(self.api.store.manifests_dir(), self.api.store.existing(Name.parse(text)).path())
        missing = f"open {path}: no such file or directory"
        self.lines(failing(missing if not os.path.exists(path) else "the lab stand-in does not push"), body.get("stream") is not False)

    def on_copy(self) -> None:
        self.api.copy(self.body())
        self.answer(200, b"", "")

    def on_delete(self) -> None:
        self.api.delete(self.body())
        self.answer(200, b"", "")

    def on_generate(self) -> None:
        body = self.body()
        self.inference(self.api.generate(body), body, "response")

    def on_chat(self) -> None:
        body = self.body()
        self.inference(self.api.chat(body), body, "message")

    def inference(self, result, body: dict, field: str) -> None:
        if isinstance(result, dict):
            self.json(result)
            return

        def fold(events: list) -> dict:
            last = dict(events[-1])
            if field == "response":
                last["response"] = "".join(event.get("response", "") for event in events)
                thoughts = "".join(event.get("thinking", "") for event in events)
                if thoughts:
                    last["thinking"] = thoughts
            else:
                last["message"] = {"role": "assistant", "content": "".join(event["message"]["content"] for event in events)}
                thoughts = "".join(event["message"].get("thinking", "") for event in events)
                if thoughts:
                    last["message"]["thinking"] = thoughts
            return last

        self.lines(result, body.get("stream") is not False, fold)

    def on_embed(self) -> None:
        self.json(self.api.embed(self.body()))

    def on_embeddings(self) -> None:
        body = self.body()
        answer = self.api.embed({**body, "input": body.get("prompt") or ""})
        self.json({"embedding": (answer["embeddings"] or [[]])[0]})

    def blob(self, digest: str) -> None:
        store = self.api.store
        try:
            path = store.blob(digest)
        except ApiError:
            self.close_connection = self.command == "POST"
            self.json({"error": "invalid digest format"}, 400)
            return
        if self.command == "HEAD":
            there = os.path.exists(path)
            self.json({"error": f'blob "{digest}" not found'}, 404) if not there else self.answer(200, b"")
            return
        read, length = self.reader()
        if os.path.exists(path):
            read(256 * 1024 if length is None else min(length, 256 * 1024))  # as much as Go reads of a body that nobody wanted
            self.close_connection = length is None or length > 256 * 1024
            self.answer(200, b"")
            return
        found = store.put_stream(read, length)
        if found != digest.replace("-", ":"):
            raise ApiError(400, f'digest mismatch, expected "{digest}", got "{found}"')
        self.answer(201, b"")

    # -- the OpenAI-compatible side

    @staticmethod
    def openai_model(model: Model) -> dict:
        space = model.name.namespace if model.name.namespace != DEFAULT_NAMESPACE else "library"
        return {"id": model.name.short(), "object": "model", "created": int(model.manifest.modified), "owned_by": space}

    def on_v1_models(self) -> None:
        listed = self.api.tags()["models"]
        data = [self.openai_model(Model(self.api.store, Name.parse(item["name"]))) for item in listed]
        self.json({"object": "list", "data": data or None})

    def on_v1_embeddings(self) -> None:
        body = self.body()
        if body.get("input") is None:
            raise ApiError(400, "invalid input")
        answer = self.api.embed(body)
        data = [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(answer["embeddings"])]
        tokens = answer.get("prompt_eval_count", 0)
        self.json(
            {
                "object": "list",
                "data": data,
                "model": body.get("model"),
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    @staticmethod
    def openai_options(body: dict) -> dict:
        options: dict = {}
        stop = body.get("stop")
        if stop:
            options["stop"] = [stop] if isinstance(stop, str) else stop
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit:
            options["num_predict"] = limit
        for name in ("seed", "temperature", "top_p", "frequency_penalty", "presence_penalty"):
            if body.get(name) is not None:
                options[name] = body[name]
        return options

    def on_v1_chat_completions(self) -> None:
        body = self.body()
        if not body.get("messages"):
            self.json({"error": openai_error(ApiError(400, "[] is too short - 'messages'"))}, 400)
            return
        result = self.api.chat({
            "model": body.get("model", ""), "messages": body["messages"], "options": self.openai_options(body),
            "tools": body.get("tools"),
        })  # fmt: skip
        self.openai(result, body, "chat.completion", lambda event: event["message"])

    def on_v1_completions(self) -> None:
        body = self.body()
        prompt = body.get("prompt") or ""
        result = self.api.generate({"model": body.get("model", ""), "prompt": prompt, "options": self.openai_options(body)})
        self.openai(result, body, "text_completion", lambda event: {"content": event["response"], "thinking": event.get("thinking", "")})

    def openai(self, events, body: dict, kind: str, part) -> None:
        """Events of a generation in OpenAI's form: one object, or server-sent events."""
        number, created, chat = f"chatcmpl-{random.randint(1, 999)}", int(time.time()), kind == "chat.completion"
        head = {
            "id": number if chat else number.replace("chat", ""),
            "created": created,
            "model": body.get("model"),
            "system_fingerprint": "fp_ollama",
        }
        events = [events] if isinstance(events, dict) else events
        if body.get("stream") is not True:
            collected = list(events)
            last = collected[-1]
            content = "".join(part(event)["content"] for event in collected)
            thoughts = "".join(part(event).get("thinking") or "" for event in collected)
            message = {"role": "assistant", "content": content, **({"reasoning": thoughts} if thoughts else {})}
            choice = {"index": 0, **({"message": message} if chat else {"text": content}), "finish_reason": last["done_reason"]}
            self.json({**_with_object(head, kind), "choices": [choice], "usage": _usage(last)})
            return
        events = iter(events)
        first = next(events)
        self.begin_stream("text/event-stream")
        options = body.get("stream_options") or {}

        def sse(event: dict) -> str:
            piece, done = part(event), event.get("done")
            if chat:
                delta = {"role": "assistant"} if event is first else {}
                for key, value in (("content", piece["content"]), ("reasoning", piece.get("thinking"))):
                    if value:
                        delta[key] = value
                choice = {"index": 0, "delta": delta, "finish_reason": event.get("done_reason") if done else None}
            else:
                choice = {"text": piece["content"], "index": 0, "finish_reason": event.get("done_reason") if done else None}
            return "data: " + go_json({**_with_object(head, kind + ".chunk" if chat else kind), "choices": [choice]}) + "\n\n"

        last = first
        try:
            self.chunk(sse(first))
            for event in events:
                last = event
                self.chunk(sse(event))
            if options.get("include_usage"):
                self.chunk("data: " + go_json({**_with_object(head, "chat.completion.chunk"), "choices": [], "usage": _usage(last)}) + "\n\n")
            self.chunk("data: [DONE]\n\n")
        except ApiError as error:
            self.chunk("data: " + go_json({"error": openai_error(error)}) + "\n\n")
        self.chunk("")


def failing(message: str):
    """A stream that is nothing but an error."""
    raise ApiError(500, message)
    yield {}


def _with_object(head: dict, kind: str) -> dict:
    return {"id": head["id"], "object": kind, **{key: value for key, value in head.items() if key != "id"}}


def _usage(last: dict) -> dict:
    prompt, answer = last.get("prompt_eval_count", 0), last.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Listener(ThreadingHTTPServer):
    """Accepts connections, except while the lab says that the port is closed."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple, family: int, api: Server):
        self.address_family = family
        super().__init__(address, type("BoundHandler", (Handler,), {"api": api}), bind_and_activate=False)
        self.api = api
        self.stopping = False

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request, client_address):
        log("ERROR", "request failed", client=client_address, error=sys.exc_info()[1])

    def run(self) -> None:
        open_port = True
        while not self.stopping:
            refuse = bool(self.api.faults.get("refuse_connections", False))
            if refuse and open_port:
                self.socket.close()
                open_port = False
            elif not refuse and not open_port:
                self.socket = socket.socket(self.address_family, self.socket_type)
                self.server_bind()
                self.server_activate()
                open_port = True
            if not open_port:
                time.sleep(0.25)
                continue
            ready, _write, _error = select.select([self.socket], [], [], 0.5)
            if ready:
                self._handle_request_noblock()


def make_keys() -> None:
    """~/.ollama/id_ed25519, which the real server makes at its first start and cannot start without."""
    path = os.path.join(home(), ".ollama", "id_ed25519")
    if os.path.exists(path):
        return
    print(f"Couldn't find '{path}'. Generating new private key.")
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        body = base64.encodebytes(b"openssh-key-v1\0" + os.urandom(128)).decode()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
            handle.write(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}-----END OPENSSH PRIVATE KEY-----\n")
        public = "ssh-ed25519 " + base64.b64encode(os.urandom(51)).decode()
        with open(path + ".pub", "w", encoding="ascii") as handle:
            handle.write(public + "\n")
    except OSError as error:
        sys.stderr.write(f"Error: could not create directory {error.strerror.lower()}\n")
        raise SystemExit(1) from error
    print(f"Your new public key is: \n\n{public}\n", flush=True)


def serve(program: str) -> int:
    """`ollama serve`."""
    models_dir()
    make_keys()
    host, port = host_and_port()
    faults = Faults(faults_path())
    time.sleep(float(faults.get("slow_start_s", 0)))
    try:
        family, _type, _proto, _canon, address = socket.getaddrinfo(host or "::", port, type=socket.SOCK_STREAM)[0]
        probe = socket.socket(family, socket.SOCK_STREAM)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.close()
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
        sys.stderr.write(f"Error: listen tcp {host}:{port}: bind: {reason}\n")
        return 1
    shown = " ".join(f"{key}:{env(key)}" for key in ENVIRONMENT)
    log("INFO", "server config", env=f"map[{shown}]")
    log("INFO", "gpufleet lab stand-in", version=VERSION)
    log("INFO", f"Ollama cloud disabled: {str(env_bool('OLLAMA_NO_CLOUD')).lower()}")
    api = Server(program)
    try:
        api.store.manifests_dir()
        api.store.blobs_dir()
        if not env_bool("OLLAMA_NOPRUNE"):
            api.store.prune()
    except OSError as error:
        sys.stderr.write(f"Error: mkdir {error.filename}: {error.strerror.lower()}: ensure path elements are traversable\n")
        return 1
    listener = Listener(address, family, api)
    listener.server_bind()
    listener.server_activate()
    for number, card in enumerate(nvml_cards()):
        log(
            "INFO",
            "inference compute",
            id=f"GPU-{number}",
            library="CUDA",
            total=f"{card['total'] / 1024 / MIB:.1f} GiB",
            available=f"{card['free'] / 1024 / MIB:.1f} GiB",
        )

    def stop(_number, _frame):
        listener.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log("INFO", f"Listening on {listener.server_address[0]}:{listener.server_address[1]} (version {VERSION})")
    listener.run()
    listener.server_close()
    api.scheduler.unload_all()
    return 0


# ---------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------


def client(method: str, path: str, body: dict | None = None):
    """A request to the server of OLLAMA_HOST; OSError when it cannot be reached."""
    host, port = host_and_port()
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    data = response.read()
    if response.status >= 400:
        raise ApiError(response.status, json.loads(data or b"{}").get("error", response.reason))
    return json.loads(data) if data.startswith(b"{") else {}


def print_version() -> int:
    """`ollama --version`: the server's version, and this program's where they differ."""
    version = ""
    try:
        version = client("GET", "/api/version").get("version", "")
    except (OSError, ApiError, ValueError, http.client.HTTPException):
        print("Warning: could not connect to a running Ollama instance")
    if version:
        print(f"ollama version is {version}")
    if version != VERSION:
        print(f"Warning: client version is {VERSION}")
    return 0


def print_table(rows: list) -> None:
    widths = [max(len(row[column]) for row in rows) + 4 for column in range(len(rows[0]))]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def human_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"


def command_line(arguments: list, program: str) -> int:
    """The part of the real command line that operators type on a host."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("Usage:\n  ollama [command]\n\nAvailable Commands: serve list ps pull stop rm (lab stand-in)")
        return 0
    word = arguments[0]
    if word in ("-v", "--version"):
        return print_version()
    if word in ("serve", "start"):
        return serve(program)
    try:
        if word in ("list", "ls"):
            models = client("GET", "/api/tags")["models"]
            rows = [(m["name"], m["digest"][:12], human_bytes(m["size"]), m["modified_at"][:19]) for m in models]
            print_table([("NAME", "ID", "SIZE", "MODIFIED"), *rows])
        elif word == "ps":
            models = client("GET", "/api/ps")["models"]
            rows = []
            for m in models:
                share = round(100 * m["size_vram"] / m["size"]) if m["size"] else 0
                where = "100% GPU" if share == 100 else "100% CPU" if share == 0 else f"{100 - share}%/{share}% CPU/GPU"
                until = "Forever" if m["expires_at"] > "2200" else "Stopping..." if m["expires_at"] < go_time(time.time()) else m["expires_at"][:19]
                rows.append((m["name"], m["digest"][:12], human_bytes(m["size"]), where, str(m["context_length"]), until))
            print_table([("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), *rows])
        elif word == "pull" and len(arguments) > 1:
            client("POST", "/api/pull", {"model": arguments[1], "stream": False})
            print("success")
        elif word == "stop" and len(arguments) > 1:
            client("POST", "/api/generate", {"model": arguments[1], "keep_alive": 0})
        elif word == "rm" and len(arguments) > 1:
            client("POST", "/api/generate", {"model": arguments[1], "keep_alive": 0})
            client("DELETE", "/api/delete", {"model": arguments[1]})
            print(f"deleted '{arguments[1]}'")
        else:
            sys.stderr.write(f'Error: unknown command "{word}" for "ollama"\n')
            return 1
    except (OSError, http.client.HTTPException):
        sys.stderr.write("Error: could not connect to ollama server, run 'ollama serve' to start it\n")
        return 1
    except ApiError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return 1
    return 0


def main() -> int:
    program = os.path.realpath(__file__)
    if os.path.basename(program) == "llama-server":
        return runner_main(sys.argv[1:])
    if sys.argv[1:2] == ["--as-llama-server"]:
        return runner_main(sys.argv[2:])
    return command_line(sys.argv[1:], program)


if __name__ == "__main__":
    sys.exit(main())
