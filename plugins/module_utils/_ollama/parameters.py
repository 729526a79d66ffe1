# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of a model's parameters with their types, and the check of a value.

Private to this collection: it may change or go without notice.

The server validates nothing (/api/create takes any key and any type, and each later request then fails or ignores
it), so what is refused here is refused nowhere else.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

INT, FLOAT, BOOL, TEXTS = "int", "float", "bool", "list of texts"

#: Parameter -> (type, least value or None, greatest value or None). Names and types: Ollama's api.Options
#: (api/types.go, 0.32.15). The bounds are ours: values outside make the runner fail or answer nonsense.
PARAMETERS: dict[str, tuple[str, float | None, float | None]] = {
    "draft_num_predict": (INT, 0, None),
    "frequency_penalty": (FLOAT, -2, 2),
    "main_gpu": (INT, 0, None),
    "min_p": (FLOAT, 0, 1),
    "num_batch": (INT, 1, None),
    "num_ctx": (INT, 4, None),
    "num_gpu": (INT, -1, None),
    "num_keep": (INT, -1, None),
    "num_predict": (INT, -2, None),
    "num_thread": (INT, 0, None),
    "presence_penalty": (FLOAT, -2, 2),
    "repeat_last_n": (INT, -1, None),
    "repeat_penalty": (FLOAT, 0, None),
    "seed": (INT, None, None),
    "stop": (TEXTS, None, None),
    "temperature": (FLOAT, 0, None),
    "top_k": (INT, -1, None),
    "top_p": (FLOAT, 0, 1),
    "typical_p": (FLOAT, 0, 1),
    "use_mmap": (BOOL, None, None),
}

_SAMPLING = "Use temperature, top_p, top_k and min_p."

#: Parameters that Ollama's client drops with a warning (parser.go, deprecatedParameters), and what to do instead.
DEPRECATED = {
    "f16_kv": "The KV cache type is a server setting: ollama_kv_cache_type.",
    "logits_all": "Nothing reads it; remove it.",
    "low_vram": "To need less VRAM lower num_ctx, or set ollama_kv_cache_type=q8_0.",
    "mirostat": _SAMPLING,
    "mirostat_eta": _SAMPLING,
    "mirostat_tau": _SAMPLING,
    "penalize_newline": "Use repeat_penalty.",
    "use_mlock": "Nothing reads it; a model that is wholly on the GPU does not need it.",
    "vocab_only": "Nothing reads it; remove it.",
}
_KV = "The KV cache type is a server setting: ollama_kv_cache_type."
_FA = "Flash attention is a server setting: ollama_flash_attention."
_SLOTS = "The number of parallel slots is a server setting: ollama_num_parallel."
_LOG = "Logging is a server setting: OLLAMA_DEBUG in the server's environment."
_LAYERS = "Use num_gpu, the number of layers on the GPU; without it all that fit are."
_ROPE = "It is read from the GGUF file; use a file that carries it."

#: Parameters that people write and that do not exist (never, or not any more), and what to do instead.
NEVER = {
    "batch_size": "Use num_batch.",
    "cache_type": _KV,
    "cache_type_k": _KV,
    "cache_type_v": _KV,
    "context_length": "Use num_ctx.",
    "context_size": "Use num_ctx.",
    "ctx_size": "Use num_ctx.",
    "embedding_only": "Nothing reads it; remove it.",
    "flash_attention": _FA,
    "flash_attn": _FA,
    "gpu_layers": _LAYERS,
    "gpu_overhead": "The VRAM reserve is a server setting: ollama_reserve_mib.",
    "keep_alive": "How long a model stays loaded is a server setting (ollama_keep_alive) or this model's keep_alive.",
    "kv_cache_type": _KV,
    "log_level": _LOG,
    "max_context": "Use num_ctx.",
    "max_new_tokens": "Use num_predict.",
    "max_tokens": "Use num_predict.",
    "n_batch": "Use num_batch.",
    "n_ctx": "Use num_ctx.",
    "n_gpu_layers": _LAYERS,
    "n_predict": "Use num_predict.",
    "n_threads": "Use num_thread.",
    "num_gqa": _ROPE,
    "num_gpu_layers": _LAYERS,
    "num_parallel": _SLOTS,
    "num_threads": "Use num_thread.",
    "numa": "Pin the service with systemd (NUMAPolicy=, CPUAffinity=).",
    "parallel": _SLOTS,
    "quantize": "Quantization is done when a model is created from a file: the option quantize.",
    "repetition_penalty": "Use repeat_penalty.",
    "rope_frequency_base": _ROPE,
    "rope_frequency_scale": _ROPE,
    "tfs_z": _SAMPLING,
    "think": "Thinking is chosen with each request.",
    "threads": "Use num_thread.",
    "typical": "Use typical_p.",
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")


class ModelfileError(Exception):
    """Something in a Modelfile or in a table of parameters is not as it has to be; the text says what to do.

    `line` is the line of the Modelfile where the instruction starts, or None.
    """

    def __init__(self, message: str, line: int | None = None):
        super().__init__(f"Modelfile line {line}: {message}" if line else message)
        self.line = line


def validate_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters` with each value in its type, sorted by name.

    Text is taken as the client takes it (`"4096"` is 4096), because templated values arrive as text. Raises
    ModelfileError that names every fault at once.
    """
    if not isinstance(parameters, dict):
        raise ModelfileError(f"parameters is {_shown(parameters)}; it takes names with values, such as num_ctx: 40960.")
    typed, faults = {}, []
    for name in sorted(parameters, key=str):
        try:
            typed[name] = check_parameter(name, parameters[name])
        except ModelfileError as fault:
            faults.append(str(fault))
    if faults:
        raise ModelfileError(" ".join(faults))
    return typed


def check_parameter(name: Any, value: Any, line: int | None = None) -> Any:
    """`value` in the type of parameter `name`; for `stop` always a list."""
    if name not in PARAMETERS:
        raise ModelfileError(f"unknown parameter '{str(name)[:60]}'. {_advice(str(name))}", line)
    kind, least, most = PARAMETERS[name]
    if value is None:
        raise ModelfileError(f"parameter {name} has no value; give it a {kind} or remove it.", line)
    if kind == TEXTS:
        return _texts(name, value, line)
    typed = {INT: _int, FLOAT: _float, BOOL: _bool}[kind](value)
    if typed is None:
        raise ModelfileError(
            f"invalid {kind} value [{_shown(value)}] of parameter {name}; {_example(name, kind)}", line
        )
    if least is not None and typed < least or most is not None and typed > most:
        span = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
        raise ModelfileError(f"parameter {name} is {_shown(value)}; it has to be {span}.", line)
    return typed


def _advice(name: str) -> str:
    if name in DEPRECATED:
        return f"It was removed from Ollama and is ignored. {DEPRECATED[name]}"
    if name in NEVER:
        return NEVER[name]
    if name.lower() in PARAMETERS:
        return f"Names are in small letters: {name.lower()}."
    if name.lower() in NEVER:
        return NEVER[name.lower()]
    near = difflib.get_close_matches(name.lower(), PARAMETERS, n=1)
    return f"Did you mean {near[0]}?" if near else f"Ollama knows: {', '.join(sorted(PARAMETERS))}."


def _example(name: str, kind: str) -> str:
    if kind == INT:
        example = {"num_ctx": 40960, "num_batch": 512, "num_predict": 8192}.get(name, 1)
        return f"write a whole number without unit, such as {name}: {example}."
    return f"write a number such as {name}: 0.7." if kind == FLOAT else "write true or false."


def _shown(value: Any) -> str:
    """`value` as the person wrote it, short enough for a sentence."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    elif isinstance(value, str):
        # 19 digits: what 64 bits hold; a longer text is not worth converting.
        value = int(value) if len(value) <= 20 and value.isascii() and _INTEGER.match(value) else None
    elif not isinstance(value, int):
        return None
    return value if value is not None and -(2**63) <= value < 2**63 else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value) if not isinstance(value, str) or "_" not in value else None
    except (ValueError, OverflowError):
        return None
    # Beyond 32 bits the client refuses; infinities cannot be sent as JSON.
    return number if number is not None and math.isfinite(number) and abs(number) <= 3.4028235e38 else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = str(value) if isinstance(value, (str, int)) else ""
    return True if text in _TRUE else False if text in _FALSE else None


def _texts(name: str, value: Any, line: int | None) -> list[str]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    for one in values:
        if not isinstance(one, str) or one == "":
            raise ModelfileError(
                f"parameter {name} has the entry [{_shown(one)}]; each entry is a text that is not empty, in quotes.",
                line,
            )
    return [str(one) for one in values]


def number_text(value: Any) -> str:
    """A parameter's value as text that Ollama's client reads back: 1048576, not 1.048576e+06."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)
