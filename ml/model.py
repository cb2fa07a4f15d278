"""Training of the flow head in torch; the result is numpy arrays. One of three files that may import torch.

A denoising autoencoder F-48-16-8-16-48-F with tanh, on standardised features of clean flows. A tenth of the inputs
is blanked at random, so that it learns how columns depend on each other rather than to copy them. The covariance of
its residual (shrunk towards its diagonal) whitens what is left: the plain mean square lets a few noisy columns hide
all others, and that costs half of the detection (docs/LEARNING.md).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ml.heads import CLIP, FlowHead
from ml.progress import Progress

Floats = NDArray[np.float32]

WIDTHS: Final = (48, 16, 8, 16, 48)
EPOCHS: Final = 60
BATCH: Final = 256
LEARNING_RATE: Final = 2e-3
BLANK_SHARE: Final = 0.1
#: Share of the diagonal in the residual's covariance.
SHRINK: Final = 0.1
#: Columns that hardly move in training are scaled as if they moved this much: their first movement still counts.
LEAST_DEVIATION: Final = 0.05


@dataclass(frozen=True, slots=True)
class Fit:
    """What training produced: the head, and the last epoch's loss for the card."""

    head: FlowHead
    loss: float


def build(inputs: int) -> torch.nn.Sequential:
    widths = (inputs, *WIDTHS, inputs)
    layers: list[torch.nn.Module] = []
    for a, b in pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def train_flow_head(features: Floats, seed: int, epochs: int = EPOCHS) -> Fit:
    """Fit on clean flows float32[N, F]; deterministic for a seed on one machine; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    mean = features.mean(axis=0)
    scale = 1 / np.maximum(features.std(axis=0), LEAST_DEVIATION)
    x = torch.from_numpy(np.clip((features - mean) * scale, -CLIP, CLIP).astype("f4"))
    network = build(x.shape[1])
    steps = epochs * -(-len(x) // BATCH)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=LEARNING_RATE * 2, total_steps=steps)
    progress, loss = Progress(f"autoencoder, seed {seed}"), 0.0
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            batch = x[rows]
            blanked = batch * (torch.rand_like(batch) > BLANK_SHARE)
            error = torch.nn.functional.mse_loss(network(blanked), batch)
            optimiser.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += error.item() * len(batch)
        loss = total / len(x)
        progress.show(f"epoch {epoch + 1} of {epochs}, loss {loss:.4f}")
    progress.done(f"{epochs} epochs over {len(x)} snapshots, loss {loss:.4f}")
    return Fit(_freeze(network, x, mean, scale), loss)


def _freeze(network: torch.nn.Sequential, x: torch.Tensor, mean: Floats, scale: Floats) -> FlowHead:
    """The trained network as arrays, with the whitening of its residual on the training flows."""
    with torch.no_grad():
        residual = (x - network(x)).double().numpy()
    centre = residual.mean(axis=0)
    covariance = np.cov(residual - centre, rowvar=False)
    spread = np.diag(covariance)
    covariance = (1 - SHRINK) * covariance + SHRINK * np.diag(spread) + 1e-3 * np.eye(len(spread))
    layers = tuple(
        (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
        for layer in network
        if isinstance(layer, torch.nn.Linear)
    )
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return FlowHead(mean.astype("f4"), scale.astype("f4"), layers, centre.astype("f4"), whiten.astype("f4"))


def torch_score(head: FlowHead, features: Floats) -> Floats:
    """The same score computed by torch: the yardstick that the numpy path is held to. float32[N]."""
    x = torch.clamp(
        (torch.from_numpy(features) - torch.from_numpy(head.mean)) * torch.from_numpy(head.scale), -CLIP, CLIP
    )
    hidden = x
    for weight, bias in head.layers[:-1]:
        hidden = torch.tanh(hidden @ torch.from_numpy(weight) + torch.from_numpy(bias))
    weight, bias = head.layers[-1]
    residual = x - (hidden @ torch.from_numpy(weight) + torch.from_numpy(bias)) - torch.from_numpy(head.residual_mean)
    return np.asarray(torch.log1p((residual @ torch.from_numpy(head.whiten)).norm(dim=1)).numpy())
