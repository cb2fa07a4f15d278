"""Which side of the conversations is seen, in words; and when a refusal is asked again."""

from actors.epidermis.egress_sight import AGAIN_AFTER_S, EgressSight
from actors.epidermis.ladder import Ladder
from bpf.dataplane import Egress, EgressWay

ORDER = ("native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe")
REFUSED = Egress("eth0", refused={"tcx": "kernel too old", "clsact": "no such queue"}, remedy="load sch_ingress")
BOTH = Egress("eth0", EgressWay.CLSACT, {"tcx": "kernel too old"})


def on(rung: str) -> dict[str, Ladder]:
    return {"eth0": Ladder("eth0", ORDER, standing=rung)}


def test_until_it_hangs_it_is_due_and_then_no_more():
    sight = EgressSight()
    before = sight.due(["eth0"], 0)

    news = [sight.took(BOTH, 0), sight.took(BOTH, 1)]

    assert (before, news) == (["eth0"], [True, False])
    assert sight.due(["eth0"], 1e6) == []
    assert sight.told(on("native"))["eth0"] == {"sides": "both", "way": "clsact", "reason": "", "remedy": ""}
    assert sight.shortcoming(on("native")) == ("", "")


def test_a_refusal_is_told_with_both_reasons_and_asked_again_later():
    sight = EgressSight()

    sight.took(REFUSED, 0)

    reason, remedy = sight.shortcoming(on("native"))
    assert "one-sided because" in reason
    assert "tcx: kernel too old; clsact: no such queue" in reason
    assert remedy == "load sch_ingress"
    assert sight.told(on("native"))["eth0"]["sides"] == "one"
    assert sight.due(["eth0"], AGAIN_AFTER_S - 1) == []
    assert sight.due(["eth0"], AGAIN_AFTER_S) == ["eth0"]


def test_what_was_taken_off_by_others_is_due_at_once():
    sight = EgressSight()
    sight.took(BOTH, 0)

    sight.lost("eth0")

    assert not sight.sees("eth0")
    assert sight.due(["eth0"], 0) == ["eth0"]


def test_where_the_program_does_not_hang_there_are_no_records_and_no_complaint():
    sight = EgressSight()
    sight.took(REFUSED, 0)

    assert sight.told(on("nft_ingress"))["eth0"]["sides"] == "none"
    assert "does not hang there" in sight.told(on("nft_ingress"))["eth0"]["reason"]
    assert sight.shortcoming(on("nft_ingress")) == ("", "")


def test_the_operators_choice_is_no_shortcoming_and_is_carried_out_once():
    sight = EgressSight()
    sight.took(BOTH, 0)
    sight.wanted = False
    due = sight.due(["eth0"], 1)

    sight.took(Egress("eth0"), 1)

    assert (due, sight.due(["eth0"], 2)) == (["eth0"], [])
    assert sight.shortcoming(on("native")) == ("", "")
    assert "egress_flows is off" in sight.told(on("native"))["eth0"]["reason"]

    sight.wanted = True
    assert sight.due(["eth0"], 3) == ["eth0"]


def test_a_reason_of_any_length_is_cut():
    sight = EgressSight()

    sight.took(Egress("eth0", refused={"tcx": "x" * 10_000}), 0)

    assert len(sight.shortcoming(on("native"))[0]) < 2_000
