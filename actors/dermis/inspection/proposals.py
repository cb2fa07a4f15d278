"""From a finding of inspection to what is proposed to policy: whom, what, how sure, and why in words. Pure."""

from dataclasses import dataclass

from actors.core.messages import Action
from actors.dermis.inspection.detector import Alert
from actors.dermis.inspection.packets import TCP, address_text
from actors.dermis.inspection.signature_watch import Hit

_ACTIONS = {"ban": Action.BAN, "throttle": Action.THROTTLE, "observe": Action.OBSERVE}
_RULE_ACTIONS = {"alert": Action.OBSERVE, "drop": Action.BAN, "reject": Action.BAN}
#: Suricata's priority (1 is the worst) as certainty of an alert; who writes ``drop`` is sure.
_PRIORITIES, _DROP = {1: 0.95, 2: 0.75, 3: 0.5}, 0.95
#: What another node's signature finds is no more certain than this: policy throttles first and bans who goes on.
QUARANTINE_SCORE = 0.55


@dataclass(frozen=True, slots=True)
class Proposal:
    """name: signature or rule, as people call it. head: what may become a vaccine against packets of this protocol to
    this port, empty for none. The rest are fields of a ``Verdict``."""

    subject: str
    action: Action
    name: str
    reason: str
    evidence: str
    score: float
    proto: int = 0
    dest_port: int = 0
    head: bytes = b""


def propose(found: Hit | Alert) -> Proposal:
    """Blame the sender of the bytes. Who sends datagrams may have borrowed the address: no ban follows from one."""
    if isinstance(found, Hit):
        name, action, score = found.signature.name, _ACTIONS[found.signature.action], found.signature.score
        reason = f"signature {name} ({found.signature.severity})"
        if node := found.signature.node:
            score = min(score, QUARANTINE_SCORE)
            reason = f"signature {name} ({found.signature.severity}), learned from node {node}"
    else:
        rule = found.rule
        name, action = f"sid {rule.sid}", _RULE_ACTIONS.get(rule.action, Action.OBSERVE)
        score = _DROP if action is Action.BAN else _PRIORITIES.get(rule.priority, 0.4)
        reason = f"rule {rule.sid}: {rule.msg}" if rule.msg else f"rule {rule.sid}"
    if found.proto != TCP and action is Action.BAN:
        action = Action.THROTTLE
    source = address_text(found.source)
    transport = {6: "tcp", 17: "udp"}.get(found.proto, f"protocol {found.proto}")
    ports = f" port {found.source_port} to {transport} port {found.dest_port}" if found.dest_port else f", {transport}"
    evidence = f"{source}{ports} in {found.where}: {printable(found.excerpt)}"
    head = found.head if isinstance(found, Hit) else b""
    return Proposal(source, action, name, reason[:200], evidence[:2000], score, found.proto, found.dest_port, head)


def printable(data: bytes) -> str:
    """Bytes for people: what is no plain character becomes a dot."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
