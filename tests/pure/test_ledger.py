"""The ledger of bans: renewal, ends, proofs, pages, repetition, crowded neighbourhoods."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.messages import Action
from actors.hypodermis.ledger import (
    FORGIVE_EVERY_S,
    NEIGHBOURS,
    Ban,
    Ledger,
    Offences,
    from_body,
    penalty_s,
    row,
    to_body,
)
from actors.hypodermis.subjects import Prefix, parse_prefix

NOW = 1_800_000_000.0


def p(text):
    return parse_prefix(text)


def ban_of(text, *, since=NOW, until=NOW + 60, by="", action=Action.BAN, **more):
    return Ban(p(text), action, "reflex_arc", "test", since, until, by=by, **more)


def test_a_ban_is_found_by_its_subject_and_by_what_lies_inside():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.0/24"))

    assert ledger.get(p("203.0.113.0/24"))
    assert ledger.get(p("203.0.113.7")) is None
    assert ledger.covering(p("203.0.113.7")).subject == p("203.0.113.0/24")


def test_an_enforced_ban_is_shown_before_a_narrower_note():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.0/24"))
    ledger.place(ban_of("203.0.113.7", action=Action.OBSERVE))

    assert ledger.covering(p("203.0.113.7")).subject == p("203.0.113.0/24")


def test_an_automatic_renewal_never_shortens():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7", until=NOW + 600))

    renewed = ledger.place(ban_of("203.0.113.7", since=NOW + 10, until=NOW + 70))

    assert renewed.until_unix_s == NOW + 600
    assert renewed.since_unix_s == NOW
    assert len(ledger) == 1


def test_an_automatic_renewal_keeps_a_persons_name_and_a_ban_without_end():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7", until=0.0, by="cli uid 0"))

    renewed = ledger.place(ban_of("203.0.113.7", until=NOW + 70))

    assert renewed.until_unix_s == 0.0
    assert renewed.by == "cli uid 0"


def test_an_automatic_note_never_weakens_a_ban():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7"))

    assert ledger.place(ban_of("203.0.113.7", action=Action.THROTTLE)).action is Action.BAN


def test_a_person_may_shorten_a_ban():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7", until=NOW + 600))

    assert ledger.place(ban_of("203.0.113.7", until=NOW + 60, by="me")).until_unix_s == NOW + 60


def test_bans_end_in_order_and_once():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7", until=NOW + 30))
    ledger.place(ban_of("203.0.113.8", until=NOW + 10))
    ledger.place(ban_of("203.0.113.9", until=0.0))

    assert ledger.next_end() == NOW + 10
    assert [ban.subject.text for ban in ledger.expire(NOW + 30)] == ["203.0.113.8", "203.0.113.7"]
    assert ledger.expire(NOW + 1e9) == []
    assert len(ledger) == 1


def test_of_many_that_end_together_a_few_are_taken_out_at_a_time():
    ledger = Ledger(100)
    for number in range(25):
        ledger.place(ban_of(f"203.0.113.{number}"))

    taken = [len(ledger.expire(NOW + 61, 10)) for _ in range(4)]

    assert taken == [10, 10, 5, 0]
    assert len(ledger) == 0


def test_a_renewed_ban_does_not_end_at_its_old_time():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7", until=NOW + 30))
    ledger.place(ban_of("203.0.113.7", until=NOW + 90))

    assert ledger.expire(NOW + 60) == []
    assert len(ledger.expire(NOW + 90)) == 1


def test_a_released_ban_is_gone():
    ledger = Ledger(100)
    ledger.place(ban_of("203.0.113.7"))

    assert ledger.release(p("203.0.113.7"))
    assert ledger.release(p("203.0.113.7")) is None
    assert ledger.expire(NOW + 1e9) == []


def test_a_ban_is_proven_when_every_layer_has_confirmed_it():
    ledger = Ledger(100)
    ban = ledger.place(ban_of("203.0.113.7"))
    rungs = ("xdp", "nft")

    assert row(ban, NOW, rungs)["proven"] is False
    assert row(ban, NOW, rungs)["proofs"]["xdp"]["state"] == "pending"
    ledger.prove("xdp", ban.subject, True, "asked the program", NOW)
    assert row(ban, NOW, rungs)["proven"] is False
    ledger.prove("nft", ban.subject, True, "", NOW)
    assert row(ban, NOW, rungs)["proven"] is True
    ledger.prove("nft", ban.subject, False, "", NOW)
    assert row(ban, NOW, rungs)["proofs"]["nft"]["state"] == "missing"


def test_without_a_layer_nothing_is_proven():
    assert row(ban_of("203.0.113.7"), NOW, ())["proven"] is False


def test_a_layer_that_starts_anew_has_proved_nothing():
    ledger = Ledger(100)
    ban = ledger.place(ban_of("203.0.113.7"))
    ledger.prove("xdp", ban.subject, True, "", NOW)

    ledger.unprove("xdp")

    assert row(ban, NOW, ("xdp",))["proven"] is False


def test_a_proof_of_what_is_not_banned_is_no_proof():
    assert Ledger(100).prove("xdp", p("203.0.113.7"), True, "", NOW) is False


def test_pages_show_every_ban_once_newest_first():
    ledger = Ledger(1000)
    for number in range(25):
        ledger.place(ban_of(f"203.0.113.{number}", since=NOW + number))

    seen, after = [], ""
    while True:
        rows, after = ledger.page(10, after)
        seen += [ban.subject.text for ban in rows]
        if not after:
            break

    assert seen == [f"203.0.113.{number}" for number in reversed(range(25))]


def test_a_page_goes_on_behind_a_subject():
    ledger = Ledger(1000)
    for number in range(5):
        ledger.place(ban_of(f"203.0.113.{number}"))

    rows, _ = ledger.page(10, ledger.cursor_of(p("203.0.113.3")))

    assert [ban.subject.text for ban in rows] == ["203.0.113.2", "203.0.113.1", "203.0.113.0"]


def test_a_hundred_thousand_bans_are_placed_listed_and_released():
    ledger = Ledger(131_072)
    subjects = [Prefix(4, 0x0B000000 + 257 * number, 32) for number in range(100_000)]

    for subject in subjects:
        ledger.place(Ban(subject, Action.BAN, "x", "y", NOW, NOW + 60))

    assert len(ledger) == 100_000
    assert len(ledger.page(200)[0]) == 200
    assert len(ledger.expire(NOW + 60)) == 100_000


def test_a_full_ledger_says_so():
    ledger = Ledger(1)
    assert not ledger.full
    ledger.place(ban_of("203.0.113.7"))
    assert ledger.full


@pytest.mark.parametrize("template", ["203.0.113.{}", "2001:db8:0:{}::/64"])
def test_a_neighbourhood_is_crowded_when_enough_members_are_banned(template):
    ledger = Ledger(100)
    for number in range(NEIGHBOURS - 1):
        assert ledger.crowded(ledger.place(ban_of(template.format(number))).subject) is None

    last = ledger.place(ban_of(template.format(NEIGHBOURS - 1)))

    assert ledger.crowded(last.subject) is not None
    ledger.release(last.subject)
    assert ledger.crowded(last.subject) is None


def test_what_people_ban_and_what_is_only_noted_makes_no_crowd():
    ledger = Ledger(100)
    for number in range(NEIGHBOURS):
        ledger.place(ban_of(f"203.0.113.{number}", by="me"))
        ledger.place(ban_of(f"203.0.112.{number}", action=Action.OBSERVE))

    assert ledger.crowded(p("203.0.113.0")) is None
    assert ledger.crowded(p("203.0.112.0")) is None


def test_a_crowd_that_is_banned_already_is_no_news():
    ledger = Ledger(100)
    for number in range(NEIGHBOURS):
        ledger.place(ban_of(f"203.0.113.{number}"))
    ledger.place(ban_of("203.0.113.0/24"))

    assert ledger.crowded(p("203.0.113.1")) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["place", "person", "note", "release", "expire"]))))
def test_the_count_of_neighbours_is_always_true(steps):
    ledger = Ledger(100)
    for time, (host, step) in enumerate(steps):
        now = NOW + time
        subject = f"203.0.113.{host}"
        if step == "release":
            ledger.release(p(subject))
        elif step == "expire":
            ledger.expire(now)
        else:
            action = Action.OBSERVE if step == "note" else Action.BAN
            ledger.place(ban_of(subject, since=now, until=now + 3, by="me" * (step == "person"), action=action))

        automatic = [b for b in ledger.bans.values() if not b.by and b.action is Action.BAN]
        assert ledger._neighbours.get(p("203.0.113.0/24"), 0) == len(automatic)


def test_penalties_double_up_to_a_limit():
    assert [penalty_s(60, 600, repeats) for repeats in range(6)] == [60, 120, 240, 480, 600, 600]
    assert penalty_s(60, 600, 10_000) == 600


def test_offences_are_forgiven_with_time():
    offences = Offences()
    for _ in range(3):
        offences.add(p("203.0.113.7"), NOW)

    assert offences.count(p("203.0.113.7"), NOW) == 3
    assert offences.count(p("203.0.113.7"), NOW + FORGIVE_EVERY_S) == 2
    assert offences.count(p("203.0.113.7"), NOW + 9 * FORGIVE_EVERY_S) == 0


def test_the_memory_of_offences_is_bounded():
    offences = Offences(limit=10)
    for number in range(50):
        offences.add(Prefix(4, number, 32), NOW)

    assert len(offences) == 10
    assert offences.count(Prefix(4, 49, 32), NOW) == 1
    assert offences.count(Prefix(4, 0, 32), NOW) == 0


def test_a_released_source_is_forgiven():
    offences = Offences()
    offences.add(p("203.0.113.7"), NOW)

    offences.forgive(p("203.0.113.7"))

    assert offences.count(p("203.0.113.7"), NOW) == 0


def test_a_ban_survives_the_journal():
    ban = ban_of("2001:db8::/64", reflex="budget_syn", evidence="many", repeats=2, packets=9)

    again = from_body(ban.subject, to_body(ban))

    assert again == ban


@pytest.mark.parametrize("body", [{}, {"action": "kill", "since_unix_s": 1.0}, {"action": "ban", "since_unix_s": "x"}])
def test_a_bad_memory_of_a_ban_is_a_value_error(body):
    with pytest.raises(ValueError, match="no ban in the journal"):
        from_body(p("203.0.113.7"), body)


def test_bans_that_are_proved_together_share_what_was_said_and_stay_apart_from_others():
    ledger = Ledger(100)
    for number in range(4):
        ledger.place(ban_of(f"203.0.113.{number}"))
    for number in range(3):
        ledger.prove("xdp", p(f"203.0.113.{number}"), True, "drops", NOW)
    ledger.prove("nft", p("203.0.113.0"), True, "holds it", NOW)
    ledger.prove("xdp", p("203.0.113.2"), False, "passes", NOW)

    said = [{rung: proof.holds for rung, proof in ledger.get(p(f"203.0.113.{n}")).proofs.items()} for n in range(4)]
    assert said == [{"xdp": True, "nft": True}, {"xdp": True}, {"xdp": False}, {}]

    ledger.unprove("xdp")

    assert [list(ledger.get(p(f"203.0.113.{n}")).proofs) for n in range(4)] == [["nft"], [], [], []]
