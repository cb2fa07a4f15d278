"""Protectors that are not Tegumentar, to see whether the lab tells the truth: nobody, and a hand-made nft table.

The lab must fail an unprotected node and pass one that nft protects by rules written here, without our service."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.admin.lab.net import Host
from actors.core.errors import Refused

GUARD = """
table inet guard {
    set seen4 { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 60s; }
    set seen6 { type ipv6_addr; size 65536; flags dynamic,timeout; timeout 60s; }
    set banned4 { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 60s; }
    set banned6 { type ipv6_addr; size 65536; flags dynamic,timeout; timeout 60s; }
    set ports { type inet_service; }
    chain gate {
        type filter hook prerouting priority -300; policy accept;
        ip saddr @banned4 drop
        ip6 saddr @banned6 drop
        meta l4proto udp accept
        tcp flags & (syn | ack) != syn accept
        add @seen4 { ip saddr limit rate over 200/second burst 400 packets } add @banned4 { ip saddr } drop
        add @seen6 { ip6 saddr limit rate over 200/second burst 400 packets } add @banned6 { ip6 saddr } drop
    }
    chain posture {
        type filter hook input priority 0; policy accept;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
    }
}
"""


class Nobody:
    """No protection at all: every packet arrives, every question is refused, yet it starts and says it is ready."""

    def __init__(self, node: Host, directory: Path, bpf_dir: Path, settings: Mapping[str, str]) -> None:
        self.node = node
        self.run_dir = directory

    def start(self) -> float:
        return 0.0

    def ask(self, verb: str, **args: Any) -> Any:
        raise Refused(f"nobody is here to answer {verb}")

    def stop(self) -> None:
        """Nothing runs."""

    def pid(self) -> int:
        return 0


class Guard(Nobody):
    """A hand-made nft table with a SYN budget, bans and postures: enough of a firewall to satisfy the lab."""

    def __init__(self, node: Host, directory: Path, bpf_dir: Path, settings: Mapping[str, str]) -> None:
        super().__init__(node, directory, bpf_dir, settings)
        self._posture, self._return_at = "balanced", 0.0

    def start(self) -> float:
        self._nft(GUARD)
        return 0.1

    def ask(self, verb: str, **args: Any) -> Any:
        if self._return_at and time.monotonic() >= self._return_at:
            self._set("balanced")
        answers = {
            "blocks.list": self._blocks, "block": self._block, "release": self._release, "posture.set": self._set,
            "posture.get": lambda: {"posture": self._posture}, "cells": list,
            "why": lambda address: {"address": address, "reason": "budget_syn, banned by hand in the lab"},
            "reflex.status": lambda: {"counters": {"packets": {"clean": 1}}},
        }  # fmt: skip
        if verb not in answers:
            raise Refused(f"the guard does not know {verb}")
        return answers[verb](**args)

    def _blocks(self, limit: int) -> list[dict[str, Any]]:
        import json

        listing = json.loads(self.node.namespace.run("nft", "-j", "list", "table", "inet", "guard").stdout)["nftables"]
        sets = [row["set"] for row in listing if row.get("set", {}).get("name", "").startswith("banned")]
        found = [each["elem"]["val"] for one in sets for each in one.get("elem", [])]
        return [{"subject": one, "proven": True, "reason": "budget_syn", "left_s": 60.0} for one in found]

    def _block(self, subjects: list[str], ttl_s: float, reason: str) -> None:
        for subject in subjects:
            self._nft(
                f"add element inet guard banned{6 if ':' in subject else 4} {{ {subject} timeout {int(ttl_s)}s }}"
            )

    def _release(self, subjects: list[str]) -> None:
        for subject in subjects:
            self._nft(f"delete element inet guard banned{6 if ':' in subject else 4} {{ {subject} }}")

    def _set(self, posture: str, confirm_within_s: float = 0.0) -> None:
        """Whatever is not established passes in balanced, reaches three ports in hardened and nothing in lockdown."""
        rules = "flush chain inet guard posture\nadd rule inet guard posture ct state established,related accept\n"
        rules += "add rule inet guard posture meta l4proto ipv6-icmp accept\n"
        ports = {"hardened": "22, 80, 443", "lockdown": "22"}.get(posture)
        if ports:
            rules += f"add rule inet guard posture tcp dport {{ {ports} }} accept\nadd rule inet guard posture drop\n"
        self._nft(rules)
        self._posture, self._return_at = posture, (time.monotonic() + confirm_within_s if confirm_within_s else 0.0)

    def _nft(self, text: str) -> None:
        self.node.namespace.run("nft", "-f", "-", text=text)
