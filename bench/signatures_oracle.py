"""How often our reading of Suricata rules agrees with Suricata's own: ``python -m bench.signatures_oracle``.

Plays each capture of the shared evaluation data through the rules of one test at a time and compares the presence of
alerts with what Suricata is known to raise. Rules that use what we do not support are refused by the parser; they are
listed and counted apart, never among the misses. Beside our figures stands the naive engine of the same run: all
contents of the rule somewhere in the reassembled streams.
"""

import argparse
import csv
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.dermis.inspection.detector import Detector
from actors.dermis.inspection.packets import from_frame
from actors.dermis.inspection.suricata_rules import Refusal, read_rules
from actors.dermis.inspection.suricata_types import Content, Rule
from bpf.pcap import CaptureError, read_capture


@dataclass(slots=True)
class Tally:
    """Rows by what was expected and what came."""

    hit: int = 0
    missed: int = 0
    silent: int = 0
    false: int = 0

    def count(self, *, expected: bool, came: bool) -> None:
        if expected:
            self.hit += came
            self.missed += not came
        else:
            self.false += came
            self.silent += not came

    @property
    def recall(self) -> float:
        return self.hit / max(1, self.hit + self.missed)

    @property
    def specificity(self) -> float:
        return self.silent / max(1, self.silent + self.false)


@dataclass(slots=True)
class Agreement:
    """evasion: rows whose capture hides the payload from HTTP readers. wrong: capture, sid, expected, came."""

    evasion: Tally = field(default_factory=Tally)
    other: Tally = field(default_factory=Tally)
    naive_evasion: Tally = field(default_factory=Tally)
    naive_other: Tally = field(default_factory=Tally)
    refused: list[tuple[str, Refusal]] = field(default_factory=list)
    wrong: list[tuple[str, int, int, int]] = field(default_factory=list)

    @property
    def specificity(self) -> float:
        silent = self.evasion.silent + self.other.silent
        return silent / max(1, silent + self.evasion.false + self.other.false)


def play(capture: Path, rules: list[Rule]) -> Counter[int]:
    """Alerts by sid."""
    detector = Detector(rules)
    counted: Counter[int] = Counter()
    try:
        for frame in read_capture(capture):
            packet = from_frame(frame.at_ns / 1e9, frame.data)
            if packet is not None:
                counted.update(alert.rule.sid for alert in detector.see(packet))
    except CaptureError as error:
        print(f"{capture.name}: {error}", file=sys.stderr)
    counted.update(alert.rule.sid for alert in detector.finish())
    return counted


def naive(capture: Path, rules: list[Rule]) -> set[int]:
    """Sids whose positive contents all lie in one flow's bytes, in any order, anywhere."""
    said: dict[tuple[object, ...], bytearray] = defaultdict(bytearray)
    try:
        for frame in read_capture(capture):
            packet = from_frame(0.0, frame.data)
            if packet is not None:
                said[packet.source, packet.dest, packet.source_port, packet.dest_port] += packet.payload
    except CaptureError:
        pass
    found = set()
    for rule in rules:
        contents = [item for group in rule.groups for item in group.items if isinstance(item, Content)]
        wanted = [item for item in contents if not item.negated]
        for data in said.values():
            low = bytes(data).lower()
            if all((item.data.lower() in low) if item.nocase else (item.data in data) for item in wanted):
                found.add(rule.sid)
    return found


def tests(folder: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Rows that belong together: one capture with the rules of one test."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    with (folder / "expected_alerts.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            groups[row["pcap"], row["source"]].append(row)
    for (capture, source), rows in groups.items():
        yield capture, source, rows


def measure(folder: Path) -> Agreement:
    result = Agreement()
    for capture, source, rows in tests(folder):
        book = read_rules([row["rule"] for row in rows])
        result.refused += [(capture, refusal) for refusal in book.refusals]
        refused = {refusal.line for refusal in book.refusals}
        counted = play(folder / "pcap" / capture, book.rules)
        plainly = naive(folder / "pcap" / capture, book.rules)
        evades = "http-evader" in source
        for line, row in enumerate(rows, 1):
            if line in refused:
                continue
            sid, expected = int(row["sid"]), int(row["expected_alerts"])
            came = counted[sid]
            (result.evasion if evades else result.other).count(expected=expected > 0, came=came > 0)
            (result.naive_evasion if evades else result.naive_other).count(expected=expected > 0, came=sid in plainly)
            if (expected > 0) != (came > 0):
                result.wrong.append((f"{capture} {source.rpartition('/')[2]}", sid, expected, came))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("TEGUMENTAR_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--data", type=Path, default=default / "data" / "dpi")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wrong", action="store_true", help="list every row that disagrees")
    chosen = parser.parse_args()
    result = measure(chosen.data)
    reasons = Counter(refusal.reason for _, refusal in result.refused)
    if chosen.json:
        print(json.dumps(_figures(result) | {"refused": dict(reasons)}))
        return
    for name, value in _figures(result).items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    print("unsupported rules, by reason:")
    for reason, count in reasons.most_common():
        print(f"  {count:4} {reason}")
    if chosen.wrong:
        for name, sid, expected, came in result.wrong:
            print(f"  {name} sid {sid}: expected {expected}, came {came}")


def _figures(result: Agreement) -> dict[str, float | int]:
    return {
        "recall_outside_http_evasion": result.other.recall,
        "recall_http_evasion": result.evasion.recall,
        "specificity": result.specificity,
        "naive_recall_outside": result.naive_other.recall,
        "naive_recall_http_evasion": result.naive_evasion.recall,
        "naive_specificity": result.naive_other.specificity,
        "rows_compared": sum(
            tally.hit + tally.missed + tally.silent + tally.false for tally in (result.other, result.evasion)
        ),
        "rows_unsupported": len(result.refused),
    }


if __name__ == "__main__":
    main()
