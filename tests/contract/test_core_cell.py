"""The contract of the Cell base, in this process: what its authors may rely on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from actors.core import wiring
from actors.core.cell import REPEAT_EVERY, Cell, Deferred, answers, receives
from actors.core.errors import NotFound, Refused, TegumentarError, ToolFailed, Unavailable
from actors.core.lifecycle import Credit, Stop
from actors.core.membrane import Frame
from actors.core.messages import (
    ASKERS,
    KINDS,
    SPEAKERS,
    Action,
    Answer,
    Ask,
    CellReport,
    CellState,
    Enforce,
    Recorded,
    ReflexEvent,
    ReflexEvents,
    Release,
    Verdict,
)
from actors.core.supervisor import BasalLayer
from actors.core.timers import Timers
from tests.support.core import PEER_PID, Dish

EVENT = ReflexEvent(subject="10.0.0.1", reflex="syn", banned=True, seen_unix_s=1.0)


class Sample(Cell):
    """A cell with one of everything."""

    uses_asyncio = True

    def on_start(self) -> None:
        self.seen: list[Any] = []
        self.events = self.stream(ReflexEvents, lambda items: ReflexEvents(events=items), linger_s=0.01, room=2_000)

    def on_stop(self) -> None:
        self.seen.append("stopped")

    def on_peer_up(self, name: str) -> None:
        self.seen.append(f"+{name}")

    def on_peer_down(self, name: str) -> None:
        self.seen.append(f"-{name}")

    @receives(Enforce, Release)
    def on_order(self, message: Enforce | Release, source: str) -> None:
        self.seen.append((type(message).__name__, source))

    @receives(Recorded)
    def on_recorded(self, message: Recorded, source: str) -> None:
        raise ValueError("a broken invariant")

    @answers("sample.now")
    def now(self, args: dict[str, Any], by: str) -> Any:
        return {"args": args, "by": by}

    @answers("sample.later")
    def later(self, args: dict[str, Any], by: str) -> Deferred:
        deferred = self.defer()

        async def work() -> str:
            await asyncio.sleep(0)
            return "from the loop"

        self.call(work, then=lambda future: deferred.reply(future.result()))
        return deferred

    @answers("sample.fail")
    def fail(self, args: dict[str, Any], by: str) -> Any:
        kinds: dict[str, Callable[[], Exception]] = {
            "refused": lambda: Refused("not that one", remedy="take another"),
            "not_found": lambda: NotFound("no such thing"),
            "unavailable": lambda: Unavailable("not here"),
            "failed": lambda: ToolFailed("nft said no"),
            "broken": lambda: RuntimeError("a broken invariant"),
        }
        raise kinds[args["how"]]()

    @answers("sample.big")
    def big(self, args: dict[str, Any], by: str) -> Any:
        return "x" * 200_000


@pytest.fixture
def dish() -> Iterator[Dish]:
    made = Dish(Sample, name="sample")
    yield made
    made.stop()


def test_a_cell_is_healthy_once_started_unless_it_says_otherwise(dish: Dish) -> None:
    assert dish.cell.state is CellState.HEALTHY


def test_a_message_reaches_the_handler_that_declared_it_with_its_source(dish: Dish) -> None:
    dish.peer("permeability")

    dish.give(Enforce(orders=[], generation=1), "permeability")
    dish.give(Release(subjects=[], generation=1), "permeability")

    assert dish.cell.seen == ["+permeability", ("Enforce", "permeability"), ("Release", "permeability")]


def test_a_command_from_a_cell_that_may_not_give_it_never_reaches_the_handler(dish: Dish) -> None:
    dish.peer("melanocyte")

    dish.give(Enforce(orders=[], generation=1), "melanocyte")

    assert dish.cell.seen == ["+melanocyte"]
    assert dish.cell.counters["wrong_speaker"] == 1


def test_a_question_that_commands_is_answered_only_to_those_who_may_ask_it() -> None:
    class Gate(Cell):
        @answers("posture.set", "posture.get")
        def posture(self, args: dict[str, Any], by: str) -> Any:
            return "done"

    dish = Dish(Gate, name="permeability")
    try:
        with pytest.raises(Refused, match=r"macrophage may not ask for posture\.set"):
            dish.ask("posture.set", source="macrophage", by="cli uid 0")

        assert dish.cell.counters["wrong_asker"] == 1
        assert dish.ask("posture.get", source="macrophage") == "done"
        assert dish.ask("posture.set", source="gateway") == "done"
    finally:
        dish.stop()


def test_every_verb_that_only_some_may_ask_for_is_one_that_a_cell_answers() -> None:
    from run import ANATOMY

    verbs = {verb for spec in ANATOMY for verb in wiring.receptors(spec.cell_class()).verbs}
    verbs |= set(wiring.receptors(BasalLayer).verbs)

    assert set(ASKERS) <= verbs
    assert set.union(*map(set, ASKERS.values())) <= {spec.name for spec in ANATOMY} | {"basal_layer"}


def test_a_cell_that_is_off_because_nobody_configured_it_warns_nobody() -> None:
    class Idle(Cell):
        def on_start(self) -> None:
            self.off("no server is named", "set one")

    with capture_logs() as lines:
        Dish(Idle).stop()

    assert [(line["log_level"], line["state"]) for line in lines if line["event"] == "state"] == [("info", "off")]


def test_every_speaker_and_what_it_says_is_known() -> None:
    assert set(SPEAKERS) <= set(KINDS)


def test_what_nobody_declared_is_counted(dish: Dish) -> None:
    dish.peer("permeability")

    dish.give(Verdict(subject="::1", action=Action.BAN, reason="", origin="x", seen_unix_s=0.0), "permeability")

    assert dish.cell.counters["unexpected"] == 1


def test_publish_reaches_every_living_receptor_and_nobody_else(dish: Dish) -> None:
    dish.peer("one", Recorded)
    dish.peer("two", Recorded, Enforce)
    dish.peer("three", Enforce)

    assert dish.cell.publish(Recorded(id=1)) == 2
    assert {socket for socket, message in dish.out if isinstance(message, Recorded)} == {"one", "two"}


def test_what_is_published_for_an_absent_cell_arrives_when_it_is_back_before_anything_else(dish: Dish) -> None:
    dish.peer("one", Recorded)
    dish.peer("one", Recorded, up=False)

    for number in range(70):
        assert dish.cell.publish(Recorded(id=number)) == 0
    dish.peer("one", Recorded, incarnation=2)

    assert [message.id for message in dish.sent(Recorded, "one")] == list(range(6, 70))
    assert dish.cell.counters["held_dropped"] == 6


def test_a_living_cell_that_calls_itself_off_still_hears(dish: Dish) -> None:
    dish.peer("one", Recorded, state=CellState.OFF)

    assert dish.cell.publish(Recorded(id=1)) == 1


def test_tell_says_whether_the_peer_is_there(dish: Dish) -> None:
    assert not dish.cell.tell("one", Recorded(id=1))
    dish.peer("one")
    assert dish.cell.tell("one", Recorded(id=2))
    dish.peer("one", up=False)
    assert not dish.cell.tell("one", Recorded(id=3))

    assert [message.id for message in dish.sent(Recorded)] == [2]
    assert dish.cell.counters["undeliverable"] == 2


def test_a_message_from_a_dead_incarnation_is_dropped_and_counted(dish: Dish) -> None:
    dish.peer("one", incarnation=3)
    dish._peers["one"] = dish._peers["one"].__class__(cell="one", state=CellState.HEALTHY, incarnation=2)

    dish.give(Enforce(orders=[], generation=1), "one")

    assert dish.cell.seen == ["+one"]
    assert dish.cell.counters["stale"] == 1


def test_a_process_that_borrows_a_name_is_not_believed(dish: Dish) -> None:
    from actors.core.codec import encode

    dish.peer("permeability")

    for cell, incarnation in (("permeability", 1), ("basal_layer", 1)):
        dish.cell.hear(Frame(encode(Enforce(orders=[], generation=1), cell, incarnation), PEER_PID + 77, 0, "x"))
    dish.cell.hear(Frame(encode(Stop(), "basal_layer", 1), PEER_PID + 77, 0, "x"))

    assert dish.cell.seen == ["+permeability"]
    assert not dish.left


def test_a_message_that_overtakes_its_senders_introduction_is_not_lost(dish: Dish) -> None:
    from actors.core.codec import encode

    dish.cell.hear(Frame(encode(Enforce(orders=[], generation=1), "permeability", 1), PEER_PID, 0, "x"))
    assert dish.cell.seen == []

    dish.peer("permeability")

    assert dish.cell.seen == ["+permeability", ("Enforce", "permeability")]


def test_bytes_that_are_no_message_are_counted_and_never_raised(dish: Dish) -> None:
    for data in (b"", b"\xff" * 100, os.urandom(2000), b"\x80"):
        dish.cell.hear(Frame(data, PEER_PID, 0, "x"))

    assert dish.cell.counters["undecodable"] == 4


def test_a_handler_that_raises_is_not_swallowed(dish: Dish) -> None:
    dish.peer("memory_cell")

    with pytest.raises(ValueError, match="broken invariant"):
        dish.give(Recorded(id=1), "memory_cell")


def test_an_answer_may_be_given_now_or_later(dish: Dish) -> None:
    assert dish.ask("sample.now", {"a": [1]}, by="cli uid 0") == {"args": {"a": [1]}, "by": "cli uid 0"}
    assert dish.ask("sample.later") == "from the loop"


@pytest.mark.parametrize(
    ("how", "kind"),
    [("refused", Refused), ("not_found", NotFound), ("unavailable", Unavailable), ("failed", TegumentarError)],
)
def test_an_error_crosses_the_border_as_what_it_is(dish: Dish, how: str, kind: type[TegumentarError]) -> None:
    with pytest.raises(TegumentarError) as caught:
        dish.ask("sample.fail", {"how": how})

    assert type(caught.value) is kind


def test_wrong_arguments_are_refused_and_the_cell_lives(dish: Dish) -> None:
    with pytest.raises(Refused, match=r"sample\.fail does not accept these arguments"):
        dish.ask("sample.fail", {})

    assert dish.cell.counters["bad_arguments"] == 1


def test_a_broken_answer_handler_tells_the_asker_and_then_dies(dish: Dish) -> None:
    dish.peer("asker")

    with pytest.raises(RuntimeError):
        dish.give(Ask(id=9, verb="sample.fail", args={"how": "broken"}), "asker")

    assert dish.sent(Answer, "asker")[-1].code == "failed"


def test_an_answer_that_is_too_large_becomes_a_sentence(dish: Dish) -> None:
    with pytest.raises(Refused, match="the limit is"):
        dish.ask("sample.big")


def test_a_question_is_put_to_the_cell_that_answers_and_its_answer_comes_back_once(dish: Dish) -> None:
    got: list[Answer] = []
    dish.peer("other", answers=("other.x",))

    dish.cell.ask("other.x", {"q": 1}, got.append)
    question = dish.sent(Ask, "other")[0]
    dish.give(Answer(id=question.id, value=5), "other")
    dish.give(Answer(id=question.id, value=6), "other")

    assert (question.args, question.by) == ({"q": 1}, "cell sample")
    assert [answer.value for answer in got] == [5]
    assert dish.cell.counters["late_answers"] == 1


def test_an_answer_from_another_cell_than_the_one_asked_is_not_taken(dish: Dish) -> None:
    got: list[Answer] = []
    dish.peer("other", answers=("other.x",))
    dish.peer("liar")

    dish.cell.ask("other.x", {}, got.append)
    dish.give(Answer(id=dish.sent(Ask, "other")[0].id, value=5), "liar")

    assert got == []


def test_a_question_nobody_answers_is_answered_unavailable(dish: Dish) -> None:
    got: list[Answer] = []

    dish.cell.ask("no.such", {}, got.append, timeout_s=0.02)
    dish.run_until(lambda: bool(got))

    assert [answer.code for answer in got] == ["unavailable"]


def test_a_question_is_held_until_the_cell_that_answers_comes(dish: Dish) -> None:
    got: list[Answer] = []
    dish.cell.ask("other.x", {}, got.append)
    assert dish.sent(Ask) == []

    dish.peer("other", answers=("other.x",))
    dish.give(Answer(id=dish.sent(Ask, "other")[0].id, value="late but there"), "other")

    assert [answer.value for answer in got] == ["late but there"]


def test_a_question_is_closed_at_once_when_the_cell_that_was_asked_dies(dish: Dish) -> None:
    got: list[Answer] = []
    dish.peer("other", answers=("other.x",))
    dish.cell.ask("other.x", {}, got.append, timeout_s=60)

    dish.peer("other", answers=("other.x",), up=False)

    assert [answer.code for answer in got] == ["unavailable"]


def test_a_cell_may_ask_itself(dish: Dish) -> None:
    got: list[Answer] = []

    dish.cell.ask("sample.now", {"x": 1}, got.append)
    dish.run_until(lambda: bool(got))

    assert got[0].value == {"args": {"x": 1}, "by": "cell sample"}


def test_timers_fire_in_order_once_and_not_when_cancelled(dish: Dish) -> None:
    fired: list[str] = []

    dish.cell.after(0.03, fired.append, "third")
    dish.cell.after(0.01, fired.append, "first")
    dish.cell.after(0.02, fired.append, "second")
    dish.cell.cancel(dish.cell.after(0.015, fired.append, "never"))
    dish.run_until(lambda: len(fired) == 3)
    dish.run(0.03)

    assert fired == ["first", "second", "third"]


def test_a_periodic_timer_goes_on_until_it_is_cancelled(dish: Dish) -> None:
    ticks: list[int] = []
    timer = dish.cell.every(0.005, lambda: ticks.append(1))

    dish.run_until(lambda: len(ticks) >= 3)
    dish.cell.cancel(timer)
    count = len(ticks)
    dish.run(0.03)

    assert len(ticks) == count >= 3


def test_long_periods_fall_into_step_so_that_one_wake_serves_them_all() -> None:
    timers = Timers()
    began = time.monotonic()

    for period in (1.0, 5.0, 1.0, 0.3, 0.5):
        timers.every(period, lambda: None)

    timers.close()
    due = {number: due - began for number, due in timers.dues()}
    assert due[3] - due[1] == 0.0
    assert due[2] - due[1] == pytest.approx(4.0)
    assert due[1] - due[5] == pytest.approx(0.5)
    assert 1.0 <= due[1] < 1.5, "the first keeps its time"
    assert 0.3 <= due[4] < 0.8, "a short one too"


def test_a_report_that_says_nothing_new_is_repeated_only_now_and_then(dish: Dish) -> None:
    dish.peer("gateway", CellReport)
    before = len(dish.sent(CellReport, "gateway"))
    dish.cell._report_again()

    for _ in range(REPEAT_EVERY - 1):
        dish.cell._report_again()

    assert len(dish.sent(CellReport, "gateway")) == before + 1
    dish.cell._report_again()
    assert len(dish.sent(CellReport, "gateway")) == before + 2
    dish.cell.counters["news"] += 1
    dish.cell._report_again()
    assert dish.sent(CellReport, "gateway")[-1].counters["news"] == 1


def test_a_watched_descriptor_calls_back_until_unwatched(dish: Dish) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    read: list[bytes] = []
    dish.cell.watch(reader, lambda: read.append(os.read(reader, 10)))

    os.write(writer, b"one")
    dish.run_until(lambda: bool(read))
    dish.cell.unwatch(reader)
    os.write(writer, b"two")
    dish.run(0.02)

    assert read == [b"one"]
    os.close(reader)
    os.close(writer)


def test_a_failure_in_the_loop_is_counted_and_does_not_end_the_cell(dish: Dish) -> None:
    async def fail() -> None:
        raise OSError("the server went away")

    dish.cell.call(fail)

    assert dish.run_until(lambda: dish.cell.counters["loop_errors"] == 1)


def test_a_mode_is_reported_once_per_change_to_supervisor_and_receptors(dish: Dish) -> None:
    dish.peer("gateway", CellReport)
    dish.out.clear()

    for _ in range(3):
        dish.cell.degraded("redis is away", "start it")
    dish.cell.healthy()

    for to in ("gateway", "supervisor"):
        assert [report.state for report in dish.sent(CellReport, to)] == [CellState.DEGRADED, CellState.HEALTHY]


def test_a_newcomer_that_shows_status_is_told_at_once(dish: Dish) -> None:
    dish.peer("gateway", CellReport)

    assert [report.cell for report in dish.sent(CellReport, "gateway")] == ["sample"]


def test_a_gauge_that_is_no_number_does_not_spoil_the_report(dish: Dish) -> None:
    dish.cell.gauges["bad"] = float("nan")
    dish.cell.gauges["worse"] = float("inf")
    dish.cell.gauges["good"] = 1.5

    gauges = dish.cell.report().gauges

    assert gauges["good"] == 1.5
    assert not {"bad", "worse"} & set(gauges)


def test_a_stream_sends_four_batches_and_waits_for_credit(dish: Dish) -> None:
    dish.peer("gate", ReflexEvents)

    dish.cell.events.put_many([EVENT] * 1_500)
    dish.run(0.05)
    assert [len(batch.events) for batch in dish.sent(ReflexEvents)] == [200] * 4

    dish.give(Credit(stream=1), "gate")
    dish.give(Credit(stream=1), "gate")

    assert len(dish.sent(ReflexEvents)) == 6
    assert dish.cell.events.waiting == 300


def test_a_stream_drops_the_oldest_when_its_room_is_full_and_counts_it(dish: Dish) -> None:
    dish.peer("gate", ReflexEvents)

    for _ in range(40):
        dish.cell.events.put_many([EVENT] * 100)

    assert dish.cell.events.waiting == 2_000
    assert dish.cell.events.dropped == 4_000 - 800 - 2_000


def test_a_few_items_travel_after_a_short_wait(dish: Dish) -> None:
    dish.peer("gate", ReflexEvents)

    dish.cell.events.put(EVENT)
    assert dish.sent(ReflexEvents) == []

    assert dish.run_until(lambda: [len(batch.events) for batch in dish.sent(ReflexEvents)] == [1])


def test_a_stream_forgets_a_peer_that_died_and_serves_its_successor(dish: Dish) -> None:
    dish.peer("gate", ReflexEvents)
    dish.cell.events.put_many([EVENT] * 1_000)
    dish.peer("gate", ReflexEvents, up=False)
    dish.out.clear()

    dish.peer("gate", ReflexEvents, incarnation=2)
    dish.cell.events.put_many([EVENT] * 200)

    assert dish.cell.events.dropped == 200
    assert [len(batch.events) for batch in dish.sent(ReflexEvents)] == [200]


def test_a_streamed_batch_earns_its_sender_credit(dish: Dish) -> None:
    from actors.core.codec import encode

    dish.peer("permeability")

    dish.cell.hear(Frame(encode(Enforce(orders=[], generation=1), "permeability", 1, stream=3), PEER_PID, 0, "x"))

    assert dish.sent(Credit, "permeability") == [Credit(stream=3)]


def test_an_orderly_end_runs_the_hook_and_leaves() -> None:
    from actors.core.codec import encode
    from tests.support.core import SUPERVISOR_PID

    dish = Dish(Sample, name="sample")

    dish.cell.hear(Frame(encode(Stop(), "basal_layer", 1), SUPERVISOR_PID, 0, "x"))

    assert dish.cell.seen == ["stopped"]
    assert dish.left
    dish.cell.timers.close()


def test_two_handlers_for_one_message_are_refused_when_the_cell_is_made() -> None:
    class Twice(Cell):
        @receives(Enforce)
        def one(self, message: Enforce, source: str) -> None: ...

        @receives(Enforce)
        def two(self, message: Enforce, source: str) -> None: ...

    with pytest.raises(TypeError, match="both one and two are declared for Enforce"):
        Dish(Twice)


def test_a_mistake_in_its_section_of_the_settings_keeps_a_cell_degraded_with_the_reason() -> None:
    class Sectioned(Cell):
        section = "merkel"

    settings = SimpleNamespace(problems={"merkel": "merkel.baseline_minutes is -1"})

    dish = Dish(Sectioned, settings=settings)

    assert dish.cell.state is CellState.DEGRADED
    assert "baseline_minutes" in dish.cell.report().reason
    assert "[merkel]" in dish.cell.report().remedy
