"""The shapes of what is sent to the gateway, checked at the border: bounded lists, real addresses, real durations."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from actors.core.messages import Posture

MAX_SUBJECTS = 200
YEAR_S = 31_536_000.0
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _subject(value: str) -> str:
    """Canonical text of an address or prefix; host bits below a prefix are cut."""
    try:
        network = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError as exc:
        raise ValueError("this is no IPv4 or IPv6 address or prefix") from exc
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _seconds(value: object) -> object:
    """``90``, ``"90"``, ``"10m"``, ``"2h"``, ``"1d"`` as seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*([smhd]?)\s*", value, re.ASCII)
    if match is None:
        raise ValueError("a duration is a number of seconds, or a number with s, m, h or d")
    return float(match[1]) * _UNITS[match[2]]


Subject = Annotated[str, Field(min_length=2, max_length=60), AfterValidator(_subject)]
Subjects = Annotated[list[Subject], Field(min_length=1, max_length=MAX_SUBJECTS)]
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=YEAR_S, allow_inf_nan=False)]
Sentence = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PostureForm(Form):
    """The posture to take; ``for`` ends it, ``confirm_within`` takes it back unless it is confirmed."""

    posture: Annotated[Posture, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)]
    for_s: Annotated[Duration | None, Field(validation_alias=AliasChoices("for", "for_s"))] = None
    confirm_within_s: Annotated[
        Duration | None, Field(validation_alias=AliasChoices("confirm_within", "confirm_within_s"))
    ] = None
    reason: Sentence = ""


class SubjectsForm(Form):
    subjects: Subjects


class BlockForm(SubjectsForm):
    """Addresses to block. Without ``ttl`` policy chooses; ``ttl`` in seconds or as ``10m``."""

    ttl_s: Annotated[Duration | None, Field(validation_alias=AliasChoices("ttl", "ttl_s", "for", "for_s"))] = None
    reason: Sentence = ""


class TolerateForm(SubjectsForm):
    """Addresses that are never blocked; without ``for`` until they are taken off the list."""

    for_s: Annotated[Duration | None, Field(validation_alias=AliasChoices("for", "for_s"))] = None
    comment: Sentence = ""
