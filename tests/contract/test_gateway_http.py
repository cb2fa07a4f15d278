"""The gateway over real HTTP: what it answers, what it refuses, and that nothing a client sends takes it down."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.core.errors import NotFound, Refused, TegumentarError, Unavailable
from actors.hypodermis.gateway import server, skin
from actors.hypodermis.gateway.skin import Events, Memory
from tests.support.gateway import AUTHORIZED, PlayedNode, Running, gateway

NODE = {"state": "degraded", "ready": True}
CELLS = [
    {"name": "reflex_arc", "state": "healthy", "reason": "native on veth0"},
    {"name": "merkel", "state": "degraded", "reason": "no baseline yet"},
]
HEALTH_PATHS = ["/readyz", "/healthz", "/health"]
CHANGES = [
    ("POST", "/api/tegumentar/posture", {"posture": "lockdown"}),
    ("POST", "/api/tegumentar/posture/confirm", None),
    ("POST", "/api/tegumentar/wound-healing", {}),
    ("POST", "/api/tegumentar/blocks", {"subjects": ["198.51.100.7"]}),
    ("DELETE", "/api/tegumentar/blocks", {"subjects": ["198.51.100.7"]}),
    ("DELETE", "/api/tegumentar/blocks/198.51.100.7", None),
    ("POST", "/api/tegumentar/tolerance", {"subjects": ["198.51.100.7"]}),
    ("DELETE", "/api/tegumentar/tolerance", {"subjects": ["198.51.100.7"]}),
    ("POST", "/api/tegumentar/cells/merkel/restart", None),
]


@pytest.fixture(scope="module")
def lasting() -> Iterator[Running]:
    """One gateway for all tests that leave it as it is."""
    with gateway(PlayedNode({"node": NODE, "cells": CELLS})) as running:
        yield running


@pytest.fixture
def served(lasting: Running) -> Running:
    """The same gateway before a node that has been asked nothing yet, with nothing remembered."""
    lasting.node.answers = {"node": NODE, "cells": CELLS}
    lasting.node.asked.clear()
    lasting.context.memory = Memory(lasting.context.skin)
    lasting.context.events = Events()
    return lasting


def is_problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


# --- health -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", *HEALTH_PATHS])
def test_every_conventional_health_path_answers_200_while_enforcement_stands(lasting: Running, path: str) -> None:
    answer = lasting.http.get(path)

    assert answer.status_code == 200
    assert answer.text == "ok\n"


def test_verbose_health_has_a_line_for_each_cell_with_the_reason(lasting: Running) -> None:
    lines = lasting.http.get("/readyz?verbose").text.splitlines()

    assert "[+]reflex_arc healthy (native on veth0)" in lines
    assert "[-]merkel degraded (no baseline yet)" in lines


@pytest.mark.parametrize("path", HEALTH_PATHS)
def test_without_enforcement_the_node_is_alive_but_not_ready(path: str) -> None:
    cells = [{"name": "reflex_arc", "state": "degraded"}, {"name": "keratinocyte", "state": "off"}]
    with gateway(PlayedNode({"cells": cells})) as running:
        problem = is_problem(running.http.get(path), 503)

        assert "reflex_arc degraded, keratinocyte off" in problem["detail"]
        assert running.http.get("/livez").status_code == 200


def test_readiness_survives_a_supervisor_that_does_not_answer() -> None:
    node = PlayedNode({"cells": Unavailable("nobody answers")})

    with gateway(node) as running:
        assert running.http.get("/readyz").status_code == 200
        node.stands = (False, "no enforcing cell has reported")
        is_problem(running.http.get("/readyz"), 503)


def test_metrics_are_prometheus_text(lasting: Running) -> None:
    answer = lasting.http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.text == "tegumentar_up 1\n"


# --- reading ------------------------------------------------------------------------------------------------


def test_one_absent_cell_spoils_only_its_part_of_the_status(served: Running) -> None:
    served.node.answers["qualia"] = Unavailable("merkel is down", remedy="see its log")

    document = served.http.get("/api/tegumentar/status").json()

    assert document["node"] == NODE
    assert document["qualia"]["problem"]["detail"] == "merkel is down"
    assert document["qualia"]["problem"]["remedy"] == "see its log"


def test_a_cell_that_never_answers_cannot_hang_a_reader(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    served.node.answers["qualia"] = Unavailable("qualia was not answered within 1.5 s")

    problem = is_problem(served.http.get("/api/tegumentar/qualia"), 503)

    assert "qualia" in problem["detail"]


def test_a_reader_gets_the_last_known_answer_when_the_cell_has_gone(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skin, "FRESH_S", 0.0)
    served.node.answers["qualia"] = {"pain": 0.5}
    assert served.http.get("/api/tegumentar/qualia").json() == {"pain": 0.5}

    served.node.answers["qualia"] = Unavailable("merkel is down")

    assert served.http.get("/api/tegumentar/qualia").json() == {"pain": 0.5}


def test_a_burst_of_readers_costs_one_question(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skin, "FRESH_S", 60.0)

    for _ in range(20):
        served.http.get("/api/tegumentar/qualia")

    assert [verb for verb, _, _ in served.node.asked].count("qualia") == 1


def test_what_was_read_before_a_change_is_asked_again(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skin, "FRESH_S", 60.0)
    served.node.answers["qualia"] = {"pain": 0.5}
    assert served.http.get("/api/tegumentar/qualia").json() == {"pain": 0.5}

    served.node.answers["qualia"] = {"pain": 0.0}
    served.context.memory.changed()

    assert served.http.get("/api/tegumentar/qualia").json() == {"pain": 0.0}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("there is no such block"), 404),
        (Refused("this is the gateway of the node", remedy="choose another"), 409),
        (Unavailable("permeability is down"), 503),
        (TegumentarError("something else"), 500),
    ],
)
def test_what_a_cell_answers_becomes_the_fitting_problem(served: Running, error: TegumentarError, status: int) -> None:
    served.node.answers["why"] = error

    problem = is_problem(served.http.get("/api/tegumentar/explain?address=198.51.100.7"), status)

    assert problem["detail"] == str(error)
    assert problem.get("remedy", "") == error.remedy


@pytest.mark.parametrize("address", ["", "banana", "1.2.3.4.5", "1" * 100])
def test_an_address_that_is_none_is_refused_at_the_border(served: Running, address: str) -> None:
    is_problem(served.http.get("/api/tegumentar/explain", params={"address": address}), 422)

    assert served.node.asked == []


def test_unknown_paths_and_methods_are_problems_too(lasting: Running) -> None:
    is_problem(lasting.http.get("/nowhere"), 404)
    is_problem(lasting.http.put("/api/tegumentar/posture", json={}), 405)
    is_problem(lasting.http.get("/docs"), 404)


def test_the_interface_describes_itself(lasting: Running) -> None:
    paths = lasting.http.get("/openapi.json").json()["paths"]

    for path in ("status", "qualia", "posture", "wound-healing", "blocks", "tolerance", "events"):
        assert f"/api/tegumentar/{path}" in paths
    assert "/readyz" in paths


# --- changing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer wrong", "Basic YTpi", "Bearer ü", "bearer-" + "x" * 5000]
)
def test_nothing_changes_without_the_token(
    served: Running, method: str, path: str, body: Any, authorization: str | None
) -> None:
    headers = {"Authorization": authorization.encode()} if authorization else {}

    answer = served.http.request(method, path, json=body, headers=headers)

    is_problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert served.node.asked == []


def test_without_a_token_everything_is_read_and_nothing_changed(served: Running) -> None:
    token, served.context.token = served.context.token, ""
    try:
        for authorization in ("Bearer", "Bearer x"):
            answer = served.http.post(
                "/api/tegumentar/posture", json={"posture": "lockdown"}, headers={"Authorization": authorization}
            )

            assert "could not be read or made" in is_problem(answer, 503)["detail"]
        assert served.http.get("/readyz").status_code == 200
        assert not [verb for verb, *_ in served.node.asked if verb == "posture.set"]
    finally:
        served.context.token = token


def test_a_posture_is_set_in_the_name_of_the_client(served: Running) -> None:
    body = {"posture": "LOCKDOWN", "for": "10m", "confirm_within": 60}

    answer = served.http.post("/api/tegumentar/posture", json=body, headers=AUTHORIZED)

    assert answer.status_code == 200
    ((verb, args, by),) = served.node.asked
    assert verb == "posture.set"
    assert args == {"posture": "lockdown", "for_s": 600.0, "confirm_within_s": 60.0, "reason": ""}
    assert by == "http 127.0.0.1"


@pytest.mark.parametrize(
    "body",
    [
        {"posture": "ajar"},
        {"posture": "lockdown", "for": "soon"},
        {"posture": "lockdown", "for": -1},
        {"posture": "lockdown", "for": 1e300},
        {"posture": "lockdown", "unknown": 1},
        {},
        [],
        None,
        "lockdown",
    ],
)
def test_a_body_of_another_form_is_refused_and_changes_nothing(served: Running, body: Any) -> None:
    problem = is_problem(served.http.post("/api/tegumentar/posture", json=body, headers=AUTHORIZED), 422)

    assert problem["faults"]
    assert served.node.asked == []


def test_addresses_reach_the_gate_in_canonical_form(served: Running) -> None:
    body = {"subjects": ["2001:DB8:0::1", "198.51.100.9/24"], "ttl": "1h", "reason": "tried the door"}

    served.http.post("/api/tegumentar/blocks", json=body, headers=AUTHORIZED)

    assert served.node.asked[-1][1] == {
        "subjects": ["2001:db8::1", "198.51.100.0/24"],
        "ttl_s": 3600.0,
        "reason": "tried the door",
    }


def test_a_prefix_can_be_released_by_its_own_path(served: Running) -> None:
    served.http.delete("/api/tegumentar/blocks/198.51.100.0/24", headers=AUTHORIZED)

    assert served.node.asked[-1][:2] == ("release", {"subjects": ["198.51.100.0/24"]})


def test_nobody_blocks_the_address_the_wish_comes_from(served: Running) -> None:
    body = {"subjects": ["198.51.100.7", "127.0.0.0/8"]}

    problem = is_problem(served.http.post("/api/tegumentar/blocks", json=body, headers=AUTHORIZED), 409)

    assert "127.0.0.1" in problem["detail"]
    assert served.node.asked == []


def test_healing_says_that_it_is_not_there_yet(served: Running) -> None:
    answer = served.http.post("/api/tegumentar/wound-healing", json={"playbook": "x"}, headers=AUTHORIZED)

    assert "no playbook was started" in is_problem(answer, 501)["detail"]


# --- browsers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8085", "", "127.0.0.1.evil.example", "[::1", "a b"])
def test_a_page_that_rebinds_its_name_to_this_node_reads_nothing(lasting: Running, host: str) -> None:
    is_problem(lasting.http.get("/api/tegumentar/status", headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8085", "10.0.0.7", "LOCALHOST."])
def test_addresses_and_localhost_are_always_known(lasting: Running, host: str) -> None:
    assert lasting.http.get("/api/tegumentar/status", headers={"Host": host}).status_code == 200


def test_a_prober_may_use_any_name(lasting: Running) -> None:
    assert lasting.http.get("/readyz", headers={"Host": "whatever.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing_even_with_the_token(served: Running, headers: dict[str, str]) -> None:
    answer = served.http.post("/api/tegumentar/posture", json={"posture": "explore"}, headers=AUTHORIZED | headers)

    is_problem(answer, 403)
    assert served.node.asked == []


def test_a_page_of_our_own_may_change_things(served: Running) -> None:
    headers = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}

    answer = served.http.post("/api/tegumentar/posture", json={"posture": "explore"}, headers=AUTHORIZED | headers)

    assert answer.status_code == 200


# --- limits -------------------------------------------------------------------------------------------------


def test_a_body_beyond_the_limit_is_refused_announced_or_not(served: Running) -> None:
    announced = served.http.post("/api/tegumentar/blocks", content=b" " * 70_000, headers=AUTHORIZED)
    pieces = served.http.post(
        "/api/tegumentar/blocks",
        content=(b" " * 1000 for _ in range(70)),
        headers=AUTHORIZED | {"Content-Type": "application/json"},
    )

    is_problem(announced, 413)
    is_problem(pieces, 413)


def test_too_many_subjects_are_refused(served: Running) -> None:
    body = {"subjects": [f"10.0.{n // 256}.{n % 256}" for n in range(201)]}

    is_problem(served.http.post("/api/tegumentar/blocks", json=body, headers=AUTHORIZED), 422)


def test_a_request_that_takes_too_long_ends_in_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.hypodermis.gateway.app.REQUEST_LIMIT_S", 0.2)
    with gateway(PlayedNode({"why": None})) as running:
        problem = is_problem(running.http.get("/api/tegumentar/explain?address=198.51.100.7"), 503)

    assert "0.2 s" in problem["detail"]


def test_bytes_that_are_no_http_get_a_problem_and_the_connection_ends(lasting: Running) -> None:
    with socket.create_connection(("127.0.0.1", lasting.port), timeout=5) as raw:
        raw.sendall(b"\x16\x03\x01 this is no request\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


def test_a_head_that_never_ends_is_cut_off(lasting: Running) -> None:
    with socket.create_connection(("127.0.0.1", lasting.port), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
        answer = raw.recv(4096)

    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_sends_nothing_is_shown_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_LIMIT_S", 0.2)
    with gateway() as running, socket.create_connection(("127.0.0.1", running.port), timeout=5) as raw:
        raw.sendall(b"GET /livez HT")

        with pytest.raises(ConnectionResetError):
            assert raw.recv(100) == b""
            raise ConnectionResetError  # closed in order is as good as reset


def test_silent_connections_cannot_shut_others_out() -> None:
    with gateway(max_connections=8) as running:
        silent = [socket.create_connection(("127.0.0.1", running.port), timeout=5) for _ in range(20)]
        try:
            for _ in range(3):
                with httpx2.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=5) as fresh:
                    assert fresh.get("/livez").status_code == 200
        finally:
            for connection in silent:
                connection.close()


# --- events -------------------------------------------------------------------------------------------------


def read_events(lines: Iterator[str], count: int) -> list[dict[str, str]]:
    """The next ``count`` events of a stream, as their fields."""
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            found.append(event)
            event = {}
            if len(found) == count:
                break
    return found


def test_events_reach_a_reader_and_a_returning_one_gets_what_it_missed(served: Running) -> None:
    with served.http.stream("GET", "/api/tegumentar/events") as stream:
        lines = stream.iter_lines()
        (hello,) = read_events(lines, 1)
        served.event("posture", {"posture": "lockdown"})
        (first,) = read_events(lines, 1)
    served.event("qualia", {"pain": 1})

    with served.http.stream("GET", "/api/tegumentar/events", headers={"Last-Event-ID": first["id"]}) as stream:
        _, missed = read_events(stream.iter_lines(), 2)

    assert hello["event"] == "hello"
    assert (first["event"], json.loads(first["data"])) == ("posture", {"posture": "lockdown"})
    assert (missed["event"], json.loads(missed["data"])) == ("qualia", {"pain": 1})


def test_a_reader_that_was_away_too_long_is_told_how_much_is_lost(served: Running) -> None:
    for number in range(served.context.events.backlog + 10):
        served.event("qualia", {"number": number})
    deadline = time.monotonic() + 5
    while served.context.events._last_id < served.context.events.backlog + 10 and time.monotonic() < deadline:
        time.sleep(0.01)

    with served.http.stream("GET", "/api/tegumentar/events", headers={"Last-Event-ID": "1"}) as stream:
        _, lost, oldest = read_events(stream.iter_lines(), 3)

    assert lost["event"] == "lost"
    assert json.loads(lost["data"]) == {"events": 9}
    assert json.loads(oldest["data"]) == {"number": 10}


def test_there_is_room_for_so_many_readers_and_no_more(served: Running) -> None:
    served.context.events.max_readers = 0

    answer = served.http.get("/api/tegumentar/events")

    is_problem(answer, 503)


# --- fuzz ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)
FORMS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("posture", "subjects", "for", "for_s", "ttl", "reason", "comment", "confirm_within"), JSON),
)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(body=FORMS | JSON, target=st.sampled_from(CHANGES[:1] + CHANGES[3:5] + CHANGES[6:8]))
def test_any_json_gets_an_answer_and_never_a_defect(lasting: Running, body: Any, target: tuple[str, str, Any]) -> None:
    content = json.dumps(body).encode()  # with Infinity, which is no JSON but which many parsers take

    headers = AUTHORIZED | {"Content-Type": "application/json"}
    answer = lasting.http.request(target[0], target[1], content=content, headers=headers)

    assert answer.status_code in {200, 409, 422}


@FUZZ
@given(
    body=st.binary(max_size=400),
    kind=st.sampled_from(["application/json", "text/plain", "", "application/x-www-form-urlencoded"]),
)
def test_any_bytes_get_an_answer_and_never_a_defect(lasting: Running, body: bytes, kind: str) -> None:
    headers = AUTHORIZED | {"Content-Type": kind}

    answer = lasting.http.post("/api/tegumentar/blocks", content=body, headers=headers)

    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


@FUZZ
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_path_gets_an_answer_and_never_a_defect(lasting: Running, path: str) -> None:
    with socket.create_connection(("127.0.0.1", lasting.port), timeout=5) as raw:
        raw.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        status = raw.recv(12).split(b" ")[1]

    assert int(status) < 500


# --- listening ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_it_listens_where_it_is_told_to_in_both_families(host: str) -> None:
    listener = server.listen(host, 0)
    try:
        with socket.create_connection(listener.getsockname()[:2], timeout=5):
            pass
    finally:
        listener.close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_told_with_the_remedy(host: str) -> None:
    with pytest.raises(Unavailable) as caught:
        server.listen(host, 0)

    assert host in str(caught.value)
    assert caught.value.remedy


def test_a_port_that_is_taken_is_told_with_the_remedy() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as squatter,
        pytest.raises(Unavailable, match="cannot listen") as caught,
    ):
        server.listen("127.0.0.1", squatter.getsockname()[1])

    assert "gateway.port" in caught.value.remedy
