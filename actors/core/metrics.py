"""Metrics: Prometheus exposition text from what the cells report. The one file that knows prometheus_client.

Names are ``tegumentar_<cell>_<name>``, counters end in ``_total``, states are 0/1 gauges per state. No address and no
free text is ever a label: label values come from our own code and are few.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from actors.core.messages import CellReport, CellState

#: What ``render`` returns, for the HTTP header.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True)
class Family:
    """One metric family from outside the reports, e.g. packets by reason, read from the kernel at scrape time.

    name: without prefix and without ``_total``. labels: names of the labels; samples: label values → value."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    samples: Mapping[tuple[str, ...], float] = field(default_factory=dict)


def render(
    reports: Iterable[CellReport],
    counters: Sequence[Family] = (),
    gauges: Sequence[Family] = (),
    *,
    restarts: Mapping[str, int] | None = None,
    build: Mapping[str, str] | None = None,
) -> bytes:
    """The whole ``/metrics`` page.

    reports: the latest of each cell. restarts: by cell, as ``cells`` tells them. build: labels of ``build_info``
    (version, python …). Deterministic: the same input gives the same bytes."""
    reports = sorted(reports, key=lambda report: report.cell)
    families = [_build_info(build or {}), _states(reports)]
    families.append(_counter(Family("cell_restarts", "Restarts since the node started", ("cell",), _by(restarts))))
    families += [_counter(family) for family in counters] + [_gauge(family) for family in gauges]
    families += _from_reports(reports)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(families))
    return generate_latest(registry)


class _Once:
    """A collector of families that are already made."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _by(values: Mapping[str, int] | None) -> dict[tuple[str, ...], float]:
    return {(name,): float(value) for name, value in sorted((values or {}).items())}


def _build_info(build: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily("tegumentar_build_info", "Always 1; the labels say what runs", labels=sorted(build))
    family.add_metric([build[name] for name in sorted(build)], 1)
    return family


def _states(reports: Sequence[CellReport]) -> Metric:
    family = GaugeMetricFamily("tegumentar_cell_state", "1 for the state that the cell is in", labels=["cell", "state"])
    for report in reports:
        for state in CellState:
            family.add_metric([report.cell, state.value], 1.0 if state is report.state else 0.0)
    return family


def _from_reports(reports: Sequence[CellReport]) -> list[Metric]:
    families: list[Metric] = []
    for report in reports:
        for name, count in sorted(report.counters.items()):
            families.append(_counter(Family(f"{report.cell}_{name}", f"Counted by {report.cell}", (), {(): count})))
        for name, level in sorted(report.gauges.items()):
            families.append(_gauge(Family(f"{report.cell}_{name}", f"Level in {report.cell}", (), {(): level})))
    return families


def _counter(family: Family) -> Metric:
    metric = CounterMetricFamily(_name(family.name), family.help, labels=family.labels)
    for labels, value in family.samples.items():
        metric.add_metric(list(labels), value)
    return metric


def _gauge(family: Family) -> Metric:
    metric = GaugeMetricFamily(_name(family.name), family.help, labels=family.labels)
    for labels, value in family.samples.items():
        metric.add_metric(list(labels), value)
    return metric


def _name(name: str) -> str:
    return "tegumentar_" + _NOT_A_NAME.sub("_", name)
