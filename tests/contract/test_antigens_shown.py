"""Lessons, sessions and attackers as people and programs see them: the screen and the HTTP paths."""

import io

import pytest
from rich.console import Console

from actors.admin import render_antigens, vaccines
from tests.support.gateway import AUTHORIZED, PlayedNode, gateway

LESSON = {"subject": "203.0.113.7", "reason": "kernel reflex syn_flood", "sensor": "reflex_arc", "learned_unix_s": 1.0}
ANTIGENS = {
    "node": "here", "public_key": "ab" * 32, "brokers": ["broker:9092"], "connected": True, "trusted_nodes": ["north"],
    "quorum": 2, "known_nodes": ["north", "south"], "refused": {"unknown_key": 3}, "alerts": [],
    "antigens": [LESSON], "vaccines": [LESSON | {"nodes": ["north", "south"]}],
}  # fmt: skip
SESSIONS = {
    "sessions": [
        {
            "source": "2001:db8::7", "source_port": 40000, "dest": "2001:db8::1", "dest_port": 22, "protocol": "tcp",
            "state": "established", "packets": [12, 9], "bytes": [1800, 2400],
        }
    ]
}  # fmt: skip
VACCINES = {"vaccines": [{"name": "udp/7777/0011223344556677", "proven": True}], "total": 1, "limit": 256}
ATTACKERS = {"attackers": [{"subject": "203.0.113.7", "times": 9, "bans": 2, "last_unix_s": 1.0}], "hours": 24}


def shown(view, document):
    screen = Console(file=io.StringIO(), width=160)
    screen.print(getattr(render_antigens, view)(document))
    return screen.file.getvalue()


def test_lessons_are_shown_with_their_teachers_and_what_was_refused():
    text = shown("antigens", ANTIGENS)

    for expected in (
        "ab" * 32,
        "north (trusted)",
        "3 unknown key",
        "203.0.113.7",
        "north, south",
        "broker:9092 connected",
    ):
        assert expected in text


def test_a_node_alone_says_so():
    alone = {"public_key": "", "brokers": [], "connected": False, "known_nodes": [], "refused": {}}
    text = shown("antigens", ANTIGENS | alone | {"antigens": [], "vaccines": []})

    assert "no Kafka broker is named" in text
    assert text.count("nothing yet") == 2


def test_sessions_and_attackers_are_shown():
    assert "[2001:db8::7]:40000" in shown("sessions", SESSIONS)
    assert "established" in shown("sessions", SESSIONS)
    assert "no conversation" in shown("sessions", {"sessions": []})
    assert "203.0.113.7" in shown("attackers", ATTACKERS)
    assert "nobody in the last 24 hours" in shown("attackers", {"attackers": [], "hours": 24})


@pytest.mark.parametrize(
    ("path", "verb", "args", "document"),
    [
        ("antigens?limit=7", "antigens.list", {"limit": 7}, ANTIGENS),
        ("sessions?by=packets", "sessions.list", {"limit": 50, "by": "packets"}, SESSIONS),
        ("attackers?hours=2", "memory.attackers", {"limit": 20, "hours": 2}, ATTACKERS),
        ("vaccines", "vaccines.list", {}, VACCINES),
    ],
)
def test_programs_get_the_same_over_http(path, verb, args, document):
    node = PlayedNode({verb: document})

    with gateway(node) as running:
        answer = running.http.get(f"/api/tegumentar/{path}")

    assert answer.status_code == 200
    assert answer.json() == document
    assert node.asked[-1][:2] == (verb, args)


def test_a_vaccine_is_released_over_http_by_whoever_holds_the_token():
    name = VACCINES["vaccines"][0]["name"]
    node = PlayedNode({"vaccines.release": {"released": [name]}})

    with gateway(node) as running:
        stranger = running.http.delete(f"/api/tegumentar/vaccines/{name}")
        wrong = running.http.delete("/api/tegumentar/vaccines/../blocks", headers=AUTHORIZED)
        done = running.http.delete(f"/api/tegumentar/vaccines/{name}", headers=AUTHORIZED)

    assert stranger.status_code == 401
    assert wrong.status_code in (404, 405, 422)
    assert done.json() == {"released": [name]}
    assert [(verb, args) for verb, args, *_ in node.asked] == [("vaccines.release", {"names": [name]})]


def test_vaccines_and_learned_signatures_are_shown():
    row = VACCINES["vaccines"][0] | {
        "begins_with": "WORM/3 spread", "hits": 12, "until_unix_s": 4e9, "reason": "learned from node north: worm",
    }  # fmt: skip
    screen = Console(file=io.StringIO(), width=160)
    screen.print(vaccines.table([row]))
    learned = {"name": "sesame", "node": "north", "until_unix_s": 4e9, "in_use": True}

    for expected in ("udp/7777/0011223344556677", "WORM/3 spread", "12", "proven", "learned from node north"):
        assert expected in screen.file.getvalue()
    assert "looked for" in shown("antigens", ANTIGENS | {"signatures": [learned]})


@pytest.mark.parametrize("path", ["antigens?limit=0", "antigens?limit=201", "sessions?by=age", "attackers?hours=0"])
def test_nonsense_is_refused(path):
    with gateway() as running:
        assert running.http.get(f"/api/tegumentar/{path}").status_code == 422
