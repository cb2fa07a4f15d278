"""The kernel's flow accounting against the independent meter, and scores of both paths against each other."""

from pathlib import Path

import numpy as np
import pytest

from bpf import abi
from bpf.dataplane import Policy, Stance
from bpf.pcap import read_capture
from bpf.replay import replay
from ml.dataset import collect
from ml.flows import FlowReader
from ml.meter import CaptureMeter, FlowSource
from ml.records import FLOW, KEY, SIDE, check
from ml.synthetic import clean_traffic, write_pcap
from tests.support.ml import made_up
from tests.support.ml_kernel import KernelSource
from tests.support.shared import shared_data

pytestmark = pytest.mark.kernel

#: What the meter cannot know: how much was sampled, and on which interface.
UNCOUNTED = {"sampled_bytes", "_pad"}


def shown_flows(source: FlowSource) -> np.ndarray:
    """Every record that the reader shows of a source, in order of time and key."""
    reader = FlowReader()
    batches = [reader.tick(tick).flows for tick in source.ticks()]
    return np.concatenate([batch[np.argsort(keys(batch), kind="stable")] for batch in batches])


def keys(flows: np.ndarray) -> np.ndarray:
    """The flow keys as something that can be sorted."""
    return np.ascontiguousarray(flows["key"]).view(f"S{KEY.itemsize}").reshape(-1)


def assert_equal_records(one: np.ndarray, other: np.ndarray) -> None:
    assert len(one) == len(other)
    assert np.array_equal(one["key"], other["key"])
    unequal = [name for name in SIDE.names or () if not np.array_equal(one["side"][name], other["side"][name])]
    assert set(unequal) <= UNCOUNTED


def layout(dtype: np.dtype) -> list[tuple[str, int, int]]:
    """Name, offset and size of every field that is no padding."""
    fields = (dtype.fields or {}).items()
    return [(name, offset, field.itemsize) for name, (field, offset, *_) in fields if not name.startswith("_pad")]


def test_the_layout_written_here_is_that_of_the_kernels_object() -> None:
    assert abi.FLOW.itemsize == FLOW.itemsize
    assert layout(abi.FLOW) == layout(FLOW)
    assert layout(abi.FLOW["key"].base) == layout(KEY)
    assert layout(abi.FLOW["side"].base) == layout(SIDE)


def test_the_kernel_counts_what_the_meter_counts(tmp_path: Path) -> None:
    path = tmp_path / "clean.pcap"
    write_pcap(path, clean_traffic(60.0, seed=5))

    meter, kernel = shown_flows(CaptureMeter(path)), shown_flows(KernelSource(path))

    assert len(meter) > 400
    assert_equal_records(meter, kernel)


@pytest.mark.shared_data
def test_the_kernel_counts_what_the_meter_counts_on_a_recording() -> None:
    path = shared_data("lab", "train_clean.pcap")

    meter, kernel = shown_flows(CaptureMeter(path)), shown_flows(KernelSource(path))

    assert len(meter) > 8000
    assert_equal_records(meter, kernel)


def totals(flows: np.ndarray) -> dict[str, list[int]]:
    """Sums over all flows and both sides; flags one by one."""
    side = flows["side"].reshape(-1)
    names = ("packets", "wire_bytes", "payload_bytes", "fragments", "flags", "sizes")
    return {name: np.atleast_1d(side[name].sum(axis=0)).tolist() for name in names}


def all_flows(meter: CaptureMeter) -> np.ndarray:
    """The last state of every flow, in one look at the end of the capture."""
    found = {}
    for tick in meter.ticks(10**17):
        found |= {int(flow["incarnation"]): flow.copy() for flow in tick.table[tick.slots]}
    return np.array(list(found.values()), FLOW)


@pytest.mark.shared_data
def test_packets_bytes_and_flags_agree_on_captures_of_many_protocols() -> None:
    captures = sorted(path for path in shared_data("benign").iterdir() if path.suffix != ".csv")

    unequal = {
        path.name
        for path in captures[::5]
        if totals(all_flows(CaptureMeter(path, read_capture(path))))
        != totals(check(replay(path, Policy(stance=Stance.OBSERVE), flow_sets=4096).flows))
    }

    assert len(captures) > 80
    assert unequal == set()


def test_scores_of_the_live_path_equal_those_of_the_offline_one(tmp_path: Path) -> None:
    path, model = tmp_path / "clean.pcap", made_up().model
    write_pcap(path, clean_traffic(40.0, seed=6))

    meter, kernel = collect(CaptureMeter(path)), collect(KernelSource(path))

    assert len(meter) == len(kernel)
    order, other = (np.lexsort((t.key["port"][:, 0], t.service, t.first_ns, t.at_ns)) for t in (meter, kernel))
    one, two = meter.rows(order), kernel.rows(other)
    assert np.array_equal(one.at_ns, two.at_ns)
    assert (
        np.abs(model.flow.score(one.with_habits(model.habits)) - model.flow.score(two.with_habits(model.habits))).max()
        < 1e-5
    )
    assert np.abs(model.source.score(one.sources) - model.source.score(two.sources)).max() < 1e-5
    assert np.abs(model.pair.score(one.pairs) - model.pair.score(two.pairs)).max() < 1e-5
