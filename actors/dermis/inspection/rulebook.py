"""All that inspection looks for, read from disk and compiled: YAML signatures and Suricata rules, with every problem.

Reading and compiling may take seconds for large sets, so the cell does it in a thread and swaps the result in whole.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.dermis.inspection import signatures, suricata_rules
from actors.dermis.inspection.detector import Detector, Prefilter
from actors.dermis.inspection.quarantine import Taught, shelve, too_broad
from actors.dermis.inspection.signature_engine import build
from actors.dermis.inspection.signature_watch import SignatureWatch
from actors.dermis.inspection.signatures import Problem, Shelf, Signature
from actors.dermis.inspection.streams import Limits
from actors.dermis.inspection.suricata_rules import read_rules
from actors.dermis.inspection.suricata_types import Rule
from actors.dermis.inspection.vaccination import head_of, refusal

#: Signatures that come with the product.
SHIPPED = Path(__file__).resolve().parents[3] / "config" / "signatures"
RULES_FILE_MAX = 64 << 20


@dataclass(slots=True)
class Rulebook:
    """Ready for packets. engine is ``hyperscan`` or ``re``; problems name file, signature or line, and reason."""

    detector: Detector
    watch: SignatureWatch
    signatures: list[Signature] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    engine: str = "re"


def open_rulebook(
    folders: Iterable[Path],
    rule_folders: Iterable[Path],
    home_net: str,
    limits: Limits,
    cache: Path | None = None,
    taught: Iterable[Taught] = (),
) -> Rulebook:
    """Read, compile, and let every signature prove itself on its samples. Never raises for what is in the files.

    taught: signatures of other nodes, which stand beside those of the files."""
    shelf = signatures.read_folders(folders)
    shelve(taught, shelf)
    rules: list[Rule] = []
    variables = dict(suricata_rules.VARIABLES) | {"HOME_NET": home_net or suricata_rules.HOME}
    for folder in rule_folders:
        rules += _rules_of(folder, variables, shelf.problems)
    return compiled(shelf, rules, limits, cache)


def check_files(files: Iterable[Path]) -> Rulebook:
    """Read and judge single files, by the end of their names: ``.rules`` are Suricata's, all others YAML."""
    shelf, rules = Shelf(), []
    for path in files:
        if path.suffix == ".rules":
            rules += _rules_in(path, suricata_rules.VARIABLES, shelf.problems)
        else:
            signatures.read_file(path, shelf)
    return compiled(shelf, rules, Limits())


def compiled(
    shelf: Shelf, rules: list[Rule], limits: Limits, cache: Path | None = None, innocent: Iterable[bytes] = ()
) -> Rulebook:
    """A rulebook from what was read; problems of the shelf go on in it. innocent: more that no taught one may find."""
    problems = list(shelf.problems)
    built = build([signature.pattern for signature in shelf.signatures], cache)
    bad = dict(built.refused)
    bad |= too_broad(shelf.signatures, built.engine.block, innocent)
    for number, signature in enumerate(shelf.signatures):
        if number not in bad and (reason := _disproved(signature, number, built.engine.block)):
            bad[number] = reason
    for number, reason in bad.items():
        problems.append(Problem(shelf.signatures[number].file, shelf.signatures[number].name, reason))
    kept = [signature for number, signature in enumerate(shelf.signatures) if number not in bad]
    if bad:
        built = build([signature.pattern for signature in kept], cache)
    watch = SignatureWatch(kept, built.engine)
    detector = Detector(rules, limits, _prefilter, watch)
    return Rulebook(detector, watch, kept, rules, problems, built.engine.name)


def _disproved(signature: Signature, number: int, block: Callable[[bytes], list[tuple[int, int]]]) -> str:
    """Why the samples do not bear the pattern out; empty when they do."""
    for sample in signature.hit:
        if number not in (found for found, _ in block(sample)):
            return f"it does not find its own sample {sample[:60]!r}"
    for sample in signature.miss:
        if number in (found for found, _ in block(sample)):
            return f"it finds the sample {sample[:60]!r}, which it must not"
    return _no_vaccine(signature, number, block) if signature.vaccinate else ""


def _no_vaccine(signature: Signature, number: int, block: Callable[[bytes], list[tuple[int, int]]]) -> str:
    """Why none of its samples could become the vaccine that it promises; empty when one could."""
    port, why = min(signature.ports, default=1), ""
    for sample in signature.hit:
        why = refusal(min(signature.protocols), port, head_of(number, sample, block), frozenset())
        if not why:
            return ""
    return f"it says vaccinate, but none of its hit samples could be a vaccine: {why}"


def _rules_of(folder: Path, variables: dict[str, str], problems: list[Problem]) -> list[Rule]:
    """Every ``*.rules`` file of a folder; of two rules with one sid the higher revision stays."""
    found: dict[int, Rule] = {}
    try:
        paths = sorted(folder.glob("*.rules"))
        if not paths:
            folder.stat()
    except OSError as error:
        problems.append(Problem(str(folder), "", f"the folder cannot be read: {error.strerror}"))
        return []
    for path in paths:
        for rule in _rules_in(path, variables, problems):
            if rule.sid not in found or rule.rev >= found[rule.sid].rev:
                found[rule.sid] = rule
    return list(found.values())


def _rules_in(path: Path, variables: Mapping[str, str], problems: list[Problem]) -> list[Rule]:
    try:
        if path.stat().st_size > RULES_FILE_MAX:
            problems.append(Problem(path.name, "", f"the file is larger than {RULES_FILE_MAX} bytes"))
            return []
        book = read_rules(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), variables)
    except OSError as error:
        problems.append(Problem(path.name, "", f"the file cannot be read: {error.strerror}"))
        return []
    for one in book.refusals:
        problems.append(Problem(path.name, f"line {one.line}, sid {one.sid}", one.reason))
    return book.rules


def _prefilter(literals: Sequence[bytes]) -> Prefilter | None:
    """Which of these occur in some bytes; None where trying every rule is as quick."""
    numbers = [number for number, literal in enumerate(literals) if literal]
    if len(numbers) < 8:
        return None
    built = build([literals[number] for number in numbers], literal=True, streams=False)
    if built.engine.name != "hyperscan" or built.refused:
        return None
    return lambda data: [numbers[found] for found, _ in built.engine.block(data)]
