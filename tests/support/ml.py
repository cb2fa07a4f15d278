"""A trained model and its site, made once for all learning tests: small, synthetic, on one thread."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from ml.dataset import Table
from ml.extract import extract
from ml.flows import FlowReader, Snapshots
from ml.meter import CaptureMeter, Tick
from ml.records import FLOW, PROTO_TCP, SYN
from ml.registry import Model
from ml.synthetic import write_site


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A synthetic site on disk, its clean table, and a model calibrated on it."""

    folder: Path
    clean: Table
    model: Model


@cache
def made_up() -> MadeUp:
    from ml.calibrate import calibrate
    from ml.split import split_by_time
    from ml.train import train

    folder = Path(mkdtemp(prefix="tegumentar-ml-"))
    write_site(folder)
    clean = extract(folder / "train_clean.pcap")
    fit, later = split_by_time(clean)
    return MadeUp(folder, clean, calibrate(train(fit, seed=0, epochs=15), later))


def snapshots(path: Path) -> list[Snapshots]:
    """Every non-empty batch that the reader shows of a capture."""
    reader = FlowReader()
    return [shown for shown in (reader.tick(tick) for tick in CaptureMeter(path).ticks()) if len(shown)]


def one_flow(**side0: int) -> np.ndarray:
    """A table of one TCP flow at slot 0 that began at second 100 with a SYN from 192.0.2.1."""
    table = np.zeros(1, FLOW)
    table["key"]["family"], table["key"]["proto"], table["incarnation"] = 4, PROTO_TCP, 1
    table["key"]["addr"][0, 0, 10:] = (255, 255, 192, 0, 2, 1)
    table["key"]["addr"][0, 1, 10:] = (255, 255, 192, 0, 2, 10)
    table["key"]["port"][0] = (40000, 80)
    table["last_ns"] = 100_000_000_000
    side = table["side"][0, :1]
    side["first_ns"] = side["last_ns"] = 100_000_000_000
    side["packets"], side["wire_bytes"] = 1, 60
    side["flags"][:, SYN] = 1
    for name, value in side0.items():
        side[name] = value
    return table


def tick(table: np.ndarray, at_s: float) -> Tick:
    return Tick(int(at_s * 1e9), table, np.arange(len(table)))
