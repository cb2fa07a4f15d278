"""The blocklist images, asked through the real kernel: exact against a slower oracle."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actors.epidermis import blocklist, blocklist6, prefixes
from actors.epidermis.blocklist import compile4
from actors.epidermis.blocklist6 import compile6
from actors.epidermis.feed_formats import parse
from actors.epidermis.feed_health import OwnNetworks, judge
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.feeds import BlocklistFiles, compile_feeds
from actors.epidermis.prefixes import Prefixes
from bpf.blocklist_image import read_image
from tests.support import feeds

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[feeds.Probe]:
    with feeds.probe(tmp_path_factory.mktemp("probe")) as loaded:
        yield loaded


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20_26)


def compiled(listed: Prefixes, classes: np.ndarray | None = None, seed: int = 7):
    classes = np.zeros(len(listed), np.uint8) if classes is None else classes
    return compile4(listed, classes) if listed.family == 4 else compile6(listed, classes, np.random.default_rng(seed))


def assert_exact(probe: feeds.Probe, listed: Prefixes, random: np.random.Generator, strangers: int = 50_000) -> None:
    """Every border of every prefix, and addresses at random, get the oracle's answer."""
    probe.publish(compiled(listed))
    somewhere = feeds.random_prefixes(listed.family, [32 if listed.family == 4 else 128], strangers, random)
    hi, lo = feeds.around(listed)
    hi, lo = np.concatenate([hi, somewhere.hi]), np.concatenate([lo, somewhere.lo])

    answers = probe.ask(listed.family, feeds.packed(listed.family, hi, lo)) > 0

    expected = feeds.oracle(listed, hi, lo)
    wrong = np.flatnonzero(answers != expected)
    assert not len(wrong), [(hex(hi[i]), hex(lo[i]), bool(expected[i])) for i in wrong[:5]]
    if len(listed):
        assert answers.any()


@pytest.mark.parametrize("family", [4, 6])
def test_an_empty_list_blocks_nobody(probe: feeds.Probe, random: np.random.Generator, family: int) -> None:
    assert_exact(probe, prefixes.empty(family), random)


@pytest.mark.parametrize("family", [4, 6])
def test_prefixes_of_every_length_are_exact(probe: feeds.Probe, random: np.random.Generator, family: int) -> None:
    every = range(6, 33) if family == 4 else range(12, 129)

    assert_exact(probe, feeds.random_prefixes(family, every, 2_000, random), random, strangers=20_000)


@pytest.mark.parametrize("family", [4, 6])
def test_a_length_alone_is_exact(probe: feeds.Probe, random: np.random.Generator, family: int) -> None:
    edges = (0, 8, 18, 19, 24, 25, 26, 32) if family == 4 else (0, 1, 32, 63, 64, 65, 128)
    for length in edges:
        assert_exact(probe, feeds.random_prefixes(family, [length], 3, random), random, strangers=500)


@pytest.mark.parametrize(
    "listed",
    [
        ("0.0.0.0/0",),
        ("0.0.0.0/1",),
        ("0.0.0.0/32", "255.255.255.255/32"),
        ("10.0.0.0/18", "10.0.64.0/18", "10.0.70.0/24", "10.0.70.7/32"),
        ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/25", "10.0.1.128/32"),
        ("192.0.2.63/32", "192.0.2.64/32", "192.0.2.127/32", "192.0.2.128/26", "192.0.2.255/32"),
        ("::/0",),
        ("8000::/1", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"),
        ("2001:db8::/32", "2001:db8::/48", "2001:db8::/64", "2001:db8::/65", "2001:db8::/128"),
        ("2001:db8::/48",),
        ("2001:db8:0:0:8000::/65", "2001:db8:0:1::/64", "2001:db8:0:2::/63"),
    ],
)
def test_borders_and_overlaps_are_exact(
    probe: feeds.Probe, random: np.random.Generator, listed: tuple[str, ...]
) -> None:
    family = 6 if ":" in listed[0] else 4

    assert_exact(probe, prefixes.from_networks(family, feeds.networks(*listed)), random)


def test_a_thousand_neighbours_in_few_blocks_are_exact(probe: feeds.Probe, random: np.random.Generator) -> None:
    crowd = feeds.random_prefixes(4, [26, 27, 28, 29, 30, 31, 32], 1_000, random)
    crowd = Prefixes(4, (crowd.hi & prefixes.MASK_HI[32]) >> np.uint64(20) << np.uint64(20), crowd.lo, crowd.plen)
    hi = (np.uint64(0xC6336400_00000000) | (crowd.hi & np.uint64(0x000003FF_00000000))) & prefixes.MASK_HI[crowd.plen]

    assert_exact(probe, Prefixes(4, hi, crowd.lo, crowd.plen), random)


def test_all_but_one_ipv6_address_is_exact_though_it_takes_128_lengths(
    probe: feeds.Probe, random: np.random.Generator
) -> None:
    everything = prefixes.from_networks(6, feeds.networks("::/0"))
    all_but_one = prefixes.subtract(everything, feeds.networks("2001:db8::5/128"))

    assert len(np.unique(all_but_one.plen)) == 128
    assert_exact(probe, all_but_one, random)


@pytest.mark.parametrize("family", [4, 6])
def test_a_million_entries_are_exact(probe: feeds.Probe, random: np.random.Generator, family: int) -> None:
    mix = [(32, 0.9), (24, 0.09), (22, 0.009), (20, 0.001)] if family == 4 else [(128, 0.5), (64, 0.4), (48, 0.1)]
    listed = prefixes.concat(
        family, [feeds.random_prefixes(family, [plen], int(share * 1_000_000), random) for plen, share in mix]
    )
    probe.publish(compiled(listed))
    chosen = listed.pick(random.integers(0, len(listed), 20_000))
    somewhere = feeds.random_prefixes(family, [32 if family == 4 else 128], 100_000, random)
    hi, lo = feeds.around(chosen)
    hi, lo = np.concatenate([hi, somewhere.hi]), np.concatenate([lo, somewhere.lo])

    answers = probe.ask(family, feeds.packed(family, hi, lo)) > 0

    assert np.array_equal(answers, feeds.oracle(listed, hi, lo))
    assert probe.ask(family, feeds.packed(family, listed.hi, listed.lo)).all()


@pytest.mark.parametrize("family", [4, 6])
def test_the_answer_names_the_class_of_the_feed(probe: feeds.Probe, random: np.random.Generator, family: int) -> None:
    host = 32 if family == 4 else 128
    listed = feeds.random_prefixes(family, [host - 12, host - 8, host], 60, random)
    classes = np.arange(60, dtype=np.uint8)
    probe.publish(compiled(listed, classes))

    answers = probe.ask(family, feeds.packed(family, listed.hi, listed.lo))

    assert answers.tolist() == [1 + number for number in range(60)]


def test_a_block_shared_by_two_feeds_counts_as_mixed(probe: feeds.Probe) -> None:
    listed = prefixes.from_networks(4, feeds.networks("192.0.2.1/32", "192.0.2.9/32", "198.51.100.1", "198.51.100.2"))
    probe.publish(compiled(listed, np.array([3, 4, 5, 5], np.uint8)))

    answers = probe.ask(4, feeds.packed(4, listed.hi, listed.lo))

    assert answers.tolist() == [1 + blocklist.CLASS_MIXED, 1 + blocklist.CLASS_MIXED, 6, 6]


def test_the_same_address_in_sixty_feeds_takes_one_place(probe: feeds.Probe) -> None:
    for family, text in ((4, "192.0.2.1/32"), (6, "2001:db8::1/128")):
        listed = prefixes.from_networks(family, feeds.networks(*[text] * 60))
        probe.publish(compiled(listed, np.arange(60, dtype=np.uint8)))

        assert probe.ask(family, feeds.packed(family, listed.hi[:1], listed.lo[:1])).tolist() == [1]


def test_full_buckets_spill_into_the_stash_and_are_still_found(
    probe: feeds.Probe, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocklist6, "BUCKET_LOAD", 8)  # more than the seven slots of a bucket

    assert_exact(probe, feeds.random_prefixes(6, [64, 128], 20_000, random), random)


@pytest.mark.parametrize("family", [4, 6])
def test_garbage_in_an_image_gives_answers_but_no_fault(
    probe: feeds.Probe, random: np.random.Generator, family: int
) -> None:
    pages = random.integers(0, 256, (2_000, 4096), np.uint8)
    somewhere = feeds.random_prefixes(family, [32 if family == 4 else 128], 20_000, random)
    probe.publish(blocklist.Image(family, 1, pages))

    answers = probe.ask(family, feeds.packed(family, somewhere.hi, somewhere.lo))

    assert (answers <= 64).all()
    probe.publish(compiled(prefixes.empty(family)))


@pytest.mark.parametrize("family", [4, 6])
def test_no_packet_is_judged_by_a_half_written_table(
    probe: feeds.Probe, random: np.random.Generator, family: int
) -> None:
    """Two lists swap places all the time; what both have is blocked, what neither has passes, at every moment."""
    host = 32 if family == 4 else 128
    both, neither = (feeds.random_prefixes(family, [host], 2_000, random) for _ in range(2))
    lists = [
        prefixes.concat(family, [both, feeds.random_prefixes(family, [host, host - 8], 50_000, random)])
        for _ in range(2)
    ]
    neither = neither.pick(~feeds.oracle(prefixes.concat(family, lists), neither.hi, neither.lo))
    images = [compiled(listed, seed=number) for number, listed in enumerate(lists)]
    asked = prefixes.concat(family, [both, neither])
    questions = np.tile(feeds.packed(family, asked.hi, asked.lo), (100, 1))
    expected = np.tile(np.repeat([True, False], [len(both), len(neither)]), 100)
    probe.publish(images[0])
    swaps = 0

    with ThreadPoolExecutor(1) as pool:
        answers = [pool.submit(probe.ask, family, questions) for _ in range(4)]
        while not answers[-1].done():
            swaps += 1
            probe.publish(images[swaps % 2])

    assert swaps >= 3
    assert len(neither) > 1_000
    for answer in answers:
        assert np.array_equal(answer.result() > 0, expected)


@pytest.mark.timed
def test_a_million_entries_are_in_the_kernel_soon_after_their_text_came(
    probe: feeds.Probe, random: np.random.Generator, tmp_path: Path
) -> None:
    mix = [(32, 0.9), (24, 0.09), (22, 0.009), (20, 0.001)]
    listed = prefixes.concat(4, [feeds.random_prefixes(4, [plen], int(part * 1_000_000), random) for plen, part in mix])
    text = "\n".join(prefixes.to_text(listed)).encode()
    source = FeedSource.model_validate({"name": "million", "path": "/dev/null", "special": "subtract"})
    files = BlocklistFiles(tmp_path)
    started = time.monotonic()

    healthy = judge(parse(text), source, OwnNetworks())
    files.write(compile_feeds([("million", healthy.v4, healthy.v6)], OwnNetworks(), random))
    probe.publish(read_image(files.snapshot4, 4, blocklist.PAGES4))
    took = time.monotonic() - started

    allowed = healthy.v4.pick(random.integers(0, len(healthy.v4), 10_000))
    assert probe.ask(4, feeds.packed(4, allowed.hi, allowed.lo)).all()
    assert took < 9  # aim: 3 s on a machine that does nothing else


def test_both_sides_agree_on_the_layout() -> None:
    text = "".join((feeds.ROOT / "bpf" / name).read_text() for name in ("blocklist.h", "shared.h"))

    def constant(name: str) -> int:
        found = re.search(rf"#define {name}\s+(\w+?)u?\s", text)
        assert found, name
        return int(found[1], 0)

    assert constant("BL_PAGE_BYTES") == blocklist.PAGE_BYTES
    assert constant("BL_CLASS_MIXED") == blocklist.CLASS_MIXED
    assert constant("BL4_RANK_PAGE") == blocklist.RANK_PAGE
    assert constant("BL4_ENTRY_PAGE") == blocklist.ENTRY_PAGE
    assert constant("BL4_UNIFORM") == blocklist.UNIFORM
    assert constant("BL6_BITS_PAGE") == blocklist6.BITS_PAGE
    assert constant("BL6_BUCKET_PAGE") == blocklist6.BUCKET_PAGE
    assert constant("BL6_LENGTHS") == blocklist6.LENGTHS
    assert constant("BL6_SLOTS") == blocklist6.SLOTS
    assert constant("TG_SNAPSHOT_PAGES") == blocklist.PAGES4
    assert constant("TG_SNAPSHOT6_PAGES") == blocklist6.PAGES6
