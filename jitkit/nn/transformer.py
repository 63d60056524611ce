"""The JiT transformer for any number of axes (Li & He 2025, arXiv:2511.13720, section 4).

```
z (B, C, X1..Xn) ─ with masks and conditioning channels ─ pad ─ patchify ─▶ (B, L, D)
  bottleneck patch embedding + fixed sine-cosine embedding ─▶ (B, L, W)
  blocks: adaLN-Zero on time and condition; in-context tokens are prepended before one of them
  final layer ─▶ (B, L, D_out) ─ unpatchify ─ crop ─▶ (B, C, X1..Xn)
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jitkit.errors import JitkitError
from jitkit.fields import Condition, Grid, Layout, PerToken
from jitkit.nn import patches
from jitkit.nn.conditioning import PerTokenEmbedding, embedding_module, num_channels, with_mask
from jitkit.nn.layers import Block, FinalLayer, PatchEmbedding, TimeEmbedding
from jitkit.nn.rope import (
    position_frequencies,
    rotary_embedding,
    rotary_of_positions,
    sincos_embedding,
)


@dataclass(frozen=True)
class Sizes:
    """Hyperparameters of a transformer; `ModelSection.resolved` gives them for a recipe.

    Attributes:
        width: features of a token inside the network, W.
        depth: number of blocks.
        heads: attention heads, H.
        bottleneck: width of the bottleneck of the patch embedding.
        in_context_tokens: number of in-context conditioning tokens.
        in_context_start: the block before which they are prepended, counted from 0.
        mlp_hidden: hidden features of SwiGLU.
        dropout: dropout in the middle half of the blocks.
    """

    width: int
    depth: int
    heads: int
    bottleneck: int
    in_context_tokens: int
    in_context_start: int
    mlp_hidden: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise JitkitError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.in_context_tokens and self.in_context_start >= self.depth:
            raise JitkitError(
                f"in-context tokens cannot join before block {self.in_context_start}: the network "
                f"has blocks 0 to {self.depth - 1}"
            )


def _module_name(name: str) -> str:
    """A condition's name as a submodule name without dots that is not an attribute of `nn.Module`.

    Different names stay different.
    """
    return "of_" + name.replace("~", "~0").replace(".", "~1")


class Transformer(nn.Module):
    """Noisy data, time and conditions to a prediction in the shape of the data.

    ``autocast`` is the dtype of mixed precision inside it; None for float32. Initialised as in the
    official code; the last layer is zero, so the first prediction is too.
    """

    rotary: Tensor
    pos_embed: Tensor
    frequencies: Tensor

    def __init__(self, layout: Layout, conditions: Mapping[str, Condition], sizes: Sizes) -> None:
        super().__init__()
        self.layout, self.conditions, self.sizes = layout, dict(conditions), sizes
        self.checkpoint_activations = False
        self.autocast: torch.dtype | None = None
        width, features = sizes.width, prod(layout.patch)
        channels = len(layout.channels) * (2 if layout.missing else 1)
        channels += sum(num_channels(condition) for condition in conditions.values())

        self.embed = PatchEmbedding(channels * features, sizes.bottleneck, width)
        self.time = TimeEmbedding(width)
        self.vectors = nn.ModuleDict()
        self.channels = nn.ModuleDict()
        for name, condition in conditions.items():
            if (module := embedding_module(condition, width)) is not None:
                self.vectors[_module_name(name)] = module
            if isinstance(condition, PerToken):
                self.channels[_module_name(name)] = PerTokenEmbedding(condition)
        self.num_context = sizes.in_context_tokens if self.vectors else 0
        if self.num_context:
            self.context = nn.Parameter(torch.empty(self.num_context, width).normal_(std=0.02))
        middle = range(sizes.depth // 4, 3 * (sizes.depth // 4))
        self.blocks = nn.ModuleList(
            Block(
                width,
                sizes.heads,
                sizes.mlp_hidden,
                dropout=sizes.dropout if i in middle else 0.0,
                relative=bool(layout.positions),
            )
            for i in range(sizes.depth)
        )
        self.final = FinalLayer(width, layout.patch_features)
        for name, table in zip(("rotary", "pos_embed"), self._embed_positions(), strict=True):
            self.register_buffer(name, table, persistent=False)
        if layout.positions:
            pairs = width // sizes.heads // 2 - self.rotary.shape[-2]
            vectors = position_frequencies(sizes.heads, pairs, len(layout.positions))
            self.register_buffer("frequencies", vectors, persistent=False)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction, float32, in the shape of ``z``.

        Args:
            z: noisy data, (B, C, X1..Xn); the grid may differ from the layout's.
            t: times in [0, 1], (B,).
            cond: all conditions of the model, (B, ...).
            mask: (B, C or 1, X1..Xn) bool, True where there are data; None means everywhere.
            coords: coordinates of the cells, (B, X1..Xn, n), in cells.
        """
        if z.is_meta:  # has no autocast; only shapes matter
            return self._predict(z, t, cond, mask, coords)
        dtype = self.autocast
        with torch.autocast(z.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return self._predict(z, t, cond, mask, coords)

    def _predict(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None,
        coords: Tensor | None,
    ) -> Tensor:
        grid, patch = tuple(z.shape[2:]), self.layout.patch
        rotary, pos_embed = self._position_embeddings(grid, coords)
        if self.layout.positions:
            rotary = self._with_data_positions(rotary, z, mask)
        attend = None if mask is None else self._attention_mask(mask)
        tokens = patches.patchify(self._inputs(z, cond, mask), patch)

        x = self.embed(tokens).float() + pos_embed
        y = self._vector(cond)
        c = self.time(t).float()
        c = F.silu(c if y is None else c + y)
        for i, block in enumerate(self.blocks):
            if y is not None and self.num_context and i == self.sizes.in_context_start:
                x = torch.cat((y.unsqueeze(1) + self.context, x), dim=1)
                rotary, attend = self._prepend_context(rotary, attend)
            x = self._run(block, x, c, rotary, attend)
        x = self.final(x[:, self.num_context :], c).float()
        return patches.crop(patches.unpatchify(x, patch, patches.padded_grid(grid, patch)), grid)

    def compile_blocks(self) -> None:
        """Compile each block with `torch.compile`, at its first use.

        The blocks before the in-context tokens share one graph, those after them another.
        """
        config = torch._dynamo.config  # one graph per shape, with or without mask, train or eval
        config.recompile_limit = max(config.recompile_limit, 64)
        for block in self.blocks:
            block.compile()

    def _inputs(self, z: Tensor, cond: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Concatenate data, masks and conditioning channels, padded to whole patches.

        Padding is marked as missing, as for samples that are padded to a common size.
        """
        patch = self.layout.patch
        parts = [z if mask is None else torch.where(mask, z, 0.0)]
        if self.layout.missing:  # the weights for the mask act as a learned fill value
            parts.append(torch.ones_like(z) if mask is None else mask.expand_as(z).to(z.dtype))
        for name, condition in self.conditions.items():
            if isinstance(condition, Grid):
                parts.append(with_mask(cond[name]))
            elif isinstance(condition, PerToken):
                value = patches.pad(cond[name].unsqueeze(1) - condition.n, patch).squeeze(1)
                parts.append(self.channels[_module_name(name)](value + condition.n))
        parts = [patches.pad(part, patch) for part in parts]  # (B, C_in, whole patches)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _vector(self, cond: Mapping[str, Tensor]) -> Tensor | None:
        """Sum of the embeddings of categories and scalars, (B, W)."""
        total = None
        for name in self.conditions:
            if _module_name(name) in self.vectors:
                embedding = self.vectors[_module_name(name)](cond[name]).float()
                total = embedding if total is None else total + embedding
        return total

    def _embed_positions(self, coords: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotary and sine-cosine embedding of tokens at ``coords``, (..., L, n)."""
        if coords is None:
            coords = patches.token_coords(self.layout.grid, self.layout.patch)
        axes, head_dim = self.layout.axes, self.sizes.width // self.sizes.heads
        if self.layout.positions:  # they use the other half, or all if no axis has an order
            head_dim = head_dim // 2 if any(axis.kind != "set" for axis in axes) else 0
        rotary = rotary_embedding(coords, axes, head_dim)
        return rotary, sincos_embedding(coords, axes, self.sizes.width)

    def _with_data_positions(self, rotary: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Rotary embedding of the axes and of the positions in the data, (B, H, L, P, 2).

        A token is at the mean of its cells that have data, or at the origin if none has.
        """
        channels = [self.layout.channels.index(name) for name in self.layout.positions]
        patch = self.layout.patch

        def sums(x: Tensor) -> Tensor:  # over the cells of each token, (B, L, n)
            positions = patches.pad(torch.stack([x[:, i] for i in channels], dim=1), patch)
            tokens = patches.patchify(positions, patch)
            return reduce(tokens, "b l (n cell) -> b l n", "sum", n=len(channels))

        seen = torch.ones_like(z) if mask is None else mask.expand_as(z).to(z.dtype)
        kept = z if mask is None else torch.where(mask, z, 0.0)
        means = sums(kept) / sums(seen).clamp_min(1)
        of_data = rotary_of_positions(means, self.frequencies)
        return torch.cat((rotary.expand(*of_data.shape[:-2], -1, 2), of_data), dim=-2)

    def _position_embeddings(
        self, grid: tuple[int, ...], coords: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotary and sine-cosine embedding of the layout's grid, another grid, or coordinates.

        Raises:
            JitkitError: a `circle` axis whose length differs from the layout's.
        """
        patch, axes = self.layout.patch, self.layout.axes
        for size, axis in zip(grid, axes, strict=True):
            if axis.kind == "circle" and size != axis.size:
                raise JitkitError(
                    f"axis {axis.name!r} is a circle of {axis.size} cells, but the grid {grid} has "
                    f"{size}: the length of a circle is fixed"
                )
        if coords is not None:
            lengths = tuple(axis.size if axis.kind == "circle" else None for axis in axes)
            tokens = patches.token_coords_from_cells(coords, patch, lengths)
            rotary, pos_embed = self._embed_positions(tokens)
            return rotary.unsqueeze(1), pos_embed  # the same for all heads
        if patches.padded_grid(grid, patch) == patches.padded_grid(self.layout.grid, patch):
            return self.rotary, self.pos_embed
        coords = patches.token_coords(grid, patch).to(self.pos_embed.device)
        return self._embed_positions(coords)

    def _attention_mask(self, mask: Tensor) -> Tensor:
        """Which tokens have data, (B, 1, 1, L); all tokens of a sample without any data."""
        seen = patches.token_mask(patches.pad(mask, self.layout.patch), self.layout.patch)
        return (seen | ~seen.any(dim=1, keepdim=True))[:, None, None]

    def _prepend_context(
        self, rotary: Tensor, attend: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Prepend the in-context tokens: they are not rotated and always attended to."""
        identity = rotary.new_tensor((1.0, 0.0))
        identity = identity.expand(*rotary.shape[:-3], self.num_context, rotary.shape[-2], 2)
        if attend is not None:
            attend = F.pad(attend, (self.num_context, 0), value=True)
        return torch.cat((identity, rotary), dim=-3), attend

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
