"""The learning pool from both ends: what the session cell keeps, within which bounds, and what may be learned of it."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dermis import mast_cell_pool
from actors.dermis.mast_cell_pool import PER_LOOK, SEGMENT_S, SEGMENTS, Samples
from ml import blamed
from ml.dataset import TableError, collect
from ml.flows import FlowReader
from ml.meter import CaptureMeter, Tick
from ml.own import to_text
from ml.pool import Pool, of_sources
from ml.segment import SegmentError, read
from ml.synthetic import CLIENTS
from tests.support.mast import HOST, NODE, S, Table
from tests.support.ml import made_up

DAY = 86_400.0
NOW = 1_800_000_000.0


def shown(table: Table, at_s: float = 1001.0):
    return FlowReader().tick(Tick(int(at_s * S), table.records, np.arange(len(table.rows))))


def visitors(count: int, at_s: float = 1000.0, first: int = 0) -> Table:
    table = Table()
    for number in range(first, first + count):
        table.session(f"203.0.{number // 250 % 250}.{number % 250 + 1}", 443, at_s, payload=100 + number)
    return table


def kept(folder: Path) -> np.ndarray:
    """All rows of all segments that have ended."""
    return np.concatenate([read(path)[1] for path in Pool(folder).segments()])


def keep_capture(samples: Samples, path: Path, unix_s: float) -> None:
    """Show a capture to the pool as the cell would."""
    reader = FlowReader()
    for tick in CaptureMeter(path).ticks():
        samples.keep(tick.now_ns, unix_s, reader.tick(tick), HOST)
    samples.close(unix_s)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_shown_is_kept_without_what_no_feature_reads(tmp_path):
    table = visitors(1)
    table.session("2001:db8:1:2:3:4:5:6", 443, 1000)
    table.rows[0]["side"]["ttl"], table.rows[0]["side"]["window"] = 64, 1000
    table.rows[0]["ifindex"] = 3
    samples = Samples(tmp_path, 100)

    samples.keep(1001 * S, NOW, shown(table), HOST)
    samples.close(NOW)

    rows = kept(tmp_path)
    flow = rows["flow"]
    assert [to_text(address.tobytes()) for address in flow["key"]["addr"][:, 0]] == ["203.0.0.1", "2001:db8:1:2::"]
    assert flow["key"]["port"].tolist() == [[0, 443], [0, 443]]
    assert not flow["side"]["ttl"].any()
    assert not flow["side"]["window"].any()
    assert not flow["ifindex"].any()
    assert flow["side"]["payload_bytes"][0, 0] == 100
    assert stat.S_IMODE(Pool(tmp_path).segments()[0].stat().st_mode) == 0o600


def test_a_model_sees_in_the_pool_what_it_would_have_seen_in_the_capture(tmp_path):
    path = made_up().folder / "train_clean.pcap"
    samples = Samples(tmp_path, 1000)

    keep_capture(samples, path, 1e9)  # the capture's own clock, so that nothing is shifted
    lesson = Pool(tmp_path).clean(1e9 + DAY)

    offline = collect(CaptureMeter(path))
    assert len(lesson.table) == len(offline)
    assert np.array_equal(lesson.table.features, offline.features)
    assert np.abs(lesson.table.sources - offline.sources).max() < 1e-5
    assert np.array_equal(lesson.table.units(), offline.units())
    assert {to_text(address.tobytes()) for address in lesson.own} == {NODE, "2001:db8::10"}


def test_an_hour_is_a_segment_and_the_oldest_make_room(tmp_path):
    samples = Samples(tmp_path, 100)

    for hour in range(SEGMENTS + 3):
        at = NOW + hour * SEGMENT_S
        samples.keep(1001 * S, at, shown(visitors(3, first=hour)), HOST)
        samples.flush(at + SEGMENT_S)

    segments = Pool(tmp_path).segments()
    assert len(segments) == SEGMENTS
    assert int(segments[0].stem) == int(NOW + 4 * SEGMENT_S)


def test_a_full_segment_rests_until_some_time_in_the_next_hour(tmp_path):
    samples = Samples(tmp_path, 1)

    for second in range(60):
        samples.keep(1001 * S, NOW + second, shown(visitors(400, first=1000 * second)), HOST)

    (segment,) = Pool(tmp_path).segments()
    assert segment.stat().st_size < 3 * 1e6 / SEGMENTS
    assert "resting" in samples.words(NOW + 60)
    assert samples.words(NOW + 2 * SEGMENT_S) == "recording one source in 2", "it was full too soon to be worth much"


def test_a_busy_node_keeps_some_sources_whole_and_the_others_not_at_all(tmp_path):
    samples, table = Samples(tmp_path, 100), Table()
    for number in range(PER_LOOK):
        for port in (80, 443):
            table.session(f"203.0.{number // 250}.{number % 250 + 1}", port, 1000)

    for second in range(4):
        samples.keep(1001 * S, NOW + second, shown(table), HOST)
    samples.close(NOW + 5)

    addresses = [to_text(address.tobytes()) for address in kept(tmp_path)["flow"]["key"]["addr"][:, 0]]
    counts = {name: addresses.count(name) for name in set(addresses)}
    assert 0.3 < len(counts) / PER_LOOK < 0.7
    assert len(set(counts.values())) == 1


def test_a_siege_takes_the_hour_with_it(tmp_path):
    samples = Samples(tmp_path, 100)
    samples.keep(1001 * S, NOW, shown(visitors(5)), HOST)

    samples.alarm(NOW + 10)
    samples.keep(1001 * S, NOW + 20, shown(visitors(5)), HOST)
    samples.close(NOW + 30)

    assert Pool(tmp_path).segments() == []
    assert "resting" in samples.words(NOW + 30)


def test_what_an_earlier_life_left_open_is_a_segment(tmp_path):
    first = Samples(tmp_path, 100)
    first.keep(1001 * S, NOW, shown(visitors(600)), HOST)

    second = Samples(tmp_path, 100)
    second.close(NOW)

    assert len(kept(tmp_path)) == 600


def test_a_disk_that_refuses_is_said_and_tried_again_later(tmp_path):
    folder = tmp_path / "absent"
    samples = Samples(folder, 100)

    samples.keep(1001 * S, NOW, shown(visitors(5)), HOST)
    words = samples.words(NOW)
    folder.mkdir()
    samples.keep(1001 * S, NOW + 2 * SEGMENT_S, shown(visitors(5)), HOST)

    assert "cannot be written" in words
    assert "No such file" in words
    assert samples.words(NOW + 2 * SEGMENT_S) == "recording"


def test_a_pool_without_disk_keeps_nothing(tmp_path):
    samples = Samples(tmp_path, 0)

    samples.keep(1001 * S, NOW, shown(visitors(5)), HOST)
    samples.blame("203.0.0.1", NOW)
    samples.flush(NOW + 10)
    samples.close(NOW + 20)

    assert os.listdir(tmp_path) == []
    assert "off" in samples.words(NOW)


# --- what may be learned ---------------------------------------------------------------------------------------------


def sources_of(lesson) -> set[str]:
    return {to_text(address.tobytes()) for address in lesson.table.key["addr"][:, 0]}


def test_fresh_traffic_waits_and_that_of_the_blamed_is_left_out(tmp_path):
    samples = Samples(tmp_path, 1000)
    keep_capture(samples, made_up().folder / "train_clean.pcap", NOW)
    samples.blame(CLIENTS[0], NOW + DAY / 2)
    samples.flush(NOW + DAY / 2)

    with pytest.raises(TableError, match="hours"):
        Pool(tmp_path).clean(NOW + DAY - 60)
    lesson = Pool(tmp_path).clean(NOW + DAY)

    assert CLIENTS[0] not in sources_of(lesson)
    assert {CLIENTS[1], CLIENTS[2]} <= sources_of(lesson)
    assert lesson.left_out == 1


@pytest.mark.parametrize(("when", "learned"), [(-2 * DAY, True), (-DAY / 2, False), (0, False), (20 * DAY, False)])
def test_who_is_blamed_up_to_a_day_before_or_any_time_after_teaches_nothing(tmp_path, when, learned):
    samples = Samples(tmp_path, 1000)
    keep_capture(samples, made_up().folder / "train_clean.pcap", NOW)
    blamed.note(tmp_path, [CLIENTS[0]], NOW + when)

    lesson = Pool(tmp_path).clean(NOW + 30 * DAY)

    assert (CLIENTS[0] in sources_of(lesson)) is learned


@pytest.mark.parametrize(
    ("subject", "guilty"),
    [
        ("203.0.113.7", {"203.0.113.7"}),
        ("203.0.113.0/24", {"203.0.113.7", "203.0.113.8"}),
        ("2001:db8::/64", {"2001:db8::1", "2001:db8::2"}),
        ("2001:db8::1", {"2001:db8::1", "2001:db8::2"}),
        ("::/0", {"2001:db8::1", "2001:db8::2", "203.0.113.7", "203.0.113.8", "198.51.100.1"}),
        ("nobody", set()),
    ],
)
def test_the_blamed_are_found_by_address_by_network_and_by_64(subject, guilty):
    everybody = ["203.0.113.7", "203.0.113.8", "198.51.100.1", "2001:db8::1", "2001:db8::2"]
    table = Table()
    for name in everybody:
        table.session(name, 443, 1000)

    found = of_sources(table.records["key"], [subject])

    assert {name for name, bad in zip(everybody, found, strict=True) if bad} == guilty


def test_the_list_of_the_blamed_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(blamed, "MAX_BYTES", 10_000)

    for number in range(2_000):
        blamed.note(tmp_path, [f"203.0.113.{number % 250}"], NOW + number)

    assert (tmp_path / blamed.NAME).stat().st_size <= 10_100
    assert blamed.noted(tmp_path)[-1] == (int(NOW) + 1_999, f"203.0.113.{1_999 % 250}")


def test_a_flood_of_blame_is_written_and_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(mast_cell_pool, "BLAMED", 100)
    samples = Samples(tmp_path, 100)

    for number in range(1_000):
        samples.blame(f"203.0.{number // 250}.{number % 250}", NOW)
    samples.flush(NOW + 5)

    assert len({name for _, name in blamed.noted(tmp_path)}) == 1_000


def test_many_rows_are_thinned_flow_by_flow_the_same_way_every_time(tmp_path):
    samples = Samples(tmp_path, 1000)
    keep_capture(samples, made_up().folder / "train_clean.pcap", NOW)

    one, two = (Pool(tmp_path).clean(NOW + DAY, most_rows=1_500).table for _ in range(2))

    assert 1_000 < len(one) < 2_000
    assert np.array_equal(one.features, two.features)


# --- files that are none ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("pool")
    samples = Samples(folder, 100)
    samples.keep(1001 * S, NOW, shown(visitors(600)), HOST)
    samples.close(NOW)
    return Pool(folder).segments()[0].read_bytes()


def test_a_segment_that_was_cut_off_is_read_up_to_there(good, tmp_path):
    (tmp_path / "1.rows").write_bytes(good[: len(good) - 20])

    header, rows = read(tmp_path / "1.rows")

    assert header.kept == 1.0
    assert 0 < len(rows) <= 600


@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_damage_to_a_segment_gets_past_reading_as_an_exception_of_another_kind(good, tmp_path_factory, damage):
    broken = bytearray(good)
    for at, value in damage:
        broken[at % len(broken)] = value
    path = tmp_path_factory.mktemp("broken") / f"{int(NOW)}.rows"
    path.write_bytes(broken)

    try:
        _, rows = read(path)
    except SegmentError:
        return
    assert len(rows) <= 600


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08", os.urandom(500)])
def test_a_segment_that_is_none_is_passed_over_and_named(good, tmp_path, content):
    (tmp_path / f"{int(NOW)}.rows").write_bytes(good)
    (tmp_path / f"{int(NOW) + 1}.rows").write_bytes(content)

    lesson = Pool(tmp_path).clean(NOW + 2 * DAY)

    assert lesson.segments == 1
    assert len(lesson.unread) == 1
    assert str(tmp_path) in lesson.unread[0]
