"""Recipe sections of the core: every key with type, default and meaning.

They are separate from the code that uses them, which loads torch, so that a recipe is validated
within a second. The section of a domain is defined in its adapter.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Limit

from jitkit.errors import RecipeError

Count = Annotated[int, Limit(ge=1)]
Natural = Annotated[int, Limit(ge=0)]
Positive = Annotated[float, Limit(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Limit(ge=0, le=1)]
Finite = Annotated[float, Limit(allow_inf_nan=False)]


class Section(BaseModel):
    """Base of recipe sections: frozen, unknown keys refused, the string under a key is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class DomainSection(Section):
    """Section ``domain``: the kind of data. Adapters add their keys to these."""

    free_to_change: ClassVar[tuple[str, ...]] = ("path",)
    """Keys that change neither the items nor the model, so that a run may be resumed with other
    values. Data may have moved; whether they are the same is checked on the data."""

    name: str
    """Name of the adapter; `jitkit domains` lists the installed ones."""


class ModelSection(Section):
    """Section ``model``: the transformer."""

    size: Literal["B", "L", "H", "G"] | None = None
    """Model size of the paper (table 9); other keys of this section take precedence."""
    width: Count | None = None
    """Features of a token inside the network, W."""
    depth: Count | None = None
    """Number of transformer blocks."""
    heads: Count | None = None
    """Attention heads; width / 64 by default."""
    bottleneck: Count | None = None
    """Bottleneck width of the patch embedding (section 4.3); 128 by default."""
    patch: Count | list[Count] | None = None
    """Patch size in cells: one number for all axes, or one per axis; the domain's by default."""
    in_context_tokens: Natural | None = None
    """In-context conditioning tokens; 32 with a size of the paper, else 4, and none if no condition
    is a single vector for the whole sample."""
    in_context_start: Natural | None = None
    """Block before which they are added, counted from 0; a third of the depth by default."""
    mlp_hidden: Count | None = None
    """Hidden features of SwiGLU; 8/3 of the width by default."""
    dropout: Annotated[float, Limit(ge=0, lt=1)] | None = None
    """Dropout in the middle half of the blocks."""

    @model_validator(mode="after")
    def _known_size(self) -> ModelSection:
        if self.size is None and (self.width is None or self.depth is None):
            raise RecipeError("give model.size (B, L, H or G), or model.width and model.depth")
        width, heads = self.resolved()["width"], self.resolved()["heads"]
        if width % heads:
            raise RecipeError(f"width {width} is not a multiple of {heads} heads")
        return self

    def resolved(self) -> dict[str, Any]:
        """All sizes of the network with presets and defaults filled in, except ``patch``."""
        given = self.model_dump(exclude={"size", "patch"}, exclude_none=True)
        sizes: dict[str, Any] = SIZES[self.size] | given if self.size else given
        width, depth = sizes["width"], sizes["depth"]
        defaults = {
            "heads": max(1, width // 64),
            "bottleneck": 128,
            "in_context_tokens": 32 if self.size else 4,
            "in_context_start": depth // 3,
            "mlp_hidden": int(4 * width * 2 / 3),
            "dropout": 0.0,
        }
        return defaults | sizes


SIZES: dict[str, dict[str, Any]] = {
    # Li & He 2025, table 9; dropout and in_context_start from the official code
    "B": {"depth": 12, "width": 768, "heads": 12, "bottleneck": 128, "in_context_start": 4},
    "L": {"depth": 24, "width": 1024, "heads": 16, "bottleneck": 128, "in_context_start": 8},
    "H": {"depth": 32, "width": 1280, "heads": 16, "bottleneck": 256, "in_context_start": 10}
    | {"dropout": 0.2},
    "G": {"depth": 40, "width": 1664, "heads": 16, "bottleneck": 256, "in_context_start": 10}
    | {"dropout": 0.2},
}


class DiffusionSection(Section):
    """Section ``diffusion``: the probability path, the prediction of the network and its loss."""

    prediction: Literal["x", "eps", "v"] = "x"
    """What the network predicts: clean data, noise or velocity."""
    loss: Literal["x", "eps", "v"] = "v"
    """The space in which the loss is computed."""
    t_distribution: Literal["logit-normal", "uniform"] = "logit-normal"
    """Distribution of the times t in training."""
    P_mean: Finite = -0.8
    """Mean of logit(t); lower means noisier."""
    P_std: Positive = 0.8
    """Standard deviation of logit(t)."""
    noise_scale: Literal["auto"] | Positive = "auto"
    """Standard deviation of the noise; auto is the square root of the number of cells over 256, at
    least 1 (1, 2, 4 at 256, 512, 1024 pixels, as in the paper). `set` axes do not count."""
    t_eps: Annotated[float, Limit(gt=0, lt=1)] = 0.05
    """Lower bound of 1 - t (and of t) in divisions."""


class TrainSection(Section):
    """Section ``train``: steps, optimizer, EMA, precision, checkpoints, logging."""

    steps: Natural = 100_000
    """Total number of steps, including those before a run was resumed."""
    batch_size: Count = 256
    """Samples per step, over all processes."""
    accumulate: Count = 1
    """Gradient accumulation: number of parts in which each process computes its share of a step.
    Uses less memory for the same step."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Strategy for several processes (torchrun): each holds the full model (ddp) or a shard (fsdp);
    auto is ddp if parameters, gradients, EMAs and optimizer state fit in half the memory."""
    seed: Natural = 0
    """All randomness of a step is a function of this and the step number."""
    blr: Positive = 5e-5
    """Base learning rate: the learning rate is blr x batch_size / 256."""
    lr: Positive | None = None
    """Learning rate, in place of blr."""
    warmup_steps: Natural = 0
    """Steps of linear warm-up of the learning rate from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up; cosine decays to zero at the last step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW as in the paper, or Muon for the matrices of the blocks and AdamW for the rest, which
    had the lower loss in our experiments (docs/log.md). Muon does not support fsdp."""
    betas: tuple[Annotated[float, Limit(ge=0, lt=1)], Annotated[float, Limit(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    """Betas of AdamW."""
    weight_decay: Annotated[float, Limit(ge=0)] = 0.0
    """Weight decay of AdamW, on matrices only."""
    ema: list[Annotated[float, Limit(gt=0, lt=1)]] = Limit(default=[0.9999, 0.9996], min_length=1)
    """Decays of the EMAs of the weights, one or several; samples use the first by default."""
    ema_sigma_rel: list[Annotated[float, Limit(gt=0, lt=0.28)]] = []
    """Relative widths of power-function EMAs (Karras et al. 2023), 0.05 and 0.1 as in the paper;
    from their snapshots `jitkit ema` reconstructs an EMA of any width after training."""
    ema_snapshot_every_steps: Count = 5_000
    """Steps between snapshots of the power-function EMAs; a hundred per run are ample."""
    ema_device: Literal["auto", "cpu"] = "auto"
    """Where EMAs are stored: with the weights (auto), or in CPU memory (cpu), which frees GPU
    memory; they are then updated concurrently with the GPU's work."""
    clip_gradient: Positive | None = None
    """Maximum norm of the gradient (clipping)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision inside the network; auto is bfloat16 if the hardware supports it. float16 uses
    dynamic loss scaling."""
    tf32: bool = True
    """Use TF32 for float32 matrix products on GPUs that support it: 10 bits of mantissa, faster."""
    compile: Literal["auto"] | bool = False
    """Compile each block with torch.compile, which takes about a minute; auto compiles on a GPU."""
    checkpoint_activations: bool = False
    """Activation checkpointing: recompute blocks in the backward pass, about a third more time."""
    workers: Natural = 0
    """Processes that read and decode items, in place of the threads used for images and arrays; 0
    for none."""
    save_every_steps: Count = 5_000
    """Steps between checkpoints; the last step is always saved."""
    keep: Count = 2
    """Number of newest checkpoints to keep."""
    keep_every_steps: Count | None = None
    """Checkpoints at multiples of this many steps are never deleted."""
    max_bad_steps: Natural = 10
    """Maximum number of consecutive steps with a non-finite loss or gradient. Such steps are
    skipped; one more ends the run."""
    preview_every_steps: Count = 5_000
    """Steps between preview images of samples; the first is drawn before training."""
    preview_samples: Count = 16
    """Samples in a preview."""
    validate_every_steps: Count = 5_000
    """Steps between validation losses."""
    validate_items: Count = 512
    """Maximum number of validation items."""
    log: Literal["auto"] | list[Literal["tensorboard", "wandb", "mlflow"]] = "auto"
    """Experiment trackers besides metrics.jsonl; auto is TensorBoard if it is installed."""


class SampleSection(Section):
    """Section ``sample``: solver, guidance and seed of the sampler."""

    method: Literal["euler", "heun", "ab2", "ab3", "dpm2m"] = "heun"
    """Solver of dz/dt = v; heun takes two network evaluations (NFE) per step, the others one. ab2,
    ab3 (Adams-Bashforth) and dpm2m (DPM-Solver++) reuse predictions of earlier steps."""
    steps: Count = 50
    """Steps from noise (t = 0) to data (t = 1)."""
    time_grid: Literal["uniform", "cosine"] = "uniform"
    """Spacing of the steps in time: uniform, or cosine, which is finer at both ends and better with
    few steps."""
    guidance: Finite = 1.0
    """Scale of classifier-free guidance (CFG), v = v_null + guidance (v_cond - v_null); 1: none."""
    guidance_interval: tuple[Fraction, Fraction] = (0.1, 1.0)
    """Open interval (t_low, t_high) of times with guidance or autoguidance; t_low = 0 includes
    t = 0."""
    autoguidance: str | None = None
    """Autoguidance (Karras et al. 2024): a weaker model of the same data, a run or checkpoint with
    optional EMA, such as `runs/small` or `runs/my/checkpoints/step-500@0.99`. With
    v = v_guide + guide_scale (v - v_guide) samples move away from errors that both models share.
    Cannot be combined with `guidance`."""
    guide_scale: Finite = 2.0
    """Scale of autoguidance; 1: none."""
    t_eps: Annotated[float, Limit(gt=0, lt=1)] | None = None
    """Lower bound of 1 - t in the sampler; diffusion.t_eps by default."""
    batch_size: Count | None = None
    """Samples per batch; by default chosen from the available memory."""
    seed: Natural = 0
    """Seed; sample i is a function of the weights, the seed and i."""

    @model_validator(mode="after")
    def _ordered(self) -> SampleSection:
        if self.guidance_interval[0] >= self.guidance_interval[1]:
            raise RecipeError(
                f"guidance_interval {list(self.guidance_interval)} ends before it starts"
            )
        if self.autoguidance is not None and self.guidance != 1:
            raise RecipeError(
                f"autoguidance and guidance={self.guidance:g} (classifier-free guidance) together "
                "are not defined; set guidance=1 or remove autoguidance"
            )
        return self


class EvaluateSection(Section):
    """Section ``evaluate``: number and seeds of scored samples."""

    samples: Count = 1_000
    """Samples drawn and scored for each seed."""
    seed: Natural = 1
    """Seed of the samples."""
    seeds: Count = 1
    """Number of seeds, starting at `seed`. Each score is the mean over seeds, with a second
    interval from their spread."""
    after_training: bool = False
    """Evaluate the run when training ends, as `jitkit evaluate` does."""
