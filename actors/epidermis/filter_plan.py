"""What to tell nft next: from desired state and what the kernel is believed to hold to one transaction. Pure.

The cell asks ``next`` whenever nft is free, carries the step out, and says ``done`` or ``failed``. Everything small
that waits goes into one transaction; bans come in portions, fresh ones first, so that one more ban never waits behind
a hundred thousand; feeds go alone, because they take seconds.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from actors.core.messages import Order
from actors.epidermis.nft import Held
from actors.epidermis.reconcile import Ledger, Place, alive, by_family, disjoint, place, probe_address
from actors.epidermis.ruleset import (
    AddElements,
    Command,
    Element,
    Layout,
    PutElements,
    RefillSet,
    RemoveElements,
    ReplaceRules,
    ReplaceTable,
    declaration,
    shape,
)

#: Bans in one transaction: about 30 ms of nft.
PORTION = 4_000
#: Times in the kernel may differ by this much from ours before a ban is written again.
_SLACK_S = 2.0
HASH_SETS = ("bans4", "bans6", "bans4_24", "bans6_64")


@dataclass(slots=True)
class Step:
    """One transaction. ``subjects`` are to be proved afterwards; ``feed`` is a file to be read into it."""

    what: str
    commands: list[Command] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  #: subjects that found no room, and why
    feed: Path | None = None
    structure: bool = False  #: chains or rules change
    whole: bool = False
    put: dict[Place, float] = field(default_factory=dict)
    removed: list[Place] = field(default_factory=list)


class FilterPlan:
    """Desired state, believed state, and what lies between them."""

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self.layout, self.ledger = layout, ledger
        self.tolerance: tuple[str, ...] = ()
        self.feed: Path | None = None
        #: hash-set elements that the kernel holds as far as we know: until_unix_s, 0 stays
        self.applied: dict[Place, float] = {}
        self._counts: Counter[str] = Counter()
        self._fresh: dict[str, None] = {}
        self._backlog: dict[str, None] = {}
        self.backlog_rests = False  #: more of it is coming: fresh orders go meanwhile
        self._orphans: dict[Place, None] = {}
        self._whole = self._rules = self._tolerance = self._nets = self._feeds = False
        self._places: dict[str, Place] = {}
        self._net_subjects: set[str] = set()

    # --- wishes ---

    def want_whole(self) -> None:
        """The table must be made anew: it is missing, foreign or damaged."""
        self._whole = True

    def want_layout(self, layout: Layout) -> None:
        """Another posture is other rules; anything else another table."""
        if layout == self.layout:
            return
        only_posture = replace(self.layout, posture=layout.posture) == layout
        self.layout = layout
        self._rules, self._whole = self._rules or only_posture, self._whole or not only_posture

    def want_tolerance(self, prefixes: Iterable[str]) -> None:
        self.tolerance, self._tolerance = tuple(prefixes), True

    def want_feed(self, path: Path | None) -> None:
        self.feed, self._feeds = path, path is not None

    def touch(self, subjects: Iterable[str], *, fresh: bool = True) -> None:
        """The ledger says something new about these, or the kernel has lost them."""
        queue = self._fresh if fresh else self._backlog
        for subject in subjects:
            queue[subject] = None

    def touch_nets(self) -> None:
        self._nets = True

    def remove_strangers(self) -> None:
        """What the kernel holds and nobody wants (any more) is to go."""
        wanted = {self.place(subject) for subject in self.ledger.orders}
        self._orphans.update((found, None) for found in self.applied if found not in wanted)
        self._nets = True

    def forget(self, subjects: Iterable[str]) -> None:
        """These have run out; the kernel dropped them by itself. A wider prefix may uncover a narrower one."""
        for subject in subjects:
            where = self.place(subject)
            self._nets = self._nets or where.set not in HASH_SETS
            self._lost(where)
            self._forget_place(subject)

    def learn_places(self, places: Mapping[str, Place]) -> None:
        """Places worked out elsewhere, so that a bulk import does not cost the actor thread."""
        self._places.update(places)
        self._net_subjects.update(subject for subject, where in places.items() if where.set not in HASH_SETS)

    # --- beliefs ---

    def adopt(self, found: tuple[str, ...]) -> bool:
        """Whether the table found is one of ours, in any posture; then its rules are believed."""
        for posture in ("explore", "balanced", "hardened", "lockdown"):
            layout = replace(self.layout, posture=posture)
            if found == shape(declaration(layout)):
                self.layout = layout
                return True
        return False

    def believe(self, contents: Mapping[str, Sequence[Held]], now_unix_s: float) -> None:
        """What the hash sets hold."""
        self.applied = {
            Place(name, held.key): 0.0 if held.expires_s is None else now_unix_s + held.expires_s
            for name, all_held in contents.items()
            for held in all_held
        }
        self._counts = Counter(where.set for where in self.applied)

    def compare(self, contents: Mapping[str, Sequence[Held]], now_unix_s: float) -> list[str]:
        """Believe what was found; return the subjects that were there and no longer are, and mark all that differs.

        What still waits for its turn is not missing."""
        before = self.applied
        self.believe(contents, now_unix_s)
        missing = [
            subject
            for subject, order in self.ledger.orders.items()
            if (where := self.place(subject)) in before
            and where not in self.applied
            and alive(order, now_unix_s + _SLACK_S)
        ]
        self.touch(missing)
        self.remove_strangers()
        return missing

    def net_sample(self, now_unix_s: float) -> dict[str, list[str]]:
        """Where each banned prefix begins, by set: what an inspection looks for."""
        elements = self._net_elements(now_unix_s + _SLACK_S)
        return {name: [probe_address(element.key) for element in held] for name, held in elements.items()}

    def place(self, subject: str) -> Place:
        found = self._places.get(subject)
        if found is None:
            found = place(subject)
            self.learn_places({subject: found})
        return found

    # --- the next transaction ---

    @property
    def waiting(self) -> int:
        """Subjects that have yet to be brought to the kernel."""
        return len(self._fresh) + len(self._backlog)

    @property
    def idle(self) -> bool:
        """Nothing is to be done now."""
        waiting = self._fresh or (self._backlog and not self.backlog_rests) or self._orphans
        return not (waiting or self._whole or self._rules or self._tolerance or self._nets or self._feeds)

    @property
    def structure_stands(self) -> bool:
        """Whether chains and rules need no change."""
        return not (self._whole or self._rules)

    def next(self, now_unix_s: float) -> Step | None:
        """What to do now, or None. Until ``done`` or ``failed`` is said the step's wishes count as granted."""
        if self.idle:
            return None
        if self._whole:
            return self._next_whole(now_unix_s)
        step = Step("elements")
        self._add_rules(step)
        self._add_tolerance(step)
        self._add_elements(step, now_unix_s)
        self._add_nets(step, now_unix_s)
        if self._feeds and not step.commands and not step.subjects and not step.refused:
            self._feeds, step.feed, step.what = False, self.feed, "feeds"
        return step

    def done(self, step: Step) -> None:
        """The kernel has taken it."""
        if step.whole:
            self.applied.clear()
            self._counts.clear()
        for where in step.removed:
            self._lost(where)
        for where, until in step.put.items():
            if where not in self.applied:
                self._counts[where.set] += 1
            self.applied[where] = until

    def failed(self, step: Step) -> None:
        """The kernel refused it, or nobody knows: only the whole table is certain to be right. Feeds are dropped:
        the file was bad, and the one before it still stands."""
        if step.what == "feeds":
            return
        self._whole = True

    def _next_whole(self, now: float) -> Step:
        step = Step("table", structure=True, whole=True, feed=self.feed)
        contents: dict[str, list[Element]] = {}
        for subject, order in self.ledger.orders.items():
            where = self.place(subject)
            if where.set not in HASH_SETS or not alive(order, now):
                continue
            elements = contents.setdefault(where.set, [])
            if len(elements) >= self.layout.max_elements:
                step.refused[subject] = _full(where.set)
                continue
            elements.append(_element(where, order, now))
            step.put[where] = order.until_unix_s
            step.subjects.append(subject)
        for name, elements in (self._net_elements(now) | self._tolerance_elements()).items():
            contents[name] = elements
        step.subjects += [subject for subject in self._net_subjects if subject in self.ledger]
        step.commands.append(ReplaceTable(self.layout, contents))
        self._whole = self._rules = self._tolerance = self._nets = self._feeds = False
        self._fresh, self._backlog, self._orphans = {}, {}, {}
        return step

    def _add_rules(self, step: Step) -> None:
        if self._rules:
            step.commands.append(ReplaceRules(self.layout))
            step.structure, step.what, self._rules = True, "posture", False

    def _add_tolerance(self, step: Step) -> None:
        if self._tolerance:
            table = self.layout.table
            step.commands += [RefillSet(table, name, e) for name, e in self._tolerance_elements().items()]
            self._tolerance = False

    def _add_nets(self, step: Step, now: float) -> None:
        if self._nets:
            table = self.layout.table
            step.commands += [RefillSet(table, name, e) for name, e in self._net_elements(now).items()]
            self._nets = False

    def _add_elements(self, step: Step, now: float) -> None:
        table = self.layout.table
        add: dict[str, list[Element]] = {}
        put: dict[str, list[Element]] = {}
        remove: dict[str, list[str]] = {}
        for subject in self._portion():
            where, order = self.place(subject), self.ledger.order(subject)
            if where.set not in HASH_SETS:
                self._nets = True
                if order:
                    step.subjects.append(subject)
                else:
                    self._forget_place(subject)
            elif order is None or not alive(order, now):
                self._forget_place(subject)
                remove.setdefault(where.set, []).append(where.key)
                step.removed.append(where)
            else:
                self._add_ban(step, where, order, now, add, put)
        for orphan in list(islice(self._orphans, PORTION)):
            del self._orphans[orphan]
            remove.setdefault(orphan.set, []).append(orphan.key)
            step.removed.append(orphan)
        step.commands += [AddElements(table, name, elements) for name, elements in add.items()]
        step.commands += [PutElements(table, name, elements) for name, elements in put.items()]
        step.commands += [RemoveElements(table, name, keys) for name, keys in remove.items()]

    def _add_ban(
        self,
        step: Step,
        where: Place,
        order: Order,
        now: float,
        add: dict[str, list[Element]],
        put: dict[str, list[Element]],
    ) -> None:
        known = self.applied.get(where)
        if known is None and self._counts[where.set] + len(add.get(where.set, ())) >= self.layout.max_elements:
            step.refused[order.subject] = _full(where.set)
            return
        step.subjects.append(order.subject)
        if known is not None and _same_time(known, order.until_unix_s):
            return
        (add if known is None else put).setdefault(where.set, []).append(_element(where, order, now))
        step.put[where] = order.until_unix_s

    def _portion(self) -> list[str]:
        taken: list[str] = []
        for queue in (self._fresh,) if self.backlog_rests else (self._fresh, self._backlog):
            portion = list(islice(queue, PORTION - len(taken)))
            for subject in portion:
                del queue[subject]
            taken += portion
        return taken

    def _net_elements(self, now: float) -> dict[str, list[Element]]:
        nets = {
            self.place(subject).key: order
            for subject in self._net_subjects
            if (order := self.ledger.order(subject)) is not None and alive(order, now)
        }
        return _by_set("banned_nets", disjoint(nets), lambda key: _element(Place("", key), nets[key], now))

    def _tolerance_elements(self) -> dict[str, list[Element]]:
        return _by_set("tolerated", disjoint(self.tolerance), Element)

    def _forget_place(self, subject: str) -> None:
        self._places.pop(subject, None)
        self._net_subjects.discard(subject)

    def _lost(self, where: Place) -> None:
        if self.applied.pop(where, None) is not None:
            self._counts[where.set] -= 1


def _by_set(stem: str, prefixes: Iterable[str], make: Callable[[str], Element]) -> dict[str, list[Element]]:
    return {f"{stem}{family}": [make(key) for key in keys] for family, keys in by_family(prefixes).items()}


def _element(where: Place, order: Order, now: float) -> Element:
    return Element(where.key, None if order.until_unix_s == 0 else max(0.001, order.until_unix_s - now))


def _same_time(known: float, wanted: float) -> bool:
    return known == wanted or (known != 0 and wanted != 0 and abs(known - wanted) <= _SLACK_S)


def _full(name: str) -> str:
    return f"the nftables set {name} is full; raise keratinocyte.max_elements"
