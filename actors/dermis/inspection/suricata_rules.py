"""Reads Suricata rules: the subset that is understood completely; everything else is refused with line and reason.

A rule is never guessed: one unknown option, value or protocol refuses the whole rule, and the others stay. What is
understood: actions alert, pass, drop, reject; protocols ip, tcp, udp, icmp, tcp-pkt, tcp-stream, http, tls, dns, ssh;
``->`` and ``<>``; and the options of ``suricata_options``. Source: Suricata user guide, chapter Rules.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from actors.dermis.inspection import suricata_nets
from actors.dermis.inspection.suricata_nets import BadRule
from actors.dermis.inspection.suricata_options import Builder
from actors.dermis.inspection.suricata_types import ACTIONS, PROTOCOLS, Rule

LINE_MAX = 16_384
HOME = "[192.168.0.0/16,10.0.0.0/8,172.16.0.0/12]"
#: What the variables mean where nothing else is said; the same as in Suricata's own example settings.
VARIABLES = {
    "HOME_NET": HOME,
    "EXTERNAL_NET": "!$HOME_NET",
    **dict.fromkeys(("HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "TELNET_SERVERS"), "$HOME_NET"),
    "HTTP_PORTS": "80",
    "SHELLCODE_PORTS": "!80",
    "ORACLE_PORTS": "1521",
    "SSH_PORTS": "22",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that was left out. sid is 0 where none could be read."""

    line: int
    sid: int
    reason: str


@dataclass(slots=True)
class Book:
    """What came of a file of rules."""

    rules: list[Rule] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def read_rules(lines: Iterable[str], variables: Mapping[str, str] = VARIABLES) -> Book:
    """Every rule of a file. Comments and empty lines are skipped; a line may be continued with a back slash."""
    book, pending, began = Book(), "", 0
    for number, line in enumerate(lines, 1):
        began = began or number
        text = pending + line.strip()
        if text.endswith("\\"):
            pending = text[:-1]
            continue
        pending = ""
        if text and not text.startswith("#"):
            try:
                book.rules.append(replace(read_rule(text, variables), line=began))
            except BadRule as error:
                sid = re.search(r"\bsid\s*:\s*(\d{1,10})", text)
                book.refusals.append(Refusal(began, int(sid.group(1)) if sid else 0, str(error)))
        began = 0
    if pending:
        book.refusals.append(Refusal(began, 0, "the file ends inside a rule that was to be continued"))
    return book


def read_rule(text: str, variables: Mapping[str, str] = VARIABLES) -> Rule:
    """One rule. Raises BadRule with the reason."""
    if len(text) > LINE_MAX:
        raise BadRule(f"the rule is longer than {LINE_MAX} characters")
    head, bracket, body = text.partition("(")
    words = re.findall(r"\[[^\s]*(?:\s+[^\s]*?)*?\](?=\s)|\S+", head)
    if not bracket or not body.rstrip().endswith(")") or len(words) != 7:
        raise BadRule("it has not the form: action protocol address port -> address port (options)")
    action, proto, source, source_ports, direction, dest, dest_ports = words
    if action not in ACTIONS:
        raise BadRule(f"the action {action!r} is not supported")
    if proto not in PROTOCOLS:
        raise BadRule(f"the protocol {proto!r} is not supported")
    if direction not in ("->", "<>"):
        raise BadRule(f"the direction {direction!r} is not supported")
    builder = Builder(
        Rule(
            action=action,
            proto=proto,
            source=suricata_nets.addresses(source, variables),
            source_ports=suricata_nets.ports(source_ports, variables),
            dest=suricata_nets.addresses(dest, variables),
            dest_ports=suricata_nets.ports(dest_ports, variables),
            both_ways=direction == "<>",
            sid=0,
        )
    )
    for name, value in _split_options(body.rstrip()[:-1]):
        builder.option(name, value)
    return builder.rule()


def _split_options(body: str) -> list[tuple[str, str]]:
    """Name and value of each option; a semicolon inside quotes, or behind a back slash, ends nothing."""
    options, part, quoted, escaped = [], "", False, False
    for letter in body:
        if letter == ";" and not quoted and not escaped:
            options.append(part)
            part = ""
            continue
        quoted ^= letter == '"' and not escaped
        escaped = letter == "\\" and not escaped
        part += letter
    if quoted or part.strip():
        raise BadRule("an option does not end with a semicolon")
    pairs = (option.partition(":") for option in options if option.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs]
