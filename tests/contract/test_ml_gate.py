"""The gate: what keeps a model out of service, and what it is compared with."""

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ml import promotion
from ml.calibrate import calibrate
from ml.dataset import Table
from ml.extract import extract
from ml.gate import gate
from ml.meter import Tick
from ml.own import parse_own
from ml.promote import main as promote
from ml.registry import Model, save
from ml.regression import holds, knows_both, rule_finds, score_attacks
from ml.serve import Scorer
from ml.split import split_by_time
from ml.synthetic import NODE, RST, SYN, clean_traffic, tcp, write_pcap
from ml.train import train
from ml.watch import Watch
from tests.support.mast import S
from tests.support.mast import Table as FlowTable
from tests.support.ml import made_up, snapshots


def learned(table: Table) -> Model:
    fit, later = split_by_time(table)
    return calibrate(train(fit, seed=0, epochs=15), later)


@cache
def taught_slowly(folder: Path) -> Model:
    """From the made-up site with somebody in it who tries one more closed door every second."""
    frames = clean_traffic(240.0, seed=1)
    for step in range(240):
        port = 2_000 + step
        frames.append((float(step), tcp("192.0.2.77", 40_000, NODE, port, SYN)))
        frames.append((step + 0.0001, tcp(NODE, port, "192.0.2.77", 40_000, RST | 16)))
    write_pcap(folder / "slow.pcap", frames)
    return learned(extract(folder / "slow.pcap"))


@cache
def one_sided(folder: Path) -> Model:
    """From the clean capture as a node sees it that only hears what arrives."""
    node = bytes(map(int, NODE.split(".")))
    write_pcap(folder / "in.pcap", [frame for frame in clean_traffic(240.0, seed=1) if frame[1][30:34] == node])
    return learned(extract(folder / "in.pcap"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate")


def blinded(model: Model) -> Model:
    """The same model, to which nothing is strange any more."""
    assert model.calibrated is not None
    curves = tuple(dataclasses.replace(curve, knots=curve.knots + 100) for curve in model.calibrated.curves)
    return dataclasses.replace(model, calibrated=dataclasses.replace(model.calibrated, curves=curves))


def test_an_honest_model_passes_all_comparisons():
    model, later = made_up().model, split_by_time(made_up().clean)[1]

    assert gate(model, later, serving=model, anchor=model) == []


def test_who_teaches_a_little_more_every_time_is_measured_against_the_anchor(shelf):
    slow = taught_slowly(shelf)

    (problem,) = [words for words in gate(slow, None, anchor=made_up().model) if "anchor" in words]

    assert "src_ports" in problem
    assert "--accept-growth" in problem
    assert not [words for words in gate(slow, None) if "anchor" in words]


def test_a_model_that_sees_less_than_the_one_in_service_stays_out():
    model = made_up().model

    problems = gate(blinded(model), None, serving=model)

    assert any("sees less than the model in service" in words for words in problems)


def test_a_model_that_the_rate_rule_beats_stays_out():
    model = made_up().model

    problems = gate(blinded(model), None)

    assert sum(rule_finds(model).values()) > 0
    assert any("not worth its keep" in words for words in problems)


def test_a_model_of_one_direction_is_asked_about_attacks_in_one_direction(shelf):
    model = one_sided(shelf)

    found = score_attacks(model)

    assert not knows_both(model)
    assert knows_both(made_up().model)
    assert holds(found), found
    assert gate(model, None, serving=made_up().model) == [], "models of other eyes are no yardstick"


@pytest.mark.parametrize(("hours", "accepted", "passes"), [("24", False, True), ("1", False, False), ("1", True, True)])
def test_traffic_that_did_not_wait_for_a_day_needs_somebodys_word(hours, accepted, passes):
    model = made_up().model
    model = dataclasses.replace(model, card=model.card.plus(quarantine_hours=hours))

    problems = gate(model, None, short_quarantine=accepted)

    assert (problems == []) is passes
    assert passes or "quarantine" in problems[0]


def test_the_first_model_is_the_anchor_until_somebody_accepts_growth(shelf, tmp_path, capsys):
    models = tmp_path / "models"
    for name, model in (("honest", made_up().model), ("slow", taught_slowly(shelf))):
        save(model, tmp_path / name)
    promote([str(tmp_path / "honest"), "--models", str(models)])

    refused = promote([str(tmp_path / "slow"), "--models", str(models)])
    words = capsys.readouterr().err
    anchored = (models / promotion.ANCHOR).readlink().name

    assert refused == 1
    assert "anchor" in words
    assert anchored == "honest"


def test_accepted_growth_moves_the_anchor(tmp_path):
    models = tmp_path / "models"
    for name in ("one", "two", "three"):
        save(made_up().model, tmp_path / name)
        promote([str(tmp_path / name), "--models", str(models), *(["--accept-growth"] if name == "two" else [])])

    anchor, current = ((models / link).readlink().name for link in (promotion.ANCHOR, promotion.CURRENT))

    assert (anchor, current) == ("two", "three")


def test_the_services_word_is_what_the_status_tells(tmp_path, capsys):
    models = tmp_path / "models"
    save(made_up().model, tmp_path / "one")
    promote([str(tmp_path / "one"), "--models", str(models), "--shadow-minutes", "0"])
    promotion.say(models, {"model": "one", "state": "frozen", "reason": "stability index 0.31", "drift": 0.31})

    promote(["status", "--models", str(models)])

    assert "frozen: one stability index 0.31 (drift 0.31)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xff", b'{"model": 1', b"nul"])
def test_a_broken_word_of_the_service_is_none(tmp_path, content):
    (tmp_path / "serving.json").write_bytes(content)

    assert promotion.heard(tmp_path) is None


@pytest.mark.parametrize("ports", [1, 900])
def test_a_flood_of_forged_sources_is_not_taken_for_another_network(ports):
    """What is ordinary moves the drift figure: a flood must not switch off what sees it."""
    crowd = FlowTable()
    for number in range(3_000):
        crowd.knock(f"198.{18 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}", 1 + number % ports, 1000)
    watch = Watch(Scorer(made_up().model), parse_own([NODE]))

    flooded = watch.tick(Tick(1001 * S, crowd.records, np.arange(3_000)))
    clean = Watch(Scorer(made_up().model), parse_own([NODE]))
    quiet = [clean.weigh(shown).ordinary for shown in snapshots(made_up().folder / "train_clean.pcap")]

    assert not flooded.ordinary.any()
    assert np.concatenate(quiet).mean() > 0.99


def test_numbers_are_grouped_as_numpy_groups_them():
    from ml.groups import among, distinct

    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 50, 1000):
        keys, wanted = rng.integers(0, 60, size, dtype="u8"), rng.integers(0, 60, size // 3, dtype="u8")

        values, which = distinct(keys)

        expected = np.unique(keys, return_inverse=True)
        assert np.array_equal(values, expected[0])
        assert np.array_equal(which, expected[1])
        assert np.array_equal(among(keys, wanted), np.isin(keys, wanted))
