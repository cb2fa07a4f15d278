"""A model is a folder: ``weights.safetensors`` (arrays, nothing else) and ``card.txt``. Loading is refusing first.

Refused, each with a sentence: a missing file, a pickle or torch file in the folder, another schema, a hash that is
absent or does not match, arrays that are missing, of another shape or type, NaN or infinity, and a model without
calibration where one is needed. Nothing in a model folder is ever executed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as dump_arrays

from ml.baseline import RateRule
from ml.calibration import Curve
from ml.card import Card, CardError, read_card
from ml.drift import Reference
from ml.features import HABIT_COLUMNS, N_FEATURES, Habits, schema_hash
from ml.heads import KNOT_QUANTILES, FlowHead, TailHead
from ml.windows import PAIR_FEATURES, SOURCE_FEATURES

WEIGHTS: Final = "weights.safetensors"
FORMAT: Final = "tegumentar-model-1"
MAX_WEIGHTS_BYTES: Final = 16 * 1024 * 1024
HEADS: Final = ("flow", "source", "pair")
_EXECUTABLE: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz")

Arrays = dict[str, NDArray[Any]]


class ModelError(ValueError):
    """A model folder that must not be used. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One curve per head, in the order of HEADS, and what calibration traffic looked like."""

    curves: tuple[Curve, ...]
    reference: Reference


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that scoring needs. ``calibrated`` is None between train and calibrate."""

    flow: FlowHead
    source: TailHead
    pair: TailHead
    habits: Habits
    rule: RateRule
    calibrated: Calibrated | None
    card: Card


def save(model: Model, folder: Path) -> Model:
    """Write the folder (created, files replaced) and return the model with the card as written."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = dump_arrays({name: np.ascontiguousarray(array) for name, array in _arrays(model).items()})
    (folder / WEIGHTS).write_bytes(raw)
    card = model.card.plus(
        format=FORMAT,
        schema=schema_hash(),
        weights_sha256=hashlib.sha256(raw).hexdigest(),
        calibrated="yes" if model.calibrated else "no",
    )
    card.write(folder)
    return Model(model.flow, model.source, model.pair, model.habits, model.rule, model.calibrated, card)


def load(folder: Path, need_calibration: bool = True) -> Model:
    """Read and check a model folder. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"there is no model in {folder}: train one with python -m ml.train")
    strange = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _EXECUTABLE)
    if strange:
        raise ModelError(
            f"{folder} contains {', '.join(strange)}: pickles can run code and are never loaded; remove it"
        )
    try:
        card = read_card(folder)
        size = (folder / WEIGHTS).stat().st_size
        raw = (folder / WEIGHTS).read_bytes() if size <= MAX_WEIGHTS_BYTES else b""
    except (CardError, OSError) as exc:
        raise ModelError(f"the model in {folder} is incomplete: {exc}") from exc
    if not raw:
        raise ModelError(f"{folder / WEIGHTS} has {size} bytes; a model has 1 to {MAX_WEIGHTS_BYTES}")
    _check_card(card, raw, folder)
    try:
        arrays = parse_arrays(raw)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise ModelError(f"{folder / WEIGHTS} is no safetensors file: {exc}") from exc
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(f"array {name} in {folder} holds NaN or infinity: train again")
    model = _model(_Shelf(arrays, folder), card)
    if need_calibration and model.calibrated is None:
        raise ModelError(f"the model in {folder} is not calibrated: run python -m ml.calibrate")
    return model


def _check_card(card: Card, raw: bytes, folder: Path) -> None:
    if card.get("format") != FORMAT:
        raise ModelError(f"the card in {folder} is of format '{card.get('format')}', this version reads {FORMAT}")
    if card.get("schema") != schema_hash():
        raise ModelError(
            f"the model in {folder} was made for another feature schema: train a new one with this version"
        )
    if not card.get("weights_sha256"):
        raise ModelError(f"the card in {folder} has no weights_sha256: nothing proves that these are its weights")
    if card.get("weights_sha256") != hashlib.sha256(raw).hexdigest():
        raise ModelError(f"the weights in {folder} are not those of its card: the file was changed or broken")


def _arrays(model: Model) -> Arrays:
    flow, habits = model.flow, model.habits
    arrays: Arrays = {
        "flow.mean": flow.mean, "flow.scale": flow.scale, "flow.residual_mean": flow.residual_mean,
        "flow.whiten": flow.whiten, "source.knots": model.source.knots, "source.scale": model.source.scale,
        "pair.knots": model.pair.knots, "pair.scale": model.pair.scale, "habits.service": habits.service,
        "habits.share": habits.share, "habits.median": habits.median, "habits.spread": habits.spread,
        "rule.limits": model.rule.limits, "rule.step": model.rule.step,
    }  # fmt: skip
    for i, (weight, bias) in enumerate(flow.layers):
        arrays[f"flow.{i}.weight"], arrays[f"flow.{i}.bias"] = weight, bias
    if model.calibrated:
        for name, curve in zip(HEADS, model.calibrated.curves, strict=True):
            arrays[f"curve.{name}.knots"] = curve.knots
            arrays[f"curve.{name}.scale"] = np.array([curve.scale], "f4")
        arrays["drift.edges"], arrays["drift.shares"] = (
            model.calibrated.reference.edges,
            model.calibrated.reference.shares,
        )
    return arrays


class _Shelf:
    """Takes arrays out of a file by name, checking type and shape; -1 in a shape stands for any length."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], folder: Path) -> None:
        self.arrays, self._folder = arrays, folder

    def take(self, name: str, *shape: int, dtype: str = "f4") -> NDArray[Any]:
        array = self.arrays.get(name)
        if array is None:
            raise ModelError(f"the model in {self._folder} has no array {name}: it is incomplete, train again")
        fits = array.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(dtype):
            raise ModelError(
                f"array {name} in {self._folder} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}"
            )
        return array


def _model(shelf: _Shelf, card: Card) -> Model:
    layers: list[tuple[NDArray[Any], NDArray[Any]]] = []
    width = N_FEATURES
    while f"flow.{len(layers)}.weight" in shelf.arrays:
        weight = shelf.take(f"flow.{len(layers)}.weight", width, -1)
        layers.append((weight, shelf.take(f"flow.{len(layers)}.bias", weight.shape[1])))
        width = weight.shape[1]
    if not layers or width != N_FEATURES:
        raise ModelError(f"the layers of the flow head do not lead back to its {N_FEATURES} features: train again")
    knots, services = len(KNOT_QUANTILES), len(shelf.take("habits.service", -1, dtype="u4"))
    return Model(
        flow=FlowHead(
            shelf.take("flow.mean", N_FEATURES), shelf.take("flow.scale", N_FEATURES), tuple(layers),
            shelf.take("flow.residual_mean", N_FEATURES), shelf.take("flow.whiten", N_FEATURES, N_FEATURES),
        ),
        source=_tail(shelf, "source", len(SOURCE_FEATURES), knots),
        pair=_tail(shelf, "pair", len(PAIR_FEATURES), knots),
        habits=Habits(
            shelf.take("habits.service", services, dtype="u4"), shelf.take("habits.share", services),
            shelf.take("habits.median", services, len(HABIT_COLUMNS)),
            shelf.take("habits.spread", services, len(HABIT_COLUMNS)),
        ),
        rule=RateRule(shelf.take("rule.limits", len(RateRule.WATCHED)), shelf.take("rule.step", len(RateRule.WATCHED))),
        calibrated=_calibrated(shelf),
        card=card,
    )  # fmt: skip


def _tail(shelf: _Shelf, name: str, features: int, knots: int) -> TailHead:
    return TailHead(
        shelf.take(f"{name}.knots", features, knots), _positive(shelf.take(f"{name}.scale", features), name)
    )


def _calibrated(shelf: _Shelf) -> Calibrated | None:
    if "curve.flow.knots" not in shelf.arrays:
        return None
    curves = tuple(
        Curve(
            shelf.take(f"curve.{name}.knots", Curve.KNOTS),
            float(_positive(shelf.take(f"curve.{name}.scale", 1), f"curve.{name}")[0]),
        )
        for name in HEADS
    )
    return Calibrated(
        curves, Reference(shelf.take("drift.edges", Reference.ROWS, -1), shelf.take("drift.shares", Reference.ROWS, -1))
    )


def _positive(array: NDArray[Any], name: str) -> NDArray[Any]:
    if not (array > 0).all():
        raise ModelError(f"a scale of {name} is not positive: the model is broken, train again")
    return array
