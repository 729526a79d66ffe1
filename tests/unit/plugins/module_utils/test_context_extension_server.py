# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A longer context on a server: the lab's stand-in, or the one that GPUFLEET_TEST_OLLAMA names."""

from __future__ import annotations

import functools
import os

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import apply as ollama_apply
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration, load
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import store as ollama_store
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import context_extension
from ansible_collections.gpufleet.llm.tests.unit.plugins.ollama_server import ollama, tiny_gguf


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("ollama")


@pytest.fixture(scope="module")
def server(home):
    with ollama(home) as url:
        run(url, home, {"name": "plain", "gguf": tiny_gguf(home / "tiny.gguf")})
        yield url


def run(url, home, entry, check=False, absent=False, known=True):
    """The Result of one declaration, with the client that it used."""
    client = ollama_client.Client(url, timeout=60)
    extend = functools.partial(context_extension.place, str(home / ".ollama/models")) if known else None
    store, result = ollama_store.Store(client, extend), ollama_store.Result(check)
    if absent:
        ollama_apply.ensure_absent(client, store, entry["name"], result)
    else:
        ollama_apply.ensure_present(client, store, declaration.declare(entry), result)
    result.names = sorted(one["name"] for one in client.tags())
    result.client = client
    return result


def long(factor, name="long"):
    return {
        "name": name,
        "from": "plain",
        "context_extension": {"method": "yarn", "factor": factor},
        "parameters": {"num_ctx": int(32768 * factor)},
    }


def test_it_is_made_once_runs_with_the_longer_context_and_goes_with_its_source(server, home):
    there = run(server, home, {"name": "none"}, absent=True).names
    predicted = run(server, home, long(2), check=True)
    assert predicted.changed and predicted.names == there
    made = run(server, home, long(2))
    source = next(name for name in made.names if name.startswith("long:latest.src-"))
    assert made.actions == [f"extend the context of plain:latest as {source}", "create long:latest"]
    assert source.endswith("-yarn2") and made.bytes_written > 100_000
    assert made.trained_context == 65536 and not made.warnings
    again = run(server, home, long(2))
    assert not again.changed and not again.bytes_written
    assert len(again.client.server.requests) - 1 == 3 and again.client.server.writes == 0

    client = ollama_client.Client(server, timeout=60)
    result = ollama_store.Result(False)
    entry = load.ensure_loaded(client, ollama_store.Store(client), "long:latest", None, result)
    assert entry["context_length"] == 65536
    load.unload(client, "long:latest", result)

    grown = run(server, home, long(2.5))
    assert grown.actions[0].endswith("-yarn2_5") and f"delete {source}" in grown.actions
    assert [name for name in grown.names if ".src-" in name and name.startswith("long")] == [source.replace("yarn2", "yarn2_5")]
    assert run(server, home, long(2.5), absent=True).names == there


def test_without_the_folder_of_the_models_it_is_told_before_anything_is_made(server, home):
    there = run(server, home, {"name": "none"}, absent=True).names
    with pytest.raises(declaration.ModelError, match="name that folder with models_dir"):
        run(server, home, long(2, "other"), known=False)
    assert run(server, home, {"name": "none"}, absent=True).names == there


def test_a_folder_of_another_server_is_refused(server, home, tmp_path):
    (tmp_path / "blobs").mkdir()
    client = ollama_client.Client(server, timeout=60)
    store = ollama_store.Store(client, functools.partial(context_extension.place, str(tmp_path)))
    with pytest.raises(context_extension.ExtensionError, match="no manifest of plain"):
        ollama_apply.ensure_present(client, store, declaration.declare(long(2, "other")), ollama_store.Result(False))
    assert os.listdir(tmp_path) == ["blobs"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"from": None, "gguf": "/m.gguf"}, "needs a model of the server or a registry"),
        ({"quantize": "q8_0"}, "context_extension and quantize are both given"),
        ({"context_extension": {"method": "yarn", "factor": 9}}, "Model long:latest: context_extension.factor is 9"),
    ],
)
def test_declarations_that_cannot_be(more, told):
    with pytest.raises(declaration.ModelError, match=told):
        declaration.declare({**long(2), **more})
