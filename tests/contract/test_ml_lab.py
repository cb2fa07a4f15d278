"""What the learning part promises, on the lab recording: one seed here, five by ``python -m ml.evaluate``."""

from pathlib import Path

import numpy as np
import pytest

from ml.dataset import collect
from ml.evaluate import DETECTORS, Site, evaluate, summarise
from ml.meter import CaptureMeter
from tests.support.ml import made_up
from tests.support.shared import shared_data


@pytest.mark.shared_data
def test_hostile_and_broken_frames_are_scored_without_an_exception() -> None:
    table = collect(CaptureMeter(shared_data("malformed", "frames_ethernet.pcap")))

    scores = made_up().model.flow.score(table.with_habits(made_up().model.habits))

    assert len(table) > 100
    assert np.isfinite(scores).all()
    assert np.isfinite(table.sources).all()


@pytest.mark.shared_data
def test_the_lab_recording_is_judged_as_promised(tmp_path: Path) -> None:
    site = Site.at(shared_data("lab"))

    (trial,) = evaluate(site, seeds=1, cache=tmp_path, own_addresses=[])

    ours = trial.results["ours"]
    assert ours.macro[0] >= 0.93
    assert ours.macro[1] >= 0.70
    assert ours.fpr[0] <= 0.015
    assert ours.fpr[1] <= 0.003
    assert ours.auc >= 0.997
    assert ours.found == len(ours.delay_s) == 14
    assert max(delay for delay in ours.delay_s.values() if delay is not None) <= 15
    assert ours.benign_blamed_per_hour <= 2
    assert all(
        ours.macro[1] > trial.results[name].macro[1] for name in DETECTORS if not name.endswith(("head", "ours"))
    )
    assert set(summarise([trial])) == set(DETECTORS)
