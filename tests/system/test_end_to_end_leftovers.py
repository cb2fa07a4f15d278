"""A second start finds what the first left behind, whatever state that is in: no error, no gap, the ban stands."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.service import a_node, a_witness, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]

BANNED4, BANNED6 = "10.66.0.66", "fd66:0:0:66::66"
TABLE = "tegumentar_epiderme"
#: A start tells each rung the whole desired state, and each proves what it found at its own pace: a sweep is 5 s.
PROVEN_AGAIN_S = 8


@pytest.fixture(scope="module")
def node():
    with a_node() as node:
        assert node.cli("block", BANNED4, BANNED6, "--for", "1h", "--reason", "before the restart").returncode == 0
        node.until(lambda: node.is_proven(BANNED4) and node.is_proven(BANNED6), PROVEN_AGAIN_S)
        yield node


@pytest.fixture(scope="module")
def witness(node):
    with a_witness(node) as witness:
        yield witness


def chains(node) -> list[dict]:
    """The chains of our table, as the kernel has them."""
    listed = json.loads(node.net.node.namespace.run("nft", "-j", "list", "table", "inet", TABLE).stdout)
    return [row["chain"] for row in listed["nftables"] if "chain" in row]


def sets(node) -> list[dict]:
    listed = json.loads(node.net.node.namespace.run("nft", "-j", "list", "table", "inet", TABLE).stdout)
    return [row["set"] for row in listed["nftables"] if "set" in row]


def nothing(node) -> None:
    """Leave everything as the service left it."""


def table_of_another_version(node) -> None:
    node.nft(f"""
        delete table inet {TABLE}
        table inet {TABLE} {{
            set blocked_ips {{ type ipv4_addr; flags timeout; elements = {{ 192.0.2.1 timeout 1h }} }}
            chain epiderme {{
                type filter hook input priority 0; policy accept
                ip saddr @blocked_ips drop
            }}
        }}
    """)


def chains_of_another_declaration(node) -> None:
    ours = [chain["name"] for chain in chains(node)]
    node.nft(f"delete table inet {TABLE}\ntable inet {TABLE} {{\n" + "\n".join(
        f"chain {name} {{ type filter hook output priority {77 + number}; policy accept; }}"
        for number, name in enumerate(ours)
    ) + "\n}")  # fmt: skip


def sets_of_another_type(node) -> None:
    ours = [one["name"] for one in sets(node)]
    node.nft(f"delete table inet {TABLE}\ntable inet {TABLE} {{\n" + "\n".join(
        f"set {name} {{ type inet_service; }}" for name in ours) + "\n}")  # fmt: skip


def table_gone(node) -> None:
    node.nft(f"delete table inet {TABLE}")


def pins(node) -> list[Path]:
    found = sorted(path for path in node.bpf_dir.rglob("*") if path.is_file())
    assert found, "the service pinned nothing"
    return found


def pins_gone(node) -> None:
    for pin in pins(node):
        pin.unlink()


def half_of_the_pins_gone(node) -> None:
    for pin in pins(node)[::2]:
        pin.unlink()


def rubbish_in_the_run_directory(node) -> None:
    run = node.service.run_dir
    for name in ("actors/x", "control", "launcher.pid", "lock"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"\0rubbish of another version\n")


def journal_cut_short(node) -> None:
    journals = list(node.directory.joinpath("state").rglob("*.sqlite3-wal"))
    assert journals, "the journal is not where this test looks for it"
    for path in journals:
        with path.open("r+b") as wal:
            wal.truncate(max(0, path.stat().st_size - 7))


STILL_PROTECTED = [nothing, table_of_another_version, chains_of_another_declaration, sets_of_another_type, table_gone,
                   rubbish_in_the_run_directory, journal_cut_short]  # fmt: skip
LAID_BARE = [pins_gone, half_of_the_pins_gone]


@pytest.mark.parametrize("make_dirty", STILL_PROTECTED, ids=lambda change: change.__name__)
def test_killed_and_started_over_leftovers_there_is_no_error_and_no_moment_without_protection(
    node, witness, make_dirty
):
    before = witness.counters()["passed"]
    with knocking(node, BANNED4), knocking(node, BANNED6):
        node.service.kill()
        make_dirty(node)
        took_s = node.service.start()
        node.until(lambda: node.is_proven(BANNED4) and node.is_proven(BANNED6), PROVEN_AGAIN_S)
        time.sleep(0.2)

    assert witness.counters()["passed"] == before
    assert took_s < 6, "3 s is the promise for a quiet machine"
    assert unhealthy(node) == {}
    assert {chain["name"] for chain in chains(node)} & {"epiderme"} == set()


@pytest.mark.parametrize("lay_bare", LAID_BARE, ids=lambda change: change.__name__)
def test_what_was_torn_down_while_nobody_watched_is_put_up_again(node, witness, lay_bare):
    node.service.kill()
    lay_bare(node)

    node.service.start()

    node.until(lambda: node.is_proven(BANNED4) and node.is_proven(BANNED6), PROVEN_AGAIN_S)
    before = witness.counters()
    with knocking(node, BANNED4), knocking(node, BANNED6):
        time.sleep(0.3)
    assert witness.counters() == before
    assert unhealthy(node) == {}


def test_after_an_orderly_stop_the_kernel_goes_on_and_the_next_start_adopts_it(node, witness):
    before = witness.counters()["passed"]
    with knocking(node, BANNED4), knocking(node, BANNED6):
        family = node.processes()
        node.service.process.send_signal(signal.SIGTERM)
        assert node.service.process.wait(15) == 0
        node.service.stop()
        assert [process for process in family if process.lives()] == []
        time.sleep(0.3)
        node.service.start()
        node.until(lambda: node.is_proven(BANNED4) and node.is_proven(BANNED6), PROVEN_AGAIN_S)

    assert witness.counters()["passed"] == before


def test_a_start_in_the_very_moment_of_death_works_at_once(node, witness):
    before = witness.counters()["passed"]
    with knocking(node, BANNED4):
        node.service.forget()
        node.service.process.kill()
        node.service.process.wait()

        took_s = node.service.start()

        node.until(lambda: node.is_proven(BANNED4), PROVEN_AGAIN_S)
    assert took_s < 6, "3 s is the promise for a quiet machine"
    assert witness.counters()["passed"] == before


def test_a_foreign_table_is_never_touched(node):
    node.nft("""table inet somebody_elses {
        chain input {
            type filter hook input priority 5; policy accept
            counter
        }
    }
    """)
    theirs = node.net.node.namespace.run("nft", "--stateless", "list", "table", "inet", "somebody_elses").stdout

    node.service.kill()
    node.service.start()
    node.until(lambda: node.is_proven(BANNED4), PROVEN_AGAIN_S)

    now = node.net.node.namespace.run("nft", "--stateless", "list", "table", "inet", "somebody_elses").stdout
    assert now == theirs


def test_a_second_service_on_the_same_directories_is_refused_and_the_first_goes_on(node):
    before = {cell: row["pid"] for cell, row in node.cells().items()}

    done = node.cli()

    assert done.returncode not in (0, 78)
    assert "already" in done.stderr
    assert {cell: row["pid"] for cell, row in node.cells().items()} == before


def test_an_interface_that_was_taken_away_and_given_back_is_protected_again(node, witness):
    host = node.net.node
    node.service.kill()
    host.namespace.ip("link del skin0")
    node.net.wire.ip(
        f"link add p-node type veth peer name skin0 netns {host.namespace.name}", "link set p-node master br0 up"
    )
    host.namespace.ip(
        f"link set skin0 address {host.mac}",
        "link set skin0 up",
        f"addr add {host.ipv4}/24 dev skin0",
        f"addr add {host.ipv6}/64 dev skin0 nodad",
        "route add fd77:7::/48 dev skin0",
    )

    node.service.start()

    node.until(lambda: node.is_proven(BANNED4), PROVEN_AGAIN_S)
    before = witness.counters()
    with knocking(node, BANNED4):
        time.sleep(0.3)
    assert witness.counters() == before


def unhealthy(node) -> dict[str, str]:
    """Cells that are neither healthy nor off within five seconds, with their reasons."""

    def troubled() -> dict[str, str]:
        return {
            n: f"{r['state']}: {r['reason']}" for n, r in node.cells().items() if r["state"] not in ("healthy", "off")
        }

    deadline = time.monotonic() + 5
    while troubled() and time.monotonic() < deadline:
        time.sleep(0.05)
    return troubled()
