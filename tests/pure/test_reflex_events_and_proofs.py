"""From the program's records to words, and proofs on their way."""

import socket

import numpy as np

from actors.core.messages import Posture, Proof
from actors.epidermis.proofs import Proofs
from actors.epidermis.reflex_events import policy_of, summarize, until_ns, until_unix_s
from bpf.dataplane import Stance
from config.settings import ReflexSettings

EVENT = np.dtype(
    [
        ("at_ns", "u8"), ("until_ns", "u8"), ("source", "u1", 16), ("dest", "u1", 16), ("source_port", "u2"),
        ("dest_port", "u2"), ("proto", "u1"), ("family", "u1"),
        ("reason", "u1"), ("flags", "u1"), ("packets", "u4"), ("detail", "u4"),
    ]
)  # fmt: skip
SECOND = 1_000_000_000


def record(source: str, reason: int, at_s: int, packets: int = 1, banned_until_s: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    row = np.zeros(1, EVENT)
    mapped = socket.inet_pton(socket.AF_INET6, source if ":" in source else f"::ffff:{source}")
    row["source"][0] = np.frombuffer(mapped, np.uint8)
    row["reason"], row["at_ns"], row["packets"] = reason, at_s * SECOND, packets
    row["until_ns"], row["flags"] = banned_until_s * SECOND, bool(banned_until_s)
    return row


def told(*rows: np.ndarray, limit: int = 100) -> list[tuple[str, str, bool, int]]:  # type: ignore[type-arg]
    events = summarize(np.concatenate(rows), lambda n: f"reason{n}", 1000.0, 50 * SECOND, limit)
    return [(e.subject, e.reflex, e.banned, e.packets) for e in events]


def test_one_event_for_each_source_and_reflex_with_the_newest_word() -> None:
    rows = [record("192.0.2.1", 40, 1, 10), record("192.0.2.1", 40, 2, 20), record("192.0.2.1", 41, 3, 5)]

    assert told(*rows) == [("192.0.2.1", "reason40", False, 20), ("192.0.2.1", "reason41", False, 5)]


def test_a_ban_of_ipv6_is_of_the_64_and_a_mere_incident_names_the_host() -> None:
    rows = [record("2001:db8::99", 40, 1, 9, banned_until_s=60), record("2001:db8::98", 41, 2)]

    assert told(*rows) == [("2001:db8::/64", "reason40", True, 9), ("2001:db8::98", "reason41", False, 1)]


def test_when_there_are_too_many_the_bans_are_told() -> None:
    rows = [record(f"192.0.2.{n}", 40, n) for n in range(1, 9)] + [record("198.51.100.1", 40, 9, 1, banned_until_s=60)]

    assert told(*rows, limit=2)[0] == ("198.51.100.1", "reason40", True, 1)
    assert len(told(*rows, limit=2)) == 2


def test_no_records_are_no_events() -> None:
    assert summarize(np.zeros(0, EVENT), str, 0.0, 0) == []


def test_moments_travel_between_the_clocks_and_zero_means_until_released() -> None:
    assert until_ns(0, 1000.0, 50 * SECOND) == 0
    assert until_ns(1010.0, 1000.0, 50 * SECOND) == 60 * SECOND
    assert until_ns(1.0, 1000.0, 50 * SECOND) == 1
    assert until_unix_s(60 * SECOND, 1000.0, 50 * SECOND) == 1010.0
    assert until_unix_s(0, 1000.0, 50 * SECOND) == 0


def test_explore_observes_and_the_closed_postures_halve_the_budgets() -> None:
    stances = {posture: policy_of(ReflexSettings(), posture).stance for posture in Posture}

    assert stances[Posture.EXPLORE] is Stance.OBSERVE
    assert stances[Posture.BALANCED] is Stance.ENFORCE
    assert stances[Posture.HARDENED] is stances[Posture.LOCKDOWN] is Stance.HARDENED


def proof(subject: str, holds: bool = True) -> Proof:
    return Proof(subject=subject, holds=holds)


def test_a_lone_ban_is_told_before_bulk() -> None:
    proofs = Proofs()
    proofs.put([proof(f"10.0.0.{n}") for n in range(10)], soon=False)
    proofs.put([proof("192.0.2.1")])

    assert [p.subject for p in proofs.take(2)] == ["192.0.2.1", "10.0.0.0"]


def test_a_later_word_about_a_subject_takes_the_place_of_the_earlier() -> None:
    proofs = Proofs()
    proofs.put([proof("192.0.2.1", holds=False)])
    proofs.put([proof("192.0.2.1", holds=True)], soon=False)

    assert proofs.take(10) == [proof("192.0.2.1", holds=True)]
    assert len(proofs) == 0
