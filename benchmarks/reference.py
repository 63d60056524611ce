"""A plain implementation of JiT as a reference for jitkit: same numerics, compared in time.

`referencemodel` is its network. Here it is trained and sampled as the paper describes (Li & He
2025, arXiv:2511.13720), in plain code: AdamW of torch, a loop over the parameters for the EMAs,
the loss read at every step, two passes for classifier-free guidance at every evaluation. Only
`like`, which copies the weights of a model, uses jitkit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.referencemodel import JiT, Jit
from jitkit.diffusion.denoiser import Denoiser
from jitkit.fields import Category


def loss(model: JiT, x: Tensor, eps: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the velocity, a scalar.

    Args:
        x: clean images, (B, C, S, S).
        eps: noise, already scaled, the same shape.
        t: times, (B,).
        y: classes, (B,).
    """
    t_cells = t.reshape(-1, 1, 1, 1)
    z = t_cells * x + (1 - t_cells) * eps
    gap = (1 - t_cells).clamp_min(model.jit.t_eps)
    v, v_hat = (x - z) / gap, (model(z, t, y) - z) / gap
    return (v - v_hat).pow(2).mean(dim=(1, 2, 3)).mean()


class Training:
    """A model in training: AdamW, and EMAs of the weights in a loop over the parameters."""

    def __init__(
        self, model: JiT, *, lr: float = 1e-4, decays: Sequence[float] = (0.9999, 0.9996)
    ) -> None:
        self.model, self.decays = model.train(), tuple(decays)
        self.parameters = list(model.parameters())
        trained = [p for p in self.parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.means = [[p.detach().clone() for p in self.parameters] for _ in self.decays]

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step on images (B, C, S, S) of classes (B,); a tenth of the labels is dropped."""
        jit = self.model.jit
        t = torch.sigmoid(torch.randn(len(x)) * 0.8 - 0.8)
        labels = torch.where(torch.rand(len(x)) < 0.1, jit.classes, y)
        return self.step_on(x, torch.randn_like(x) * jit.noise_scale, t, labels)

    def step_on(self, x: Tensor, eps: Tensor, t: Tensor, y: Tensor) -> float:
        """The same with given noise, times and labels, see `loss`; the loss is read immediately."""
        own = loss(self.model, x, eps, t, y)
        value = own.item()
        self.optimizer.zero_grad()
        torch.autograd.backward(own)
        self.optimizer.step()
        self.update_means()
        return value

    @torch.no_grad()
    def update_means(self) -> None:
        """m <- d m + (1 - d) w, parameter by parameter."""
        for decay, mean in zip(self.decays, self.means, strict=True):
            for m, w in zip(mean, self.parameters, strict=True):
                m.mul_(decay).add_(w, alpha=1 - decay)


@torch.no_grad()
def sample(
    model: JiT,
    z: Tensor,
    y: Tensor,
    *,
    steps: int,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.1, 1.0),
) -> Tensor:
    """Images from noise by Heun's method, the last step by Euler's, (B, C, S, S).

    Every evaluation runs both passes of classifier-free guidance, also where it has no effect.

    Args:
        z: noise, already scaled, (B, C, S, S).
        y: classes, (B,).
        steps: equal steps from t = 0 to t = 1.
        guidance: guidance scale; 1 is none.
        interval: guidance interval, open.
    """
    null = torch.full_like(y, model.jit.classes)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        gap = (1 - t).clamp_min(model.jit.t_eps)
        times = t.expand(len(z))
        conditional, unconditional = ((model(z, times, label) - z) / gap for label in (y, null))
        acts = bool(t < interval[1]) and (interval[0] == 0 or bool(t > interval[0]))
        return unconditional + (guidance if acts else 1.0) * (conditional - unconditional)

    times = torch.linspace(0, 1, steps + 1)
    for i in range(steps):
        step = times[i + 1] - times[i]
        v = velocity(z, times[i])
        ahead = z + step * v
        if i < steps - 1:
            ahead = z + step * (v + velocity(ahead, times[i + 1])) / 2
        z = ahead
    return z


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every trained weight a random value; freshly initialised networks predict only zero.

    Matrices are normal of deviation 1 / sqrt(inputs), other weights of 0.2, around 1 in norms.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.requires_grad:
            std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * std + ("norm" in name))


NAMES = {
    "context": "in_context_posemb",
    "time.layer1": "t_embedder.mlp.0",
    "time.layer2": "t_embedder.mlp.2",
    "vectors.of_label.table": "y_embedder.embedding_table",
    "embed": "x_embedder",
    "final.norm": "final_layer.norm_final",
    "final.linear": "final_layer.linear",
    "final.adaLN": "final_layer.adaLN_modulation.1",
}
"""Prefixes of jitkit's parameter names and the official ones; blocks differ only in ``adaLN``."""


def like(denoiser: Denoiser) -> JiT:
    """A JiT with the sizes and copied weights of jitkit's model, in eval mode.

    Raises:
        ValueError: the model is not for square images with a class label, or has parameters with
            unknown names.
    """
    model = JiT(_numbers(denoiser))
    jit = model.jit
    weights = {_their_name(name): p for name, p in denoiser.network.named_parameters()}
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(weights) != set(wanted):
        raise ValueError(f"parameter names differ: {sorted(set(weights) ^ set(wanted))}")
    with torch.no_grad():
        for name, p in wanted.items():
            value: Tensor = weights[name]
            if name.startswith("final_layer.linear"):  # rows in the order pixel, then channel
                value = value.reshape(jit.channels, -1, *value.shape[1:]).transpose(0, 1)
            p.copy_(value.reshape(p.shape))
    return model.eval()


def _numbers(denoiser: Denoiser) -> Jit:
    layout, sizes, diffusion = denoiser.layout, denoiser.network.sizes, denoiser.diffusion
    if len(layout.axes) != 2 or len({*layout.patch}) != 1 or len({*layout.grid}) != 1:
        raise ValueError(f"the textbook JiT is for square images, not for {layout}")
    label = denoiser.conditions.get("label")
    if not isinstance(label, Category) or len(denoiser.conditions) > 1 or sizes.dropout:
        raise ValueError(
            f"the textbook JiT is conditioned on a label and has no dropout; this model has "
            f"conditions {list(denoiser.conditions)} and dropout {sizes.dropout:g}"
        )
    patch = layout.patch[0]
    return Jit(
        width=sizes.width,
        heads=sizes.heads,
        depth=sizes.depth,
        patch=patch,
        side=layout.grid[0] // patch,
        channels=len(layout.channels),
        classes=label.n,
        bottleneck=sizes.bottleneck,
        context=sizes.in_context_tokens,
        context_start=sizes.in_context_start,
        hidden=sizes.mlp_hidden,
        noise_scale=diffusion.noise_scale,
        t_eps=diffusion.t_eps,
    )


def _their_name(name: str) -> str:
    if name.startswith("blocks."):
        return name.replace(".adaLN.", ".adaLN_modulation.1.")
    for ours, theirs in NAMES.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name
