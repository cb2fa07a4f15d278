"""The small parts of the tissue: wiring, anatomy, pulse, clock, metrics, exits in words."""

from __future__ import annotations

import faulthandler
import os
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.core.anatomy import Anatomy, CellSpec
from actors.core.asks import Deferred, problem, raise_for
from actors.core.capability import effective, service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.clock import Clock, ManualClock, SystemClock
from actors.core.errors import NotFound, Refused, TegumentarError, ToolFailed, Unavailable
from actors.core.life import Life, describe_exit
from actors.core.messages import Answer, CellReport, CellState, Enforce, Release
from actors.core.metrics import Family, render
from actors.core.pulse import Pulse
from actors.core.renewal import Round, changed, concerned
from actors.core.tally import Tally
from actors.core.wiring import graph, receptors


class Listener(Cell):
    @receives(Enforce, Release)
    def on_order(self, message: Enforce | Release, source: str) -> None: ...

    @answers("listener.status")
    def status(self, args: object, by: str) -> None: ...


def spec(name: str, *depends_on: str) -> CellSpec:
    return CellSpec(name, Listener, "dermis", depends_on=depends_on)


def test_the_wiring_is_read_from_the_handlers() -> None:
    declared = receptors(Listener)

    assert declared.kinds == {"Enforce": "on_order", "Release": "on_order"}
    assert graph({"a": declared, "b": declared}) == {
        "messages": {"Enforce": ["a", "b"], "Release": ["a", "b"]},
        "verbs": {"listener.status": "b"},
    }


def test_cells_start_after_what_they_depend_on_and_otherwise_as_written() -> None:
    anatomy = Anatomy((spec("c", "a"), spec("b"), spec("a")))

    assert [each.name for each in anatomy.start_order()] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((spec("a", "b"), spec("b", "a")), "in a ring"),
        ((spec("a", "ghost"),), "not in the anatomy"),
        ((spec("a"), spec("a")), "share a name"),
    ],
)
def test_an_anatomy_that_cannot_start_is_refused_when_it_is_written(cells: tuple[CellSpec, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Anatomy(cells)


def test_a_dotted_path_names_the_class() -> None:
    assert CellSpec("x", "actors.core.cell.Cell", "dermis").cell_class() is Cell


def test_a_pulse_shows_silence_of_both_threads_and_the_last_words() -> None:
    pulse = Pulse()
    pulse.beat_loop()

    actor_s, loop_s = pulse.silent_for()
    pulse.leave("ValueError: naïve " + "x" * 10_000)

    assert 0 <= actor_s < 1
    assert 0 <= loop_s < 1
    assert pulse.cause().startswith("ValueError: naïve")
    assert len(pulse.cause()) < 4_096


def test_a_cell_without_a_loop_has_no_silent_loop() -> None:
    assert Pulse().silent_for()[1] == 0.0


def test_a_pulse_from_the_future_is_silence_and_a_wild_length_is_bounded() -> None:
    pulse = Pulse()

    pulse._page[:] = b"\xff" * len(pulse._page)

    assert pulse.silent_for()[0] > 1
    assert len(pulse.cause()) <= 4_096


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (70, "exit code 70"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-200, "signal 200"),
    ],
)
def test_an_exit_is_told_in_words(code: int, words: str) -> None:
    assert words in describe_exit(code)


def test_a_life_shows_its_past() -> None:
    row = Life(spec("a")).row()

    assert (row["name"], row["state"], row["pid"], row["restarts"], row["exit_code"]) == ("a", "starting", 0, 0, None)


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(monotonic=10.0, unix=100.0)

    clock.advance(5)
    clock.step(-50)

    assert (clock.monotonic(), clock.unix()) == (15.0, 55.0)
    with pytest.raises(ValueError):
        clock.advance(-1)


def test_the_system_clock_is_a_clock() -> None:
    clock: Clock = SystemClock()

    assert clock.monotonic() <= clock.monotonic()
    assert clock.unix() > 1_700_000_000


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Refused("no", remedy="ask nicely"), Refused),
        (NotFound("gone"), NotFound),
        (Unavailable("away"), Unavailable),
        (ToolFailed("nft said no"), TegumentarError),
    ],
)
def test_an_error_survives_the_way_through_an_answer(error: TegumentarError, kind: type[TegumentarError]) -> None:
    with pytest.raises(kind) as caught:
        raise_for(problem(1, error))

    assert str(caught.value) == str(error)
    assert caught.value.remedy == error.remedy


def test_only_the_first_answer_counts() -> None:
    sent: list[Answer] = []
    deferred = Deferred(1, sent.append)

    deferred.reply(1)
    deferred.reply(2)
    deferred.refuse(Refused("too late"))

    assert [answer.value for answer in sent] == [1]


def test_metrics_parse_and_carry_states_counters_and_gauges() -> None:
    report = CellReport(
        cell="reflex_arc",
        state=CellState.DEGRADED,
        reason="words",
        counters={"bans": 3, "odd.name": 1},
        gauges={"load": 0.5},
    )

    page = render(
        [report],
        [Family("packets", "Packets by reason", ("reason",), {("syn",): 4.0})],
        [Family("bans", "Bans now", (), {(): 2.0})],
        restarts={"reflex_arc": 2},
        build={"version": "0.1.0"},
    )

    samples = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert samples["tegumentar_build_info", (("version", "0.1.0"),)] == 1
    assert samples["tegumentar_cell_state", (("cell", "reflex_arc"), ("state", "degraded"))] == 1
    assert samples["tegumentar_cell_state", (("cell", "reflex_arc"), ("state", "healthy"))] == 0
    assert samples["tegumentar_cell_restarts_total", (("cell", "reflex_arc"),)] == 2
    assert samples["tegumentar_packets_total", (("reason", "syn"),)] == 4
    assert samples["tegumentar_bans", ()] == 2
    assert samples["tegumentar_reflex_arc_bans_total", ()] == 3
    assert samples["tegumentar_reflex_arc_odd_name_total", ()] == 1
    assert samples["tegumentar_reflex_arc_load", ()] == 0.5
    assert b"words" not in page


def test_the_same_reports_give_the_same_page() -> None:
    reports = [CellReport(cell=name, state=CellState.HEALTHY, counters={"b": 1, "a": 2}) for name in ("two", "one")]

    assert render(reports) == render(list(reversed(reports)))


def test_a_user_that_does_not_exist_becomes_a_number() -> None:
    first, second = service_identity("no-such-user-here"), service_identity("no-such-user-here")

    assert first == second
    assert service_identity("0").uid in (0, first.uid)


def test_capabilities_of_a_process_that_is_gone_are_none() -> None:
    assert effective(2**22 + 1) == frozenset()


# --- what a reload concerns ----------------------------------------------------------------------------------------


def _settings(**problems: str) -> SimpleNamespace:
    return SimpleNamespace(interfaces=("eth0",), reflex=SimpleNamespace(rungs=("native",), rate=5), problems=problems)


def test_only_cells_born_with_a_changed_setting_are_concerned_in_their_order() -> None:
    cells = [
        CellSpec("rungs", Listener, "epidermis", born_with=("reflex.rungs",)),
        CellSpec("whole", Listener, "epidermis", born_with=("interfaces", "reflex")),
        CellSpec("none", Listener, "epidermis"),
    ]
    before, after = _settings(), _settings()

    after.reflex = SimpleNamespace(rungs=("native",), rate=6)

    assert concerned(cells, before, _settings()) == []
    assert concerned(cells, before, after) == ["whole"]
    after.reflex = SimpleNamespace(rungs=("generic",), rate=5)
    assert concerned(cells, before, after) == ["rungs", "whole"]
    assert changed(("interfaces", "absent.too"), before, after) == []


def test_a_mistake_that_came_or_went_in_a_section_concerns_its_cells() -> None:
    cells = [CellSpec("rungs", Listener, "epidermis", born_with=("reflex.rungs",))]

    assert concerned(cells, _settings(), _settings(reflex="reflex.rate is no number")) == ["rungs"]
    assert concerned(cells, _settings(), _settings(gateway="gateway.port is no number")) == []


def test_one_cell_after_the_other_is_started_anew_and_a_slow_one_is_waited_for_only_so_long() -> None:
    turns = Round()
    turns.add(["a", "b", "c"])
    turns.add(["b"])

    assert turns.next(0.0, 5.0, settled=True) == "a"
    assert turns.next(1.0, 5.0, settled=False) == ""
    assert turns.busy_with() == "a"
    assert turns.next(2.0, 5.0, settled=True) == "b"
    assert turns.next(7.0, 5.0, settled=False) == "c", "b did not come back in time"
    assert turns.next(8.0, 5.0, settled=True) == ""
    assert turns.busy_with() == ""


# --- counters of a process that cannot report ----------------------------------------------------------------------


def test_a_tally_written_in_a_child_is_read_in_the_parent() -> None:
    tally = Tally("frames", "peers")
    child = os.fork()
    if child == 0:
        for _ in range(300):
            tally["frames"] += 1
        os._exit(0)
    os.waitpid(child, 0)

    assert tally.counts("admin_") == {"admin_frames": 300}


def test_a_tally_kept_from_forks_is_not_there_in_a_child() -> None:
    tally = Tally("frames")
    tally.keep_from_forks()

    child = os.fork()
    if child == 0:
        faulthandler.disable()
        tally["frames"] = 7  # SIGSEGV
        os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.WIFSIGNALED(status)
    assert tally["frames"] == 0
