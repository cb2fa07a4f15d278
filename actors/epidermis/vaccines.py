"""Vaccines in the kernel: brings its table to what policy wants, and tells what it holds.

The table outlives every process. So the wish is compared with what stands: what is missing, or ends at another time, is
written, what nobody wants any more is taken out; and again every few seconds, because others may delete from it.
Raises DataPlaneError as the data plane does. No thread of its own: whoever calls owns the data plane meanwhile.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from actors.core.messages import SetVaccines, VaccineOrder
from actors.epidermis.reflex_events import until_ns
from bpf.dataplane import DataPlane, DataPlaneError, Vaccine

LOOK_EVERY_S = 5.0
#: Ends that differ by less are the same: the kernel's clock and the wall clock are two.
SAME_END_NS = 2_000_000_000

Key = tuple[int, int, int]


class Vaccinations:
    """The wish, and how it was carried out."""

    def __init__(self) -> None:
        self._wanted: dict[Key, VaccineOrder] = {}
        self._whole = False
        self._written: set[Key] = set()
        self._look_at_s = 0.0

    def __len__(self) -> int:
        return len(self._wanted)

    def wish(self, message: SetVaccines) -> None:
        from bpf.hashes import fingerprint

        if message.whole:
            self._wanted, self._whole = {}, True
        for order in message.vaccines:
            self._wanted[order.proto, order.dest_port, fingerprint(order.head)] = order
        self._look_at_s = 0.0

    def due(self, now_s: float) -> bool:
        """Whether the kernel should be looked at: after each wish, then as long as there is something to keep."""
        return now_s >= self._look_at_s and (bool(self._wanted) or self._whole)

    def put_right(self, plane: DataPlane) -> int:
        """Make the table what it should be. Returns how many were gone that this life had written."""
        now_unix, now_ns = time.time(), time.monotonic_ns()
        self._wanted = {key: one for key, one in self._wanted.items() if one.until_unix_s > now_unix}
        self._look_at_s = now_ns / 1e9 + LOOK_EVERY_S
        standing = {(one.proto, one.dest_port, one.fingerprint): one for one in plane.vaccines()}
        wrong: list[Vaccine] = []
        lost = 0
        for key, order in self._wanted.items():
            want = Vaccine(*key, until_ns=until_ns(order.until_unix_s, now_unix, now_ns), id=order.number)
            have = standing.get(key)
            lost += have is None and key in self._written
            if have is None or have.id != want.id or abs(have.until_ns - want.until_ns) > SAME_END_NS:
                wrong.append(replace(want, packets=have.packets if have is not None else 0))
        if wrong:
            plane.vaccinate(wrong)
        if self._whole and (strange := [one for key, one in standing.items() if key not in self._wanted]):
            plane.unvaccinate(strange)
        self._written = set(self._wanted)
        if not self._wanted:
            self._look_at_s = float("inf")  # nothing to keep until the next wish
        return lost

    def rows(self, plane: DataPlane | None, *, hangs: bool) -> list[dict[str, Any]]:
        """Each vaccine by name: packets dropped, and what the very program says of such a packet now."""
        standing = _standing(plane)
        return [
            {"name": order.name, "packets": standing.get(key, 0)} | _proved(plane, order, hangs=hangs)
            for key, order in self._wanted.items()
        ]


def _standing(plane: DataPlane | None) -> dict[Key, int]:
    try:
        held: Iterable[Vaccine] = plane.vaccines() if plane is not None else ()
    except DataPlaneError:
        held = ()
    return {(one.proto, one.dest_port, one.fingerprint): one.packets for one in held}


def _proved(plane: DataPlane | None, order: VaccineOrder, *, hangs: bool) -> dict[str, Any]:
    if plane is None or not hangs:
        return {"proven": False, "detail": "the kernel program hangs on no interface"}
    try:
        proof = plane.prove_payload(order.proto, order.dest_port, order.head)
    except DataPlaneError as error:
        return {"proven": False, "detail": str(error)[:200]}
    held = proof.reason == "vaccine"
    verb = "drops" if proof.drop else "would drop" if held else "passes"
    return {"proven": held, "detail": f"the kernel program {verb} such a packet: {proof.reason}"}
