# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No setting becomes a word of the language that it is rendered into: nginx, nftables, systemd, the shell, JavaScript, openssl."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROLE, TOKENS, Gateway, environment
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import policy as gateway_policy
from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import settings as gateway_settings

DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
VARS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
OUTSIDE = {"ollama_host": "127.0.0.1", "ollama_port": 11434, "open_webui_host": "127.0.0.1", "open_webui_port": 8080}
UPSTREAM = {"address": "gpu01.example.org", "port": 443, "ca": "roots/gpu01.crt"}
# One value of each setting that is right, and not the default.
RIGHT = {
    **{name: DEFAULTS[name] for name, _valid, _wanted in gateway_settings.RULES if name in DEFAULTS},
    **OUTSIDE,
    "gateway_names": ["llm.example.org", "192.0.2.7", "2001:db8::7"],
    "gateway_addresses": ["127.0.0.1", "[::1]"],
    "gateway_tls_certificate": "/etc/ssl/llm+1.pem",
    "gateway_tls_key": "/etc/ssl/private/llm_1@x.pem",
    "gateway_acme_directory": "https://acme.example.org:14000/dir?x=1",
    "gateway_acme_email": "o'brien@example.org",
    "gateway_acme_ca": "/etc/ssl/certs/acme.pem",
    "gateway_admin_networks": ["192.0.2.0/24", "2001:db8::/32", "10.0.0.1"],
    "gateway_firewall_networks": ["192.0.2.0/24", "2001:db8::/32"],
    "gateway_upstreams": [UPSTREAM, {"address": "192.0.2.9", "ca": "x"}, {"address": "[2001:db8::9]", "port": 8443, "ca": "x"}],
}
HOSTILE = [
    "\n",
    "\r",
    "\x00",
    "\x0b",
    "\u2028",
    "\u0085",
    " ",
    "\t",
    ";",
    "; evil on;",
    "\nevil on;\n",
    "\nUser=root\n",
    "}",
    "{",
    "{{ 1 }}",
    "$(touch evil)",
    "`touch evil`",
    "${IFS}evil",
    "' ; touch evil ; '",
    '"; touch evil; "',
    "\\",
    "#",
    "*",
    "| sh",
    "&",
    "<",
    "/../../etc/shadow",
    "\ud7ff",
    "é",
]


def every_text(value, change):
    """Copies of a setting's value, each with one of its texts (or numbers) changed."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            for changed in every_text(one, change):
                yield [*value[:index], changed, *value[index + 1 :]]
    elif isinstance(value, dict):
        for key in (key for key in value if key != "ca"):
            for changed in every_text(value[key], change):
                yield {**value, key: changed}
    else:
        yield change(str(value))


def test_right_settings_are_none_of_them_wrong():
    assert gateway_settings.problems(RIGHT) == []
    assert gateway_settings.problems({**{name: DEFAULTS.get(name) for name in RIGHT}, **OUTSIDE, "gateway_names": ["h"]}) == []


# A URL may have these; it is quoted where it stands (below).
FREE = {("gateway_acme_directory", "&"), ("gateway_acme_directory", "/../../etc/shadow")}


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_no_setting_is_accepted_with_a_hostile_text_in_it(name):
    tried = 0
    for text in HOSTILE:
        if (name, text) in FREE:
            continue
        for change in (lambda value, text=text: value + text, lambda value, text=text: text + value, lambda value, text=text: value[:2] + text + value[2:]):
            for wrong in every_text(RIGHT[name], change):
                (sentence,) = gateway_settings.problems({**RIGHT, name: wrong})
                assert sentence.startswith(f"{name} is "), (name, wrong)
                assert sentence.isprintable()
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_no_setting_is_accepted_as_another_kind(name):
    for wrong in (True, 1.5, {"a": 1}, [None], [[]], "", "-1", "1_000", "٣", " 1", b"1", "0x10 ", 10**12):
        (sentence,) = gateway_settings.problems({**RIGHT, name: wrong})
        assert sentence.startswith(f"{name} is ")


ALPHABET = st.text(st.sampled_from(list("aZ09.:-_/[]@%+'\"\\;{}$`# \n\r\t\x00\u2028éß")) | st.characters(), max_size=30)


@settings(max_examples=400, deadline=None, database=None)
@given(text=ALPHABET, name=st.sampled_from(sorted(RIGHT)), where=st.integers(0, 2))
def test_what_is_accepted_leaves_the_structure_as_it_is(text, name, where):
    """Whatever text gets past the check: the rendered files have as many lines, ends and braces as without it."""
    change = [lambda value: value + text, lambda value: text + value, lambda _value: text][where]
    for wrong in every_text(RIGHT[name], change):
        values = {**RIGHT, name: wrong}
        if gateway_settings.problems(values):
            continue
        for template in TEMPLATES:
            before, after = render(template, RIGHT), render(template, values)
            assert [after.count(mark) for mark in '\n;{}"'] == [before.count(mark) for mark in '\n;{}"'], (template, name, wrong)


TEMPLATES = sorted(path.name[:-3] for path in (ROLE / "templates").glob("*.j2") if path.name != "upstreams.pem.j2")
WORLD = {
    **{name: value for name, value in VARS.items() if isinstance(value, str) and "{{" not in value},
    "__gateway_tls_dir": "/etc/gpufleet/gateway/tls",
    "__gateway_conf": "/etc/gpufleet/gateway/nginx.conf",
    "__gateway_acme": "/opt/gpufleet/gateway/acme",
    "__gateway_firewall_rules": "/etc/gpufleet/gateway/firewall.nft",
    "__gateway_page": True,
    "__gateway_config": "0123456789abcdef",
    "__gateway_parts": VARS["__gateway_parts"],
    "inventory_hostname": "h",
}
POLICY = gateway_policy.policy(
    [{"name": "alice", "token": TOKENS["alice"]}], [{"name": "qwen3"}], {"pin": "strip", "rate_per_minute": 1, "burst": 1, "streams": 1}, 1
)


def render(template, values, **more):
    """A template of the role with these settings."""
    world = {
        **DEFAULTS,
        **WORLD,
        "__gateway_policy": POLICY,
        **values,
        "__gateway_certificate": values["gateway_tls_certificate"],
        "__gateway_key": values["gateway_tls_key"],
        "__gateway_ollama": f"{values['ollama_host']}:{values['ollama_port']}",
        "__gateway_open_webui": f"{values['open_webui_host']}:{values['open_webui_port']}",
        **more,
    }
    return environment().from_string((ROLE / "templates" / f"{template}.j2").read_text()).render(world)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_comment_stays_one(template):
    """ansible_managed is the controller's own text, and may have lines."""
    for text in ("one\nevil on;\nExecStart=/evil\n*/ evil", "plain"):
        lines = render(template, RIGHT, ansible_managed=text).splitlines()
        assert not [line for line in lines if "evil" in line and not line.startswith(("#", "//"))]
        assert any("evil" in line for line in lines) == ("evil" in text)


@pytest.mark.parametrize("template", ["renew.conf", "acme.conf", "upstreams.list"])
def test_the_shell_reads_what_was_set(template, tmp_path):
    """Quoted by the shell's own rules, also what the check would refuse."""
    nasty = "a b'c\"d`touch evil`$(touch evil)\\;*\n#x"
    values = {
        **RIGHT,
        "gateway_names": [nasty, "b.example"],
        "gateway_acme_email": nasty,
        "gateway_acme_directory": nasty,
        "gateway_acme_ca": nasty,
        "gateway_upstreams": [{"address": nasty, "ca": "x"}, UPSTREAM],
    }
    (tmp_path / "conf").write_text(render(template, values, inventory_hostname=nasty))
    wanted = {
        "renew.conf": {"host": nasty, "names": f"{nasty} b.example gateway.gpufleet.internal", "days": "90", "ca_days": "3650"},
        "acme.conf": {"names": f"{nasty} b.example", "email": nasty, "directory": nasty, "ca": nasty},
        "upstreams.list": {"upstreams": f"{nasty}:443 gpu01.example.org:443", "name": "gateway.gpufleet.internal"},
    }[template]
    for name, value in wanted.items():
        done = subprocess.run(["sh", "-euc", f'. ./conf; printf %s "${name}"'], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == value, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]


@pytest.mark.parametrize("program", ["acme", "health", "renew"])
def test_programs_are_read_by_sh(program):
    subprocess.run(["sh", "-n", ROLE / "files" / program], check=True)


def test_the_policy_is_data(tree, tmp_path):
    """Every name that is accepted for a model is a member of the policy, and none of it is code."""
    names = ["constructor", "toString", "hasOwnProperty", "a/b:c", "X" * 256]
    models = [{"name": name} for name in names]
    assert gateway_policy.problems([], models) == []
    made = gateway_policy.policy([], models, {"pin": "strip", "rate_per_minute": 1, "burst": 1, "streams": 1}, 1)
    text = render("policy.js", RIGHT, __gateway_policy=made)
    assert json.loads(text[text.index("export default ") + 15 : text.rindex(";")])["models"] == {name.lower(): 1 for name in names}
    for wrong in ("__proto__", 'a"b', "a\n", "a\u2028", "a;b", "", "</script>", "{{ x }}", "a b", "X" * 257):
        (sentence,) = gateway_policy.problems([], [{"name": wrong}])
        assert "no file should hold" in sentence and sentence.isprintable()


@pytest.mark.parametrize("tail", ["\n", "\r", " ", "\x00", "\u2028"])
def test_a_token_of_several_lines_is_refused(tail):
    """A token from a block of YAML ends in a line's end, which no client sends."""
    token = TOKENS["alice"]
    digest = gateway_policy.digest({"token": token})
    for entry in ({"name": "a", "token": token + tail}, {"name": "a", "sha256": digest + tail}, {"name": "a" + tail, "token": token}):
        (sentence,) = gateway_policy.problems([entry], [])
        assert token not in sentence and sentence.isprintable()


@pytest.mark.parametrize("upstreams", [False, True], ids=["one host", "several"])
def test_nginx_takes_unusual_settings(tree, tmp_path, upstreams):
    """IPv6, every limit at its end, both kinds of what is behind."""
    usual = {
        name: value for name, value in RIGHT.items() if name.startswith("gateway_") and name not in ("gateway_upstreams", "gateway_port", "gateway_http_port")
    }
    edges = {"gateway_burst": 0, "gateway_hsts_s": 0, "gateway_address_streams": 65535, "gateway_page_max_body_mib": 4096, "gateway_max_body_mib": 64}
    made = Gateway(
        tmp_path,
        tree,
        **{**usual, **edges},
        gateway_upstreams=RIGHT["gateway_upstreams"][1:] if upstreams else [],
        __gateway_ollama="[::1]:11434",
        __gateway_open_webui="127.0.0.1:8080",
    )
    (made.folder / "conf" / "upstreams.pem").write_text((made.folder / "tls" / "ca.crt").read_text())
    (made.folder / "conf" / "upstreams.conf").write_text(
        "".join(f"server {one['address']}:{one.get('port', 443)};\n" for one in RIGHT["gateway_upstreams"][1:])
    )
    checked = made.command("-t", "-q")
    assert checked.returncode == 0, checked.stderr
    text = (made.folder / "conf" / "nginx.conf").read_text()
    assert re.findall(r"listen (\S+):\d+ ssl", text) == RIGHT["gateway_addresses"]


def test_nftables_takes_unusual_settings(tmp_path):
    if not shutil.which("nft"):
        pytest.skip("nft is not here")
    for networks in (["192.0.2.0/24"], ["2001:db8::/32"], RIGHT["gateway_admin_networks"]):
        (tmp_path / "rules").write_text(render("firewall.nft", {**RIGHT, "gateway_firewall_networks": networks}))
        done = subprocess.run(["nft", "--check", "--file", tmp_path / "rules"], capture_output=True, text=True, check=False)
        if "Operation not permitted" in done.stderr:
            pytest.skip("nft asks the kernel, and may not here")
        assert done.returncode == 0, done.stderr


def test_the_role_hands_over_every_setting_that_has_a_rule():
    handed = set(re.findall(r"'(\w+)': ", VARS["__gateway_settings"]))
    assert handed == {name for name, _valid, _wanted in gateway_settings.RULES}


@pytest.mark.parametrize(("tls", "ports"), [("own_ca", {443, 80}), ("files", {443, 80}), ("acme", {443})])
def test_the_packet_filter_knows_the_gateways_ports_only(tls, ports):
    """It drops in one chain, which is reached by one rule: for these ports. So it has no say over any other, SSH's included."""
    text = render("firewall.nft", {**RIGHT, "gateway_firewall_networks": ["192.0.2.0/24"]}, gateway_tls=tls)
    table = [line.strip() for line in text[text.rindex("table inet gpufleet_gateway {") :].splitlines() if line.strip()]
    assert table == [
        "table inet gpufleet_gateway {",
        "chain strangers {",
        "iif lo accept",
        "ip saddr { 192.0.2.0/24 } accept",
        "counter drop",
        "}",
        "chain input {",
        "type filter hook input priority filter - 10; policy accept;",
        f"tcp dport {{ {', '.join(map(str, sorted(ports, reverse=True)))} }} jump strangers",
        "}",
        "}",
    ]


def test_memory_is_bounded_and_a_worker_that_is_ended_does_not_end_the_others():
    lines = render("nginx.service", {**RIGHT, "gateway_memory_max_mib": 777}).splitlines()
    assert {"MemoryMax=777M", "OOMPolicy=continue"} <= set(lines)
