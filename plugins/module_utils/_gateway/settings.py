# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Settings of the role gateway that nothing can be rendered from.

Each of them stands in a file of another language: nginx, nftables, systemd, the shell, openssl. So each is matched as a
whole (``$`` would let a line's end pass), and none may hold a character that any of those languages reads as its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
PATH = re.compile(r"(/(?!\.\.?(/|\Z))[A-Za-z0-9._+@-]+)+")
URL = re.compile(r"https?://[A-Za-z0-9._~:/?&=%+\[\]-]+")
EMAIL = re.compile(r"[A-Za-z0-9._%+'=~-]+@[A-Za-z0-9.-]+")


def _address(value: Any) -> bool:
    """An IPv4 or IPv6 address. What ipaddress takes but no file should hold (a zone) is none."""
    try:
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _host_name(value: Any) -> bool:
    """A host's name; digits and dots alone would be an address."""
    return isinstance(value, str) and HOST_NAME.fullmatch(value) is not None and re.search("[A-Za-z]", value) is not None


def _bracketed(value: Any) -> bool:
    """An address as nginx wants it: IPv6 in brackets."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return ":" in value and _address(value[1:-1])
    return _address(value) and ":" not in value


def _host(value: Any) -> bool:
    """A name, or an address as _bracketed()."""
    return _bracketed(value) or _host_name(value)


def _name(value: Any) -> bool:
    """A name, or a bare address."""
    return _address(value) or _host_name(value)


def _network(value: Any) -> bool:
    """A network in CIDR form or one address, as both nginx and nftables write it."""
    try:
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_network(value, strict=False))
    except ValueError:
        return False


def _number(least: int, most: int = 10**9) -> Callable[[Any], bool]:
    """A whole number, or its digits in text, as a variable on the command line is."""

    def valid(value: Any) -> bool:
        plain = isinstance(value, int) and not isinstance(value, bool)
        if not plain and not (isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value)):
            return False
        return least <= int(value) <= most

    return valid


def _each(valid: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(valid(one) for one in value)


def _or_none(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, str) and pattern.fullmatch(value) is not None)


def _upstream(value: Any) -> bool:
    return isinstance(value, dict) and _host(value.get("address")) and _number(1, 65535)(value.get("port", 443)) and bool(value.get("ca"))


# Setting, what tells a valid one, and what is wanted.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("gateway_names", _each(_name, 1), "at least one host name or address, such as llm.example.org"),
    ("gateway_addresses", _each(_bracketed, 1), "at least one address, such as 0.0.0.0 or [::]"),
    ("gateway_port", _number(1, 65535), "a port, 1 to 65535"),
    ("gateway_http_port", _number(0, 65535), "a port, or 0 for none"),
    ("gateway_tls_certificate", _or_none(PATH), "an absolute path without blanks, or null"),
    ("gateway_tls_key", _or_none(PATH), "an absolute path without blanks, or null"),
    ("gateway_certificate_days", _number(3), "a number of days, at least 3"),
    ("gateway_ca_days", _number(4, 36500), "a number of days, 4 to 36500"),
    ("gateway_acme_directory", _or_none(URL), "an address that begins with https://, or null"),
    ("gateway_acme_email", _or_none(EMAIL), "an e-mail address, or null"),
    ("gateway_acme_ca", _or_none(PATH), "an absolute path without blanks, or null"),
    ("gateway_hsts_s", _number(0), "a number of seconds"),
    ("gateway_rate_per_minute", _number(1, 10**7), "a number, at least 1"),
    ("gateway_burst", _number(0, 10**6), "a number, at least 0"),
    ("gateway_streams", _number(1, 65535), "a number, 1 to 65535"),
    ("gateway_address_rate_per_s", _number(1, 10**6), "a number, at least 1"),
    ("gateway_address_burst", _number(1, 10**6), "a number, at least 1"),
    ("gateway_address_streams", _number(1, 65535), "a number, 1 to 65535"),
    ("gateway_max_body_mib", _number(1, 64), "a number of MiB, 1 to 64"),
    ("gateway_page_max_body_mib", _number(1, 4096), "a number of MiB, 1 to 4096"),
    ("gateway_memory_max_mib", _number(256, 10**7), "a number of MiB, at least 256"),
    ("gateway_admin_networks", _each(_network), "networks such as 192.0.2.0/24"),
    ("gateway_upstreams", _each(_upstream), "entries of address (a name or an address, IPv6 in brackets), port and ca"),
    ("gateway_health_interval_s", _number(1, 86400), "a number of seconds, 1 to 86400"),
    ("gateway_read_timeout_s", _number(1, 10**6), "a number of seconds, at least 1"),
    ("gateway_reload_grace_s", _number(1, 10**6), "a number of seconds, at least 1"),
    ("gateway_firewall_networks", _each(_network), "networks such as 192.0.2.0/24"),
    ("ollama_host", _host, "a name or an address"),
    ("ollama_port", _number(1, 65535), "a port, 1 to 65535"),
    ("open_webui_host", _host, "a name or an address"),
    ("open_webui_port", _number(1, 65535), "a port, 1 to 65535"),
)


def problems(settings: dict[str, Any]) -> list[str]:
    """A sentence for each setting that is not one; *settings* are the role's variables by name, all of RULES."""
    found = [f"{name} is {settings[name]!r}; wanted is {wanted}." for name, valid, wanted in RULES if not valid(settings[name])]
    return found or list(_together(settings))


def _together(settings: dict[str, Any]) -> Iterator[str]:
    """What each setting alone does not show."""
    number = {name: int(value) for name, value in settings.items() if _number(0)(value)}
    if number["gateway_http_port"] == number["gateway_port"]:
        yield f"gateway_http_port is {number['gateway_port']}, which is gateway_port; wanted is another port, or 0."
    if number["gateway_ca_days"] <= number["gateway_certificate_days"]:
        yield (
            f"gateway_ca_days is {number['gateway_ca_days']} and gateway_certificate_days {number['gateway_certificate_days']}; "
            "wanted is a CA that lives longer than its certificates."
        )
    least = 256 + 8 * number["gateway_max_body_mib"]
    if number["gateway_memory_max_mib"] < least:
        yield (
            f"gateway_memory_max_mib is {number['gateway_memory_max_mib']}; wanted is at least {least}, which two of the largest bodies take. "
            "Raise it or lower gateway_max_body_mib."
        )
