"""The one gate: what is refused, what is graduated, what is only noted, and when automatic blocking stops."""

import pytest

from actors.core.errors import Refused
from actors.core.messages import Action, Posture
from actors.hypodermis.gate import PATIENCE_S, Gate, GateSettings, Wish
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.hostfacts import HostFacts
from actors.hypodermis.ledger import Ledger
from actors.hypodermis.subjects import Prefix, parse_prefix
from actors.hypodermis.tolerance import SafetySet, Tolerance, Toleration

NOW = 1_800_000_000.0


def p(text):
    return parse_prefix(text)


FACTS = HostFacts(
    addresses=(p("192.0.2.10"), p("2001:db8::10")),
    networks=(p("192.0.2.0/24"), p("2001:db8::/64")),
    gateways=(p("192.0.2.1"),),
    resolvers=(p("198.51.100.53"),),
)


class Skin:
    """A gate with all that it judges by, and a clock that the test turns."""

    def __init__(self, *, bans=1000, limit=1000):
        self.now = NOW
        self.ledger = Ledger(limit)
        self.tolerance = Tolerance()
        self.guard = AutoimmuneGuard(bans, 10.0, 60.0)
        self.gate = Gate(GateSettings(600.0, 86_400.0), self.ledger, self.tolerance, self.guard)
        self.gate.safety = SafetySet(FACTS, [p("203.0.113.99")])

    def judge(self, text, *, posture=Posture.BALANCED, action=Action.BAN, **more):
        wish = Wish(subject=p(text), action=action, origin=more.pop("origin", "mast_cell"), reason="test", **more)
        return self.gate.judge(wish, posture, self.now, self.now)

    def place(self, text, **more):
        return self.ledger.place(self.judge(text, **more))


REFUSED = [
    ("127.0.0.1", "loopback"),
    ("::1", "loopback"),
    ("192.0.2.10", "node itself"),
    ("::ffff:192.0.2.10", "node itself"),
    ("2001:db8::10", "node itself"),
    ("192.0.2.1", "gateway"),
    ("198.51.100.53", "resolver"),
    ("203.0.113.99", "admin session"),
    ("203.0.113.0/24", "contains 203.0.113.99"),
    ("192.0.2.0/24", "contains"),
    ("0.0.0.0/0", "too wide"),
    ("::/0", "too wide"),
    ("224.0.0.1", "multicast"),
    ("fe80::1", "link-local"),
]


@pytest.mark.parametrize("by", ["cli uid 0", ""])
@pytest.mark.parametrize(("text", "word"), REFUSED)
def test_people_and_detectors_are_refused_alike_and_nothing_is_changed(text, word, by):
    skin = Skin()

    with pytest.raises(Refused, match=word) as refused:
        skin.judge(text, by=by)

    assert "not blocked" in str(refused.value)
    assert refused.value.remedy
    assert len(skin.ledger) == 0
    assert skin.ledger.offences.count(p("203.0.113.99"), NOW) == 0


@pytest.mark.parametrize("by", ["cli uid 0", ""])
def test_what_is_tolerated_is_not_banned_until_it_is_taken_off_the_list(by):
    skin = Skin()
    skin.tolerance.add(Toleration(p("198.51.100.0/24"), "our office"))

    with pytest.raises(Refused, match="our office") as refused:
        skin.judge("198.51.100.7", by=by)
    with pytest.raises(Refused, match="contains"):
        skin.judge("198.51.0.0/16", by="me")

    assert "--remove 198.51.100.0/24" in refused.value.remedy
    skin.gate.safety = SafetySet()
    skin.tolerance.remove(p("198.51.100.0/24"))
    assert skin.judge("198.51.100.7", by=by).enforced


def test_a_person_bans_exactly_what_was_named_for_as_long_as_was_said():
    skin = Skin()

    assert skin.judge("2001:db8:5::7", by="me").subject == p("2001:db8:5::7")
    assert skin.judge("203.0.113.7", by="me").until_unix_s == 0.0
    assert skin.judge("203.0.113.7", by="me", ttl_s=60).until_unix_s == NOW + 60


def test_an_automatic_ban_of_an_ipv6_source_hits_its_64():
    assert Skin().judge("2001:db8:5::7").subject == p("2001:db8:5::/64")


def test_an_ipv6_neighbour_on_our_own_link_is_banned_alone():
    assert Skin().judge("2001:db8::77").subject == p("2001:db8::77")


def test_a_64_with_a_tolerated_address_is_not_widened_to():
    skin = Skin()
    skin.tolerance.add(Toleration(p("2001:db8:5::1")))

    assert skin.judge("2001:db8:5::7").subject == p("2001:db8:5::7")


def test_policy_chooses_the_time_and_repetition_doubles_it():
    skin = Skin()

    lengths = []
    for _ in range(4):
        ban = skin.place("203.0.113.7")
        lengths.append(ban.until_unix_s - skin.now)
        skin.ledger.release(ban.subject)

    assert lengths == [600, 1200, 2400, 4800]


def test_a_ban_by_the_kernel_keeps_the_kernels_time_at_first():
    skin = Skin()

    ban = skin.judge("203.0.113.7", enforced_until=NOW + 60)

    assert ban.until_unix_s == NOW + 60


def test_no_automatic_ban_is_longer_than_the_setting():
    assert Skin().judge("203.0.113.7", ttl_s=31_000_000).until_unix_s == NOW + 86_400


def test_the_same_verdict_again_is_no_second_offence():
    skin = Skin()
    skin.place("203.0.113.7")
    skin.place("203.0.113.7")

    assert skin.ledger.offences.count(p("203.0.113.7"), NOW) == 1


def test_a_weak_first_suspicion_is_throttled_and_a_lasting_one_banned():
    skin = Skin()

    assert skin.place("203.0.113.7", score=0.5).action is Action.THROTTLE
    skin.now += 1
    assert skin.judge("203.0.113.7", score=0.5).action is Action.THROTTLE
    skin.now += PATIENCE_S
    assert skin.judge("203.0.113.7", score=0.5).action is Action.BAN


def test_a_weak_suspicion_of_a_known_offender_is_a_ban():
    skin = Skin()
    skin.ledger.release(skin.place("203.0.113.7").subject)

    assert skin.judge("203.0.113.7", score=0.5).action is Action.BAN


def test_a_hardened_skin_needs_less_to_ban():
    assert Skin().judge("203.0.113.7", score=0.7).action is Action.THROTTLE
    assert Skin().judge("203.0.113.7", score=0.7, posture=Posture.HARDENED).action is Action.BAN


def test_exploring_notes_what_would_have_been():
    skin = Skin()

    ban = skin.judge("203.0.113.7", posture=Posture.EXPLORE)

    assert ban.action is Action.OBSERVE
    assert not ban.enforced
    assert skin.ledger.offences.count(p("203.0.113.7"), NOW) == 0


def test_a_person_bans_even_while_exploring():
    assert Skin().judge("203.0.113.7", posture=Posture.EXPLORE, by="me").enforced


def test_too_many_automatic_bans_stop_automatic_banning_and_people_go_on():
    skin = Skin(bans=5)
    for number in range(5):
        skin.place(f"203.0.113.{number}")

    with pytest.raises(Refused, match="automatic blocking is stopped"):
        skin.judge("203.0.113.5")

    assert len(skin.ledger) == 5
    assert skin.judge("203.0.113.6", by="me").enforced
    skin.now += 59
    with pytest.raises(Refused, match="stopped"):
        skin.judge("203.0.113.5")
    skin.now += 2
    assert skin.judge("203.0.113.5").enforced


def test_slow_automatic_bans_never_alarm_the_guard():
    skin = Skin(bans=5)

    for number in range(50):
        skin.now += 2.5
        skin.place(f"203.0.113.{number}")

    assert skin.guard.alarms == 0
    assert len(skin.ledger) == 50


def test_renewals_do_not_count_for_the_guard():
    skin = Skin(bans=5)

    for _ in range(50):
        skin.place("203.0.113.7")

    assert skin.guard.alarms == 0


def test_notes_do_not_count_for_the_guard():
    skin = Skin(bans=5)

    for number in range(50):
        skin.place(f"203.0.113.{number}", posture=Posture.EXPLORE)

    assert skin.guard.alarms == 0


def test_a_full_ledger_refuses_newcomers_and_renews_the_rest():
    skin = Skin(limit=1)
    skin.place("203.0.113.7")

    with pytest.raises(Refused, match="1 bans already"):
        skin.judge("203.0.113.8")

    assert skin.judge("203.0.113.7").enforced


@pytest.mark.parametrize("ttl_s", [-1, float("nan"), 1e12])
def test_a_time_that_is_none_is_refused(ttl_s):
    with pytest.raises(Refused, match="no usable time"):
        Skin().judge("203.0.113.7", by="me", ttl_s=ttl_s)


def test_the_guard_keeps_no_more_times_than_it_needs():
    guard = AutoimmuneGuard(3, 10.0, 60.0)

    assert [guard.admit(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert guard.withheld == 2
    assert guard.alarms == 1
    assert guard.left_s(10.0) == 50.0
    assert guard.reason(61.0) == ""


def test_a_hundred_thousand_wishes_are_judged():
    skin = Skin(bans=10**6, limit=10**6)

    for number in range(100_000):
        wish = Wish(subject=Prefix(4, 0x0B000000 + number, 32), action=Action.BAN, origin="x", reason="y")
        skin.ledger.place(skin.gate.judge(wish, Posture.BALANCED, NOW, NOW))

    assert len(skin.ledger) == 100_000
