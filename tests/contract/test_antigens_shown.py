"""Lessons, sessions and attackers as people and programs see them: the screen and the HTTP paths."""

import io

import pytest
from rich.console import Console

from actors.admin import render_antigens
from tests.support.gateway import PlayedNode, gateway

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
    ],
)
def test_programs_get_the_same_over_http(path, verb, args, document):
    node = PlayedNode({verb: document})

    with gateway(node) as running:
        answer = running.http.get(f"/api/tegumentar/{path}")

    assert answer.status_code == 200
    assert answer.json() == document
    assert node.asked[-1][:2] == (verb, args)


@pytest.mark.parametrize("path", ["antigens?limit=0", "antigens?limit=201", "sessions?by=age", "attackers?hours=0"])
def test_nonsense_is_refused(path):
    with gateway() as running:
        assert running.http.get(f"/api/tegumentar/{path}").status_code == 422
