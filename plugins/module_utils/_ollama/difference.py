# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model of the server is as declared: decided by comparison, never by creating it again.

Private to this collection: it may change or go without notice.

How the server merges a declaration with its base was read in server/create.go and tried on 0.32.15: parameters per
key (the declaration wins, a list replaces a list), system, template, messages, renderer, parser and requires only
where the declaration sets them, licenses added to those of the base, adapters added, weights by digest. A model is
always built from its base, never from itself, so what is taken out of a declaration goes from the model.
"""

from __future__ import annotations

from typing import Any

from . import modelfile, names
from .declaration import Declaration

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


def wanted(
    declared: Declaration, base_name: str, base: dict[str, Any], adapter_digest: str | None = None
) -> dict[str, Any]:
    """What `observe` has to say of the model when it is as declared; `base` is what it says of the base."""
    licenses = [text for text in (base["license"], *declared.license) if text]
    return {
        "parent": names.short_name(base_name),
        "weights": base["weights"],
        "adapters": sorted({*base["adapters"], *([adapter_digest] if adapter_digest else [])}),
        "template": declared.template or base["template"],
        "system": declared.system or base["system"],
        "renderer": declared.renderer or base["renderer"],
        "parser": declared.parser or base["parser"],
        "parameters": {**base["parameters"], **declared.parameters},
        "messages": list(declared.messages) or base["messages"],
        "license": "\n".join(licenses),
        "requires": declared.requires or base["requires"],
    }


def difference(observed: dict[str, Any], wanted_: dict[str, Any]) -> list[str]:
    """The FIELDS in which a model is not as wanted; parameters by name (`parameters.num_ctx`)."""
    differs = []
    for field in FIELDS:
        if field == "parameters":
            have, want = comparable(observed["parameters"]), comparable(wanted_["parameters"])
            differs += [f"parameters.{name}" for name in sorted({*have, *want}) if have.get(name) != want.get(name)]
        elif field == "parent":
            if observed["parent"].lower() != wanted_["parent"].lower():
                differs.append(field)
        elif observed[field] != wanted_[field]:
            differs.append(field)
    return [field for field in differs if not _added_by_server(field, observed, wanted_)]


def comparable(parameters: dict[str, Any]) -> dict[str, Any]:
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
        return (
            not wanted_["parameters"].get("stop")
            and observed.get("family") == "gemma4"
            and observed["parameters"].get("stop") == ["<turn|>"]
        )
    return False


def as_modelfile(state: dict[str, Any] | None) -> str:
    """A model (as `observe` or `wanted` tell it) in Modelfile form for people and diffs; "" for none."""
    if state is None:
        return ""
    shown = dict(
        state,
        **{"from": [state["parent"] or "(files)"], "adapter": [f"sha256:{digest}" for digest in state["adapters"]]},
    )
    return modelfile.render(shown, tuple(f"weights sha256:{digest}" for digest in state["weights"]))
