# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model is to be: the options of a module or an entry of `models_declared`, checked and in one shape.

Private to this collection: it may change or go without notice. Reads no file and asks no server.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from . import extension, modelfile, names
from .extension import Extension
from .parameters import validate_parameters

PULL = ("missing", "always", "never")

#: Targets of llama-quantize that the server takes from float weights (fs/ggml/type.go).
QUANTIZATIONS = ("f16", "bf16", "q4_k_m", "q4_k_s", "q8_0")
_DURATION = re.compile(r"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+\Z")


class ModelError(Exception):
    """A declaration that cannot be, or a model that is not as declared; the text is for an operator."""


class Declaration(NamedTuple):
    """A model as wanted, checked and in one shape. `base` or `files` or neither: then it is pulled by name."""

    name: str
    base: str | None = None
    files: tuple[str, ...] = ()
    file_digest: str | None = None
    quantize: str | None = None
    adapter: str | None = None
    base_digest: str | None = None
    pull: str = "missing"
    insecure: bool = False
    parameters: dict[str, Any] = {}
    template: str = ""
    system: str = ""
    license: tuple[str, ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    extension: Extension | None = None

    @property
    def overrides(self) -> bool:
        """Whether anything is declared beside where the model comes from."""
        return bool(
            self.parameters
            or self.template
            or self.system
            or self.license
            or self.messages
            or self.renderer
            or self.parser
            or self.adapter
            or self.requires
        )

    @property
    def only_pulled(self) -> bool:
        return self.base is None and not self.files


def declare(entry: dict[str, Any], folder: str = "") -> Declaration:
    """The declaration that a module's options or an entry of `models_declared` make.

    Keys: name, from, gguf, gguf_sha256, modelfile (text), parameters, template, system, license, messages, adapter,
    renderer, parser, requires, quantize, context_extension, base_digest, pull, insecure; None and absent are the
    same. `folder` is where relative paths of a Modelfile start. Reads no file. Raises ModelError or ModelfileError.
    """
    given = {key: value for key, value in entry.items() if value is not None}
    name = name_of(given.get("name"), "name")
    fields = _fields(given, folder)
    parameters = validate_parameters(fields.get("parameters") or {})
    files = tuple(fields.get("files") or ())
    base = name_of(fields["from"], "from") if fields.get("from") else None
    where = f"Model {name}: "
    if base and names.same_name(base, name):
        raise ModelError(
            f"{where}it is to be made from itself. What is taken out of a declaration could then never go from the "
            "model; "
            "give the variant another name, or leave out `from` to have the model pulled as it is."
        )
    declared = Declaration(
        name=name,
        base=base,
        files=files,
        file_digest=_hex(given.get("gguf_sha256"), where + "gguf_sha256", 64),
        quantize=_quantize(given.get("quantize"), where, base, files),
        adapter=_adapter(fields.get("adapter"), where),
        base_digest=_hex(given.get("base_digest"), where + "base_digest", 12),
        pull=given.get("pull", "missing"),
        insecure=bool(given.get("insecure", False)),
        parameters=parameters,
        template=text_of(fields.get("template"), where + "template"),
        system=text_of(fields.get("system"), where + "system"),
        license=_texts(fields.get("license"), where + "license"),
        messages=_messages(fields.get("messages"), where),
        renderer=text_of(fields.get("renderer"), where + "renderer"),
        parser=text_of(fields.get("parser"), where + "parser"),
        requires=modelfile.check_requires(fields["requires"]) if fields.get("requires") else "",
        extension=_extension(given.get("context_extension"), where, base, given.get("quantize")),
    )
    if declared.pull not in PULL:
        raise ModelError(f"{where}pull is '{declared.pull}'; it has to be one of {', '.join(PULL)}.")
    if declared.only_pulled and declared.overrides:
        raise ModelError(
            f"{where}it has settings of its own but nothing to be made from; give `from`, `gguf` or a Modelfile."
        )
    if declared.files and declared.base_digest:
        raise ModelError(f"{where}base_digest pins a model of a registry; a file is pinned by gguf_sha256.")
    if declared.file_digest and len(files) != 1:
        raise ModelError(f"{where}gguf_sha256 needs exactly one GGUF file.")
    if declared.pull == "never" and declared.only_pulled and not declared.base_digest:
        raise ModelError(
            f"{where}with pull: never and nothing to be made from there is nothing to do; use ollama_info."
        )
    return declared


def _extension(value: Any, where: str, base: str | None, quantize: Any) -> Extension | None:
    """The extension of the context, where it can be had."""
    try:
        found = extension.declared(value, where)
    except extension.ExtensionError as error:
        raise ModelError(str(error)) from None
    if found and not base:
        raise ModelError(
            f"{where}context_extension needs a model of the server or a registry to start from; give `from`."
        )
    if found and quantize:
        raise ModelError(
            f"{where}context_extension and quantize are both given; one of them was wanted. Start from a model that is "
            "quantized."
        )
    return found


_OWN = ("template", "system", "license", "messages", "adapter", "renderer", "parser", "requires")


def _fields(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """The options with a Modelfile's taken in; parameters of the options win over the Modelfile's."""
    fields = {key: given.get(key) for key in ("from", "parameters", *_OWN)}
    fields["files"] = [given["gguf"]] if given.get("gguf") else []
    if given.get("modelfile") is None:
        if fields["from"] and fields["files"]:
            raise ModelError(
                f"Model {given['name']}: `from` and `gguf` are both given; a model starts from one of them."
            )
        return fields
    clash = sorted(key for key in ("from", "gguf", *_OWN) if given.get(key))
    if clash:
        raise ModelError(
            f"Model {given['name']}: a Modelfile and {', '.join(clash)} are given; say each thing in one place"
            " (parameters may stand in both)."
        )
    declared = modelfile.declaration(given["modelfile"])
    if declared.get("draft"):
        raise ModelError(
            f"Model {given['name']}: its Modelfile has DRAFT, which this collection does not manage; take the line out."
        )
    fields.update(_source(given["name"], declared.pop("from"), folder))
    for key, value in declared.items():
        fields[key] = {**value, **(given.get("parameters") or {})} if key == "parameters" else value
    adapter = fields.get("adapter")
    if adapter:
        fields["adapter"] = _path(adapter, folder) or os.path.join(folder, adapter)
    return fields


def _source(name: str, sources: list[str], folder: str) -> dict[str, Any]:
    """What the FROM lines of a Modelfile come to: {files} or {from}."""
    paths = [_path(source, folder) for source in sources]
    if all(paths):
        return {"files": paths}
    if len(sources) == 1:
        return {"from": sources[0]}
    raise ModelError(
        f"Model {name}: its Modelfile has several FROM lines and not all are paths of GGUF files (a path starts with /"
        " or ./)."
    )


def _path(source: str, folder: str) -> str | None:
    """The path that a FROM line names, None when it names a model.

    Ollama's client takes a path that exists for a path. Here no file is read, so what has a tag is a name, such as
    hf.co/user/repository:file.gguf; written with ./ it is a path.
    """
    if source.startswith("~"):
        return os.path.expanduser(source)
    if source.startswith("/"):
        return source
    if source.startswith(("./", "../")) or (source.lower().endswith(".gguf") and not _is_tagged_name(source)):
        if not folder:
            raise ModelError(
                f"'{source}' in the Modelfile is a relative path, and there is no folder for it to start from; write "
                "an absolute path on the host."
            )
        return os.path.normpath(os.path.join(folder, source))
    return None


def _is_tagged_name(source: str) -> bool:
    try:
        names.parse_name(source)
    except ValueError:
        return False
    return ":" in source.rpartition("/")[2]


def name_of(value: Any, what: str) -> str:
    try:
        return names.short_name(value)
    except ValueError as error:
        raise ModelError(f"{what}: {error}") from None


def _hex(value: Any, what: str, least: int) -> str | None:
    if value is None:
        return None
    text = str(value).lower()
    text = text[len("sha256:") :] if text.startswith("sha256:") else text
    if not re.match(rf"[0-9a-f]{{{least},64}}\Z", text):
        raise ModelError(
            f"{what} is '{str(value)[:80]}'; wanted {'64' if least == 64 else f'{least} to 64'} hex digits of a "
            "sha256, as ollama_info shows them."
        )
    return text


def _quantize(value: Any, where: str, base: str | None, files: tuple[str, ...]) -> str | None:
    if value in (None, ""):
        return None
    if str(value).lower() not in QUANTIZATIONS:
        raise ModelError(
            f"{where}quantize is '{value}'; the server makes {', '.join(QUANTIZATIONS)}, from float weights (f16, "
            "bf16, f32)."
        )
    if not base and not files:
        raise ModelError(f"{where}quantize needs `from` or `gguf` with float weights.")
    return str(value).lower()


def _adapter(value: Any, where: str) -> str | None:
    if value in (None, ""):
        return None
    if not str(value).startswith("/"):
        raise ModelError(f"{where}adapter is '{value}'; wanted the absolute path of a GGUF adapter on the host.")
    return str(value)


def text_of(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ModelError(f"{what} is {str(value)[:60]}; it takes a text.")
    return str(value)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text_of(one, what) for one in values if one not in (None, ""))


def _messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    messages = []
    for one in value or ():
        if (
            not isinstance(one, dict)
            or one.get("role") not in modelfile.ROLES
            or not isinstance(one.get("content"), str)
        ):
            raise ModelError(
                f"{where}each message has a role (one of {', '.join(modelfile.ROLES)}) and a text as content; found "
                f"{str(one)[:80]}."
            )
        messages.append({"role": str(one["role"]), "content": str(one["content"])})
    return tuple(messages)


def check_keep_alive(value: Any) -> Any:
    """`value` as the API takes it: whole seconds as a number, or a duration such as 30m; None stays None."""
    if value is None or value == "":
        return None
    text = str(value).strip()
    if re.match(r"[+-]?[0-9]{1,15}\Z", text):
        return int(text)
    if _DURATION.match(text):
        return text
    raise ModelError(
        f"keep_alive is '{value}'; wanted seconds (300), a duration (30m, 24h), or -1 to keep the model loaded."
    )


def declared_modelfile(declared: Declaration, comments: tuple[str, ...] = ()) -> str:
    """The Modelfile of a declaration: `ollama create` makes the same model of it."""
    fields = declared._asdict()
    fields["from"] = list(declared.files) or [declared.base or declared.name]
    return modelfile.render(fields, comments)
