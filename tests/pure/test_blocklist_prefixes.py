"""The arithmetic of prefixes, against ``ipaddress``; and the file that carries an image."""

import ipaddress
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.epidermis import blocklist, blocklist6, prefixes
from actors.epidermis.blocklist import BlocklistError, chunks, compile4, hosts_and_prefixes
from actors.epidermis.prefixes import Network, Prefixes
from bpf.blocklist_image import Image, ImageError, read_image, write_image
from tests.support.feeds import networks, random_prefixes


def near(family: int) -> st.SearchStrategy[Network]:
    """Prefixes that crowd in one corner of the space, so that they overlap and touch."""
    base = int(ipaddress.ip_address("192.0.2.0" if family == 4 else "2001:db8::"))
    bits = 32 if family == 4 else 128
    return st.tuples(st.integers(0, 255), st.integers(bits - 9, bits)).map(
        lambda pair: ipaddress.ip_network((base + pair[0], pair[1]), strict=False)
    )


def members(listed: Prefixes) -> set[int]:
    return {int(address) for network in prefixes.to_networks(listed) for address in network}


@given(st.sampled_from([4, 6]).flatmap(lambda family: st.lists(near(family), max_size=25)))
def test_collapsing_keeps_the_addresses_and_leaves_no_overlap(crowd: list[Network]) -> None:
    family = crowd[0].version if crowd else 4

    collapsed = prefixes.collapse(prefixes.from_networks(family, crowd))

    assert members(collapsed) == {int(a) for network in crowd for a in network}
    assert prefixes.address_count(collapsed) == len(members(collapsed))


@given(
    st.sampled_from([4, 6]).flatmap(
        lambda family: st.tuples(st.lists(near(family), min_size=1, max_size=15), st.lists(near(family), max_size=4))
    )
)
def test_subtracting_takes_exactly_the_protected_addresses(pair: tuple[list[Network], list[Network]]) -> None:
    crowd, protected = pair

    left = prefixes.subtract(prefixes.from_networks(crowd[0].version, crowd), protected)

    expected = {int(a) for network in crowd for a in network} - {int(a) for network in protected for a in network}
    assert members(left) == expected


def test_subtracting_from_everything_leaves_everything_else() -> None:
    for family, all_of_it, hole in ((4, "0.0.0.0/0", "192.0.2.1/32"), (6, "::/0", "2001:db8::1/128")):
        left = prefixes.subtract(prefixes.from_networks(family, networks(all_of_it)), networks(hole))

        assert prefixes.address_count(left) == pytest.approx(2.0 ** (32 if family == 4 else 128) - 1)
        assert not len(prefixes.covering(left, ipaddress.ip_address(hole.split("/")[0])))


def test_text_is_what_ipaddress_writes() -> None:
    texts = ["192.0.2.1", "192.0.2.0/24", "0.0.0.0/0", "::", "::/0", "::1.2.3.4", "2001:db8::/32", "::ffff:1.2.3.4"]
    for text in texts:
        network = ipaddress.ip_network(text)
        expected = str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)

        assert prefixes.to_text(prefixes.from_networks(network.version, [network])) == [expected]


def test_hosts_and_prefixes_part_for_the_two_kinds_of_nft_sets() -> None:
    mixed = prefixes.from_networks(4, networks("192.0.2.1", "198.51.100.0/24", "192.0.2.9", "192.0.2.8/31"))

    hosts, wide = hosts_and_prefixes(prefixes.collapse(mixed))

    assert prefixes.to_text(hosts) == ["192.0.2.1"]
    assert prefixes.to_text(wide) == ["192.0.2.8/31", "198.51.100.0/24"]
    assert list(chunks(["a", "b", "c"], size=2)) == ["a, b", "c"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 128), min_size=1, max_size=400))
def test_any_mix_of_lengths_is_split_to_at_most_64(seed: int, lengths: list[int]) -> None:
    random = np.random.default_rng(seed)
    listed = random_prefixes(6, lengths, len(lengths), random)

    split, classes = blocklist6._split_to_few_lengths(listed, np.zeros(len(listed), np.uint8))

    assert len(np.unique(split.plen)) <= blocklist6.LENGTHS
    assert len(split) == len(classes)
    expected = prefixes.address_count(prefixes.collapse(listed))
    assert prefixes.address_count(prefixes.collapse(split)) == pytest.approx(expected)


def test_a_list_beyond_the_kernels_table_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocklist, "PAGES4", 800)
    listed = random_prefixes(4, [32], 50_000, np.random.default_rng(1))

    with pytest.raises(BlocklistError, match="leave a feed out"):
        compile4(listed, np.zeros(len(listed), np.uint8))


def test_an_image_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    pages = np.random.default_rng(3).integers(0, 256, (5, 4096), np.uint8)
    path = tmp_path / "feeds4.image"

    write_image(path, Image(4, 1234, pages))
    back = read_image(path, 4, 10)

    assert np.array_equal(back.pages, pages)
    assert (back.family, back.entries) == (4, 1234)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["feeds4.image"]


def test_an_image_that_lists_nothing_has_no_pages(tmp_path: Path) -> None:
    write_image(tmp_path / "none", compile4(prefixes.empty(4), np.empty(0, np.uint8)))

    assert read_image(tmp_path / "none", 4, 10).pages.shape == (0, 4096)


def test_every_damaged_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write_image(good, Image(4, 1, np.ones((2, 4096), np.uint8)))
    data = good.read_bytes()
    cases = {
        "too short": data[:100],
        "no blocklist image": b"X" + data[1:],
        "format 9": data[:8] + b"\x09" + data[9:],
        "12288 bytes|bytes; its header": data[:-1],
        "its header says": data + b"x",
        "its checksum": data[:5000] + b"\x00" + data[5001:],
    }
    for reason, content in cases.items():
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / "bad", 4, 10)
    with pytest.raises(ImageError, match="IPv4 image where an IPv6"):
        read_image(good, 6, 10)
    with pytest.raises(ImageError, match="the map holds 1"):
        read_image(good, 4, 1)


def test_an_image_is_never_read_through_a_link_a_pipe_or_a_directory(tmp_path: Path) -> None:
    write_image(tmp_path / "good", Image(4, 1, np.ones((1, 4096), np.uint8)))
    (tmp_path / "link").symlink_to(tmp_path / "good")
    os.mkfifo(tmp_path / "pipe")

    for name in ("link", "pipe", ".", "absent"):
        with pytest.raises(ImageError):
            read_image(tmp_path / name, 4, 10)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_image(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.image"
    path.write_bytes(data.ljust(4096, b"\0"))

    with pytest.raises(ImageError):
        read_image(path, 4, 10)
