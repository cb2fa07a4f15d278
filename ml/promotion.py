"""Which model a node serves, and how another takes its place: by one atomic rename, with the old one kept.

A models directory holds one folder per model, the symbolic links ``current``, ``previous`` and ``anchor`` to three of
them, ``promotion.json``, and ``serving.json``, in which the service says how it finds the current one. A promoted model
is on probation first: it scores, its verdicts do not count, and it must not call more than SHADOW_SHARE of ordinary
flows strange. Only then the file says ``passed``.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ml.card import read_card
from ml.registry import ModelError, load

CURRENT: Final = "current"
PREVIOUS: Final = "previous"
#: The model that growth is measured against.
ANCHOR: Final = "anchor"
_STATE: Final = "promotion.json"
_SAID: Final = "serving.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Promotion:
    """What promotion.json says. ``shadow_s`` is the length of the probation."""

    model: str
    promoted_unix_s: float
    shadow_s: float
    passed: bool


def promote(models: Path, folder: Path, now_unix_s: float, shadow_s: float, *, new_anchor: bool = False) -> str:
    """Copy a checked model folder into ``models`` and make it current; returns its name there. The first model is the
    anchor of those that follow, until somebody wants a new one.

    Idempotent: promoting the current model again only starts its probation anew. A crash between the steps leaves
    either the old or the new model current, never none. Raises ModelError.
    """
    load(folder)
    models.mkdir(parents=True, exist_ok=True)
    name = _adopt(models, folder)
    if (models / CURRENT).is_symlink() and _target(models, CURRENT) != name:
        _link(models, PREVIOUS, _target(models, CURRENT))
    write(models, Promotion(name, now_unix_s, shadow_s, passed=shadow_s <= 0))
    _link(models, CURRENT, name)
    if new_anchor or not (models / ANCHOR).exists():
        _link(models, ANCHOR, name)
    return name


def rollback(models: Path, now_unix_s: float) -> str:
    """Make the previous model current again, at once and without probation: it has proved itself. Raises ModelError."""
    if not (models / PREVIOUS).is_symlink():
        raise ModelError(f"there is no previous model in {models} to go back to")
    old, new = _target(models, CURRENT), _target(models, PREVIOUS)
    load(models / new)
    write(models, Promotion(new, now_unix_s, 0.0, passed=True))
    _link(models, CURRENT, new)
    _link(models, PREVIOUS, old)
    return new


def read(models: Path) -> Promotion | None:
    """The last promotion, or None when the file is absent or broken (then probation starts anew)."""
    try:
        raw: Any = json.loads((models / _STATE).read_text(encoding="utf-8"))
        return Promotion(
            str(raw["model"]), float(raw["promoted_unix_s"]), float(raw["shadow_s"]), raw["passed"] is True
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(models: Path, promotion: Promotion) -> None:
    """Replace promotion.json in one step. Raises OSError."""
    facts = {
        "model": promotion.model,
        "promoted_unix_s": promotion.promoted_unix_s,
        "shadow_s": promotion.shadow_s,
        "passed": promotion.passed,
    }
    _replace(models / _STATE, facts)


def say(models: Path, facts: dict[str, Any]) -> None:
    """The service's word on the current model, for ``ml.promote status``. Raises OSError."""
    _replace(models / _SAID, facts)


def heard(models: Path) -> dict[str, Any] | None:
    """What the service said last; None when it never did."""
    try:
        raw: Any = json.loads((models / _SAID).read_bytes()[:65_536])
        return {name: raw[name] for name in ("model", "state", "reason", "drift")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace(path: Path, facts: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(facts), encoding="utf-8")
    fresh.replace(path)


def _adopt(models: Path, folder: Path) -> str:
    """The model's folder inside ``models``, copied under its own name unless it is there already."""
    name = folder.resolve().name
    if not _NAME.fullmatch(name) or name in (CURRENT, PREVIOUS, ANCHOR):
        raise ModelError(f"'{name}' is no name for a model: use letters, digits, dot, dash and underscore")
    if folder.resolve().parent == models.resolve():
        return name
    home = models / name
    if home.exists() and read_card(home).get("weights_sha256") == read_card(folder).get("weights_sha256"):
        return name
    if home.exists():
        raise ModelError(f"{home} exists already: give the new model another name, old ones are kept for rollback")
    fresh = models / f".{name}.{os.getpid()}"
    fresh.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            (fresh / path.name).write_bytes(path.read_bytes())
    fresh.rename(home)
    return name


def _link(models: Path, link: str, name: str) -> None:
    fresh = models / f".{link}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(models / link)


def _target(models: Path, link: str) -> str:
    try:
        return (models / link).readlink().name
    except OSError as exc:
        raise ModelError(f"{models / link} is not a link to a model: {exc}") from exc
