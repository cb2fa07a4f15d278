"""What may be enforced, what is quarantined and why; and where feeds are defined."""

import ipaddress
from pathlib import Path

import numpy as np
import pytest

from actors.epidermis import prefixes
from actors.epidermis.feed_formats import parse
from actors.epidermis.feed_health import SPECIAL, OwnNetworks, Quarantined, judge, protect
from actors.epidermis.feed_sources import PACKAGED, FeedSource, load_sources
from actors.epidermis.feed_store import Copy, FeedStore, digest
from actors.epidermis.feeds import compile_feeds
from config.settings import FeedSettings
from tests.support.shared import shared_data

OWN = OwnNetworks(
    hosts=frozenset(map(ipaddress.ip_address, ["198.51.100.10", "198.51.100.1", "192.168.7.53", "2001:db8:77::10"])),
    networks=frozenset(map(ipaddress.ip_network, ["198.51.100.0/24", "2001:db8:77::/64"])),
)


def source(**changes: object) -> FeedSource:
    return FeedSource.model_validate({"name": "sample", "path": "/dev/null"} | changes)


def hosts(count: int, start: str = "203.0.113.0") -> bytes:
    first = int(ipaddress.ip_address(start))
    return "\n".join(str(ipaddress.ip_address(first + number)) for number in range(count)).encode()


def blocked(text: bytes, address: str, **changes: object) -> bool:
    healthy = judge(parse(text), source(**changes), OWN)
    wanted = ipaddress.ip_address(address)
    return bool(len(prefixes.covering(healthy.v4 if wanted.version == 4 else healthy.v6, wanted)))


def test_a_sound_list_is_enforced_as_it_is() -> None:
    healthy = judge(parse(b"203.0.113.7\n203.0.113.0/28\n2001:db8::/48\n"), source(), OWN)

    assert prefixes.to_text(healthy.v4) == ["203.0.113.0/28"]
    assert prefixes.to_text(healthy.v6) == ["2001:db8::/48"]
    assert healthy.notes == ()


@pytest.mark.parametrize(
    ("text", "changes", "previous", "reason"),
    [
        (b"", {}, 0, "empty"),
        (b"203.0.113.1", {"min_entries": 5}, 0, "at least 5"),
        (hosts(20), {"max_entries": 10}, 0, "more than the 10"),
        (hosts(40), {}, 100, "shrank from 100 to 40"),
        (hosts(600), {}, 55, "grew from 55 to 600"),
        (b"198.51.100.10", {}, 0, "own address 198.51.100.10"),
        (b"198.51.100.0/25", {}, 0, "own address"),
        (b"198.51.0.0/16", {}, 0, "own"),
        (b"2001:db8:77::/48", {}, 0, "own"),
        (b"0.0.0.0/0", {}, 0, "own"),
        (b"203.0.113.1\n10.1.2.3", {}, 0, "10.0.0.0/8"),
        (b"127.0.0.1", {}, 0, "127.0.0.0/8"),
        (b"fe80::1", {}, 0, "fe80::/10"),
        (b"64:ff9b::1.2.3.4", {}, 0, "64:ff9b::/96"),
        (b"16.0.0.0/4", {}, 0, "6.2% of the IPv4"),
        (b"2600::/7", {}, 0, "of the IPv6"),
        (b"10.0.0.0/8", {"special": "subtract"}, 0, "nothing is left"),
        (b"192.168.7.0/24", {"special": "allow"}, 0, "own address 192.168.7.53"),
    ],
)
def test_each_kind_of_harm_is_quarantined_with_its_reason(
    text: bytes, changes: dict[str, object], previous: int, reason: str
) -> None:
    with pytest.raises(Quarantined) as verdict:
        judge(parse(text), source(**changes), OWN, previous)

    assert reason in verdict.value.reason
    assert verdict.value.remedy


def test_subtracting_uses_the_rest_of_a_list_and_says_what_was_taken() -> None:
    healthy = judge(parse(b"10.0.0.0/8\n203.0.113.0/24\n198.51.100.0/23"), source(special="subtract"), OWN)

    assert prefixes.to_text(prefixes.collapse(healthy.v4)) == ["198.51.101.0/24", "203.0.113.0/24"]
    assert "16777216 IPv4 addresses in private and special networks were taken out" in healthy.notes


@pytest.mark.parametrize("stray", ["10.1.2.3", "198.51.100.10", "192.168.9.0/24"])
def test_a_stray_entry_in_a_long_list_is_taken_out_and_the_list_is_used(stray: str) -> None:
    crowd = hosts(2_000, "16.0.0.0")

    healthy = judge(parse(crowd + b"\n" + stray.encode()), source(), OWN)

    assert healthy.entries == 2_000
    assert "were taken out" in healthy.notes[0]
    for text in (b"\n10.1.0.0/16", b"\n10.0.0.1\n10.0.0.2\n10.0.0.3"):
        with pytest.raises(Quarantined):
            judge(parse(crowd + text), source(), OWN)


def test_a_neighbour_is_spared_unless_private_networks_are_meant() -> None:
    assert not blocked(b"198.51.100.66\n203.0.113.1", "198.51.100.66")
    assert blocked(b"198.51.100.66\n203.0.113.1", "198.51.100.66", special="allow")
    assert blocked(b"10.9.9.9", "10.9.9.9", special="allow")


def test_own_addresses_of_now_are_left_out_even_of_lists_judged_before() -> None:
    healthy = judge(parse(b"203.0.113.0/24"), source(), OWN)
    moved = OwnNetworks(hosts=frozenset([ipaddress.ip_address("203.0.113.9")]))

    assert not len(prefixes.covering(protect(healthy.v4, moved), ipaddress.ip_address("203.0.113.9")))
    assert prefixes.address_count(protect(healthy.v4, moved)) == 255


@pytest.mark.shared_data
def test_firehol_level1_as_published_does_not_cut_the_node_off() -> None:
    parsed = parse(shared_data("blocklists", "firehol_level1.netset").read_bytes())
    with pytest.raises(Quarantined):
        judge(parsed, source(), OWN)

    healthy = judge(parsed, source(special="subtract"), OWN)

    for network in [*SPECIAL, *OWN.networks]:
        assert not prefixes.overlapping(healthy.v4, network).any()
    assert healthy.entries > 6_000


@pytest.mark.shared_data
def test_of_the_published_lists_only_the_one_with_bogons_is_quarantined() -> None:
    quarantined = {}
    for path in sorted(shared_data("blocklists").iterdir()):
        if path.name == "manifest.csv":
            continue
        try:
            judge(parse(path.read_bytes()), source(), OwnNetworks())
        except Quarantined as verdict:
            quarantined[path.name] = verdict.reason

    assert list(quarantined) == ["firehol_level1.netset"]
    assert "0.0.0.0/8" in quarantined["firehol_level1.netset"]
    assert "which is private or special" in quarantined["firehol_level1.netset"]


def test_all_feeds_together_answer_for_each_and_keep_whole_text_for_nft() -> None:
    lists = [
        ("one", parse(b"203.0.113.0/24\n16.0.0.0/7").v4, parse(b"2001:db8::/15").v6),
        ("two", parse(b"203.0.113.7\n192.0.2.1").v4, parse(b"2001:db8::1").v6),
    ]

    compiled = compile_feeds(lists, OwnNetworks(), np.random.default_rng(1))

    assert compiled.classes == ("one", "two")
    assert compiled.text.decode().split() == [
        *["192.0.2.1", "203.0.113.0/24", "16.0.0.0/8", "17.0.0.0/8"],
        *["2000::/16", "2001::/16"],
    ]
    assert (compiled.entries_v4, compiled.entries_v6) == (3, 1)


def test_no_feed_at_all_compiles_to_nothing() -> None:
    compiled = compile_feeds([], OwnNetworks(), np.random.default_rng(1))

    assert compiled.text == b""
    assert len(compiled.image4.pages) == len(compiled.image6.pages) == 0


# --- definitions ---------------------------------------------------------------------------------------------


def test_the_packaged_feeds_are_sound_and_none_is_on() -> None:
    sources = load_sources(FeedSettings())

    assert sources.feeds == ()
    assert sources.problems == ()
    assert "spamhaus_drop_v4" in sources.known
    assert PACKAGED.name == "feeds.toml"


def test_a_feed_is_switched_on_by_name_and_an_unknown_name_is_said() -> None:
    sources = load_sources(FeedSettings(enable=("firehol_level1", "nonsense"), refresh_minutes=20))

    assert [feed.name for feed in sources.feeds] == ["firehol_level1"]
    assert sources.feeds[0].special == "subtract"
    assert sources.problems == ("feeds.enable names nonsense, which is not defined",)


def test_own_definitions_add_to_and_change_the_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "feeds.toml").write_text(
        '[mine]\npath = "/srv/list.txt"\nenabled = true\n'
        "[feodo_tracker]\nenabled = true\nrefresh_minutes = 99\n"
        '[broken]\nurl = "ftp://example.net/list"\nenabled = true\n'
        '[both]\nurl = "https://example.net/a"\npath = "/a"\n'
        '[odd]\npath = "/a"\ncolour = "red"\n'
        '[worse]\nurl = "https://[::1"\n'
    )

    sources = load_sources(FeedSettings(definitions=tmp_path / "feeds.toml", max_share=0.01, allow_private=True))

    feeds = {feed.name: feed for feed in sources.feeds}
    assert set(feeds) == {"mine", "feodo_tracker"}
    assert feeds["feodo_tracker"].refresh_minutes == 99
    assert (feeds["mine"].special, feeds["mine"].max_share) == ("allow", 0.01)
    assert len(sources.problems) == 4
    assert any("https://" in problem for problem in sources.problems)


def test_spamhaus_is_never_asked_more_than_once_an_hour(tmp_path: Path) -> None:
    (tmp_path / "feeds.toml").write_text(
        '[a]\nurl = "https://www.SPAMHAUS.org/drop/x"\nenabled = true\nrefresh_minutes = 1\n'
        '[b]\nurl = "https://spamhaus.org.example.net/x"\nenabled = true\nrefresh_minutes = 1\n'
    )

    feeds = {feed.name: feed for feed in load_sources(FeedSettings(definitions=tmp_path / "feeds.toml")).feeds}

    assert feeds["a"].refresh_minutes == 60
    assert feeds["b"].refresh_minutes == 1
    assert (feeds["a"].patience_s, feeds["b"].patience_s) == (3600, 0)


def test_every_file_of_the_directory_is_a_feed(tmp_path: Path) -> None:
    for name in ("Own List.txt", "b.netset", ".hidden"):
        (tmp_path / name).write_text("203.0.113.1\n")
    (tmp_path / "sub").mkdir()

    sources = load_sources(FeedSettings(directory=tmp_path))

    assert [feed.name for feed in sources.feeds] == ["b.netset", "own_list.txt"]


def test_unreadable_definitions_are_problems_in_words(tmp_path: Path) -> None:
    (tmp_path / "feeds.toml").write_bytes(b"\xff[[[")

    for path in (tmp_path / "feeds.toml", tmp_path / "absent.toml"):
        assert len(load_sources(FeedSettings(definitions=path)).problems) == 1
    assert load_sources(FeedSettings(directory=tmp_path / "absent")).problems


# --- copies on disk --------------------------------------------------------------------------------------------


def test_a_copy_comes_back_as_it_was_and_is_private(tmp_path: Path) -> None:
    store, data = FeedStore(tmp_path / "feeds"), b"203.0.113.1\n"
    copy = Copy(digest=digest(data), entries=1, fetched_unix_s=5.0, place="https://example.net", etag='"x"')

    store.save("sample", copy, data)

    assert store.load("sample", 1_000) == (copy, data)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "feeds").iterdir()] == [0o600]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\n\xff", b'{"digest":"00","entries":1,"fetched_unix_s":1}\nxyz'])
def test_a_damaged_copy_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "sample.copy").write_bytes(damage)

    assert FeedStore(tmp_path).load("sample", 1_000) is None
    assert FeedStore(tmp_path).load("absent", 1_000) is None


def test_a_copy_that_lost_its_end_is_not_used(tmp_path: Path) -> None:
    store, data = FeedStore(tmp_path), b"203.0.113.1\n" * 100
    store.save("sample", Copy(digest=digest(data), entries=1, fetched_unix_s=5.0), data)
    path = tmp_path / "sample.copy"
    path.write_bytes(path.read_bytes()[:-5])

    assert store.load("sample", 10_000) is None


def test_drafts_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".sample.abc").write_text("half")

    FeedStore(tmp_path).forget_drafts()

    assert not list(tmp_path.iterdir())
