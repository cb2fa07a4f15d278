"""Which interfaces are shaped, when queues are touched, and that switching shaping off takes them away."""

from pathlib import Path

from actors.core.errors import Unavailable
from actors.hypodermis.throttler_shaping import NOTE, Shaping
from tests.support.tc import FakeShaper


class Counting(FakeShaper):
    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def shape(self, interface, bits_per_s):
        self.calls.append((interface, bits_per_s))
        super().shape(interface, bits_per_s)

    def outward(self):
        return ["eth7"]


def begun(tool, mbit, interfaces, home):
    made = Shaping(mbit, interfaces, home, lambda: tool)
    made.begin()
    return made


def refuse():
    raise Unavailable("traffic control cannot be reached", remedy="do something")


def test_without_shaping_no_tool_is_opened(tmp_path: Path):
    made = Shaping(0, (), tmp_path, refuse)

    made.begin()
    made.keep(1.0, 0.0)

    assert made.problem == ""


def test_queues_are_touched_when_the_scale_moves_and_now_and_then(tmp_path: Path):
    tool = Counting({"skin0"})
    made = begun(tool, 10, ("skin0",), tmp_path)

    for second in range(10):
        made.keep(1.0, float(second))
    made.keep(0.5, 10.0)
    made.keep(0.5, 50.0)

    assert tool.calls == [("skin0", 10_000_000), ("skin0", 5_000_000), ("skin0", 5_000_000)]
    assert made.rates == {"skin0": 5_000_000}


def test_without_a_name_the_interfaces_of_the_default_routes_are_shaped(tmp_path: Path):
    made = begun(Counting({"eth7"}), 10, (), tmp_path)

    made.keep(1.0, 0.0)

    assert made.rates == {"eth7": 10_000_000}


def test_switched_off_the_queues_of_an_earlier_life_are_taken_away(tmp_path: Path):
    tool = Counting({"skin0", "skin1"})
    begun(tool, 10, ("skin0", "skin1"), tmp_path).keep(1.0, 0.0)

    begun(tool, 10, ("skin1",), tmp_path)
    one = tool.shaped("skin0"), tool.shaped("skin1")
    begun(tool, 0, ("skin1",), tmp_path)

    assert one == (0, 10_000_000)
    assert tool.shaped("skin1") == 0
    assert not (tmp_path / NOTE).exists()


def test_a_foreign_queue_or_an_absent_interface_is_said_and_the_others_are_shaped(tmp_path: Path):
    made = begun(Counting({"skin0", "skin1"}, {"skin0"}), 10, ("skin0", "skin1", "gone0"), tmp_path)

    made.keep(1.0, 0.0)

    assert made.rates == {"skin0": 0, "skin1": 10_000_000, "gone0": 0}
    assert "not shaped" in made.problem
    assert made.remedy


def test_no_traffic_control_is_said(tmp_path: Path):
    made = Shaping(10, ("skin0",), tmp_path, refuse)

    made.begin()
    made.keep(1.0, 0.0)

    assert "cannot be reached" in made.problem
    assert made.remedy == "do something"
