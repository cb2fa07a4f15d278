"""The ladder: falling, climbing, and why a rung was refused."""

from actors.epidermis.ladder import CLIMB_CAP_S, CLIMB_FIRST_S, Ladder

ORDER = ("native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe")


def test_the_best_rung_that_holds_is_kept_with_the_reasons_above_it() -> None:
    ladder = Ladder("eth0", ORDER)

    assert ladder.due(0)
    assert ladder.stands("generic", {"native": "frames too large", "tcx": "kernel too old"}, 0)

    assert ladder.on_program
    assert ladder.refused == {"native": "frames too large", "tcx": "kernel too old"}
    assert not ladder.wants_hook


def test_without_any_kernel_rung_the_nft_hook_is_wanted_and_prerouting_holds_meanwhile() -> None:
    ladder = Ladder("eth0", ORDER)

    ladder.falls(dict.fromkeys(("native", "tcx", "generic"), "not permitted"), 0)

    assert ladder.wants_hook
    assert ladder.standing == "nft_prerouting"
    assert ladder.hook(ingress=True, prerouting=True, why_not="")
    assert ladder.standing == "nft_ingress"
    assert set(ladder.refused) == {"native", "tcx", "generic"}


def test_without_nft_too_nothing_but_observing_is_left_and_every_reason_is_kept() -> None:
    ladder = Ladder("eth0", ORDER)
    ladder.falls(dict.fromkeys(("native", "tcx", "generic"), "not permitted"), 0)

    ladder.hook(ingress=False, prerouting=False, why_not="no nft program")

    assert ladder.standing == "observe"
    assert set(ladder.refused) == set(ORDER) - {"observe"}
    assert ladder.refused["nft_ingress"] == "no nft program"


def test_climbing_is_tried_again_later_and_later_up_to_a_limit() -> None:
    ladder, now, waits = Ladder("eth0", ORDER), 0.0, []

    for _ in range(10):
        ladder.falls({"native": "busy"}, now)
        began = now
        while not ladder.due(now):
            now += 1.0
        waits.append(now - began)

    assert waits[0] == CLIMB_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == CLIMB_CAP_S


def test_reaching_the_top_forgets_the_reasons_and_the_patience() -> None:
    ladder = Ladder("eth0", ORDER)
    ladder.stands("generic", {"native": "busy", "tcx": "busy"}, 0)

    assert not ladder.due(CLIMB_FIRST_S - 1)
    assert ladder.due(CLIMB_FIRST_S)
    assert ladder.stands("native", {}, CLIMB_FIRST_S)

    assert ladder.refused == {}
    assert not ladder.due(1e9)


def test_what_was_taken_away_is_tried_again_at_once() -> None:
    ladder = Ladder("eth0", ORDER)
    ladder.stands("native", {}, 0)

    ladder.lost()

    assert ladder.due(0)


def test_an_interface_that_is_gone_is_left_alone_until_it_returns() -> None:
    ladder = Ladder("eth0", ORDER)
    ladder.stands("native", {}, 0)

    ladder.vanished()
    assert not ladder.due(1e9)
    assert not ladder.wants_hook
    assert not ladder.hook(ingress=True, prerouting=True, why_not="")

    ladder.returned()
    assert ladder.due(0)


def test_a_choice_without_kernel_rungs_never_tries_them() -> None:
    ladder = Ladder("eth0", ("nft_prerouting", "observe"))

    ladder.falls({}, 0)

    assert not ladder.due(1e9)
    assert not ladder.wants_hook
    assert ladder.standing == "nft_prerouting"


def test_a_word_about_hooks_changes_nothing_where_the_program_stands() -> None:
    ladder = Ladder("eth0", ORDER)
    ladder.stands("native", {}, 0)

    assert not ladder.hook(ingress=True, prerouting=True, why_not="")
    assert ladder.standing == "native"
