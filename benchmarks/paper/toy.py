"""Figure 2: a distribution of two dimensions hidden in D, and an MLP narrower than the largest D.

x = P u, u a spiral in the plane and P a random column-orthogonal D x 2 matrix that is unknown to
the network. A 5-layer ReLU MLP of width 256 predicts x, eps or v; the loss is on v; samples are
from 50 Heun steps. The paper gives no optimizer, number of steps or times. Here: Adam with a
learning rate that decays from 1e-3 to 0, 3,000 steps of 256, and t uniform on [0, 1). With the
paper's logit-normal(-0.8, 0.8) few times are near the data, where a curve in the plane is
determined, and the distance at D = 2 is three times as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.paper.measures import sliced_wasserstein
from jitkit.diffusion.flow import Space, convert, interpolate, squared_errors, uniform_t
from jitkit.diffusion.solvers import integrate
from jitkit.utils.seeding import mix

DIMENSIONS = (2, 8, 16, 512)
PREDICTIONS: tuple[Space, ...] = ("x", "v", "eps")
WIDTH, LAYERS = 256, 5
STEPS, BATCH, RATE = 3_000, 256, 1e-3
SAMPLES, SAMPLER_STEPS = 4_000, 50
SHOWN = 2_000  # points of a picture
CENTRE, BREADTH = (-0.42441318, 1.90993673), 4.50722947  # of the spiral below: 4/3π, 6/π and a norm


def spiral(n: int, generator: torch.Generator) -> Tensor:
    """Points of a spiral of one and a half turns with a small width, (n, 2).

    Density is uniform along the spiral; mean 0 and, on average over both axes, variance 1.
    """
    turn = 3 * pi * torch.rand(n, generator=generator).sqrt()
    points = torch.stack((turn * turn.cos(), turn * turn.sin()), dim=1)
    points += 0.15 * torch.randn(n, 2, generator=generator)
    return (points - torch.tensor(CENTRE)) / BREADTH


def orthogonal(dimensions: int, generator: torch.Generator) -> Tensor:
    """A random matrix P of orthonormal columns, (D, 2)."""
    return torch.linalg.qr(torch.randn(dimensions, 2, generator=generator)).Q


def in_the_plane(x: Tensor, plane: Tensor) -> Tensor:
    """Coordinates Pᵀ x of points (n, D), (n, 2)."""
    return x @ plane


def out_of_the_plane(x: Tensor, plane: Tensor) -> float:
    """Root mean square over points (n, D) of the norm |x - P Pᵀ x|."""
    return float((x - x @ plane @ plane.T).square().sum(dim=1).mean().sqrt())


def mlp(dimensions: int) -> nn.Sequential:
    """z and t concatenated, (B, D + 1), to a prediction, (B, D)."""
    widths = [dimensions + 1, *[WIDTH] * (LAYERS - 1), dimensions]
    layers: list[nn.Module] = []
    for i in range(LAYERS):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Toy:
    """One toy model.

    Attributes:
        dimensions: D.
        prediction: of the network.
        seed: of plane, weights, data and samples.
        steps: of training.
        samples: number of samples that are measured.
    """

    dimensions: int
    prediction: Space
    seed: int
    steps: int = STEPS
    samples: int = SAMPLES

    @property
    def label(self) -> str:
        """Label, the same for all seeds."""
        return toy_label(self.dimensions, self.prediction)

    @property
    def folder(self) -> str:
        """Name of the folder of this seed."""
        return f"toy-{self.label}-{self.steps}-{self.samples}-{self.seed}"

    def do(self, place: Path) -> dict[str, Any]:
        """Train, sample and measure; ``shown.npz`` holds points of the plane, sampled and true."""
        generator = torch.Generator().manual_seed(mix(self.seed, "toy", self.dimensions))
        torch.manual_seed(mix(self.seed, "weights", self.dimensions, self.prediction))
        plane, network = orthogonal(self.dimensions, generator), mlp(self.dimensions)
        loss = self._train(network, plane, generator)
        x = self._sample(network, torch.randn(self.samples, self.dimensions, generator=generator))
        points = in_the_plane(x, plane).double().numpy()
        true, other = (spiral(self.samples, generator).double().numpy() for _ in range(2))
        np.savez(place / "shown.npz", samples=points[:SHOWN], real=true[:SHOWN])
        return {
            "in": sliced_wasserstein(points, true),
            "out": out_of_the_plane(x, plane),
            "floor": sliced_wasserstein(other, true),
            "loss": loss,
        }

    def _train(self, network: nn.Module, plane: Tensor, generator: torch.Generator) -> float:
        """Train the network; returns the mean loss of the last hundred steps."""
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        losses = []
        for step in range(self.steps):
            x = spiral(BATCH, generator) @ plane.T
            eps = torch.randn(x.shape, generator=generator)
            t = uniform_t(BATCH, generator=generator)
            predicted = _predict(network, interpolate(x, eps, t), t)
            loss = squared_errors(predicted, x, eps, t, prediction=self.prediction, loss="v").mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.param_groups[0]["lr"] = RATE * (1 + cos(pi * step / self.steps)) / 2
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses[-100:]).mean())

    @torch.no_grad()
    def _sample(self, network: nn.Module, noise: Tensor) -> Tensor:
        def velocity(z: Tensor, t: Tensor) -> Tensor:
            times = t.expand(len(z))
            predicted = _predict(network, z, times)
            return convert(predicted, z, times, source=self.prediction, target="v")

        return integrate(velocity, noise, steps=SAMPLER_STEPS)


def toy_label(dimensions: int, prediction: Space) -> str:
    """Label of all seeds of a model on the page."""
    return f"{dimensions}-{prediction}"


def _predict(network: nn.Module, z: Tensor, t: Tensor) -> Tensor:
    return network(torch.cat((z, t[:, None]), dim=1))


def sampler_leaves(dimensions: int) -> float:
    """Distance from the plane that remains from the noise even with a perfect network.

    1 - t is clamped at 0.05 in divisions, so the last steps end before t = 1.
    """
    noise = torch.randn(1_000, dimensions, generator=torch.Generator().manual_seed(0))

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        times = t.expand(len(z))
        return convert(torch.zeros_like(z), z, times, source="x", target="v")

    left = integrate(velocity, noise, steps=SAMPLER_STEPS)
    return out_of_the_plane(left, torch.eye(dimensions)[:, :2])
