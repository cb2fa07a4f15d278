"""Reading what permeability wants from its file, and the small things that both enforcing cells share."""

import asyncio
import io
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]
import msgspec

from actors.core.errors import Refused
from actors.core.messages import Order
from actors.epidermis.reconcile import Place, place

T = TypeVar("T")
_ORDERS_LIMIT = 256 << 20


def read_orders(path: str, count: int) -> tuple[list[Order], dict[str, Place]]:
    """The file of an ``EnforceAll``: msgpack ``Order`` maps one after another, or in one array. Raises Refused."""
    try:
        raw = Path(path).read_bytes()[:_ORDERS_LIMIT]
        orders = decode_orders(raw)
    except (OSError, ValueError, msgspec.MsgspecError, msgpack.UnpackException) as exc:
        raise Refused(f"the desired state in {path} cannot be read: {exc}") from exc
    if len(orders) != count:
        raise Refused(f"the desired state in {path} holds {len(orders)} orders instead of {count}")
    places = {}
    for order in orders:
        try:
            places[order.subject] = place(order.subject)
        except ValueError as exc:
            raise Refused(f"the desired state in {path} names {order.subject!r}, which is no address") from exc
    return orders, places


def decode_orders(raw: bytes) -> list[Order]:
    """Raises ValueError or the errors of msgspec and msgpack for anything but orders."""
    if raw and (raw[0] & 0xF0 == 0x90 or raw[0] in (0xDC, 0xDD)):
        return msgspec.msgpack.decode(raw, type=list[Order])
    return msgspec.convert(list(msgpack.Unpacker(io.BytesIO(raw))), list[Order])


def checked_address(given: object) -> str:
    """One address in canonical text. Raises Refused."""
    try:
        return str(ipaddress.ip_address(str(given)))
    except ValueError as exc:
        raise Refused(f"{str(given)[:60]!r} is no address", remedy="give one IPv4 or IPv6 address") from exc


async def off_loop(work: Callable[..., T], *args: Any) -> T:
    """Blocking work in a thread of the loop's pool."""
    return await asyncio.to_thread(work, *args)
