"""The policy cell in this process: verbs, verdicts, order of a ban, recall, proofs, refusals without effect."""

import time

import pytest

from actors.core.errors import Refused
from actors.core.messages import (
    Action,
    Ask,
    CellState,
    Enforce,
    EnforceAll,
    EnforceMany,
    Posture,
    PostureChanged,
    Record,
    ReflexEvent,
    ReflexEvents,
    SetTolerance,
    Verdict,
)
from actors.core.packed import pack
from tests.support.policy import Skin, p


@pytest.fixture
def skin(tmp_path):
    skin = Skin(tmp_path, memory={})
    yield skin
    skin.stop()


def verdict(subject, *, score=1.0, action=Action.BAN, reason="scan"):
    return Verdict(
        subject=subject, action=action, reason=reason, score=score, origin="mast_cell", seen_unix_s=time.time()
    )


def reflex(subject, *, banned=True, until=None, packets=500):
    until = time.time() + 60 if until is None else until
    event = ReflexEvent(
        subject=subject,
        reflex="budget_syn",
        banned=banned,
        until_unix_s=until,
        packets=packets,
        dest_port=443,
        seen_unix_s=time.time(),
    )
    return ReflexEvents(events=[event])


def blocks(skin):
    return {row["subject"]: row for row in skin.ask("blocks.list")["blocks"]}


# --- bans by people ------------------------------------------------------------


def test_a_ban_is_journaled_then_enforced_then_listed_with_everything_about_it(skin):
    skin.ask("block", subjects=["203.0.113.7"], ttl_s=600.0, reason="spam")

    sent = [type(m).__name__ for _, m in skin.dish.out if isinstance(m, Record | Enforce)]
    assert sent.index("Record") < sent.index("Enforce")
    assert "203.0.113.7" in skin.orders("reflex_arc")
    assert "203.0.113.7" in skin.orders("keratinocyte")
    row = blocks(skin)["203.0.113.7"]
    assert row["origin"] == "operator"
    assert row["reason"] == "spam"
    assert row["by"] == "cli uid 0"
    assert 590 < row["left_s"] <= 600
    assert row["proven"] is False


def test_a_ban_is_answered_as_proven_once_the_kernel_has_said_so(skin):
    skin.dish.give(verdict("203.0.113.1"), "mast_cell")
    skin.play(0.02)

    skin.prove("203.0.113.1")

    assert blocks(skin)["203.0.113.1"]["proven"] is True
    assert blocks(skin)["203.0.113.1"]["proofs"]["xdp"]["state"] == "proven"


def test_an_order_that_a_layer_never_answers_is_sent_again_and_not_for_ever(skin):
    skin.dish.give(verdict("203.0.113.1"), "mast_cell")
    skin.ask("block", subjects=["203.0.113.2"])
    skin.ask("block", rows=pack(many(100)))
    skin.until(lambda: len(skin.orders()) == 102)
    skin.prove("203.0.113.1", *many(100)[:99])
    skin.prove("203.0.113.2", rungs=["reflex_arc"])
    before = len(skin.orders())

    for minute in range(1, 6):
        skin.cell.herald.reminder.look(time.monotonic() + 130 * minute)
        skin.play(0.06)

    again = skin.orders()[before:]
    assert again.count("203.0.113.2") == 3
    assert again.count(many(100)[99]) == 4
    assert set(again) == {"203.0.113.2", many(100)[99]}


def test_a_proof_that_fails_is_shown(skin):
    skin.ask("block", subjects=["203.0.113.7"])
    skin.prove("203.0.113.7")

    skin.prove("203.0.113.7", holds=False, rungs=["keratinocyte"])

    assert blocks(skin)["203.0.113.7"]["proofs"]["nft"]["state"] == "missing"
    assert skin.cell.counters["proofs_missing"] == 1


def test_a_proof_from_a_cell_that_does_not_enforce_is_not_believed(skin):
    from actors.core.messages import Proof, Proved

    skin.ask("block", subjects=["203.0.113.7"])

    skin.dish.give(Proved(rung="xdp", proofs=[Proof(subject="203.0.113.7", holds=True)]), "mast_cell")

    assert blocks(skin)["203.0.113.7"]["proven"] is False


@pytest.mark.parametrize(
    ("subject", "word"),
    [
        ("192.0.2.10", "node itself"),
        ("2001:db8::10", "node itself"),
        ("127.0.0.1", "loopback"),
        ("192.0.2.1", "gateway"),
        ("198.51.100.53", "resolver"),
        ("203.0.113.99", "admin session"),
        ("0.0.0.0/0", "too wide"),
        ("192.0.2.0/24", "contains"),
        ("not an address", "no IPv4 or IPv6"),
        ("fe80::1%eth0", "zone"),
        ("203.0.113.7/24", "bits beyond"),
    ],
)
def test_a_bad_ban_is_refused_with_a_sentence_and_nothing_is_changed(skin, subject, word):
    generation = skin.cell.herald.generation

    with pytest.raises(Refused, match=word):
        skin.ask("block", subjects=["203.0.113.8", subject])

    assert blocks(skin) == {}
    assert skin.orders() == []
    assert skin.entries() == []
    assert skin.cell.herald.generation == generation


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"subjects": []},
        {"subjects": "203.0.113.7"},
        {"subjects": [7]},
        {"subjects": ["203.0.113.7"] * 1_001},
        {"subjects": ["203.0.113.7"], "ttl_s": -1},
        {"subjects": ["203.0.113.7"], "ttl_s": "soon"},
        {"subjects": ["203.0.113.7"], "ttl_s": 1e300},
        {"subjects": ["203.0.113.7"], "ttl_s": True},
        {"subjects": ["203.0.113.7"], "reason": 5},
    ],
)
def test_nonsense_is_refused_and_nothing_is_changed(skin, args):
    with pytest.raises(Refused):
        skin.ask("block", **args)

    assert skin.entries() == []


def test_a_session_that_has_only_just_begun_protects_its_administrator(skin):
    skin.ask("block", subjects=["203.0.113.50"])
    skin.ask("release", subjects=["203.0.113.50"])

    skin.cell.surroundings._host.sessions[22].append("203.0.113.50")

    with pytest.raises(Refused, match="admin session"):
        skin.ask("block", subjects=["203.0.113.50"])


def test_a_reason_is_one_printable_line(skin):
    skin.ask("block", subjects=["203.0.113.7"], reason="a\x1b[31m\nb" + "c" * 500)

    reason = blocks(skin)["203.0.113.7"]["reason"]
    assert reason.isprintable()
    assert len(reason) <= 200


def test_two_hundred_bans_in_one_request(skin):
    subjects = [f"203.0.114.{number}" for number in range(200)]

    skin.ask("block", subjects=subjects)
    skin.until(lambda: len(skin.orders()) == 200)

    assert sorted(skin.orders()) == sorted(subjects)
    assert sorted(entry.subject for entry in skin.entries("ban")) == sorted(subjects)
    assert skin.ask("blocks.list", limit=50)["total"] == 200


def test_one_bad_subject_among_a_thousand_changes_nothing(skin):
    subjects = [f"198.18.{number >> 8}.{number & 255}" for number in range(999)]

    with pytest.raises(Refused, match="nothing was changed"):
        skin.ask("block", subjects=[*subjects, "127.0.0.1"])

    assert skin.ask("blocks.list")["total"] == 0
    assert skin.entries("ban") == []


def test_many_bans_that_do_not_all_fit_change_nothing(skin):
    skin.cell.ledger.limit = 30
    subjects = [f"198.18.0.{number}" for number in range(31)]

    with pytest.raises(Refused, match="room for 30 more"):
        skin.ask("block", subjects=subjects)
    skin.ask("block", subjects=subjects[:30])

    assert skin.ask("blocks.list")["total"] == 30


def many(number=7_000):
    return [f"198.18.{index >> 8}.{index & 255}" for index in range(number)]


def test_one_more_ban_overtakes_thousands_that_are_under_way(skin):
    skin.dish.peer("gateway")
    skin.dish.give(Ask(id=9_999, verb="block", args={"rows": pack(many())}, by="cli uid 0"), "gateway")

    skin.ask("block", subjects=["203.0.113.7"])
    before = skin.orders().index("203.0.113.7")
    skin.until(lambda: len(skin.orders()) == 7_001)

    assert before < 7_000
    assert sorted(skin.orders()) == sorted([*many(), "203.0.113.7"])


def test_many_bans_as_rows_are_few_messages_and_each_is_listed_with_everything_about_it(skin):
    answer = skin.ask("block", rows=pack(many()), ttl_s=600.0, reason="listed")
    skin.until(lambda: len(skin.orders()) == 7_000)

    assert answer["blocked"] == answer["total"] == 7_000
    assert answer["until_unix_s"] == pytest.approx(time.time() + 600, abs=20)
    assert len(skin.dish.sent(EnforceMany, "reflex_arc")) == len(skin.dish.sent(EnforceMany, "keratinocyte")) <= 10
    assert sorted(entry.subject for entry in skin.entries("ban")) == sorted(many())
    row = skin.ask("why", address="198.18.3.7")["block"]
    assert (row["reason"], row["origin"], row["by"]) == ("listed", "operator", "cli uid 0")


def test_among_many_those_that_are_banned_already_are_renewed_and_keep_their_start(skin):
    skin.ask("block", subjects=["198.18.0.5"], ttl_s=60.0)
    since = blocks(skin)["198.18.0.5"]["since_unix_s"]

    skin.ask("block", rows=pack(many(100)), ttl_s=6000.0)
    skin.until(lambda: len(skin.orders()) == 101)

    row = blocks(skin)["198.18.0.5"]
    assert row["since_unix_s"] == since
    assert row["left_s"] > 5000
    assert len(skin.entries("ban")) == 101


def test_what_was_released_before_it_was_on_disk_is_not_enforced_after_it(skin):
    skin.acknowledges = False
    skin.dish.peer("gateway")
    skin.dish.give(Ask(id=9_999, verb="block", args={"rows": pack(many(100))}, by="cli uid 0"), "gateway")
    skin.until(lambda: bool(skin.entries("ban")))

    skin.ask("release", subjects=["198.18.0.7"])
    skin.acknowledges = True
    skin.until(lambda: len(skin.orders()) == 99)

    assert "198.18.0.7" not in skin.orders()
    assert "198.18.0.7" in skin.released()


@pytest.mark.parametrize("rows", [b"", b"x", pack(["11.0.0.1"])[:-1] + b"\x99", "11.0.0.1", [b"11.0.0.1"]])
def test_rows_that_are_none_are_refused(skin, rows):
    with pytest.raises(Refused):
        skin.ask("block", rows=rows)


@pytest.mark.parametrize("subject", ["127.0.0.9", "192.0.2.10", "203.0.113.99", "192.0.2.0/24", "12.0.0.0/7"])
def test_one_row_that_may_not_be_banned_refuses_all(skin, subject):
    with pytest.raises(Refused, match="nothing was changed"):
        skin.ask("block", rows=pack([*many(100), subject]))

    assert skin.ask("blocks.list")["total"] == 0
    assert skin.orders() == []


def test_a_tolerated_one_among_many_refuses_all_until_it_is_off_the_list(skin):
    skin.ask("tolerate", subjects=["198.18.0.0/28"])
    with pytest.raises(Refused, match="tolerated by the entry"):
        skin.ask("block", rows=pack(many(100)))

    skin.ask("tolerate", subjects=["198.18.0.0/28"], remove=True)

    assert skin.ask("block", rows=pack(many(100)))["blocked"] == 100


def test_a_list_in_parts_counts_with_its_last_part_and_whole(skin):
    subjects = many(9_000)

    first = skin.ask("block", rows=pack(subjects[:5_000]), list="mine", more=True, ttl_s=60.0)
    assert first == {"kept": 5_000}
    assert skin.ask("blocks.list")["total"] == 0
    last = skin.ask("block", rows=pack(subjects[4_000:]), list="mine", ttl_s=60.0)

    assert last["blocked"] == last["total"] == 9_000
    skin.until(lambda: len(skin.orders()) == 9_000)


def test_a_part_that_is_refused_takes_the_whole_list_with_it(skin):
    skin.ask("block", rows=pack(many(100)), list="mine", more=True)
    with pytest.raises(Refused, match="nothing was changed"):
        skin.ask("block", rows=pack(["127.0.0.1"]), list="mine", more=True)

    answer = skin.ask("block", rows=pack(["198.51.100.1"]), list="mine")

    assert answer["total"] == 1


def test_two_long_lists_one_after_the_other_must_both_find_room(skin):
    skin.cell.ledger.limit = 7_100
    skin.dish.peer("gateway")
    skin.dish.give(Ask(id=9_999, verb="block", args={"rows": pack(many())}, by="cli uid 0"), "gateway")

    with pytest.raises(Refused, match="room for 100 more"):
        skin.ask("block", rows=pack([f"198.51.101.{n}" for n in range(101)]))


def test_pages_of_blocks_go_on_by_cursor_or_by_subject(skin):
    skin.ask("block", subjects=[f"203.0.114.{number}" for number in range(5)])

    first = skin.ask("blocks.list", limit=3)
    by_cursor = skin.ask("blocks.list", limit=3, after=first["next"])
    by_subject = skin.ask("blocks.list", limit=3, after=first["blocks"][-1]["subject"])

    assert [row["subject"] for row in by_cursor["blocks"]] == ["203.0.114.1", "203.0.114.0"]
    assert by_cursor == {**by_subject, "blocks": by_cursor["blocks"]}
    assert by_cursor["next"] == ""


def test_a_page_never_outgrows_a_message(skin):
    for start in range(0, 600, 200):
        subjects = [f"198.18.{start // 200}.{number}" for number in range(200)]
        skin.ask("block", subjects=subjects, reason="x" * 200)

    seen, after = [], ""
    while True:
        page = skin.ask("blocks.list", limit=1000, after=after)
        seen += [row["subject"] for row in page["blocks"]]
        after = page["next"]
        if not after:
            break

    assert len(seen) == len(set(seen)) == 600


def test_a_release_leaves_the_kernel_and_the_journal(skin):
    skin.ask("block", subjects=["203.0.113.7"])

    skin.ask("release", subjects=["203.0.113.7"])

    assert "203.0.113.7" in skin.released("keratinocyte")
    assert blocks(skin) == {}
    assert skin.entries("release")[0].subject == "203.0.113.7"


def test_a_release_of_what_is_not_banned_is_told_and_still_reaches_the_kernel(skin):
    answer = skin.ask("release", subjects=["203.0.113.7"])

    assert answer["results"][0]["note"] == "it was not blocked"
    assert "203.0.113.7" in skin.released("keratinocyte")


def test_a_release_of_one_address_of_a_banned_prefix_is_refused(skin):
    skin.ask("block", subjects=["198.18.0.0/24"])

    with pytest.raises(Refused, match=r"part of 198\.18\.0\.0/24"):
        skin.ask("release", subjects=["198.18.0.7"])

    assert "198.18.0.0/24" in blocks(skin)


def test_a_ban_ends_by_itself(skin):
    skin.ask("block", subjects=["203.0.113.7"], ttl_s=1.0)

    skin.until(lambda: len(skin.cell.ledger) == 0)

    assert blocks(skin) == {}
    assert skin.cell.counters["bans_expired"] == 1


# --- memory that is slow, away, or full ------------------------------------------------------------


def test_thousands_of_bans_that_end_together_all_end(skin):
    skin.ask("block", rows=pack(many(5_000)), ttl_s=1.0)

    skin.until(lambda: len(skin.cell.ledger) == 0)

    assert skin.ask("blocks.list") == {"blocks": [], "total": 0, "next": ""}
    assert skin.cell.counters["bans_expired"] == 5_000


def test_a_silent_memory_holds_up_a_ban_for_a_moment_only(skin):
    skin.acknowledges = False

    skin.ask("block", subjects=["203.0.113.7"])

    assert "203.0.113.7" in skin.orders()
    assert skin.cell.counters["journal_late"] == 1


def test_what_memory_never_acknowledged_is_sent_again_when_it_is_back(skin):
    skin.acknowledges = False
    skin.ask("block", subjects=["203.0.113.7"])
    skin.dish.peer("memory_cell", up=False)
    skin.ask("block", subjects=["203.0.113.8"])
    keys = {entry.key for entry in skin.entries("ban")}
    before = len(skin.entries("ban"))

    skin.acknowledges = True
    skin.memory_up(incarnation=2)
    skin.until(lambda: len(skin.entries("ban")) == before + 2)

    again = skin.entries("ban")[before:]
    assert {entry.subject for entry in again} == {"203.0.113.7", "203.0.113.8"}
    assert keys <= {entry.key for entry in again} | keys
    assert skin.cell.journal.unsent == 0


def test_what_is_in_force_is_written_again_when_memory_has_begun_a_new_journal(skin):
    skin.ask("block", rows=pack(many(3_000)))
    skin.ask("block", subjects=["203.0.113.7"], ttl_s=600.0, reason="alone")
    skin.ask("tolerate", subjects=["198.51.100.9"], comment="friend")
    skin.ask("posture.set", posture="hardened")
    skin.ask("release", subjects=["198.18.0.5"])
    skin.until(lambda: len(skin.orders()) == 3_001)
    before = len(skin.entries())

    skin.epoch = "second"
    skin.ask("block", subjects=["203.0.113.8"])
    skin.until(lambda: len(skin.entries()) >= before + 3_004)

    again = skin.entries()[before:]
    bans = [entry for entry in again if entry.kind == "ban"]
    assert sorted({entry.subject for entry in bans}) == sorted(
        ["203.0.113.7", "203.0.113.8", *set(many(3_000)) - {"198.18.0.5"}]
    )
    assert next(entry.body["reason"] for entry in bans if entry.subject == "203.0.113.7") == "alone"
    assert [entry.body["comment"] for entry in again if entry.kind == "tolerance"] == ["friend"]
    assert [entry.body["posture"] for entry in again if entry.kind == "posture"] == ["hardened"]
    assert not [entry for entry in again if entry.kind == "release"]
    assert len({entry.key for entry in bans}) <= 8


def test_a_journal_that_stays_the_same_is_not_written_again(skin):
    skin.ask("block", subjects=["203.0.113.7"])

    skin.dish.peer("memory_cell", up=False)
    skin.memory_up(incarnation=2)
    skin.play(0.05)

    assert [entry.subject for entry in skin.entries("ban")] == ["203.0.113.7"]
    assert skin.cell.counters["journal_rewritten"] == 0


def test_without_memory_bans_are_enforced_at_once(tmp_path):
    skin = Skin(tmp_path, memory=None)
    skin.until(lambda: skin.cell.recall.known, 5.0)

    skin.ask("block", subjects=["203.0.113.7"])

    assert "203.0.113.7" in skin.orders()
    assert skin.cell.counters["journal_missed"] == 1
    skin.stop()


# --- recall ------------------------------------------------------------


def remembered(until=0.0, subject="203.0.113.7", **more):
    row = {"subject": subject, "action": "ban", "origin": "reflex_arc", "reason": "flood", "by": ""}
    return row | {"since_unix_s": time.time() - 30, "until_unix_s": until, "repeats": 1} | more


def test_what_was_in_force_is_recalled_and_told_whole(tmp_path):
    until = time.time() + 600
    lockdown = {
        "posture": "lockdown",
        "previous": "balanced",
        "return_to": "balanced",
        "since_unix_s": time.time() - 10,
        "until_unix_s": time.time() + 100,
    }
    memory = {
        "memory.bans": [remembered(until)],
        "memory.posture": lockdown,
        "memory.tolerance": [{"subject": "198.18.0.0/24", "comment": "office"}],
    }

    skin = Skin(tmp_path, memory=memory)

    assert [order.subject for order in skin.whole_state()] == ["203.0.113.7"]
    assert skin.whole_state()[0].until_unix_s == until
    assert skin.dish.sent(PostureChanged, "keratinocyte")[-1].posture is Posture.LOCKDOWN
    assert skin.dish.sent(SetTolerance, "keratinocyte")[-1].prefixes == ["198.18.0.0/24"]
    row = blocks(skin)["203.0.113.7"]
    assert row["reason"] == "flood"
    assert 590 < row["left_s"] <= 600
    skin.stop()


def test_nothing_is_said_about_bans_posture_or_tolerance_before_memory_has_answered(tmp_path):
    skin = Skin(tmp_path, memory=None)
    skin.dish.run(0.3)

    assert skin.dish.sent(EnforceAll) == []
    assert skin.dish.sent(SetTolerance) == []
    assert skin.dish.sent(PostureChanged) == []
    skin.stop()


def test_a_memory_that_comes_late_is_heard_and_nothing_was_released_meanwhile(tmp_path):
    skin = Skin(tmp_path, memory=None)
    skin.until(lambda: skin.cell.recall.known, 5.0)
    assert skin.dish.sent(SetTolerance, "reflex_arc")
    assert skin.dish.sent(EnforceAll) == []

    skin.memory = {"memory.bans": [remembered()]}
    skin.memory_up()
    skin.until(lambda: skin.cell.recall.done, 6.0)
    skin.play()

    assert [order.subject for order in skin.whole_state()] == ["203.0.113.7"]
    assert skin.released() == []
    skin.stop()


def test_a_node_without_a_memory_cell_goes_on_at_once(tmp_path):
    from actors.hypodermis import permeability
    from config.settings import Settings, SupervisorSettings
    from tests.support.core import Dish
    from tests.support.policy import ENFORCING, Host

    settings = Settings(run_dir=tmp_path, supervisor=SupervisorSettings(off=("memory_cell",)))
    dish = Dish(type("P", (permeability.Permeability,), {"make_host": Host}), settings, name="permeability")
    dish.peer("keratinocyte", *ENFORCING)

    assert dish.run_until(lambda: bool(dish.sent(PostureChanged, "keratinocyte")), 1.0)
    dish.stop()


def test_memories_that_make_no_sense_are_passed_over(tmp_path):
    memory = {
        "memory.bans": [{}, {"subject": "x"}, remembered(subject="192.0.2.10"), remembered(subject="203.0.113.7")],
        "memory.posture": {"posture": "soft"},
        "memory.tolerance": [{"subject": "0.0.0.0/0"}, {"comment": 1}],
    }

    skin = Skin(tmp_path, memory=memory)

    assert list(blocks(skin)) == ["203.0.113.7"]
    assert skin.cell.counters["bad_memories"] == 5
    assert skin.cell.counters["bans_not_recalled"] == 1
    assert skin.cell.posture.state.posture is Posture.BALANCED
    skin.stop()


def test_an_enforcing_cell_that_starts_anew_gets_everything(skin):
    skin.ask("block", subjects=["203.0.113.7"])
    skin.prove("203.0.113.7")

    skin.dish.peer("keratinocyte", up=False)
    skin.rung_up("keratinocyte", incarnation=2)
    skin.play()

    assert [order.subject for order in skin.whole_state()] == ["203.0.113.7"]
    assert skin.dish.sent(EnforceAll, "keratinocyte")[-1].generation == skin.cell.herald.generation
    assert blocks(skin)["203.0.113.7"]["proofs"]["nft"]["state"] == "pending"


def test_only_the_last_files_of_the_whole_state_are_kept(skin):
    for incarnation in range(2, 9):
        skin.dish.peer("keratinocyte", up=False)
        skin.rung_up("keratinocyte", incarnation=incarnation)
        skin.play()

    assert 1 <= len(list(skin.cell.herald.directory.path.iterdir())) <= 4
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in skin.cell.herald.directory.path.iterdir())


def test_a_run_directory_that_cannot_be_written_degrades_and_releases_nothing(tmp_path):
    (tmp_path / "run").write_text("a file where a directory should be")

    skin = Skin(tmp_path, memory={"memory.bans": [remembered()]})

    assert skin.cell.state is CellState.DEGRADED
    assert "desired state" in skin.dish.last_report().reason
    assert skin.dish.sent(EnforceAll) == []
    skin.stop()


def test_generations_grow_over_restarts(tmp_path):
    first = Skin(tmp_path, memory={})
    first.ask("block", subjects=["203.0.113.7"])
    last = first.cell.herald.generation
    first.stop()

    second = Skin(tmp_path, memory={})

    assert second.cell.herald.generation > last
    second.stop()


# --- verdicts and reflexes ------------------------------------------------------------


def test_a_verdict_becomes_a_ban_of_the_cell_that_really_sent_it(skin):
    skin.dish.give(verdict("203.0.113.7"), "mast_cell")
    skin.play(0.02)

    row = blocks(skin)["203.0.113.7"]
    assert row["origin"] == "mast_cell"
    assert row["by"] == ""
    assert skin.orders() == ["203.0.113.7"]


def test_the_same_verdict_again_is_no_message_and_no_row(skin):
    skin.dish.give(verdict("203.0.113.7"), "mast_cell")
    skin.play(0.02)
    entries = len(skin.entries())

    for _ in range(5):
        skin.dish.give(verdict("203.0.113.7"), "mast_cell")
    skin.play(0.02)

    assert skin.orders() == ["203.0.113.7"]
    assert len(skin.entries()) == entries


@pytest.mark.parametrize("subject", ["203.0.113.7/24", "::1%lo", "nonsense"])
def test_a_verdict_on_nonsense_is_counted(skin, subject):
    skin.dish.give(verdict(subject), "mast_cell")

    assert skin.cell.counters["bad_input"] == 1


def test_a_verdict_on_the_gateway_is_refused_noted_once_and_counted(skin):
    for _ in range(5):
        skin.dish.give(verdict("192.0.2.1"), "mast_cell")
    skin.play(0.02)

    assert skin.orders() == []
    assert skin.cell.counters["verdicts_refused"] == 5
    assert len(skin.entries("verdict")) == 1
    assert "gateway" in skin.entries("verdict")[0].body["refused"]


def test_a_reflex_of_the_kernel_is_adopted_and_told_to_the_other_layer(skin):
    until = time.time() + 60

    skin.dish.give(reflex("203.0.113.7", until=until), "reflex_arc")
    skin.play(0.02)

    row = blocks(skin)["203.0.113.7"]
    assert row["reflex"] == "budget_syn"
    assert row["origin"] == "reflex_arc"
    assert row["until_unix_s"] == pytest.approx(until, abs=1)
    assert "443" in row["evidence"]
    assert "203.0.113.7" in skin.orders("keratinocyte")


def test_a_reflex_against_what_may_not_be_banned_is_taken_back(skin):
    skin.ask("tolerate", subjects=["198.18.0.0/24"])
    for subject in ("192.0.2.1", "203.0.113.99", "198.18.0.7"):
        skin.dish.give(reflex(subject), "reflex_arc")
    skin.play(0.1)

    assert set(skin.released("reflex_arc")) == {"192.0.2.1", "203.0.113.99", "198.18.0.7"}
    assert blocks(skin) == {}


def test_a_reflex_that_another_cell_tells_of_is_not_believed(skin):
    skin.dish.give(reflex("203.0.113.7"), "mast_cell")
    skin.play(0.02)

    assert blocks(skin) == {}
    assert skin.cell.counters["wrong_speaker"] == 1


def test_the_same_verdict_on_an_ipv6_source_again_is_no_message(skin):
    for _ in range(5):
        skin.dish.give(verdict("2001:db8:5::7"), "mast_cell")
    skin.play(0.1)

    assert skin.orders() == ["2001:db8:5::/64"]
    assert len(skin.entries("ban")) == 1


def test_a_reflex_against_the_gateway_is_taken_back_even_while_the_guard_rests(tmp_path):
    skin = Skin(tmp_path, memory={}, autoimmune_bans=1, autoimmune_window_s=10.0, autoimmune_rest_s=60.0)
    for subject in ("203.0.113.1", "203.0.113.2", "192.0.2.1"):
        skin.dish.give(reflex(subject), "reflex_arc")
    skin.play(0.1)

    assert skin.released("reflex_arc") == ["192.0.2.1"]
    assert list(blocks(skin)) == ["203.0.113.1"]
    skin.stop()


def test_an_incident_without_a_ban_only_counts(skin):
    skin.dish.give(reflex("203.0.113.7", banned=False), "reflex_arc")
    skin.play(0.02)

    assert blocks(skin) == {}


def test_exploring_records_what_would_have_been_and_enforces_nothing(skin):
    skin.ask("posture.set", posture="explore")

    skin.dish.give(verdict("203.0.113.7"), "mast_cell")
    skin.dish.give(reflex("203.0.113.8", banned=False), "reflex_arc")
    skin.play(0.05)

    rows = blocks(skin)
    assert {row["action"] for row in rows.values()} == {"observe"}
    assert set(rows) == {"203.0.113.7", "203.0.113.8"}
    assert skin.orders() == []
    assert skin.cell.counters["would_have_banned"] == 2
    assert {entry.kind for entry in skin.entries()} == {"posture", "verdict"}


def test_a_crowd_of_neighbours_is_banned_as_a_prefix(skin):
    for number in range(8):
        skin.dish.give(verdict(f"203.0.114.{number}"), "mast_cell")
    skin.play(0.1)

    row = blocks(skin)["203.0.114.0/24"]
    assert row["origin"] == "permeability"
    assert "neighbours" in row["reason"]
    assert "203.0.114.0/24" in skin.orders()


def test_neighbours_of_the_node_itself_are_never_banned_as_a_prefix(skin):
    for number in range(100, 120):
        skin.dish.give(verdict(f"192.0.2.{number}"), "mast_cell")
    skin.play(0.1)

    assert "192.0.2.0/24" not in blocks(skin)
    assert len(blocks(skin)) == 20


def test_too_many_automatic_bans_raise_an_alarm_and_recover(tmp_path):
    skin = Skin(tmp_path, memory={}, autoimmune_bans=5, autoimmune_window_s=10.0, autoimmune_rest_s=1.0)
    for number in range(10):
        skin.dish.give(verdict(f"11.{number}.0.1"), "mast_cell")
    skin.play(0.05)

    assert len(blocks(skin)) == 5
    assert skin.cell.state is CellState.DEGRADED
    assert "automatic blocking is stopped" in skin.dish.last_report().reason
    assert skin.dish.last_report().remedy
    skin.ask("block", subjects=["203.0.113.7"])
    assert "203.0.113.7" in blocks(skin)

    skin.until(lambda: skin.cell.state is CellState.HEALTHY)
    skin.dish.give(verdict("11.9.0.1"), "mast_cell")
    skin.play(0.05)

    assert "11.9.0.1" in blocks(skin)
    skin.stop()


# --- tolerance ------------------------------------------------------------


def test_a_tolerated_address_is_told_released_and_spared(skin):
    skin.ask("block", subjects=["203.0.113.7"])

    skin.ask("tolerate", subjects=["203.0.113.0/24"], comment="our office")

    assert skin.dish.sent(SetTolerance, "keratinocyte")[-1].prefixes == ["203.0.113.0/24"]
    assert "203.0.113.7" in skin.released("keratinocyte")
    with pytest.raises(Refused, match="our office"):
        skin.ask("block", subjects=["203.0.113.7"])
    skin.ask("tolerate", subjects=["203.0.113.0/24"], remove=True)
    assert skin.dish.sent(SetTolerance, "keratinocyte")[-1].prefixes == []
    skin.ask("block", subjects=["203.0.113.7"])


def test_tolerance_is_all_or_nothing(skin):
    with pytest.raises(Refused, match="too wide"):
        skin.ask("tolerate", subjects=["203.0.113.7", "0.0.0.0/0"])
    with pytest.raises(Refused, match="not on the tolerance list"):
        skin.ask("tolerate", subjects=["203.0.113.7"], remove=True)

    assert skin.ask("tolerance.list")["tolerance"] == []
    assert skin.entries() == []


def test_tolerance_ends_by_itself_and_is_told(skin):
    skin.ask("tolerate", subjects=["203.0.113.7"], for_s=1.0)

    skin.until(lambda: len(skin.cell.tolerance) == 0)

    assert skin.dish.sent(SetTolerance, "reflex_arc")[-1].prefixes == []


def test_tolerance_of_the_settings_is_there_and_a_bad_one_is_said(tmp_path):
    skin = Skin(tmp_path, memory={}, tolerate=("198.18.0.0/24", "0.0.0.0/0"))

    listed = skin.ask("tolerance.list")

    assert [(row["subject"], row["origin"]) for row in listed["tolerance"]] == [("198.18.0.0/24", "settings")]
    assert {row["subject"] for row in listed["never_banned"]} >= {"192.0.2.10", "192.0.2.1", "203.0.113.99"}
    assert skin.cell.state is CellState.DEGRADED
    assert "0.0.0.0/0 is too wide" in skin.dish.last_report().reason
    skin.stop()


# --- posture ------------------------------------------------------------


def test_a_posture_is_journaled_told_and_shown(skin):
    answer = skin.ask("posture.set", posture="lockdown", reason="drill")

    assert answer["posture"] == "lockdown"
    assert answer["proven"] is False  # the filter of this test has not said so within the time there is
    message = skin.dish.sent(PostureChanged, "keratinocyte")[-1]
    assert (message.posture, message.previous, message.reason) == (Posture.LOCKDOWN, Posture.BALANCED, "drill")
    assert skin.entries("posture")[0].body["posture"] == "lockdown"
    skin.prove("posture:lockdown", rungs=["keratinocyte"])
    assert skin.ask("posture.get")["proven"] is True


def test_an_unconfirmed_posture_returns_and_a_confirmed_one_stays(skin):
    answer = skin.ask("posture.set", posture="lockdown", confirm_within_s=1.0)
    assert "returns to balanced" in answer["summary"]

    skin.until(lambda: skin.cell.posture.state.posture is Posture.BALANCED)
    assert skin.dish.sent(PostureChanged, "keratinocyte")[-1].posture is Posture.BALANCED

    skin.ask("posture.set", posture="lockdown", confirm_within_s=1.0)
    skin.ask("posture.confirm")
    skin.play(1.2)  # longer than the time there was to confirm
    assert skin.cell.posture.state.posture is Posture.LOCKDOWN


def test_a_posture_whose_time_ended_while_nobody_was_there_returns_at_once(tmp_path):
    body = {"posture": "lockdown", "previous": "balanced", "return_to": "hardened", "since_unix_s": time.time() - 100}

    skin = Skin(tmp_path, memory={"memory.posture": body | {"until_unix_s": time.time() - 1}})
    skin.play(0.1)

    assert skin.cell.posture.state.posture is Posture.HARDENED
    assert skin.dish.sent(PostureChanged, "keratinocyte")[-1].posture is Posture.HARDENED
    skin.stop()


def test_a_confirmation_that_was_due_before_a_restart_is_still_due(tmp_path):
    body = {"posture": "lockdown", "previous": "balanced", "return_to": "balanced", "since_unix_s": time.time() - 100}

    skin = Skin(tmp_path, memory={"memory.posture": body | {"confirm_by_unix_s": time.time() + 0.5}})
    assert skin.cell.posture.state.posture is Posture.LOCKDOWN
    skin.until(lambda: skin.cell.posture.state.posture is Posture.BALANCED)

    assert skin.cell.posture.state.posture is Posture.BALANCED
    skin.stop()


@pytest.mark.parametrize("args", [{}, {"posture": "soft"}, {"posture": 5}, {"posture": "lockdown", "for_s": -3}])
def test_a_posture_that_is_none_is_refused(skin, args):
    with pytest.raises(Refused):
        skin.ask("posture.set", **args)

    assert skin.cell.posture.state.posture is Posture.BALANCED


def test_another_cell_may_close_the_skin_for_a_time_only(skin):
    answer = skin.ask("posture.set", by="cell fibroblast", posture="hardened")

    assert answer["until_unix_s"] > time.time()
    with pytest.raises(Refused, match="for people"):
        skin.ask("posture.set", by="cell fibroblast", posture="lockdown")


def test_every_cell_that_starts_hears_of_the_posture(skin):
    skin.dish.peer("gateway", PostureChanged)

    assert skin.dish.sent(PostureChanged, "gateway")[-1].posture is Posture.BALANCED


# --- why ------------------------------------------------------------


def why(skin, address):
    answer = skin.ask("why", address=address)
    return answer, " ".join(answer["sentences"])


def test_why_explains_a_ban_with_its_proof_and_how_to_lift_it(skin):
    skin.dish.give(reflex("203.0.113.7"), "reflex_arc")
    skin.play(0.05)
    skin.prove("203.0.113.7")

    answer, text = why(skin, "203.0.113.7")

    assert answer["blocked"] is True
    assert answer["verdict"] == "blocked"
    assert answer["proven"] is True
    assert answer["layers"] == ["xdp", "nft"]
    assert answer["lift"] == "python run.py release 203.0.113.7"
    for word in ("budget_syn", "reflex_arc", "500 packets", "left", "xdp has confirmed it", answer["lift"]):
        assert word in text


def test_why_finds_the_prefix_that_covers_an_address(skin):
    skin.ask("block", subjects=["198.18.0.0/24"])

    answer, text = why(skin, "198.18.0.7")

    assert answer["blocked"]
    assert "as part of 198.18.0.0/24" in text
    assert answer["lift"].endswith("release 198.18.0.0/24")


def test_why_knows_the_tolerated_the_own_and_the_unknown(skin):
    skin.ask("tolerate", subjects=["198.18.0.0/24"], comment="office")

    tolerated, tolerated_text = why(skin, "198.18.0.7")
    own, own_text = why(skin, "192.0.2.10")
    unknown, unknown_text = why(skin, "203.0.113.50")

    assert tolerated["verdict"] == "tolerated"
    assert "office" in tolerated_text
    assert "address of this node itself" in own_text
    assert own["blocked"] is False
    assert unknown["verdict"] == "not blocked"
    assert "no ban" in unknown_text


def test_why_speaks_of_the_posture(skin):
    skin.ask("posture.set", posture="lockdown")

    assert "management ports" in why(skin, "203.0.113.50")[1]


def test_why_of_nonsense_is_refused(skin):
    with pytest.raises(Refused):
        skin.ask("why", address="nobody")
    with pytest.raises(Refused):
        skin.ask("why")


def test_why_answers_without_the_cells_that_are_away_and_names_what_it_did_not_hear(skin):
    answer, _ = why(skin, "203.0.113.7")

    assert "feeds.explain" in answer["not_heard"]


def test_settings_name_the_first_posture(tmp_path):
    skin = Skin(tmp_path, memory={}, posture="hardened")

    assert skin.ask("posture.get")["posture"] == "hardened"
    assert p("192.0.2.10") in [host for host, _ in skin.cell.gate.safety] or skin.ask("tolerance.list")
    skin.stop()
