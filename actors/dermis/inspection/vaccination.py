"""Which hostile packets may become vaccines: those whose first bytes alone are what the signature calls hostile. Pure.

The kernel drops whatever begins like the packet that was found. So the signature must lie within these bytes, and must
not depend on what follows them; then a vaccine can hit nobody whom the signature would not have blamed. Beyond that the
head must be specific (``actors.core.payloads``) and must not be how any signature's innocent sample begins.
"""

from collections.abc import Callable, Iterable

from actors.core.payloads import HEAD_BYTES, objection
from actors.dermis.inspection.signatures import Signature

Block = Callable[[bytes], list[tuple[int, int]]]


def innocent_heads(signatures: Iterable[Signature]) -> frozenset[bytes]:
    """How the samples begin that no signature may find."""
    return frozenset(miss[:HEAD_BYTES] for signature in signatures for miss in signature.miss)


def head_of(number: int, payload: bytes, block: Block) -> bytes:
    """The first bytes of this payload when signature ``number`` lies within them; else empty.

    The last of them must be free where more follows: ``\\b`` and ``$`` look one byte ahead."""
    head = payload[:HEAD_BYTES]
    reach = len(head) - (len(payload) > len(head))
    whole = {end for found, end in block(payload[: HEAD_BYTES * 2]) if found == number and end <= reach}
    alone = {end for found, end in block(head) if found == number and end <= reach} if whole else set()
    return head if whole & alone else b""


def refusal(proto: int, dest_port: int, head: bytes, innocent: frozenset[bytes]) -> str:
    """Why this head makes no vaccine; empty when it may be proposed."""
    if not head:
        return f"the signature does not lie within the first {HEAD_BYTES} bytes of one packet"
    if head in innocent:
        return "an innocent sample begins like this"
    return objection(proto, dest_port, head)
