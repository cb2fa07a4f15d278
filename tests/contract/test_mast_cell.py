"""The mast cell in this process, over flow tables made by hand: what it proposes, records, feels and answers."""

import time
from pathlib import Path

import numpy as np
import pytest

from actors.core.errors import Refused
from actors.core.lifecycle import Reload
from actors.core.messages import (
    Action,
    Anomaly,
    Answer,
    Ask,
    CellReport,
    CellState,
    Enforce,
    Order,
    Record,
    Verdict,
)
from actors.dermis.mast_cell import MastCell
from actors.dermis.mast_cell_model import Eyes
from actors.dermis.merkel import Merkel
from actors.dermis.sessions_table import NoTable, addresses_in, open_live_flows, own_addresses, read_host
from config.settings import Settings
from ml import promotion
from ml.blamed import noted
from ml.meter import Tick
from ml.records import ACK, FIN, FLOW, SYN
from tests.support.core import Dish
from tests.support.mast import HOST, NODE, S, Table

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "ml/models/lab-example"
SCANNER = "198.51.100.7"


class HandMade:
    """A flow table that a test fills; the same face as the live one."""

    def __init__(self) -> None:
        self.records = np.zeros(0, FLOW)
        self.capacity = 4096

    def show(self, table: Table) -> None:
        self.records = table.records

    def quiet(self) -> bool:
        return not len(self.records)

    def spoken(self, now_ns: int) -> bool:
        return True

    def tick(self, now_ns: int) -> Tick:
        return Tick(now_ns, self.records, np.arange(len(self.records)))


class Plate(MastCell):
    """The cell with a table from the test's hand instead of the kernel's."""

    def before_drop(self) -> None:
        self._flows = HandMade()  # type: ignore[assignment]


@pytest.fixture
def dish(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.dermis.mast_cell_mind.read_host", lambda: HOST)
    dish = Dish(Plate, Settings(state_dir=tmp_path, bpf_dir=tmp_path), name="mast_cell")
    dish.peer("permeability", Verdict)
    dish.peer("memory_cell", Record)
    dish.peer("merkel", Anomaly)
    yield dish
    dish.stop()


def now_s() -> float:
    return time.monotonic()


def scan(at_s: float, doors: int = 30) -> Table:
    table = Table()
    for port in range(1, doors + 1):
        table.knock(SCANNER, port, at_s)
    return table


def test_a_scan_becomes_one_proposal_with_reason_and_evidence(dish):
    dish.cell._flows.show(scan(now_s() - 1))

    assert dish.run_until(lambda: bool(dish.sent(Verdict)), 3)
    dish.run(0.6)

    (verdict,) = dish.sent(Verdict, "permeability")
    assert (verdict.subject, verdict.action, verdict.reason) == (SCANNER, Action.BAN, "port scan")
    assert verdict.evidence.startswith(f"touched 30 ports of {NODE}")
    assert verdict.origin == "mast_cell"
    assert dish.cell.counters["found_scan"] == 1


def test_attackers_and_those_under_watch_are_listed(dish):
    table = scan(now_s() - 1)
    for port in (1, 2, 3):
        table.knock("198.51.100.8", port, now_s() - 1)
    dish.cell._flows.show(table)
    dish.run_until(lambda: bool(dish.sent(Verdict)), 3)

    told = dish.ask("sessions.top", {"limit": 5})

    assert [row["subject"] for row in told["attackers"]] == [SCANNER]
    assert told["attackers"][0]["times"] == 1
    assert {row["subject"]: row["targets"] for row in told["watched"]} == {SCANNER: 30, "198.51.100.8": 3}


def test_sessions_are_listed_by_weight_with_their_state(dish):
    table = Table()
    table.session("203.0.113.1", 443, now_s() - 3, payload=9_000)
    table.session("203.0.113.2", 443, now_s() - 3, payload=100)
    table.knock("203.0.113.3", 23, now_s() - 3)
    dish.cell._flows.show(table)

    told = dish.ask("sessions.list", {"by": "bytes", "limit": 2})

    assert [row["source"] for row in told["sessions"]] == ["203.0.113.1", "203.0.113.2"]
    assert told["count"] == 3
    assert told["half_open_share"] == pytest.approx(1 / 3, abs=0.001)
    with pytest.raises(Refused, match="by bytes or packets"):
        dish.ask("sessions.list", {"by": "colour"})
    with pytest.raises(Refused, match="whole number"):
        dish.ask("sessions.top", {"limit": "many"})


def test_temperature_follows_what_was_felt(dish):
    merkel = Dish(Merkel, Settings(), name="merkel")
    merkel.peer("mast_cell")
    dish.cell._flows.show(scan(now_s() - 1))
    dish.run_until(lambda: any(told.mean > 0.5 for told in dish.sent(Anomaly)), 3)

    merkel.give(dish.sent(Anomaly)[-1], "mast_cell")
    felt = merkel.ask("qualia")["temperature"]
    merkel.peer("mast_cell", up=False)
    without = merkel.ask("qualia")["temperature"]
    merkel.stop()

    assert felt["value"] == 1.0
    assert felt["raw"] == 30
    assert "led to no connection" in felt["unit"]
    assert "no detector" in without["unit"]


def test_nothing_is_told_while_nothing_moves(dish):
    dish.run(2.5)

    assert len(dish.sent(Anomaly)) <= 1
    assert dish.sent(Verdict) == dish.sent(Record) == []


def test_large_finished_sessions_are_written_down_once(dish):
    table = Table()
    table.session("203.0.113.1", 443, now_s() - 3, payload=20_000_000)
    table.session("203.0.113.2", 443, now_s() - 3, payload=100)
    dish.cell._flows.show(table)
    dish.run(1.2)

    dish.cell._write_down()
    dish.cell._write_down()

    (record,) = dish.sent(Record, "memory_cell")
    assert [(entry.kind, entry.subject) for entry in record.entries] == [("session", "203.0.113.1")]
    assert record.entries[0].body["bytes"][0] > 20_000_000


def test_without_a_model_the_cell_says_that_it_learns_and_the_rules_act(dish):
    told = dish.ask("mast.status")

    assert (dish.cell.state, told["model"]) == (CellState.HEALTHY, "learning")
    assert "plain rules act" in told["reason"]


class TableLess(MastCell):
    def before_drop(self) -> None:
        self._flows = NoTable("there is no flow table", absent=True)


def test_without_a_flow_table_the_cell_is_off_and_starts_anew_when_the_program_comes(tmp_path):
    dish = Dish(TableLess, Settings(state_dir=tmp_path), name="mast_cell")
    dish.peer("basal_layer", answers=("cell.restart",))
    dish.peer("reflex_arc")
    dish.cell._began -= 60
    assert dish.cell.state is CellState.OFF
    with pytest.raises(Refused, match="no flow table"):
        dish.ask("sessions.list")

    hooked = CellReport(cell="reflex_arc", state=CellState.HEALTHY, gauges={"interfaces_hooked": 1.0})
    dish.give(CellReport(cell="reflex_arc", state=CellState.HEALTHY), "reflex_arc")
    before = [ask for ask in dish.sent(Ask) if ask.verb == "cell.restart"]
    dish.give(hooked, "reflex_arc")
    dish.give(hooked, "reflex_arc")

    asked = [ask for ask in dish.sent(Ask) if ask.verb == "cell.restart"]
    dish.give(Answer(id=asked[0].id, value={}), "basal_layer")
    dish.stop()
    assert before == []
    assert [ask.args for ask in asked] == [{"name": "mast_cell"}]


def test_while_nobody_speaks_the_code_of_sessions_is_not_even_loaded():
    import subprocess
    import sys

    heavy = ("torch", "safetensors", "numpy.ma", "ml.windows", "ml.flows", "ml.capture", "actors.dermis.scans")
    code = f"import sys, actors.dermis.mast_cell; print([m for m in {heavy!r} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_look_with_a_model_never_loads_what_only_training_needs(tmp_path):
    import subprocess
    import sys

    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    code = """
import sys
from pathlib import Path
import numpy as np
from actors.dermis.mast_cell_mind import Mind
from actors.dermis.mast_cell_pool import Samples
from ml.meter import Tick
from tests.support.mast import Table
mind = Mind(Path(sys.argv[1]), 0, (22,), Samples(Path(sys.argv[1]), 100))
mind.look_at_host()
table = Table()
for port in range(1, 300):
    table.knock("198.51.100.7", port, 1000)
    table.add(f"203.0.113.{port % 250 + 1}", 22, 1000, packets=5, payload=99, flags=(1, 4, 0, 4), answer=(1, 4, 0, 4))
seen = mind.examine(Tick(1001 * 10**9, table.records, np.arange(len(table.rows))), (), 10)
print(mind.eyes.state, seen.shown, sorted({"torch", "numpy.ma", "ml.dataset", "pydantic"} & set(sys.modules)))
"""

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "active 598 []", done.stderr


def test_blame_of_any_sensor_and_of_policy_is_noted_for_the_pool(dish, tmp_path):
    (tmp_path / "pool").mkdir()
    sensed = Verdict(
        subject="203.0.113.7", action=Action.BAN, reason="signature", origin="macrophage", seen_unix_s=time.time()
    )
    orders = [
        Order(subject="203.0.113.8", action=Action.BAN, until_unix_s=0, reason="by hand"),
        Order(subject="203.0.113.9", action=Action.OBSERVE, until_unix_s=0, reason="only watched"),
    ]
    dish.peer("macrophage")

    dish.give(sensed, "macrophage")
    dish.give(Enforce(orders=orders, generation=1), "permeability")
    dish.cell._samples.flush(time.time())

    assert {name for _, name in noted(tmp_path / "pool")} == {"203.0.113.7", "203.0.113.8"}


def test_a_reload_takes_up_a_promoted_model_at_once(dish, tmp_path):
    promotion.promote(tmp_path / "models", MODEL, time.time(), shadow_s=600)

    dish.cell.on_reload(Reload(), "basal_layer")

    told = dish.ask("mast.status")
    assert (told["model"], told["model_name"]) == ("shadow", "lab-example")
    assert promotion.heard(tmp_path / "models")["state"] == "shadow"


def test_ordinary_traffic_goes_to_the_pool_and_a_siege_does_not(dish, tmp_path):
    (tmp_path / "pool").mkdir()
    table = Table()
    for number in range(30):
        table.session(f"203.0.113.{number + 1}", 443, now_s() - 2)
    dish.cell._flows.show(table)
    dish.run(1.0)
    recorded = dish.ask("mast.status")["pool"]

    for number in range(400):
        table.knock(f"198.51.{number // 200}.{number % 200 + 1}", 80, now_s() - 2)
    dish.cell._flows.show(table)
    dish.run(1.2)
    after = dish.ask("mast.status")["pool"]

    assert (recorded["state"], recorded["rows"]) == ("recording", 30)
    assert after["rows"] == 0
    assert "resting" in after["state"]


def test_a_directory_without_pins_is_a_reason_in_words(tmp_path):
    missing = open_live_flows(tmp_path, 0.0)

    assert isinstance(missing, NoTable)
    assert missing.absent
    assert str(tmp_path) in missing.reason


def test_the_nodes_own_addresses_are_those_of_its_namespace():
    assert "127.0.0.1" in own_addresses()
    assert len(read_host().own) == len(own_addresses())


@pytest.mark.parametrize("answer", [b"", b"\0" * 40, b"\xff" * 200, bytes(range(256))])
def test_an_answer_of_the_kernel_that_is_none_names_no_address(answer):
    assert addresses_in(answer) == []


# --- the model ---------------------------------------------------------------------------------------------------


def two_sided(at_s: float, connections: int, answered: bool) -> Table:
    table = Table()
    for index in range(connections):
        table.add(
            f"203.0.113.{index % 200 + 1}", 443, at_s, packets=5, payload=300, flags=(SYN, ACK, ACK),
            answer=(SYN, ACK, ACK) if answered else (),
        )  # fmt: skip
    return table


def look(eyes: Eyes, table: Table, at_s: float):
    return eyes.look(Tick(int(at_s * S), table.records, np.arange(len(table.rows))))


def test_a_promoted_model_scores_and_another_promotion_is_taken_up(tmp_path):
    eyes = Eyes(tmp_path)
    eyes.refresh(HOST)
    assert eyes.state == "learning"
    assert look(eyes, two_sided(1000, 5, answered=True), 1001).anomaly is None

    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    eyes.refresh(HOST)
    seen = look(eyes, two_sided(1010, 5, answered=True), 1011)

    assert eyes.state == "active"
    assert seen.anomaly is not None
    assert ((seen.anomaly >= 0) & (seen.anomaly <= 1)).all()


def test_a_model_on_probation_shows_and_does_not_count(tmp_path):
    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=600)
    eyes = Eyes(tmp_path)

    eyes.refresh(HOST)

    assert eyes.state == "shadow"
    assert look(eyes, scan(1000), 1001).blamed == []
    assert "plain rules act" in eyes.reason


def test_a_model_that_knows_both_directions_is_not_believed_where_only_one_is_seen(tmp_path):
    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    eyes = Eyes(tmp_path)
    eyes.refresh(HOST)

    first = look(eyes, scan(990), 991)
    seen = look(eyes, two_sided(1000, 80, answered=False), 1001)

    assert first.blamed == []  # not even before it is known what this node sees
    assert eyes.state == "stale"
    assert "sees only what arrives" in eyes.reason
    assert seen.blamed == []


def test_a_model_is_soon_believed_where_the_other_side_comes_into_sight(tmp_path):
    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    eyes = Eyes(tmp_path)
    eyes.refresh(HOST)

    def others(at_s: int, answered: bool) -> None:
        """Three hundred conversations that take the places of those before."""
        records = two_sided(at_s, 300, answered=answered).records
        records["incarnation"] = at_s
        eyes.look(Tick((at_s + 1) * S, records, np.arange(len(records))))

    for at_s in range(1000, 1020):
        others(at_s, answered=False)
    before = eyes.state

    for at_s in range(1100, 1103):
        others(at_s, answered=True)

    assert (before, eyes.state) == ("stale", "active")
    assert "plain rules act" not in eyes.reason


def test_what_a_cell_finds_at_its_start_is_no_flood_to_the_model(tmp_path):
    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    table = Table()
    for number in range(400):
        table.add(
            "203.0.113.9", 443, 985 + number / 40, packets=6, payload=300, flags=(SYN, ACK, ACK, FIN, ACK),
            answer=(SYN, ACK, FIN, ACK), lasted_s=0.2,
        )  # fmt: skip
    reborn, wakeful = Eyes(tmp_path), Eyes(tmp_path)
    reborn.refresh(HOST)
    wakeful.refresh(HOST)

    found = look(reborn, table, 1000)
    told_in_time = look(wakeful, table, 996)

    assert len(found.shown) == 400, "the plain rules see them"
    assert len(found.timely) == 0
    assert found.blamed == []
    assert len(told_in_time.timely) > 100
    assert told_in_time.blamed != [], "the same within seconds is a flood"


def test_a_broken_model_is_a_state_and_no_crash(tmp_path):
    promotion.promote(tmp_path, MODEL, time.time(), shadow_s=0)
    (tmp_path / "current" / "weights.safetensors").write_bytes(b"not a model")
    eyes = Eyes(tmp_path)

    eyes.refresh(HOST)

    assert eyes.state == "stale"
    assert "card" in eyes.reason
    assert look(eyes, scan(1000), 1001).anomaly is None


def test_no_import_of_the_cell_brings_torch_or_the_weights_format():
    import subprocess
    import sys

    code = "import sys, actors.dermis.mast_cell; print([m for m in ('torch', 'safetensors') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
