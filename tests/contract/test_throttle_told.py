"""What throttling means is said, not feigned: the kernel has no budget of one source alone."""

import time

from actors.core.messages import Action, Enforce, Verdict
from tests.support.policy import Skin


def test_a_throttled_source_is_told_as_one_of_which_nothing_is_dropped(tmp_path):
    skin = Skin(tmp_path, memory={})
    skin.dish.peer("macrophage")
    verdict = Verdict(
        subject="203.0.113.7", action=Action.THROTTLE, reason="signature sip-scanner (medium)", origin="macrophage",
        seen_unix_s=time.time(),
    )  # fmt: skip

    skin.dish.give(verdict, "macrophage")
    skin.play(0.05)
    [row] = skin.ask("blocks.list")["blocks"]
    told = skin.ask("why", address="203.0.113.7")

    assert (row["action"], row["enforced"], row["proven"]) == ("throttle", False, False)
    assert (told["verdict"], told["blocked"]) == ("throttled", False)
    assert "Nothing of it is dropped" in " ".join(told["sentences"])
    assert skin.dish.sent(Enforce) == []
    skin.stop()
