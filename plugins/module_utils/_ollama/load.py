# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having a model in memory or out of it, and whether it is wholly on the GPU.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import time
from typing import Any

from . import client as ollama_client
from . import names, runner_options
from .declaration import ModelError
from .difference import comparable
from .observed import observe
from .store import Result, Store


def loaded_entry(
    client: ollama_client.Client, name: str, ps: list[dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """The entry of /api/ps with that name, None when it is not loaded."""
    key = names.parse_name(name).key
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
        raise ModelError(
            f"Model {name} is not on the server, so it cannot be loaded. Give `from`, `gguf` or a Modelfile, or "
            "create it first."
        )
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
        raise ModelError(
            f"The server said that it loaded {name}, but does not list it as loaded. See `journalctl -u ollama`; "
            "keep_alive may be 0."
        )
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
        if (
            other["weights"] == mine["weights"]
            and other["adapters"] == mine["adapters"]
            and _runner(other) == _runner(mine)
        ):
            return one
    return None


def _runner(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in comparable(state["parameters"]).items() if name in runner_options.RUNNER}


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


def undo_load(
    client: ollama_client.Client, name: str, result: Result, layout: dict[str, Any] | None, unload_timeout: float = 60.0
) -> str:
    """Undo the load of a model that is refused; the sentences to add to offload_problem().

    What was in memory before this run stays there: somebody else put it there.
    layout: what _ollama.service.layout() read, or None.
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
            "The server found no GPU that it can use, or no room on it: see `journalctl -u ollama` for 'inference "
            "compute' "
            "(it takes driver 550 or later, and /dev/nvidia* open to the service). "
            "For a host without GPU set allow_offload: true."
        )
    return (
        f"Model {name} has {vram:,} of its {size:,} MiB on the GPU, and all of them were wanted there: "
        f"the other {size - vram:,} MiB are computed by the CPU, many times slower. "
        "Set ollama_kv_cache_type=q8_0, lower num_ctx or ollama_num_parallel, unload other models, or take a smaller "
        "quantization; allow_offload: true accepts it."
    )
