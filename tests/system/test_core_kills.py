"""Kill matrix over real processes: whichever process is killed, nothing is orphaned and the node is whole again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.core.client import connect
from actors.core.errors import Refused, Unavailable
from tests.support.core_node import Node

pytestmark = [pytest.mark.system, pytest.mark.timed]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    running = Node(tmp_path, "alpha", "beta", "gamma", low=["beta"], asyncio=["gamma"])
    try:
        running.wait_all()
        yield running
    finally:
        running.stop()


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _pid_of(node: Node, part: str) -> int:
    """The process of one part of the actor system."""
    supervisor = int(node.node()["pid"])
    if part == "supervisor":
        return supervisor
    return _parent_of(supervisor)  # the admin


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
@pytest.mark.parametrize("part", ["supervisor", "admin"])
def test_the_whole_system_is_back_after_its_root_is_killed(node: Node, part: str, number: int) -> None:
    before = node.processes()
    launcher = node.process.pid
    supervisor = node.node()["pid"]

    os.kill(_pid_of(node, part), number)

    began = time.monotonic()
    node.wait(lambda: node.node().get("pid", supervisor) != supervisor, 5.0, "a new supervisor")
    node.wait_all(limit_s=5.0)
    assert time.monotonic() - began < 2.0
    assert set(node.processes()) & set(before) == {launcher}


def test_there_is_no_process_that_only_waits_for_lines_to_log(node: Node) -> None:
    cells = {row["pid"] for row in node.cells().values()}

    assert set(node.processes()) == {node.process.pid, _pid_of(node, "admin"), _pid_of(node, "supervisor"), *cells}


def test_a_stopped_admin_has_no_effect_on_what_cells_say_to_each_other(node: Node) -> None:
    os.kill(_pid_of(node, "admin"), signal.SIGSTOP)

    for number in range(30):
        node.ask("beta.do", what="degrade")  # a line in the log each time, were it not for "once per change"
        assert node.ask("alpha.spread", number=number) == 2

    node.wait(lambda: node.ask("gamma.look")["tokens"].get("alpha") == 29, 2.0, "the last token")


def test_nothing_is_left_after_the_launcher_is_killed_and_the_next_start_works_at_once(node: Node) -> None:
    node.process.kill()
    node.process.wait()

    node.gone(2.0)
    node.launch()
    node.wait_all(limit_s=5.0)
    assert len([name for name in node.sockets() if name not in ("admin", "basal_layer")]) <= 7


def test_a_stop_ends_cells_in_reverse_order_and_leaves_nothing(node: Node) -> None:
    node.process.terminate()

    assert node.process.wait(8) == 0
    assert node.processes() == []
    assert node.sockets() == []
    log = node.log()
    assert log.index('"stopping"') < log.index('"stopped"')


def test_a_stop_takes_a_hung_cell_along(node: Node) -> None:
    os.kill(node.cells()["beta"]["pid"], signal.SIGSTOP)

    node.process.terminate()

    assert node.process.wait(8) == 0
    assert node.processes() == []


def test_a_second_service_in_the_same_run_directory_is_refused_in_a_sentence(node: Node) -> None:
    second = Node(node.run_dir, "alpha")

    assert second.process.wait(5) == 1
    assert "a service already runs in" in node.log()
    assert node.node()["state"] == "healthy"


def test_nobody_but_root_can_hold_the_lock_that_decides_about_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "lock").chmod(0o644)  # as an older version left it

    node = Node(tmp_path, "alpha")

    try:
        node.wait_all()
        assert (tmp_path / "lock").stat().st_mode & 0o077 == 0
    finally:
        node.stop()


def test_whatever_lies_in_the_socket_directory_is_cleared_away_at_the_start(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("not ours")
    sockets = tmp_path / "actors"
    (sockets / "directory" / "deep").mkdir(parents=True)
    (sockets / "admin").write_text("no socket")
    (sockets / "basal_layer").symlink_to(kept)

    node = Node(tmp_path, "alpha")

    try:
        node.wait_all()
        assert not (sockets / "directory").exists()
        assert kept.read_text() == "not ours"
    finally:
        node.stop()


def test_sighup_reads_the_settings_again(node: Node) -> None:
    (node.run_dir / "settings.json").write_text('{"rules": {"off": ["beta"]}}')

    os.kill(node.process.pid, signal.SIGHUP)

    node.wait(lambda: node.cells()["beta"]["state"] == "off", 3.0, "beta to be off")
    (node.run_dir / "settings.json").write_text("{}")
    node.ask("reload")
    node.wait(lambda: node.cells()["beta"]["state"] == "healthy", 3.0, "beta to be back")


def test_a_reload_starts_anew_exactly_the_cells_born_with_what_has_changed(tmp_path: Path) -> None:
    node = Node(tmp_path, "alpha", "beta", "gamma", born_with={"alpha": ["fate"], "gamma": ["fate", "user"]})
    try:
        node.wait_all()
        before = node.cells()
        (tmp_path / "settings.json").write_text('{"fate": {"nobody": "x"}}')

        answer = node.ask("reload")

        assert answer == {"reloaded": True, "restarting": ["alpha", "gamma"], "needs_restart_of_node": []}
        for name in ("alpha", "gamma"):
            node.wait_again(name, before[name]["incarnation"], 5.0)
        assert node.cells()["beta"]["pid"] == before["beta"]["pid"]
        assert node.ask("reload")["restarting"] == [], "nothing has changed since"
        said = [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]
        order = [(line["event"], line["name"]) for line in said if line["event"] in ("cell_up", "cell_down")][-4:]
        assert order == [("cell_down", "alpha"), ("cell_up", "alpha"), ("cell_down", "gamma"), ("cell_up", "gamma")]
        assert all(row["restarts"] == 1 for name, row in node.cells().items() if name != "beta")
    finally:
        node.stop()


def test_a_reload_says_what_only_a_new_start_of_the_node_takes_in(node: Node) -> None:
    (node.run_dir / "settings.json").write_text('{"user": "daemon"}')

    answer = node.ask("reload")

    assert answer == {"reloaded": True, "restarting": [], "needs_restart_of_node": ["user"]}


def test_a_cell_that_reads_hostile_bytes_may_restart_itself_and_nobody_else(node: Node) -> None:
    before = node.cells()

    with pytest.raises(Refused, match=r"beta may not ask for cell\.restart"):
        node.ask("beta.wish", wish="cell.restart", args={"name": "alpha"})
    with pytest.raises(Refused, match="beta may not ask for reload"):
        node.ask("beta.wish", wish="reload", args={})
    with contextlib.suppress(Unavailable):  # it may end before it has told that it may
        node.ask("beta.wish", wish="cell.restart", args={"name": "beta"})

    node.wait_again("beta", before["beta"]["incarnation"], 5.0)
    assert node.cells()["alpha"]["pid"] == before["alpha"]["pid"]


def test_a_cell_begins_with_counters_of_its_own(node: Node) -> None:
    os.kill(node.cells()["alpha"]["pid"], signal.SIGKILL)  # the supervisor counts a restart
    node.wait_again("alpha", 1, 5.0)

    assert "restarts" not in node.ask("alpha.look")["counters"]


def test_a_cell_that_dies_in_on_start_becomes_degraded_and_the_others_run(tmp_path: Path) -> None:
    fate = {"beta": "die_on_start", "gamma": "die_before_hello"}
    node = Node(tmp_path, "alpha", "beta", "gamma", fate=fate, rules={"backoff_first_s": 0.01, "backoff_cap_s": 0.05})
    try:
        node.wait(
            lambda: all(node.cells().get(name, {}).get("state") == "degraded" for name in ("beta", "gamma")),
            8.0,
            "degraded",
        )

        rows = node.cells()
        assert rows["alpha"]["state"] == "healthy"
        assert rows["alpha"]["restarts"] == 0
        assert "told to die in on_start" in rows["beta"]["last_cause"]
        assert rows["gamma"]["exit_code"] == 9
        assert rows["beta"]["remedy"]
        assert node.node()["ready"]
    finally:
        node.stop()


def test_a_cell_that_does_not_finish_its_start_is_killed_and_tried_again(tmp_path: Path) -> None:
    node = Node(tmp_path, "alpha", "beta", fate={"beta": "hang_on_start"}, rules={"start_limit_s": 0.5})
    try:
        node.wait(
            lambda: "did not start within" in node.cells().get("beta", {}).get("last_cause", ""), 5.0, "the limit"
        )

        assert node.cells()["alpha"]["state"] == "healthy"
    finally:
        node.stop()


def test_a_critical_cell_that_cannot_live_ends_in_exit_code_70_only_after_patience(tmp_path: Path) -> None:
    node = Node(tmp_path, "alpha", "beta", fate={"beta": "die_on_start"}, required=["beta"], critical=["beta"])
    try:
        node.wait(lambda: node.cells().get("beta", {}).get("restarts", 0) > 1, 5.0, "the first tries")

        assert not node.node()["ready"]
        assert node.process.poll() is None
    finally:
        node.stop()


def test_a_run_directory_with_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    node = Node(tmp_path / ("long" * 20) / ("path" * 10), "alpha", "beta", low=["beta"])
    try:
        node.wait_all()

        assert node.ask("alpha.spread", number=1) == 1
    finally:
        node.stop()


def test_a_client_that_waits_is_told_at_once_when_the_supervisor_dies_and_its_next_question_is_answered(
    node: Node,
) -> None:
    with connect(node.run_dir) as client:
        os.kill(node.cells()["beta"]["pid"], signal.SIGSTOP)  # nobody will answer this question
        threading.Timer(0.1, os.kill, (node.node()["pid"], signal.SIGKILL)).start()
        began = time.monotonic()

        with pytest.raises(Unavailable, match="ended before it answered"):
            client.ask("beta.look", timeout_s=10.0)

        assert time.monotonic() - began < 2.0
        node.wait_all()
        assert client.ask("alpha.spread", {"number": 1}) == 2
