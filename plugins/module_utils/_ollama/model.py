# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of an Ollama server: what is declared, what is there, whether they differ, and what to do about it.

Private to this collection: it may change or go without notice.

Nothing is decided by creating a model again. `difference(observed, wanted)` compares what /api/show tells of a
model with what its declaration and its base come to; how the server merges the two was read in server/create.go
and tried on 0.32.15: parameters per key (the declaration wins, a list replaces a list), system, template,
messages, renderer, parser and requires only where the declaration sets them, licences added to those of the
base, adapters added, weights by digest. A model is always built from its base, never from itself, so what is
taken out of a declaration goes from the model.

A GGUF file is remembered by its content: it is imported once under a name of its own,
`model:tag.src-<12 hex digits of its sha256>[-quantisation]`, from which the model is then made. The server
rewrites a file when it imports it, so the digest in the store says nothing about the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Any, Callable, NamedTuple

from . import client as ollama_client
from . import modelfile, runner_options

PULL = ("missing", "always", "never")
#: What of a declaration makes a model (as `observe` names it too), in the order of a Modelfile.
FIELDS = (
    "parent",
    "weights",
    "adapters",
    "template",
    "system",
    "renderer",
    "parser",
    "parameters",
    "messages",
    "license",
    "requires",
)
#: Targets of llama-quantize that the server takes from float weights (fs/ggml/type.go).
QUANTISATIONS = ("f16", "bf16", "q4_k_m", "q4_k_s", "q8_0")

_DIGEST = re.compile(r"sha256[-:]([0-9a-f]{64})")
_DURATION = re.compile(r"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+\Z")


class ModelError(Exception):
    """A declaration that cannot be, or a model that is not as declared; the text is for an operator."""


class Declaration(NamedTuple):
    """A model as wanted, checked and in one shape. `base` and `files` are exclusive; with neither it is pulled by name."""

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

    @property
    def overrides(self) -> bool:
        """Whether anything is declared beside where the model comes from."""
        return bool(
            self.parameters or self.template or self.system or self.license or self.messages or self.renderer or self.parser or self.adapter or self.requires
        )

    @property
    def only_pulled(self) -> bool:
        return self.base is None and not self.files


# --- declaring -----------------------------------------------------------------------------------------------------


def declare(entry: dict[str, Any], folder: str = "") -> Declaration:
    """The declaration that a module's options or an entry of `models_declared` make.

    Keys: name, from, gguf, gguf_sha256, modelfile (text), parameters, template, system, license, messages, adapter,
    renderer, parser, requires, quantize, base_digest, pull, insecure; None and absent are the same. `folder` is where
    relative paths of a Modelfile start. Reads no file. Raises ModelError or ModelfileError.
    """
    given = {key: value for key, value in entry.items() if value is not None}
    name = name_of(given.get("name"), "name")
    fields = _fields(given, folder)
    parameters = modelfile.validate_parameters(fields.get("parameters") or {})
    files = tuple(fields.get("files") or ())
    base = name_of(fields["from"], "from") if fields.get("from") else None
    where = f"Model {name}: "
    if base and ollama_client.same_name(base, name):
        raise ModelError(
            f"{where}it is to be made from itself. What is taken out of a declaration could then never go from the model; "
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
    )
    if declared.pull not in PULL:
        raise ModelError(f"{where}pull is '{declared.pull}'; it has to be one of {', '.join(PULL)}.")
    if declared.only_pulled and declared.overrides:
        raise ModelError(f"{where}it has settings of its own but nothing to be made from; give `from`, `gguf` or a Modelfile.")
    if declared.files and declared.base_digest:
        raise ModelError(f"{where}base_digest pins a model of a registry; a file is pinned by gguf_sha256.")
    if declared.file_digest and len(files) != 1:
        raise ModelError(f"{where}gguf_sha256 needs exactly one GGUF file.")
    if declared.pull == "never" and declared.only_pulled and not declared.base_digest:
        raise ModelError(f"{where}with pull: never and nothing to be made from there is nothing to do; use ollama_info.")
    return declared


def _fields(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """The options with a Modelfile's taken in; parameters of the options win over the Modelfile's."""
    fields = {
        key: given.get(key)
        for key in (
            "from",
            "parameters",
            "template",
            "system",
            "license",
            "messages",
            "adapter",
            "renderer",
            "parser",
            "requires",
        )
    }
    fields["files"] = [given["gguf"]] if given.get("gguf") else []
    text = given.get("modelfile")
    if text is None:
        if fields["from"] and fields["files"]:
            raise ModelError(f"Model {given['name']}: `from` and `gguf` are both given; a model starts from one of them.")
        return fields
    clash = sorted(key for key in ("from", "gguf", "template", "system", "license", "messages", "adapter", "renderer", "parser", "requires") if given.get(key))
    if clash:
        raise ModelError(f"Model {given['name']}: a Modelfile and {', '.join(clash)} are given; say each thing in one place (parameters may stand in both).")
    declared = modelfile.declaration(text)
    if declared.get("draft"):
        raise ModelError(f"Model {given['name']}: its Modelfile has DRAFT, which this collection does not manage; take the line out.")
    sources = declared.pop("from")
    paths = [_path(source, folder) for source in sources]
    if all(paths):
        fields["files"] = paths
    elif len(sources) == 1:
        fields["from"] = sources[0]
    else:
        raise ModelError(f"Model {given['name']}: its Modelfile has several FROM lines and not all are paths of GGUF files (a path starts with / or ./).")
    for key, value in declared.items():
        fields[key] = {**value, **(given.get("parameters") or {})} if key == "parameters" else value
    if fields.get("adapter"):
        fields["adapter"] = _path(fields["adapter"], folder) or os.path.join(folder, fields["adapter"])
    return fields


def _path(source: str, folder: str) -> str | None:
    """The path that a FROM line names, None when it names a model."""
    if source.startswith("~"):
        return os.path.expanduser(source)
    if source.startswith("/"):
        return source
    if source.startswith(("./", "../")) or source.lower().endswith(".gguf"):
        if not folder:
            raise ModelError(
                f"'{source}' in the Modelfile is a relative path, and there is no folder for it to start from; write an absolute path on the host."
            )
        return os.path.normpath(os.path.join(folder, source))
    return None


def name_of(value: Any, what: str) -> str:
    try:
        return ollama_client.short_name(value)
    except ValueError as error:
        raise ModelError(f"{what}: {error}") from None


def _hex(value: Any, what: str, least: int) -> str | None:
    if value is None:
        return None
    text = str(value).lower()
    text = text[len("sha256:") :] if text.startswith("sha256:") else text
    if not re.match(rf"[0-9a-f]{{{least},64}}\Z", text):
        raise ModelError(
            f"{what} is '{str(value)[:80]}'; wanted {'64' if least == 64 else f'{least} to 64'} hex digits of a sha256, as ollama_info shows them."
        )
    return text


def _quantize(value: Any, where: str, base: str | None, files: tuple[str, ...]) -> str | None:
    if value in (None, ""):
        return None
    if str(value).lower() not in QUANTISATIONS:
        raise ModelError(f"{where}quantize is '{value}'; the server makes {', '.join(QUANTISATIONS)}, from float weights (f16, bf16, f32).")
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
        if not isinstance(one, dict) or one.get("role") not in modelfile.ROLES or not isinstance(one.get("content"), str):
            raise ModelError(f"{where}each message has a role (one of {', '.join(modelfile.ROLES)}) and a text as content; found {str(one)[:80]}.")
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
    raise ModelError(f"keep_alive is '{value}'; wanted seconds (300), a duration (30m, 24h), or -1 to keep the model loaded.")


# --- observing -----------------------------------------------------------------------------------------------------


def observe(show: dict[str, Any]) -> dict[str, Any]:
    """What an answer of /api/show says of the model: FIELDS, and family and trained_context for advice.

    parent is the base's name, "" for a model made from files; weights and adapters are sorted lists of sha256 hex;
    numbers in parameters are floats, as the server keeps them.
    """
    heads, template, renderer, parser = _read_modelfile(show)
    details = show.get("details") or {}
    info = show.get("model_info") or {}
    architecture = info.get("general.architecture") or details.get("family") or ""
    return {
        "parent": details.get("parent_model") or "",
        "weights": sorted(set(heads["FROM"])),
        "adapters": sorted(set(heads["ADAPTER"])),
        "template": template,
        "system": show.get("system") or "",
        "renderer": renderer,
        "parser": parser,
        "parameters": _read_parameters(show.get("parameters") or ""),
        "messages": [{"role": one.get("role", ""), "content": one.get("content", "")} for one in show.get("messages") or []],
        "license": show.get("license") or "",
        "requires": show.get("requires") or "",
        "family": details.get("family") or "",
        "trained_context": info.get(f"{architecture}.context_length"),
    }


def _read_modelfile(show: dict[str, Any]) -> tuple[dict[str, list[str]], str, str, str]:
    """Digests by instruction, the stored template, renderer and parser from the `modelfile` of /api/show.

    That text is printed for people, with lossy quotes; its order is fixed (images.go, Model.String): FROM, ADAPTER,
    DRAFT and further FROM lines, TEMPLATE, SYSTEM, RENDERER, PARSER, then the rest. So the head is read line by line,
    the template by the text that the answer gives beside it where that is the stored one, and the two names after it.
    """
    heads: dict[str, list[str]] = {"FROM": [], "ADAPTER": [], "DRAFT": []}
    text = show.get("modelfile") or ""
    position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        word, _blank, value = text[position:end].partition(" ")
        if word in heads:
            digest = _DIGEST.search(value)
            heads[word].append(digest.group(1) if digest else value)
        elif word != "#" and word.strip() and not word.startswith("#"):
            break
        position = end + 1
    template, position = _read_value(text, position, "TEMPLATE", show.get("template") or "")
    _system, position = _read_value(text, position, "SYSTEM", show.get("system") or "")
    renderer, position = _read_value(text, position, "RENDERER", "")
    parser, position = _read_value(text, position, "PARSER", "")
    return heads, template, renderer, parser


def _read_value(text: str, position: int, name: str, expected: str) -> tuple[str, int]:
    """The value of instruction `name` if it stands at `position`, and the position of the line after it."""
    head = f"{name} "
    if not text.startswith(head, position):
        return "", position
    start = position + len(head)
    printed = _server_quote(expected)
    if expected and text.startswith(printed, start) and text[start + len(printed) : start + len(printed) + 1] in ("", "\n"):
        return expected, start + len(printed) + 1
    if text.startswith('"""', start):
        # The first closing quotes that another instruction, or nothing, follows.
        for found in re.finditer(rf'"""(?=\n(?:{"|".join(modelfile.INSTRUCTIONS)}) |\n?\Z)', text[start + 3 :]):
            end = start + 3 + found.start()
            return text[start + 3 : end], end + 4
    elif text.startswith('"', start):
        # Printed in single quotes only when there is none inside.
        end = text.find('"\n', start + 1)
        if end >= 0:
            return text[start + 1 : end], end + 2
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return text[start:end], end + 1


def _server_quote(text: str) -> str:
    """`text` as the server prints it in a Modelfile (parser.go, quote)."""
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def _read_parameters(text: str) -> dict[str, Any]:
    """The parameters that /api/show prints: a name, blanks, the value in Go's syntax; a list has a line for each entry."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        name, _blank, value = line.strip().partition(" ")
        if not name:
            continue
        read = _go_value(value.strip())
        if modelfile.PARAMETERS.get(name, ("",))[0] == modelfile.TEXTS:
            found.setdefault(name, []).append(read)
        elif name in found:
            before = found[name]
            found[name] = [*(before if isinstance(before, list) else [before]), read]
        else:
            found[name] = read
    return found


_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)


def _go_value(text: str) -> Any:
    """A value printed with Go's %#v: a float for every number, bool, text; anything else as it was printed."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _ESCAPE.sub(_unescape, text[1:-1])
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _unescape(match) -> str:
    code = match.group(1)
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    if len(code) == 3 and code.isdigit():
        return chr(int(code, 8))
    return _ESCAPES.get(code, code)


# --- comparing -----------------------------------------------------------------------------------------------------


def wanted(declared: Declaration, base_name: str, base: dict[str, Any], adapter_digest: str | None = None) -> dict[str, Any]:
    """What `observe` has to say of the model when it is as declared; `base` is what it says of the base."""
    licences = [text for text in (base["license"], *declared.license) if text]
    return {
        "parent": ollama_client.short_name(base_name),
        "weights": base["weights"],
        "adapters": sorted({*base["adapters"], *([adapter_digest] if adapter_digest else [])}),
        "template": declared.template or base["template"],
        "system": declared.system or base["system"],
        "renderer": declared.renderer or base["renderer"],
        "parser": declared.parser or base["parser"],
        "parameters": {**base["parameters"], **declared.parameters},
        "messages": list(declared.messages) or base["messages"],
        "license": "\n".join(licences),
        "requires": declared.requires or base["requires"],
    }


def difference(observed: dict[str, Any], wanted_: dict[str, Any]) -> list[str]:
    """The FIELDS in which a model is not as wanted; parameters by name (`parameters.num_ctx`)."""
    differs = []
    for field in FIELDS:
        if field == "parameters":
            have, want = _comparable(observed["parameters"]), _comparable(wanted_["parameters"])
            differs += [f"parameters.{name}" for name in sorted({*have, *want}) if have.get(name) != want.get(name)]
        elif field == "parent":
            if observed["parent"].lower() != wanted_["parent"].lower():
                differs.append(field)
        elif observed[field] != wanted_[field]:
            differs.append(field)
    return [field for field in differs if not _added_by_server(field, observed, wanted_)]


def _comparable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Numbers as floats (the server keeps no others); an empty list is the same as none: it prints as nothing."""
    plain: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            plain[name] = float(value)
        elif value not in ([], ()):
            plain[name] = list(value) if isinstance(value, tuple) else value
    return plain


def _added_by_server(field: str, observed: dict[str, Any], wanted_: dict[str, Any]) -> bool:
    """Whether the server sets `field` by itself for such a model (create.go: by architecture, where nothing is set)."""
    if field in ("renderer", "parser"):
        return not wanted_[field] and observed.get("family") in (
            "gemma4",
            "laguna",
            "nemotron_h",
            "nemotron_h_moe",
            "nemotron_h_omni",
        )
    if field == "parameters.stop":
        return not wanted_["parameters"].get("stop") and observed.get("family") == "gemma4" and observed["parameters"].get("stop") == ["<turn|>"]
    return False


def as_modelfile(state: dict[str, Any] | None) -> str:
    """A model (as `observe` or `wanted` tell it) in Modelfile form for people and diffs; "" for none."""
    if state is None:
        return ""
    shown = dict(state, **{"from": [state["parent"] or "(files)"], "adapter": [f"sha256:{digest}" for digest in state["adapters"]]})
    return modelfile.render(shown, tuple(f"weights sha256:{digest}" for digest in state["weights"]))


def declared_modelfile(declared: Declaration, comments: tuple[str, ...] = ()) -> str:
    """The Modelfile of a declaration: `ollama create` makes the same model of it."""
    fields = declared._asdict()
    fields["from"] = list(declared.files) or [declared.base or declared.name]
    return modelfile.render(fields, comments)


# --- acting --------------------------------------------------------------------------------------------------------


class Store:
    """What /api/tags says, asked once and again only after something was changed."""

    def __init__(self, client: ollama_client.Client):
        self._client, self._tags = client, None

    def changed(self) -> None:
        self._tags = None

    def all(self) -> list[dict[str, Any]]:
        if self._tags is None:
            self._tags = self._client.tags()
        return self._tags

    def find(self, name: str) -> dict[str, Any] | None:
        """The model of that name, whatever its case; None when there is none."""
        key = ollama_client.parse_name(name).key
        for one in self.all():
            if str(one.get("name", "")).lower() == key:
                return one
        return None

    def digest(self, name: str) -> str | None:
        found = self.find(name)
        return found["digest"] if found else None


def source_name(name: str, content: str, quantize: str | None) -> str:
    """The name under which the source of model `name` is kept: by content, so it is the same source if it has the same name."""
    parts = ollama_client.parse_name(name)
    tag = f".src-{content[:12]}" + (f"-{quantize}" if quantize else "")
    return parts._replace(tag=parts.tag[: 80 - len(tag)] + tag).short


_SOURCE = re.compile(r"\A(?P<tag>.*)\.src-[0-9a-f]{12}(-[a-z0-9_]+)?\Z")


def is_source(name: str) -> bool:
    """Whether a model is one that this module keeps as the source of another."""
    return bool(_SOURCE.match(name.rpartition(":")[2]))


def sources_of(name: str, tags: list[dict[str, Any]]) -> list[str]:
    """The sources that the store keeps for model `name`."""
    parts = ollama_client.parse_name(name)
    found = []
    for one in tags:
        head, _colon, tag = str(one.get("name", "")).rpartition(":")
        match = _SOURCE.match(tag)
        if match and f"{head}:{match.group('tag')}".lower() == parts.key:
            found.append(str(one["name"]))
    return sorted(found)


class Result:
    """What was found, what was done, what it would come to; `check` says whether only to predict."""

    def __init__(self, check: bool, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep):
        self.check, self.clock, self.sleep = check, clock, sleep
        self.changed = False
        self.actions: list[str] = []
        self.differs: list[str] = []
        self.warnings: list[str] = []
        self.bytes_pulled = 0
        self.bytes_uploaded = 0
        self.before: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        self.base_digest: str | None = None
        self.trained_context: int | None = None
        #: Whether this run put the model into memory, in epoch seconds: from then on the server's log is about it.
        self.loaded_at: float | None = None

    def act(self, what: str) -> bool:
        """Note an action; whether to really do it."""
        self.changed = True
        self.actions.append(what)
        return not self.check


def ensure_present(client: ollama_client.Client, store: Store, declared: Declaration, result: Result, unload_timeout: float = 60.0) -> None:
    """Have the model in the store as declared. Fills `result`; with result.check it only predicts."""
    if declared.requires:
        _check_requires(client, declared)
    if declared.only_pulled:
        had = store.find(declared.name)
        _ensure_pulled(client, store, declared.name, declared, result, unload_timeout)
        result.base_digest = store.digest(declared.name)
        if result.changed:
            result.differs = ["weights"] if had else ["model"]
        return
    found = store.find(declared.name)
    if found:
        result.before = observe(client.show(found["name"]))
    adapter = ollama_client.file_digest(_readable(declared.adapter))[7:] if declared.adapter else None
    base_name = _ensure_base(client, store, declared, result, unload_timeout)
    base_found = store.find(base_name)
    result.base_digest = base_found["digest"] if base_found else None
    if base_found and not (result.check and result.changed):
        base = observe(client.show(base_found["name"]))
        result.after = wanted(declared, base_found["name"], base, adapter)
        result.trained_context = base["trained_context"]
        _warn_of_context(declared, base, result)
        result.differs = difference(result.before, result.after) if result.before else ["model"]
    else:
        # Only in check mode: the base is not there yet, or will be another one.
        empty = {field: [] for field in ("weights", "adapters", "messages")}
        result.after = wanted(declared, base_name, {**dict.fromkeys(FIELDS, ""), **empty, "parameters": {}}, adapter)
        moved = result.before and result.before["parent"].lower() != result.after["parent"].lower()
        result.differs = [*(["parent"] if moved else []), "weights"] if result.before else ["model"]
    if result.differs:
        _make(client, store, declared, found, base_name, adapter, result, unload_timeout)
    for old in sources_of(found["name"] if found else declared.name, store.all()):
        if not ollama_client.same_name(old, base_name) and result.act(f"delete {old}"):
            unload(client, old, result, unload_timeout)
            client.delete(old)
            store.changed()


def _make(client, store, declared, found, base_name, adapter, result, unload_timeout) -> None:
    """Create the model, or replace the one that is there."""
    target = found["name"] if found else declared.name
    if not result.act(f"{'replace' if found else 'create'} {target}"):
        return
    if found:
        unload(client, target, result, unload_timeout)
    if adapter:
        result.bytes_uploaded += client.push_blob(declared.adapter, f"sha256:{adapter}")
    client.create(create_request(declared, target, store.find(base_name)["name"], adapter))
    store.changed()
    _check_outcome(client, target, result)


def create_request(declared: Declaration, name: str, base: str, adapter: str | None = None) -> dict[str, Any]:
    """The fields of /api/create that make `declared` from `base`; what is not declared is left out, so it is inherited."""
    request: dict[str, Any] = {
        "model": name,
        "from": base,
        "parameters": declared.parameters,
        "template": declared.template,
        "system": declared.system,
        "license": list(declared.license),
        "messages": list(declared.messages),
        "renderer": declared.renderer,
        "parser": declared.parser,
        "requires": declared.requires,
        "adapters": {"adapter.gguf": f"sha256:{adapter}"} if adapter else {},
    }
    return {key: value for key, value in request.items() if value}


def _check_outcome(client: ollama_client.Client, name: str, result: Result) -> None:
    """Fail if the server did not store what it was told: else the next run would change it again, and each after it."""
    left = difference(observe(client.show(name)), result.after)
    if left:
        raise ModelError(
            f"Model {name} was created, but the server holds something else in {', '.join(left)}. Either another writer "
            "changed it at the same time "
            "(run again), or this server's version sets it by itself (declare the value that `ollama show` gives)."
        )


def _check_requires(client: ollama_client.Client, declared: Declaration) -> None:
    version = client.version()
    if _numbers(version) < _numbers(declared.requires):
        raise ModelError(
            f"Model {declared.name} requires Ollama {declared.requires}; the server is {version}, and does not check that itself. Set ollama_version."
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version.partition("-")[0])[:3])


def _warn_of_context(declared: Declaration, base: dict[str, Any], result: Result) -> None:
    asked, trained = declared.parameters.get("num_ctx"), base.get("trained_context")
    if asked and isinstance(trained, (int, float)) and asked > trained > 0:
        result.warnings.append(
            f"Model {declared.name}: num_ctx={asked} exceeds the model's trained context of {int(trained):,}; Ollama "
            "caps it silently. "
            f"Set num_ctx to {int(trained)} or less, or use a GGUF with YaRN metadata."
        )


def _ensure_base(client: ollama_client.Client, store: Store, declared: Declaration, result: Result, unload_timeout: float) -> str:
    """Have what the model is made from in the store; its name."""
    if declared.base:
        _ensure_pulled(client, store, declared.base, declared, result, unload_timeout)
        if not declared.quantize:
            return declared.base
        digest = store.digest(declared.base)
        if digest is None or (result.check and result.changed):
            return source_name(declared.name, "0" * 12, declared.quantize)
        source = source_name(declared.name, digest, declared.quantize)
        if not store.find(source) and result.act(f"quantise {declared.base} to {declared.quantize} as {source}"):
            client.create({"model": source, "from": store.find(declared.base)["name"], "quantize": declared.quantize})
            store.changed()
        return source
    return _ensure_imported(client, store, declared, result)


def _ensure_imported(client: ollama_client.Client, store: Store, declared: Declaration, result: Result) -> str:
    """Have the GGUF files in the store under a name that says their content; that name."""
    if declared.file_digest:
        source = source_name(declared.name, declared.file_digest, declared.quantize)
        if store.find(source):
            # The pin says what the file is; it need not be read again, nor be there any more.
            return source
    digests = [ollama_client.file_digest(_readable(path)) for path in declared.files]
    if declared.file_digest and digests[0] != f"sha256:{declared.file_digest}":
        raise ModelError(
            f"Model {declared.name}: {declared.files[0]} has {digests[0]}; wanted sha256:{declared.file_digest}. "
            "The file is damaged or another one: fetch it again, or correct gguf_sha256."
        )
    content = digests[0][7:] if len(digests) == 1 else _join_digests(digests)
    source = source_name(declared.name, content, declared.quantize)
    if store.find(source):
        return source
    twin = next(
        (one["name"] for one in store.all() if is_source(one["name"]) and one["name"].endswith(source[source.rindex(".src-") :])),
        None,
    )
    if not result.act(f"import {', '.join(declared.files)} as {source}"):
        return source
    if twin:
        client.copy(twin, source)
    else:
        for path, digest in zip(declared.files, digests):
            result.bytes_uploaded += client.push_blob(path, digest)
        request = {
            "model": source,
            "files": {f"{number}-{_plain(path)}": digest for number, (path, digest) in enumerate(zip(declared.files, digests))},
        }
        client.create({**request, "quantize": declared.quantize} if declared.quantize else request)
    store.changed()
    return source


def _join_digests(digests: list[str]) -> str:
    """One digest for several files in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _plain(path: str) -> str:
    """A file's name as the server takes it: relative, without odd characters, ending in .gguf."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(path)).lstrip(".")
    return name if name.lower().endswith(".gguf") else f"{name}.gguf"


def _readable(path: str) -> str:
    """`path`, if it is a GGUF file that can be read."""
    try:
        with open(path, "rb") as source:
            magic = source.read(4)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. Wanted a GGUF file on the host; check the path.") from None
    if magic != b"GGUF":
        raise ModelError(f"{path} is no GGUF file (it starts with {magic!r}); convert it with llama.cpp's convert_hf_to_gguf.py.")
    return path


def _ensure_pulled(client: ollama_client.Client, store: Store, name: str, declared: Declaration, result: Result, unload_timeout: float) -> None:
    """Have `name` from its registry as `pull` and `base_digest` say."""
    found = store.find(name)
    have = found["digest"] if found else None
    pin = declared.base_digest
    fits = have is not None and (pin is None or have.startswith(pin))
    if declared.pull == "never":
        if not found:
            raise ModelError(
                f"Model {declared.name} is made from {name}, which the server does not have, and pull is never. Bring it there, or set pull: missing."
            )
        if not fits:
            raise ModelError(f"{name} has digest {have}; base_digest wants {pin}, and pull is never. Bring that version there, or change base_digest.")
        return
    if fits and (declared.pull == "missing" or pin is not None):
        # A pinned model that is there cannot become another one, whatever the registry has now.
        return
    offered = None
    if have is not None:
        try:
            offered = ollama_client.registry_digest(name, declared.insecure)
        except ollama_client.OllamaError as error:
            before = "" if result.check else " before it is tried"
            result.warnings.append(f"{error} Whether a pull of {name} would change it is not known{before}.")
    if offered is not None and pin is not None and not offered.startswith(pin):
        raise ModelError(
            f"The registry has {name} with digest {offered}; base_digest wants {pin}. The tag was moved: check the new version and change base_digest."
        )
    if offered is not None and offered == have:
        return
    if result.check:
        if offered is not None or have is None:
            result.act(f"pull {name}")
        return
    if have is not None:
        unload(client, found["name"], result, unload_timeout)
    pulled = client.pull(found["name"] if found else name, declared.insecure)
    store.changed()
    now = store.digest(name)
    result.bytes_pulled += pulled["bytes"]
    if now != have:
        result.act(f"pull {name}")
    if now is None:
        raise ModelError(f"The server said that it pulled {name}, but does not list it. See `journalctl -u ollama`.")
    if pin is not None and not now.startswith(pin):
        raise ModelError(f"{name} was pulled with digest {now}; base_digest wants {pin}. The tag was moved: check the new version and change base_digest.")


def ensure_absent(client: ollama_client.Client, store: Store, name: str, result: Result, unload_timeout: float = 60.0) -> None:
    """Have neither the model nor the sources kept for it; what is loaded of it is unloaded first."""
    found = store.find(name)
    doomed = ([found["name"]] if found else []) + sources_of(name, store.all())
    if found:
        result.before = observe(client.show(found["name"]))
        result.differs = ["model"]
    for one in doomed:
        if result.act(f"delete {one}"):
            unload(client, one, result, unload_timeout)
            try:
                client.delete(one)
            except ollama_client.OllamaError as error:
                if error.kind != "not_found":
                    raise
            store.changed()


def loaded_entry(client: ollama_client.Client, name: str, ps: list[dict[str, Any]] | None = None) -> dict[str, Any] | None:
    """The entry of /api/ps with that name, None when it is not loaded."""
    key = ollama_client.parse_name(name).key
    for one in client.ps() if ps is None else ps:
        if str(one.get("name", "")).lower() == key:
            return one
    return None


def unload(client: ollama_client.Client, name: str, result: Result, unload_timeout: float = 60.0) -> bool:
    """Unload `name` if it is loaded and wait until it is; whether it was. Never called in check mode."""
    if not loaded_entry(client, name):
        return False
    deadline = result.clock() + unload_timeout
    client.unload(name)
    while loaded_entry(client, name):
        if result.clock() >= deadline:
            raise ModelError(
                f"Model {name} is still loaded {unload_timeout:g} s after the server was told to unload it: it is "
                "answering a request, or its runner hangs. "
                "Nothing was changed. Run again when it is idle, raise unload_timeout, or restart the service."
            )
        result.sleep(0.1)
    result.actions.append(f"unload {name}")
    return True


def ensure_unloaded(client: ollama_client.Client, name: str, result: Result, unload_timeout: float = 60.0) -> None:
    """Have the model out of memory; it stays in the store."""
    if result.check:
        if loaded_entry(client, name):
            result.act(f"unload {name}")
    elif unload(client, name, result, unload_timeout):
        result.changed = True


def ensure_loaded(
    client: ollama_client.Client, store: Store, name: str, keep_alive: Any, result: Result, unload_timeout: float = 60.0
) -> dict[str, Any] | None:
    """Have the model in memory; its entry of /api/ps (None in check mode when it is not loaded yet).

    Loaded is: an entry of its name with the digest that the store has now. Tags on the same weights share one
    runner, which /api/ps lists under the name that came first: such an alias counts when its settings for the
    runner are the same. A keep-alive without end has to be without end; others are not compared, they run down.
    """
    found = store.find(name)
    if not found:
        if result.check:
            result.act(f"load {name}")
            return None
        raise ModelError(f"Model {name} is not on the server, so it cannot be loaded. Give `from`, `gguf` or a Modelfile, or create it first.")
    entry = running(client, found, client.ps())
    forever = is_forever(keep_alive)
    if entry and not (forever and not expires_never(entry)):
        return entry
    if not result.act(f"load {found['name']}"):
        return entry
    stale = loaded_entry(client, found["name"])
    if stale and stale.get("digest") != found["digest"]:
        unload(client, found["name"], result, unload_timeout)
    result.loaded_at = None if entry else time.time()
    client.generate_load(found["name"], keep_alive)
    entry = running(client, found, client.ps())
    if not entry:
        raise ModelError(f"The server said that it loaded {name}, but does not list it as loaded. See `journalctl -u ollama`; keep_alive may be 0.")
    return entry


def running(client: ollama_client.Client, found: dict[str, Any], ps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry of /api/ps whose runner serves the model `found` (an entry of /api/tags) as it is in the store now."""
    named = loaded_entry(client, found["name"], ps)
    if named:
        return named if named.get("digest") == found["digest"] else None
    same = [one for one in ps if one.get("digest") == found["digest"]]
    if same or not ps:
        return same[0] if same else None
    mine = observe(client.show(found["name"]))
    for one in ps:
        try:
            other = observe(client.show(str(one.get("name"))))
        except ollama_client.OllamaError as error:
            if error.kind != "not_found":
                raise
            continue
        if other["weights"] == mine["weights"] and other["adapters"] == mine["adapters"] and _runner(other) == _runner(mine):
            return one
    return None


def _runner(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _comparable(state["parameters"]).items() if name in runner_options.RUNNER}


def is_forever(keep_alive: Any) -> bool:
    return str(keep_alive).strip().startswith("-")


def expires_never(entry: dict[str, Any]) -> bool:
    """The server gives `forever` a date some centuries ahead."""
    year = str(entry.get("expires_at", ""))[:4]
    return year.isdigit() and int(year) >= 2200


def offload_problem(name: str, entry: dict[str, Any]) -> str | None:
    """Why a model in /api/ps does not run wholly on the GPU, with the numbers; None when it does.

    On a host without GPU the server logs its layers as offloaded all the same, and /api/ps then says 0 of 0 bytes
    (tried on 0.32.15): nothing on the GPU is never all of it.
    """
    size, vram = int(entry.get("size") or 0), int(entry.get("size_vram") or 0)
    if on_gpu(size, vram):
        return None
    mib = 1024 * 1024
    return offload_text(name, -(-size // mib), vram // mib)


def take_back(client: ollama_client.Client, name: str, result: Result, layout: dict[str, Any] | None, unload_timeout: float = 60.0) -> str:
    """Undo the load of a model that is refused; the sentences to add to offload_problem().

    What was in memory before this run stays there: somebody else put it there. layout: what _ollama_service.layout() read, or None.
    """
    said = layout_text(layout) if layout else ""
    if result.loaded_at is None:
        return said
    try:
        unload(client, name, result, unload_timeout)
    except (ModelError, ollama_client.OllamaError) as error:
        return f"{said} It could not be taken out of memory again: {error}"
    return f"{said} It was taken out of memory again and is still in the store."


def layout_text(layout: dict[str, Any]) -> str:
    """What the engine said while it laid the model out, as a sentence; empty for what it did not say."""
    parts = []
    if layout["wanted_mib"] is not None:
        parts.append(f"wanted {layout['wanted_mib']:,} MiB of the GPU, found {layout['free_mib']:,} MiB free")
    # Without a GPU it says that it put all of them on one.
    if layout["layers"] is not None and layout["layers"] != layout["all_layers"]:
        parts.append(f"put {layout['layers']} of {layout['all_layers']} layers on it")
    return f" The engine {', and '.join(parts)}." if parts else ""


def on_gpu(size: int, vram: int) -> bool:
    """Whether all of `size` is on the GPU."""
    return vram >= size and vram > 0


def offload_text(name: str, size: int, vram: int) -> str:
    if vram == 0:
        parts = f"none of its {size:,} MiB are on a GPU" if size else "nothing of it is on a GPU"
        return (
            f"Model {name} runs on the CPU: {parts}, and all of it was wanted there. "
            "The server found no GPU that it can use, or no room on it: see `journalctl -u ollama` for 'inference compute' "
            "(it takes driver 550 or later, and /dev/nvidia* open to the service). "
            "For a host without GPU set allow_offload: true."
        )
    return (
        f"Model {name} has {vram:,} of its {size:,} MiB on the GPU, and all of them were wanted there: "
        f"the other {size - vram:,} MiB are computed by the CPU, many times slower. "
        "Set ollama_kv_cache_type=q8_0, lower num_ctx or ollama_num_parallel, unload other models, or take a smaller "
        "quantisation; allow_offload: true accepts it."
    )
