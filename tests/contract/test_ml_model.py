"""A model folder: what is refused and in which words, that numpy equals torch, and how a model comes into service."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as dump_arrays

from ml import promotion
from ml.card import CardError, read_card
from ml.dataset import TableError, concatenate
from ml.extract import extract
from ml.flows import FlowReader
from ml.gate import gate
from ml.meter import CaptureMeter
from ml.own import guess_own, parse_own, to_text
from ml.registry import WEIGHTS, Model, ModelError, load, save
from ml.serve import Scorer
from ml.serving import SHADOW_LEAST_FLOWS, Serving, ServingState
from ml.synthetic import NODE
from ml.train import train
from ml.watch import Round, Watch
from ml.windows import Windows
from tests.support.ml import made_up

EXAMPLE = Path(__file__).resolve().parents[2] / "ml/models/lab-example"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(made_up().model, tmp_path / "model")
    return tmp_path / "model"


def rounds(model: Model, capture: str) -> list[Round]:
    """A capture of the made-up site through the whole round."""
    watch = Watch(Scorer(model), parse_own([NODE]))
    return [watch.tick(tick) for tick in CaptureMeter(made_up().folder / capture).ticks()]


def test_numpy_scores_equal_torch_to_five_digits() -> None:
    from ml.model import torch_score

    model, clean = made_up().model, made_up().clean
    features = np.ascontiguousarray(clean.with_habits(model.habits))

    assert np.abs(model.flow.score(features) - torch_score(model.flow, features)).max() < 1e-5


def test_serving_never_imports_torch() -> None:
    code = "import sys, ml.serve, ml.serving, ml.watch, ml.promote, ml.calibrate; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=EXAMPLE.parents[2]).returncode == 0


def test_a_saved_model_scores_as_it_did(folder: Path) -> None:
    rows = made_up().clean.with_habits(made_up().model.habits)

    assert np.array_equal(load(folder).flow.score(rows), made_up().model.flow.score(rows))


def test_the_shipped_example_loads_and_says_that_it_is_one() -> None:
    model = load(EXAMPLE)

    assert model.card.get("example") == "yes"
    assert "EXAMPLE" in model.card.note
    assert any("does not travel" in problem for problem in gate(model, None))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def card_line(key: str, value: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        lines = (folder / "card.txt").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(f"{key}:")]
        (folder / "card.txt").write_text("\n".join([*([f"{key}: {value}"] if value else []), *kept]))

    return change


def arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Changed weights under a card that vouches for them: the hash alone must not be trusted."""
    import hashlib

    def apply(folder: Path) -> None:
        content = {name: array.copy() for name, array in parse_arrays((folder / WEIGHTS).read_bytes()).items()}
        change(content)
        raw = dump_arrays(content)
        (folder / WEIGHTS).write_bytes(raw)
        card_line("weights_sha256", hashlib.sha256(raw).hexdigest())(folder)

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("card.txt"), "incomplete"),
        (without(WEIGHTS), "incomplete"),
        (card_line("schema", "0" * 64), "another feature schema"),
        (card_line("schema", None), "another feature schema"),
        (card_line("format", "other"), "this version reads"),
        (card_line("weights_sha256", None), "nothing proves"),
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x"),
            "not those of its card",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "0 bytes"),
        (lambda folder: (folder / "extra.pkl").write_bytes(b"x"), "pickles can run code"),
        (lambda folder: (folder / "model.pt").write_bytes(b"x"), "pickles can run code"),
        (lambda folder: (folder / "card.txt").write_bytes(b"\xff\xfe"), "cannot read the card"),
        (arrays(lambda a: a["flow.whiten"].fill(np.nan)), "NaN"),
        (arrays(lambda a: a["source.scale"].fill(0)), "not positive"),
        (arrays(lambda a: a.pop("flow.mean")), "no array flow.mean"),
        (arrays(lambda a: a.update({"flow.mean": np.zeros(3, "f4")})), "expected f4"),
        (arrays(lambda a: a.update({"flow.mean": a["flow.mean"].astype("f8")})), "expected f4"),
        (arrays(lambda a: a.pop("flow.5.weight")), "do not lead back"),
        (arrays(lambda a: [a.pop(name) for name in list(a) if name.startswith("curve.")]), "not calibrated"),
    ],
)
def test_a_model_that_must_not_be_used_is_refused_in_words(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)

    with pytest.raises(ModelError, match=words):
        load(folder)


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_the_weights_gets_past_loading(folder: Path, seed: int) -> None:
    raw = bytearray((folder / WEIGHTS).read_bytes())
    rng = np.random.default_rng(seed)
    raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    (folder / WEIGHTS).write_bytes(raw if seed % 2 else raw[: rng.integers(len(raw))])

    with pytest.raises(ModelError):
        load(folder)


def test_a_card_line_without_a_colon_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.txt").write_text("format: x\nnonsense\n")

    with pytest.raises(CardError, match="line 2"):
        read_card(tmp_path)


def test_too_little_traffic_teaches_nothing() -> None:
    with pytest.raises(TableError, match="too few to learn from"):
        train(made_up().clean.rows(slice(0, 500)), seed=0)


def test_the_node_is_found_in_its_own_capture() -> None:
    (own,) = guess_own(made_up().clean.key)

    assert to_text(own.tobytes()) == NODE


def test_every_attack_is_blamed_with_a_reason_and_no_client_is() -> None:
    found = {
        (round_.source(blame), round_.why(blame).words())
        for round_ in rounds(made_up().model, "test_mixed.pcap")
        for blame in round_.blames
        if not blame.siege
    }

    blamed = {source for source, _ in found}
    assert {"198.51.100.10", "198.51.100.12", "198.51.100.13", "198.51.100.14"} <= blamed
    assert not any(source.startswith("192.0.2.") for source in blamed)
    assert all("head, p " in words and "usual" in words for _, words in found)


def test_a_forged_flood_is_a_siege() -> None:
    assert any(blame.siege for round_ in rounds(made_up().model, "test_mixed.pcap") for blame in round_.blames)


def test_without_a_model_the_windows_still_turn() -> None:
    watch = Watch(None, parse_own([NODE]))
    capture = CaptureMeter(made_up().folder / "test_mixed.pcap")

    seen = [watch.tick(tick) for tick in capture.ticks()]

    assert all(round_.scores is None and not round_.blames for round_ in seen)
    assert sum(len(round_.seen.sources) for round_ in seen) > 100


def test_scores_of_an_empty_batch_are_empty() -> None:
    reader, windows = FlowReader(), Windows()
    tick = next(CaptureMeter(made_up().folder / "test_mixed.pcap").ticks())
    shown = reader.tick(dataclasses.replace(tick, slots=np.zeros(0, "i8")))

    scores = Scorer(made_up().model).score(shown, windows.update(shown), np.zeros(0, "?"))

    assert len(scores.log_p) == 0


def test_promotion_is_one_rename_with_the_old_model_kept(folder: Path, tmp_path: Path) -> None:
    models, second = tmp_path / "models", tmp_path / "second"
    save(made_up().model, second)

    promotion.promote(models, folder, 1.0, 600)
    promotion.promote(models, second, 2.0, 600)
    current, previous = (models / "current").readlink().name, (models / "previous").readlink().name
    promotion.rollback(models, 3.0)

    assert (current, previous) == ("second", "model")
    assert ((models / "current").readlink().name, (models / "previous").readlink().name) == ("model", "second")
    assert Serving.open(models).state is ServingState.ACTIVE
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


def test_a_broken_model_is_not_promoted_and_the_old_one_stays(folder: Path, tmp_path: Path) -> None:
    models, broken = tmp_path / "models", tmp_path / "broken"
    promotion.promote(models, folder, 1.0, 0)
    save(made_up().model, broken)
    (broken / WEIGHTS).write_bytes(b"rubbish")

    with pytest.raises(ModelError):
        promotion.promote(models, broken, 2.0, 0)

    assert (models / "current").readlink().name == "model"


def test_rolling_back_without_a_previous_model_says_so(folder: Path, tmp_path: Path) -> None:
    promotion.promote(tmp_path / "models", folder, 1.0, 0)

    with pytest.raises(ModelError, match="no previous model"):
        promotion.rollback(tmp_path / "models", 2.0)


def test_a_crash_between_the_steps_of_a_promotion_leaves_a_current_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, second = tmp_path / "models", tmp_path / "second"
    save(made_up().model, second)
    promotion.promote(models, folder, 1.0, 0)
    replace, calls = Path.replace, iter(range(100))

    def fail_at(nth: int) -> None:
        def broken(self: Path, target: Path) -> Path:
            if next(calls) == nth:
                raise OSError(28, "No space left on device")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", broken)

    for nth in range(3):
        calls = iter(range(100))
        fail_at(nth)
        with pytest.raises(OSError, match="No space"):
            promotion.promote(models, second if not (models / "second").exists() else models / "second", 2.0, 0)

        assert load(models / "current").card.get("format")


def test_no_model_is_a_state_with_a_remedy(tmp_path: Path) -> None:
    serving = Serving.open(tmp_path / "models")

    assert serving.state is ServingState.LEARNING
    assert "ml.train" in serving.reason
    assert not serving.counts


def test_a_mismatched_model_is_a_state_and_not_a_crash(folder: Path, tmp_path: Path) -> None:
    promotion.promote(tmp_path / "models", folder, 1.0, 0)
    card_line("schema", "0" * 64)(tmp_path / "models/model")

    serving = Serving.open(tmp_path / "models")

    assert serving.state is ServingState.STALE
    assert "schema" in serving.reason
    assert serving.scorer is None


def test_a_new_model_is_on_probation_until_it_proved_itself_on_traffic(folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    promotion.promote(models, folder, 1.0, 30)
    serving = Serving.open(models)
    before = serving.state

    for round_ in rounds(load(folder), "train_clean.pcap"):
        if round_.scores is not None:
            serving.follow(round_.shown.now_ns, round_.scores, round_.ordinary)

    assert SHADOW_LEAST_FLOWS <= 1000
    assert (before, serving.state) == (ServingState.SHADOW, ServingState.ACTIVE)
    assert Serving.open(models).state is ServingState.ACTIVE


def test_a_model_that_finds_the_ordinary_strange_stays_on_probation(folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    promotion.promote(models, folder, 1.0, 30)
    serving = Serving.open(models)

    for round_ in rounds(load(folder), "train_clean.pcap"):
        if round_.scores is not None:
            strange = dataclasses.replace(round_.scores, log_p=np.full_like(round_.scores.log_p, -4))
            serving.follow(round_.shown.now_ns, strange, round_.ordinary)

    assert serving.state is ServingState.SHADOW
    assert "100.0%" in serving.reason


def test_a_moved_network_makes_the_model_stale_but_an_attack_does_not(folder: Path, tmp_path: Path) -> None:
    def index_of(ordinary: bool) -> Serving:
        promotion.promote(tmp_path / "models", folder, 1.0, 0)
        serving = Serving.open(tmp_path / "models")
        for i, round_ in enumerate(round_ for round_ in rounds(load(folder), "test_mixed.pcap") if round_.scores):
            moved = dataclasses.replace(round_.scores, raw=round_.scores.raw + 3)
            keep = np.full(len(moved.raw), ordinary)
            serving.follow(round_.shown.now_ns + i * 5_000_000_000, moved, keep)
        return serving

    assert index_of(ordinary=True).state is ServingState.STALE
    assert index_of(ordinary=False).state is ServingState.ACTIVE


def test_the_gate_refuses_a_model_that_learned_attacks_as_normal() -> None:
    blind = dataclasses.replace(
        made_up().model,
        flow=dataclasses.replace(made_up().model.flow, whiten=made_up().model.flow.whiten * 1e-3),
        source=dataclasses.replace(made_up().model.source, scale=made_up().model.source.scale * 1e3),
        pair=dataclasses.replace(made_up().model.pair, scale=made_up().model.pair.scale * 1e3),
    )

    assert gate(made_up().model, made_up().clean) == []
    assert any("poisoned" in problem for problem in gate(blind, None))


def test_two_poisoned_flows_in_a_hundred_do_not_pass_the_gate() -> None:
    from ml.calibrate import calibrate
    from ml.split import split_by_time

    site = made_up()
    fit, later = split_by_time(site.clean)
    mixed = extract(site.folder / "test_mixed.pcap")
    scan = np.flatnonzero(mixed.key["port"][:, 0] == 40_000)[-len(fit) // 50 :]
    poisoned = train(concatenate([mixed.rows(scan), fit]), seed=0, epochs=15)

    assert any("poisoned" in problem for problem in gate(calibrate(poisoned, later), None))


def test_the_commands_run_from_capture_to_service_and_back(tmp_path: Path) -> None:
    site, model, models = made_up().folder, tmp_path / "fresh", tmp_path / "models"
    steps = [
        ["ml.extract", str(site / "train_clean.pcap"), "--table", str(tmp_path / "clean.npz"), "--json"],
        ["ml.train", "--table", str(tmp_path / "clean.npz"), "--model", str(model), "--epochs", "5"],
        ["ml.calibrate", "--table", str(tmp_path / "clean.npz"), "--model", str(model)],
        [
            "ml.evaluate", "--site", str(site), "--model", str(model), "--json",
            "--out", str(tmp_path / "report"), "--cache", str(tmp_path / "cache"),
        ],
        ["ml.promote", str(model), "--models", str(models), "--clean", str(tmp_path / "clean.npz")],
        ["ml.promote", "status", "--models", str(models), "--json"],
    ]  # fmt: skip

    done = [
        subprocess.run(
            [sys.executable, "-m", *step], check=False, capture_output=True, text=True, cwd=EXAMPLE.parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for step in steps
    ]  # fmt: skip

    assert [step.returncode for step in done] == [0] * len(steps), [step.stderr for step in done]
    assert json.loads(done[0].stdout)["flows"] > 1000
    assert json.loads(done[3].stdout)["ours"]["figures"]["campaigns_found"]["median"] == 5
    assert (tmp_path / "report/report.md").exists()
    assert (tmp_path / "report/families.png").stat().st_size > 1000
    assert json.loads(done[5].stdout)["state"] == "shadow"


@pytest.mark.parametrize(
    "command",
    [
        ["ml.extract", "/nonexistent.pcap", "--table", "/tmp/never.npz"],
        ["ml.train", "--table", "/nonexistent.npz", "--model", "/tmp/never"],
        ["ml.calibrate", "--table", "/nonexistent.npz", "--model", "/tmp/never"],
        ["ml.evaluate", "--site", "/nonexistent"],
        ["ml.promote", "/nonexistent"],
    ],
)
def test_a_command_that_cannot_do_it_says_why_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    code = importlib.import_module(command[0]).main(command[1:])

    words = capsys.readouterr().err.strip()
    assert code == 1
    assert "\n" not in words
    assert "Traceback" not in words
    assert words.split(":")[0] == command[0].removeprefix("ml.")
