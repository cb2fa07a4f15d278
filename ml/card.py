"""The card of a model: plain text that says what it is, what it was made from, and how good it proved to be.

``key: value`` lines, then a free text after an empty line. People read it; the registry checks the keys it needs.
"""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

MAX_CARD_BYTES: Final = 65_536
NAME: Final = "card.txt"


class CardError(ValueError):
    """A card that cannot be read. The message says which file and line."""


@dataclass(frozen=True, slots=True)
class Card:
    """facts: ordered, single-line texts. note: for people."""

    facts: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def get(self, key: str) -> str:
        """The fact, or an empty text."""
        return self.facts.get(key, "")

    def plus(self, **facts: object) -> "Card":
        """A copy with these facts added or replaced."""
        return Card({**self.facts, **{key: " ".join(str(value).split()) for key, value in facts.items()}}, self.note)

    def write(self, folder: Path) -> None:
        lines = [f"{key}: {value}" for key, value in self.facts.items()]
        (folder / NAME).write_text("\n".join([*lines, "", self.note.strip(), ""]), encoding="utf-8")


def read_card(folder: Path) -> Card:
    """The card in a model folder. Raises CardError."""
    path = folder / NAME
    try:
        raw = path.read_bytes()[: MAX_CARD_BYTES + 1]
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CardError(f"cannot read the card {path}: {exc}") from exc
    if len(raw) > MAX_CARD_BYTES:
        raise CardError(f"the card {path} is longer than {MAX_CARD_BYTES} bytes")
    head, _, note = text.partition("\n\n")
    facts: dict[str, str] = {}
    for number, line in enumerate(head.splitlines(), 1):
        key, colon, value = line.partition(":")
        if not colon or not key.strip():
            raise CardError(f"{path} line {number} is not 'key: value'")
        facts[key.strip()] = value.strip()
    return Card(facts, note.strip())


def library_versions() -> str:
    """Python and the libraries that decide what comes out, for the card."""
    found = [f"python {platform.python_version()}"]
    for name in ("numpy", "safetensors", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
