"""The posture: who may change it, when it ends by itself, and what it returns to."""

import math

import pytest

from actors.core.errors import Refused
from actors.core.messages import Posture
from actors.hypodermis.posture import (
    AUTOMATIC_CHANGES,
    AUTOMATIC_LONGEST_S,
    AUTOMATIC_WINDOW_S,
    AutomaticBounds,
    PostureState,
    change,
    confirm,
    due,
    from_body,
    lapse,
    to_body,
)

NOW = 1_800_000_000.0
BALANCED = PostureState.initial(Posture.BALANCED, NOW)


def test_a_posture_stays_until_it_is_changed():
    state = change(BALANCED, Posture.LOCKDOWN, NOW, by="me")

    assert state.posture is Posture.LOCKDOWN
    assert state.previous is Posture.BALANCED
    assert not due(state, NOW + 1e9)
    assert lapse(state, NOW + 1e9) is state


def test_a_posture_for_a_time_returns_by_itself():
    state = change(BALANCED, Posture.LOCKDOWN, NOW, for_s=600)

    assert not due(state, NOW + 599)
    assert due(state, NOW + 600)
    assert lapse(state, NOW + 600).posture is Posture.BALANCED
    assert "over" in lapse(state, NOW + 600).reason


def test_an_unconfirmed_posture_returns_by_itself():
    state = change(BALANCED, Posture.LOCKDOWN, NOW, confirm_within_s=60)

    assert due(state, NOW + 60)
    after = lapse(state, NOW + 60)
    assert after.posture is Posture.BALANCED
    assert after.previous is Posture.LOCKDOWN
    assert "not confirmed" in after.reason


def test_a_confirmed_posture_stays():
    state = confirm(change(BALANCED, Posture.LOCKDOWN, NOW, confirm_within_s=60), "me")

    assert not due(state, NOW + 61)


def test_a_confirmed_posture_for_a_time_still_ends():
    state = confirm(change(BALANCED, Posture.LOCKDOWN, NOW, for_s=600, confirm_within_s=60))

    assert not due(state, NOW + 61)
    assert due(state, NOW + 600)


def test_nothing_to_confirm_is_said():
    with pytest.raises(Refused, match="nothing waits"):
        confirm(BALANCED)


def test_a_temporary_posture_is_no_place_to_return_to():
    first = change(BALANCED, Posture.HARDENED, NOW, for_s=600)
    second = change(first, Posture.LOCKDOWN, NOW + 1, confirm_within_s=60)

    assert lapse(second, NOW + 61).posture is Posture.BALANCED


def test_a_lasting_posture_is_the_place_to_return_to():
    first = change(BALANCED, Posture.HARDENED, NOW)
    second = change(first, Posture.LOCKDOWN, NOW + 1, for_s=60)

    assert lapse(second, NOW + 61).posture is Posture.HARDENED


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e12])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(Refused, match="no usable time"):
        change(BALANCED, Posture.LOCKDOWN, NOW, for_s=seconds)
    with pytest.raises(Refused, match="no usable time"):
        change(BALANCED, Posture.LOCKDOWN, NOW, confirm_within_s=seconds)


def test_a_confirmation_after_the_end_makes_no_sense():
    with pytest.raises(Refused, match="before the"):
        change(BALANCED, Posture.LOCKDOWN, NOW, for_s=60, confirm_within_s=120)


def test_the_sentence_says_what_happens_when():
    state = change(BALANCED, Posture.LOCKDOWN, NOW, for_s=600, confirm_within_s=60)

    assert "60 s" in state.sentence(NOW)
    assert "10 min" in state.sentence(NOW)
    assert "balanced" in state.sentence(NOW)


def test_a_posture_survives_the_journal():
    state = change(BALANCED, Posture.LOCKDOWN, NOW, for_s=600, confirm_within_s=60, reason="drill", by="me")

    assert from_body(to_body(state)) == state


@pytest.mark.parametrize(
    "body", [{}, {"posture": "soft"}, {"posture": None}, {**to_body(BALANCED), "until_unix_s": []}]
)
def test_a_bad_memory_is_a_value_error(body):
    with pytest.raises(ValueError, match="no posture in the journal"):
        from_body(body)


def test_a_machine_may_only_close_the_skin_and_only_so_far():
    bounds = AutomaticBounds()

    with pytest.raises(Refused, match="beyond"):
        bounds.admit(BALANCED, Posture.LOCKDOWN, 60, NOW)
    with pytest.raises(Refused, match="close"):
        bounds.admit(BALANCED, Posture.EXPLORE, 60, NOW)
    with pytest.raises(Refused, match="close"):
        bounds.admit(change(BALANCED, Posture.LOCKDOWN, NOW), Posture.HARDENED, 60, NOW)

    assert bounds.admit(BALANCED, Posture.HARDENED, 60, NOW) == 60


def test_a_machine_changes_for_a_time_only():
    bounds = AutomaticBounds()

    assert 0 < bounds.admit(BALANCED, Posture.HARDENED, 0, NOW) <= AUTOMATIC_LONGEST_S
    assert bounds.admit(BALANCED, Posture.HARDENED, 1e9, NOW) == AUTOMATIC_LONGEST_S


def test_a_machine_changes_seldom():
    bounds = AutomaticBounds()
    for number in range(AUTOMATIC_CHANGES):
        bounds.admit(BALANCED, Posture.HARDENED, 60, NOW + number)

    with pytest.raises(Refused, match="within an hour"):
        bounds.admit(BALANCED, Posture.HARDENED, 60, NOW + 10)

    assert bounds.admit(BALANCED, Posture.HARDENED, 60, NOW + AUTOMATIC_WINDOW_S)
