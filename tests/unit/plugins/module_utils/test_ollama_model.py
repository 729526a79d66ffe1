# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Against a server: the lab's stand-in, or the one that GPUFLEET_TEST_OLLAMA names.

GPUFLEET_EXAMPLES sets how many random declarations are made present twice (15 unless told).
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import apply as ollama_apply
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration as ollama_declaration
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import difference as ollama_difference
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import load as ollama_load
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import modelfile as ollama_modelfile
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import names as ollama_names
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import observed as ollama_observed
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import parameters as ollama_parameters
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import registry as ollama_registry
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import sources as ollama_sources
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import store as ollama_store
from ansible_collections.gpufleet.llm.tests.unit.plugins.ollama_server import Registry, ollama, scripted, tiny_gguf


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ollama")
    with ollama(folder) as url:
        yield url


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def base(server, gguf):
    """A model with settings of its own to inherit."""
    run(server, {"name": "plain", "gguf": gguf})
    entry = {
        "name": "base",
        "from": "plain",
        "parameters": {"temperature": 0.5, "stop": ["<base>"], "num_ctx": 256},
        "system": "Base.",
        "license": ["Base licence"],
    }
    run(server, entry)
    return "base"


@pytest.fixture
def registry():
    registry = Registry()
    yield registry
    registry.close()


def run(url, entry, check=False, state="present", **options):
    """What became of one declaration: the Result, with the client that it used."""
    client = ollama_client.Client(url, timeout=60)
    store, result = ollama_store.Store(client), ollama_store.Result(check)
    if state == "present":
        ollama_apply.ensure_present(client, store, ollama_declaration.declare(entry), result, **options)
    else:
        ollama_apply.ensure_absent(client, store, entry["name"], result, **options)
    client.close()
    result.client = client
    return result


def predicted_then_done(url, entry, **options):
    """The outcome; check mode said the same before, and the second run changes nothing and only reads thrice."""
    said = run(url, entry, check=True, **options)
    assert said.client.server.writes == 0
    done = run(url, entry, **options)
    assert said.changed == done.changed
    assert said.differs == done.differs
    assert [one for one in done.actions if not one.startswith("unload")] == said.actions
    again = run(url, entry, **options)
    assert (again.changed, again.differs, again.actions) == (False, [], [])
    assert again.client.server.writes == 0
    assert len(again.client.server.requests) <= 3
    return done


def digest(url, name):
    client = ollama_client.Client(url)
    with contextlib.closing(client):
        return ollama_store.Store(client).digest(name)


# --- against a server ----------------------------------------------------------------------------------------------


def test_one_model_through_its_life(server, base):
    entry = {"name": "life", "from": base, "parameters": {"num_ctx": 512, "top_k": 20, "stop": ["a", 'b"\n\\']}}
    assert predicted_then_done(server, entry).differs == ["model"]
    first = digest(server, "life")

    entry["parameters"]["num_ctx"] = 1048576
    assert predicted_then_done(server, entry).differs == ["parameters.num_ctx"]
    assert digest(server, "life") != first

    del entry["parameters"]["top_k"]
    entry["parameters"]["num_ctx"] = 512
    assert predicted_then_done(server, entry).differs == ["parameters.num_ctx", "parameters.top_k"]

    entry["parameters"]["temperature"] = 0
    assert predicted_then_done(server, entry).differs == ["parameters.temperature"]
    del entry["parameters"]["temperature"]
    assert predicted_then_done(server, entry).differs == ["parameters.temperature"]

    del entry["parameters"]["stop"]
    done = predicted_then_done(server, entry)
    assert done.differs == ["parameters.stop"]
    assert done.after["parameters"]["stop"] == ["<base>"]
    entry["parameters"]["stop"] = []
    assert predicted_then_done(server, entry).differs == ["parameters.stop"]

    entry["system"] = 'Two\n"""lines"""\n'
    assert predicted_then_done(server, entry).differs == ["system"]
    entry["template"] = '{{ .System }}\nSYSTEM "x"\n{{ .Prompt }}"""'
    assert predicted_then_done(server, entry).differs == ["template"]
    entry["license"] = ["Mine\n", "Yours"]
    done = predicted_then_done(server, entry)
    assert done.differs == ["license"]
    assert done.after["license"] == "Base licence\nMine\n\nYours"
    entry["messages"] = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "MESSAGE c"}]
    assert predicted_then_done(server, entry).differs == ["messages"]
    entry["renderer"], entry["parser"] = "qwen3-coder", "qwen3"
    assert predicted_then_done(server, entry).differs == ["renderer", "parser"]

    for key in ("template", "system", "license", "messages", "renderer", "parser"):
        del entry[key]
    entry["parameters"] = {"num_ctx": 512, "top_k": 20, "stop": ["a", 'b"\n\\']}
    predicted_then_done(server, entry)
    assert digest(server, "life") == first

    entry["from"] = "plain"
    assert "parent" in predicted_then_done(server, entry).differs

    predicted_then_done(server, entry, state="absent")
    assert digest(server, "life") is None


def test_another_file_is_noticed_and_the_old_source_goes(server, tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf(path)
    entry = {"name": "filed:v1", "gguf": str(path), "system": "x"}
    done = predicted_then_done(server, entry)
    assert done.bytes_uploaded in (0, path.stat().st_size)
    tiny_gguf(path, salt="another")
    done = predicted_then_done(server, entry)
    assert done.differs
    client = ollama_client.Client(server)
    names = [one["name"] for one in client.tags()]
    client.close()
    assert len([name for name in names if name.startswith("filed:v1.src-")]) == 1
    predicted_then_done(server, entry, state="absent")
    assert digest(server, done.actions[0].split(" as ")[-1]) is None


def test_a_file_that_another_model_has_is_not_sent_again(server, gguf):
    run(server, {"name": "twin-a", "gguf": gguf})
    done = run(server, {"name": "twin-b", "gguf": gguf})
    assert done.bytes_uploaded == 0
    for name in ("twin-a", "twin-b"):
        run(server, {"name": name}, state="absent")


def test_a_pinned_file_need_not_be_there_any_more(server, tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf(path, salt="pinned")
    pin = ollama_sources.file_digest(str(path))
    with pytest.raises(ollama_declaration.ModelError, match=r"damaged or another one"):
        run(server, {"name": "pinned", "gguf": str(path), "gguf_sha256": "0" * 64})
    entry = {"name": "pinned", "gguf": str(path), "gguf_sha256": pin}
    assert run(server, entry).changed
    path.unlink()
    assert not run(server, entry).changed
    run(server, entry, state="absent")


def test_what_is_no_gguf_file_is_not_sent(server, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ollama_declaration.ModelError, match="no GGUF file"):
        run(server, {"name": "odd", "gguf": str(path)})
    with pytest.raises(ollama_declaration.ModelError, match="cannot be read"):
        run(server, {"name": "odd", "gguf": str(tmp_path / "none.gguf")})


def test_a_tag_that_moves_in_the_registry(server, registry, gguf):
    with open(gguf, "rb") as source:
        weights = source.read()
    name = f"{registry.host}/ns/moving:t"
    old = registry.publish("ns/moving:t", weights, {"top_k": 5})
    entry = {"name": "mover", "from": name, "insecure": True, "parameters": {"num_ctx": 512}}
    done = run(server, entry)
    assert f"pull {name}" in done.actions
    assert done.base_digest == old
    assert done.after["parameters"] == {"top_k": 5.0, "num_ctx": 512}
    assert not run(server, entry).changed

    new = registry.publish("ns/moving:t", weights, {"top_k": 7})
    assert not run(server, entry).changed
    always = {**entry, "pull": "always"}
    said = run(server, always, check=True)
    assert said.changed
    done = run(server, always)
    assert done.base_digest == new
    assert done.differs == ["parameters.top_k"]
    asked = len(registry.asked)
    assert not run(server, always).changed
    assert registry.asked[asked:] == [("GET", "/v2/ns/moving/manifests/t")]

    pinned = {**entry, "base_digest": f"sha256:{new}"}
    assert not run(server, pinned).changed
    for check in (True, False):
        with pytest.raises(ollama_declaration.ModelError, match="base_digest wants"):
            run(server, {**entry, "base_digest": old}, check=check)
        with pytest.raises(ollama_declaration.ModelError, match="pull is never"):
            run(server, {**entry, "base_digest": old, "pull": "never"}, check=check)
        with pytest.raises(ollama_declaration.ModelError, match="does not have, and pull is never"):
            run(server, {"name": "x", "from": f"{registry.host}/ns/none:t", "pull": "never"}, check=check)

    run(server, {"name": name}, state="absent")
    assert run(server, entry, check=True).changed
    assert run(server, entry).base_digest == new
    for one in ("mover", name):
        run(server, {"name": one}, state="absent")


def test_a_model_as_it_is(server, registry, gguf):
    with open(gguf, "rb") as source:
        weights = source.read()
    name = f"{registry.host}/ns/asis:t"
    entry = {"name": name, "insecure": True, "base_digest": registry.publish("ns/asis:t", weights)[:12]}
    done = predicted_then_done(server, entry)
    assert done.differs == ["model"]
    assert done.base_digest.startswith(entry["base_digest"])
    run(server, entry, state="absent")


def test_what_the_registry_does_not_have(server, registry):
    with pytest.raises(ollama_client.OllamaError) as caught:
        run(server, {"name": "x", "from": f"{registry.host}/ns/none:t", "insecure": True})
    assert caught.value.kind == "not_found"


def test_loaded_unloaded_and_replaced_while_loaded(server, base):
    entry = {"name": "busy", "from": base, "parameters": {"num_ctx": 300}}
    run(server, entry)
    client = ollama_client.Client(server, timeout=60)

    def load(keep_alive=None, check=False):
        result = ollama_store.Result(check)
        found = ollama_load.ensure_loaded(client, ollama_store.Store(client), "busy", keep_alive, result)
        return result, found

    assert load(check=True)[0].changed
    assert ollama_load.loaded_entry(client, "busy") is None
    result, found = load()
    assert result.changed
    assert found["context_length"] == 300
    assert not load()[0].changed
    assert load(-1)[0].changed
    assert not load(-1)[0].changed

    entry["parameters"]["num_ctx"] = 310
    done = run(server, entry)
    assert "unload busy:latest" in done.actions
    assert ollama_load.loaded_entry(client, "busy") is None
    assert load()[1]["context_length"] == 310

    result = ollama_store.Result(False)
    ollama_load.ensure_unloaded(client, "busy", result)
    assert result.changed
    result = ollama_store.Result(False)
    ollama_load.ensure_unloaded(client, "busy", result)
    assert not result.changed
    load()
    run(server, entry, state="absent")
    assert ollama_load.loaded_entry(client, "busy") is None
    with pytest.raises(ollama_declaration.ModelError, match="not on the server"):
        load()
    client.close()


def test_an_alias_on_the_same_runner_counts_as_loaded(server, base):
    for name in ("one", "two", "other"):
        run(server, {"name": name, "from": base, "parameters": {"num_ctx": 320 if name != "other" else 330, "top_k": len(name)}})
    client = ollama_client.Client(server, timeout=60)
    client.generate_load("one:latest")
    store, ps = ollama_store.Store(client), client.ps()
    assert ollama_load.running(client, store.find("two"), ps)["name"] == "one:latest"
    assert ollama_load.running(client, store.find("other"), ps) is None
    client.close()
    for name in ("one", "two", "other"):
        run(server, {"name": name}, state="absent")


def test_a_writer_beside_us_is_told(server, base, monkeypatch):
    create = ollama_client.Client.create

    def disturbed(self, request):
        create(self, {**request, "parameters": {**request["parameters"], "top_k": 99}})

    monkeypatch.setattr(ollama_client.Client, "create", disturbed)
    with pytest.raises(ollama_declaration.ModelError, match=r"something else in parameters\.top_k"):
        run(server, {"name": "disturbed", "from": base, "parameters": {"top_k": 1}})
    monkeypatch.undo()
    assert run(server, {"name": "disturbed", "from": base, "parameters": {"top_k": 1}}).differs == ["parameters.top_k"]
    run(server, {"name": "disturbed"}, state="absent")


def test_a_model_that_does_not_leave_memory_is_not_replaced(server, base, monkeypatch):
    entry = {"name": "stuck", "from": base, "parameters": {"num_ctx": 300}}
    run(server, entry)
    client = ollama_client.Client(server, timeout=60)
    client.generate_load("stuck")
    before = digest(server, "stuck")
    monkeypatch.setattr(ollama_client.Client, "unload", lambda self, model: None)
    with pytest.raises(ollama_declaration.ModelError, match=r"still loaded 0\.2 s after"):
        run(server, {**entry, "system": "x"}, unload_timeout=0.2)
    monkeypatch.undo()
    assert digest(server, "stuck") == before
    assert run(server, {**entry, "system": "x"}).changed
    run(server, entry, state="absent")
    client.close()


def test_a_version_that_is_required(server, base):
    with pytest.raises(ollama_declaration.ModelError, match=r"requires Ollama 99\.0\.0"):
        run(server, {"name": "new", "modelfile": f"FROM {base}\nREQUIRES 99.0.0"})


def test_a_context_above_the_trained_one_is_told(server, base):
    result = run(server, {"name": "wide", "from": base, "parameters": {"num_ctx": 10_000_000}}, check=True)
    assert "exceeds the model's trained context of" in result.warnings[0]


TEXT = st.text(
    alphabet=st.one_of(st.sampled_from('" \n\t#a{}:\\'), st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z"))),
    max_size=30,
)
NUMBERS = {
    ollama_parameters.INT: st.integers(4, 2**40),
    ollama_parameters.FLOAT: st.floats(0, 1, allow_nan=False).map(lambda number: float(f"{number:.12g}")),
    ollama_parameters.BOOL: st.booleans(),
    ollama_parameters.TEXTS: st.lists(TEXT.filter(bool), max_size=3),
}
ENTRIES = st.fixed_dictionaries(
    {"parameters": st.fixed_dictionaries({}, optional={name: NUMBERS[kind[0]] for name, kind in ollama_parameters.PARAMETERS.items()})},
    optional={
        # Balanced or none: the server refuses templates that do not parse.
        "template": TEXT.map(lambda text: text.replace("{", "").replace("}", "") + "{{ .Prompt }}"),
        "system": TEXT,
        "license": st.lists(TEXT.filter(bool), max_size=2),
        "messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(ollama_modelfile.ROLES), "content": TEXT}), max_size=2),
        "renderer": st.sampled_from(["qwen3-coder", "harmony"]),
        "parser": st.sampled_from(["qwen3", "harmony"]),
    },
)


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("GPUFLEET_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ENTRIES, st.sampled_from(["base", "plain"]))
def test_any_declaration_changes_once(server, base, entry, source):
    # Each example meets what the one before it left, so this goes through random transitions, too.
    predicted_then_done(server, {**entry, "name": "any", "from": source})


# --- without a server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "a b"}, "no model name"),
        ({}, "no model name"),
        ({"name": "a", "from": "A:latest"}, "made from itself"),
        ({"name": "a", "from": "b", "gguf": "/x"}, "both given"),
        ({"name": "a", "parameters": {"top_k": 1}}, "nothing to be made from"),
        ({"name": "a", "from": "b", "base_digest": "xyz"}, "hex digits"),
        ({"name": "a", "gguf": "/x", "base_digest": "0" * 12}, "pinned by gguf_sha256"),
        ({"name": "a", "from": "b", "gguf_sha256": "0" * 64}, "exactly one GGUF file"),
        ({"name": "a", "from": "b", "pull": "often"}, "one of missing, always, never"),
        ({"name": "a", "pull": "never"}, "nothing to do"),
        ({"name": "a", "from": "b", "quantize": "q3"}, "the server makes"),
        ({"name": "a", "from": "b", "adapter": "lora"}, "absolute path"),
        ({"name": "a", "from": "b", "system": 5}, "takes a text"),
        ({"name": "a", "from": "b", "messages": [{"role": "x", "content": "y"}]}, "each message has a role"),
        ({"name": "a", "from": "b", "modelfile": "FROM c"}, "say each thing in one place"),
        ({"name": "a", "modelfile": "FROM b\nDRAFT c"}, "DRAFT"),
        ({"name": "a", "modelfile": "FROM ./b.gguf"}, "relative path"),
        ({"name": "a", "modelfile": "FROM /b.gguf\nFROM c"}, "several FROM lines"),
    ],
)
def test_declarations_that_cannot_be(entry, words):
    with pytest.raises(ollama_declaration.ModelError) as caught:
        ollama_declaration.declare(entry)
    assert words in str(caught.value)


def test_a_modelfile_is_taken_apart():
    declared = ollama_declaration.declare(
        {
            "name": "a",
            "modelfile": "FROM x.gguf\nADAPTER l.gguf\nPARAMETER top_k 1\nSYSTEM s",
            "parameters": {"top_k": "2", "num_ctx": 8},
        },
        folder="/srv",
    )
    assert declared.files == ("/srv/x.gguf",)
    assert declared.adapter == "/srv/l.gguf"
    assert declared.parameters == {"num_ctx": 8, "top_k": 2}
    assert declared.system == "s"
    printed = ollama_declaration.declared_modelfile(declared)
    again = ollama_declaration.declare({"name": "a", "modelfile": printed})
    assert again == declared


@pytest.mark.parametrize(
    ("source", "base", "files"),
    [
        ("hf.co/u/r:file.gguf", "hf.co/u/r:file.gguf", ()),
        ("lan.example:5000/u/r:Q4_K_M.gguf", "lan.example:5000/u/r:Q4_K_M.gguf", ()),
        ("u/file.gguf", None, ("/srv/u/file.gguf",)),
        ("file.gguf", None, ("/srv/file.gguf",)),
        ("./u/r:file.gguf", None, ("/srv/u/r:file.gguf",)),
        ("/u/r:file.gguf", None, ("/u/r:file.gguf",)),
        ("qwen3:14b", "qwen3:14b", ()),
    ],
)
def test_a_from_line_is_a_path_or_a_name(source, base, files):
    declared = ollama_declaration.declare({"name": "a", "modelfile": f"FROM {source}"}, folder="/srv")
    assert (declared.base, declared.files) == (base, files)


@pytest.mark.parametrize(
    ("given_value", "value"),
    [(None, None), ("", None), ("-1", -1), (300, 300), ("30m", "30m"), ("1h30m", "1h30m"), ("-5m", "-5m")],
)
def test_keep_alive(given_value, value):
    assert ollama_declaration.check_keep_alive(given_value) == value


@pytest.mark.parametrize("value", ["soon", "5 m", "1d", "m", "--1"])
def test_keep_alive_that_is_none(value):
    with pytest.raises(ollama_declaration.ModelError, match="keep_alive is"):
        ollama_declaration.check_keep_alive(value)


def show(**changes):
    blob = "/var/lib/ollama/models/blobs/sha256-" + "a" * 64
    answer = {
        "modelfile": f'# Modelfile generated by "ollama show"\n# FROM x:latest\n\nFROM {blob}\nTEMPLATE {{{{ .Prompt }}}}\n',
        "template": "{{ .Prompt }}",
        "details": {"parent_model": "x:latest", "family": "qwen3"},
        "parameters": "",
    }
    return {**answer, **changes}


def test_parameters_as_go_prints_them():
    text = (
        "temperature                    0.6\n"
        "num_ctx                        1.048576e+06\n"
        'stop                           "a\\"b\\n\\a\\x7f\\u2028\\U0001f600"\n'
        'stop                           " b "\n'
        "use_mmap                       false\n"
        "cache_type                     <nil>\n"
    )
    assert ollama_observed.observe(show(parameters=text))["parameters"] == {
        "temperature": 0.6,
        "num_ctx": 1048576.0,
        "stop": ['a"b\n\a\x7f\u2028\U0001f600', " b "],
        "use_mmap": False,
        "cache_type": "<nil>",
    }


def test_the_stored_template_is_read_where_another_is_shown():
    blob = "FROM /x/blobs/sha256-" + "b" * 64
    for printed, template in (
        ("TEMPLATE {{ .Prompt }}", "{{ .Prompt }}"),
        ('TEMPLATE "a\nSYSTEM b"', "a\nSYSTEM b"),
        ('TEMPLATE """a"\n"""\nb"""', 'a"\n"""\nb'),
    ):
        text = f'{blob}\n{printed}\nSYSTEM s\nRENDERER r\nPARSER p\nPARAMETER x 1\nLICENSE "\nRENDERER no"\n'
        observed = ollama_observed.observe(show(modelfile=text, template="of the GGUF file", system="s"))
        assert observed["template"] == template
        assert (observed["renderer"], observed["parser"]) == ("r", "p")
        assert observed["weights"] == ["b" * 64]


def test_numbers_compare_as_numbers_and_nothing_else_does():
    have = ollama_observed.observe(show(parameters="num_ctx 4096\nuse_mmap true"))
    want = copy.deepcopy(have)
    want["parameters"] = {"num_ctx": 4096, "use_mmap": True, "stop": []}
    assert ollama_difference.difference(have, want) == []
    want["parameters"] = {"num_ctx": 4096, "use_mmap": 1}
    assert ollama_difference.difference(have, want) == []
    want["parameters"] = {"num_ctx": "4096", "use_mmap": False}
    assert ollama_difference.difference(have, want) == ["parameters.num_ctx", "parameters.use_mmap"]


CHANGES = {
    "parent": {"from": "other"},
    "adapters": {"adapter": "/lora.gguf"},
    "template": {"template": "{{ .Prompt }}!"},
    "system": {"system": "s"},
    "renderer": {"renderer": "harmony"},
    "parser": {"parser": "harmony"},
    "parameters.top_k": {"parameters": {"top_k": 3}},
    "messages": {"messages": [{"role": "user", "content": "a"}]},
    "license": {"license": ["mine"]},
    "requires": {"modelfile": "FROM x\nREQUIRES 0.14.0"},
}


@pytest.mark.parametrize(("field", "change"), CHANGES.items())
def test_each_field_of_a_declaration_is_compared_and_sent(field, change):
    entry = {"name": "a", **change} if "modelfile" in change else {"name": "a", "from": "x", **change}
    declared, base = ollama_declaration.declare(entry), ollama_observed.observe(show())
    adapter = "b" * 64 if declared.adapter else None
    wanted = ollama_difference.wanted(declared, declared.base, base, adapter)
    as_base = {**base, "parent": "x:latest"}
    assert ollama_difference.difference(as_base, wanted) == [field]
    assert ollama_difference.difference({**as_base, **wanted}, wanted) == []
    sent = ollama_apply.create_request(declared, "a", declared.base, adapter)
    assert set(sent) == {"model", "from", *({"adapters"} if adapter else set()), *(set(change) - {"from", "adapter", "modelfile"})} | (
        {"requires"} if field == "requires" else set()
    )


def test_the_table_above_has_every_field_but_the_weights():
    assert {name.partition(".")[0] for name in CHANGES} == set(ollama_difference.FIELDS) - {"weights"}


@pytest.mark.parametrize(("server", "refused"), [("0.13.9", True), ("0.14.0", False), ("0.14.0-rc1", False), ("0.9.22", True), ("1.0.0", False)])
def test_the_required_version_is_compared_by_its_numbers(server, refused):
    class Fake:
        def version(self):
            return server

        def tags(self):
            return []

    declared = ollama_declaration.declare({"name": "a", "modelfile": "FROM x\nREQUIRES 0.14.0"})
    fake, result = Fake(), ollama_store.Result(check=True)
    if refused:
        with pytest.raises(ollama_declaration.ModelError, match=f"requires Ollama 0.14.0; the server is {server}"):
            ollama_apply.ensure_present(fake, ollama_store.Store(fake), declared, result)
    else:
        ollama_apply.ensure_present(fake, ollama_store.Store(fake), declared, result)
    assert result.changed is not refused


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed", "min_p", "use_mmap", "num_gpu", "repeat_last_n"])
def test_a_parameter_of_zero_is_a_parameter(name):
    zero = False if name == "use_mmap" else 0
    declared = ollama_declaration.declare({"name": "a", "from": "x", "parameters": {name: zero}})
    base = {**ollama_observed.observe(show()), "parameters": {name: True if name == "use_mmap" else 7.0}}
    wanted = ollama_difference.wanted(declared, "x", base)
    assert ollama_difference.difference(base, wanted) == [f"parameters.{name}"]
    printed = "false" if name == "use_mmap" else "0"
    made = ollama_observed.observe(show(parameters=f"{name}    {printed}"))
    assert ollama_difference.difference(made, wanted) == []
    assert ollama_difference.difference(ollama_observed.observe(show()), wanted) == [f"parameters.{name}"]
    assert ollama_apply.create_request(declared, "a", "x")["parameters"] == {name: zero}


def test_what_the_server_adds_by_itself_is_no_difference():
    have = ollama_observed.observe(show(parameters='stop "<turn|>"', details={"family": "gemma4", "parent_model": "x:latest"}))
    have["renderer"] = "gemma4"
    want = {**have, "renderer": "", "parameters": {}}
    assert ollama_difference.difference(have, want) == []
    assert ollama_difference.difference({**have, "family": "qwen3"}, want) == ["renderer", "parameters.stop"]


def test_sources_belong_to_one_model():
    content = "0123456789abcdef"
    tags = [
        {"name": ollama_names.source_name(name, content, quantize)}
        for name, quantize in (("m", None), ("m:v1", "q8_0"), ("lan:5000/ns/m", None), ("m-a", None))
    ]
    assert [one["name"] for one in tags][:2] == ["m:latest.src-0123456789ab", "m:v1.src-0123456789ab-q8_0"]
    assert ollama_names.sources_of("m", tags) == ["m:latest.src-0123456789ab"]
    assert ollama_names.sources_of("M:V1", tags) == ["m:v1.src-0123456789ab-q8_0"]
    assert all(ollama_names.is_source(one["name"]) for one in tags)
    assert not ollama_names.is_source("m:latest")
    assert len(ollama_names.parse_name(ollama_names.source_name("m:" + "t" * 80, content, "q4_k_m")).tag) == 80


@pytest.mark.parametrize(
    ("size", "vram", "words"),
    [
        (100, 100, None),
        (100, 101, None),
        (12 * 2**30, 6 * 2**30, "6,144 of its 12,288 MiB"),
        (2**20, 0, "none of its 1 MiB"),
        (0, 0, "nothing of it"),
    ],
)
def test_offload(size, vram, words):
    problem = ollama_load.offload_problem("m", {"size": size, "size_vram": vram})
    assert (problem is None) == (words is None)
    if words:
        assert words in problem
        assert "allow_offload" in problem


def test_what_the_engine_said_contradicts_no_refusal():
    said = {"wanted_mib": 11885, "free_mib": 7838, "layers": 23, "all_layers": 41}
    assert "found 7,838 MiB free, and put 23 of 41 layers on it" in ollama_load.layout_text(said)
    assert ollama_load.layout_text({**said, "wanted_mib": None, "layers": 41}) == ""


def test_a_registry_that_cannot_be_asked_predicts_no_change(monkeypatch):
    tags = {"models": [{"name": "b:latest", "digest": "d" * 64}]}

    class Fake:
        def tags(self):
            return tags["models"]

    def silent(name, insecure):
        raise ollama_client.OllamaError("unreachable", "The registry cannot be asked.")

    monkeypatch.setattr(ollama_registry, "digest", silent)
    fake, result = Fake(), ollama_store.Result(True)
    declared = ollama_declaration.declare({"name": "b", "pull": "always"})
    ollama_apply.ensure_present(fake, ollama_store.Store(fake), declared, result)
    assert not result.changed
    assert "is not known" in result.warnings[0]


def test_a_server_killed_in_the_middle_is_no_success():
    answers = [
        b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{"models": []}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n{"status": "pulling manifest"}\n\r\n',
    ]
    with scripted(*answers) as (url, _asked), pytest.raises(ollama_client.OllamaError) as caught:
        run(url, {"name": "m"})
    assert caught.value.kind == "cut"


# --- what a second run heals ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_cut_off_is_completed_by_the_next(tmp_path, monkeypatch):
    path = tiny_gguf(tmp_path / "m.gguf")
    entry = {"name": "cut", "gguf": path, "system": "x"}
    create, calls = ollama_client.Client.create, []

    def cut(self, request):
        calls.append(request["model"])
        if len(calls) == 2:
            raise ollama_client.OllamaError("cut", "The server was killed.")
        return create(self, request)

    with ollama(tmp_path) as url:
        monkeypatch.setattr(ollama_client.Client, "create", cut)
        with pytest.raises(ollama_client.OllamaError, match="was killed"):
            run(url, entry)
        monkeypatch.undo()
    assert [name.partition(".src-")[0] for name in calls] == ["cut:latest", "cut:latest"]
    with ollama(tmp_path) as url:
        done = run(url, entry)
        assert done.actions == ["create cut:latest"]
        assert done.bytes_uploaded == 0
        assert not run(url, entry).changed


def test_two_controllers_at_once_end_in_what_both_want(server, base):
    entry = {"name": "both", "from": base, "parameters": {"num_ctx": 300, "top_k": 3}}
    failures = []

    def one():
        for number in range(5):
            try:
                run(server, {**entry, "system": f"turn {number}"})
            except ollama_declaration.ModelError as error:
                failures.append(str(error))
            except ollama_client.OllamaError as error:
                # A manifest that the other one is just writing cannot be read: HTTP 500.
                failures.append(error.kind)

    threads = [threading.Thread(target=one) for _number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [failure for failure in failures if "another writer" not in failure and failure not in ("server", "not_found")] == []
    run(server, {**entry, "system": "turn 4"})
    assert not run(server, {**entry, "system": "turn 4"}).changed
    run(server, entry, state="absent")


def test_adapters_of_the_base_stay_and_one_is_added():
    text = f"FROM /x/sha256-{'b' * 64}\nADAPTER /x/sha256-{'c' * 64}\nTEMPLATE x\n"
    base = ollama_observed.observe(show(modelfile=text))
    assert base["adapters"] == ["c" * 64]
    declared = ollama_declaration.declare({"name": "a", "from": "b", "adapter": "/lora.gguf"})
    want = ollama_difference.wanted(declared, "b", base, "a" * 64)
    assert want["adapters"] == ["a" * 64, "c" * 64]
    have = {**want, "adapters": ["a" * 64]}
    assert ollama_difference.difference(have, want) == ["adapters"]
    request = ollama_apply.create_request(declared, "a", "b", "a" * 64)
    assert request == {"model": "a", "from": "b", "adapters": {"adapter.gguf": f"sha256:{'a' * 64}"}}
