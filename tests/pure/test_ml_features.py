"""Features, windows and the bounded table: what they say, what they must not know, and how much they may hold."""

import dataclasses

import numpy as np
import pytest

from ml.features import FEATURES, HABIT_COLUMNS, N_FEATURES, NAMES, Habits, extract, schema_hash
from ml.flows import FlowReader, Snapshots, Why
from ml.outcome import outcome
from ml.records import ACK, FLOW, RST, SYN
from ml.table import PlaceTable
from ml.windows import PAIR_FEATURES, SOURCE_FEATURES, Windows
from tests.support.ml import made_up, one_flow, snapshots, tick


def shown(flows: np.ndarray, at_s: float = 101.0, why: Why = Why.FIRST_LOOK) -> Snapshots:
    """Flows as freshly seen, first half a second ago."""
    count = len(flows)
    now = int(at_s * 1e9)
    return Snapshots(
        now, flows, np.full(count, now - 500_000_000), np.arange(count), np.full(count, why, "u1"), np.ones(count, "?"),
        np.zeros(count, "?"), flows["side"]["packets"].astype("i8"), flows["side"]["wire_bytes"].astype("i8"),
    )  # fmt: skip


def many(count: int, *, sources: int = 1, ports: int = 1, peers: int = 1) -> np.ndarray:
    """TCP flows with a SYN each, over so many sources, server ports and destinations."""
    flows = np.repeat(one_flow(), count)
    numbers = np.arange(count)
    flows["key"]["addr"][:, 0, 12:] = (numbers % sources).astype(">u4").view("u1").reshape(-1, 4)
    flows["key"]["addr"][:, 1, 15] = numbers % peers
    flows["key"]["port"][:, 1] = 1000 + numbers % ports
    return flows


def figure(names: tuple[str, ...], rows: np.ndarray, name: str) -> float:
    return float(rows[0, names.index(name)])


def test_every_feature_stays_within_the_bounds_it_declares() -> None:
    rng = np.random.default_rng(1)
    flows = np.frombuffer(rng.bytes(200 * FLOW.itemsize), FLOW).copy()

    out = extract(shown(flows), Habits.none())

    low, high = np.array([(f.low, f.high) for f in FEATURES]).T
    assert np.isfinite(out).all()
    assert (out >= low).all()
    assert (out <= high).all()


def test_all_zero_records_give_finite_features() -> None:
    assert np.isfinite(extract(shown(np.zeros(3, FLOW)), Habits.none())).all()


def test_addresses_client_ports_ttl_and_absolute_time_change_no_feature() -> None:
    batch = snapshots(made_up().folder / "train_clean.pcap")[5]
    moved = batch.flows.copy()
    moved["key"]["addr"] = np.random.default_rng(2).integers(0, 255, moved["key"]["addr"].shape)
    moved["key"]["port"][:, 0] = 7
    for name in ("ttl", "window", "mss", "syn_seq"):
        moved["side"][name] = 1
    moved["vlan"], moved["ifindex"] = 5, 9
    later = 3_600_000_000_000
    for field in ("first_ns", "last_ns"):
        moved["side"][field] += np.where(moved["side"][field] > 0, np.uint64(later), np.uint64(0))
    moved["last_ns"] += np.uint64(later)
    other = dataclasses.replace(batch, flows=moved, first_ns=batch.first_ns + later, now_ns=batch.now_ns + later)

    same = extract(batch, made_up().model.habits)
    disguised = extract(other, made_up().model.habits)

    assert np.array_equal(same, disguised)


def test_a_batch_gives_what_each_flow_gives_alone() -> None:
    batch, habits = snapshots(made_up().folder / "train_clean.pcap")[9], made_up().model.habits

    together = extract(batch, habits)
    alone = np.concatenate([extract(batch.rows(slice(i, i + 1)), habits) for i in range(len(batch))])

    assert np.array_equal(together, alone)


def test_a_service_that_was_never_seen_is_unseen_and_not_unlike() -> None:
    habits = made_up().model.habits

    out = extract(shown(many(1)), habits)[0]

    assert out[NAMES.index("service_unseen")] == 1
    assert all(out[NAMES.index(f"unlike_{name}")] == 0 for name in HABIT_COLUMNS)


def test_the_schema_hash_names_this_very_schema() -> None:
    assert len(schema_hash()) == 64
    assert len(set(NAMES)) == N_FEATURES


@pytest.mark.parametrize(
    ("answer", "acknowledged", "expected"),
    [({}, 0, "unanswered"), ({RST: 1, ACK: 1}, 0, "refused"), ({SYN: 1, ACK: 1}, 0, "half_open"), ({SYN: 1}, 1, "")],
)
def test_the_outcome_of_a_handshake_is_told_apart(answer: dict[int, int], acknowledged: int, expected: str) -> None:
    table = one_flow()
    table["side"][0, 0]["flags"][ACK] = acknowledged
    for flag, count in answer.items():
        table["side"][0, 1]["flags"][flag] = count
        table["side"][0, 1]["packets"] = 1

    end = outcome(table)

    assert [name for name in ("unanswered", "refused", "half_open") if getattr(end, name)[0]] == [expected] * bool(
        expected
    )


def test_a_scan_shows_in_the_distinct_ports_of_its_source() -> None:
    few, scan = Windows(), Windows()

    usual = few.update(shown(many(60, ports=3)))
    scanned = scan.update(shown(many(60, ports=60)))

    assert np.expm1(figure(SOURCE_FEATURES, usual.sources, "src_ports_60s")) == pytest.approx(3, abs=1)
    assert np.expm1(figure(SOURCE_FEATURES, scanned.sources, "src_ports_60s")) == pytest.approx(60, rel=0.25)


def test_a_slow_scan_is_still_known_after_minutes() -> None:
    windows = Windows()
    for i in range(30):
        flow = many(1)
        flow["key"]["port"][:, 1] = 1000 + i * 37
        seen = windows.update(shown(flow, at_s=101 + i * 8))

    assert np.expm1(figure(SOURCE_FEATURES, seen.sources, "src_ports_300s")) > 20
    assert np.expm1(figure(SOURCE_FEATURES, seen.sources, "src_ports_10s")) < 3


def test_a_beacon_is_regular_and_random_arrivals_are_not() -> None:
    def regularity(gaps: np.ndarray) -> float:
        windows, at = Windows(), 101.0
        for gap in gaps:
            at += float(gap)
            seen = windows.update(shown(many(1), at_s=at))
        return figure(PAIR_FEATURES, seen.pairs, "pair_regularity")

    beacon = regularity(np.full(20, 10.0))
    people = max(regularity(np.random.default_rng(seed).exponential(10.0, 20)) for seed in range(5))

    assert beacon > 0.9
    assert people < 0.2


def test_figures_fade_with_time_and_survive_a_clock_that_steps_back() -> None:
    windows = Windows()
    busy = windows.update(shown(many(100)))

    later = windows.update(shown(many(1), at_s=161.0))
    back = windows.update(shown(many(1), at_s=100.0))

    assert figure(SOURCE_FEATURES, later.sources, "src_flows_10s") < 1
    assert figure(SOURCE_FEATURES, busy.sources, "src_flows_10s") > 4
    assert np.isfinite(back.sources).all()


def test_ipv6_sources_of_one_64_are_one_source() -> None:
    flows = many(4)
    flows["key"]["family"] = 6
    flows["key"]["addr"][:, 0] = 0
    flows["key"]["addr"][:, 0, :2] = (0x20, 0x01)
    flows["key"]["addr"][:, 0, 15] = (1, 2, 3, 4)

    assert len(Windows().update(shown(flows)).sources) == 1


def test_a_million_forged_sources_keep_the_memory_and_the_known_source() -> None:
    windows = Windows()
    before = windows.nbytes
    for second in range(3):
        windows.update(shown(many(50), at_s=101 + second))

    rng = np.random.default_rng(3)
    for i in range(20):
        flood = np.repeat(one_flow(), 50_000)
        flood["key"]["addr"][:, 0, 12:] = rng.integers(0, 256, (50_000, 4))
        windows.update(shown(flood, at_s=104 + i * 0.5))
    known = windows.update(shown(many(1), at_s=115))

    assert windows.nbytes == before < 64_000_000
    assert windows.evicted + windows.crowded > 900_000
    assert figure(SOURCE_FEATURES, known.sources, "src_flows_60s") > 4


def test_the_table_finds_again_what_it_placed_and_puts_the_rest_into_the_crowd() -> None:
    table = PlaceTable(64)
    keys = np.arange(1, 41, dtype="u8")

    first, new = table.find(keys, 1)
    second, again = table.find(keys, 2)

    placed = first > 0
    assert new[placed].all()
    assert len(set(first[placed].tolist())) == placed.sum()
    assert np.array_equal(first[placed], second[placed])
    assert not again[placed].any()
    assert table.crowded >= (~placed).sum()


def test_keys_beyond_the_table_evict_the_oldest_and_are_counted() -> None:
    table = PlaceTable(64)
    for moment in range(10):
        table.find(np.arange(1 + moment * 20, 21 + moment * 20, dtype="u8"), moment)

    assert table.evicted > 50


def test_a_table_that_cannot_be_split_into_sets_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        PlaceTable(100)


def test_the_reader_and_the_windows_know_their_size() -> None:
    reader = FlowReader(131_072)
    reader.tick(tick(one_flow(), 101))

    assert reader.nbytes < 10_000_000
    assert Windows().nbytes < 64_000_000
