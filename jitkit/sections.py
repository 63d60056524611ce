"""The sections of a recipe that belong to the core: every key, its type, default and meaning.

They stand together, away from the code that reads them, because a recipe must be checked in the
first second and that code loads torch. A domain's own section stands in its adapter.
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
    """A part of a recipe: frozen, unknown keys refused, the line under a key is its meaning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class DomainSection(Section):
    """Section ``domain``: which kind of data. Adapters add their own keys to these."""

    free_to_change: ClassVar[tuple[str, ...]] = ("path",)
    """Keys that change neither the items nor the model, so that a run may be resumed with other
    values: data may have moved, and whether they are the same is checked by themselves."""

    name: str
    """Name of the adapter; `jitkit domains` lists what is installed."""


class ModelSection(Section):
    """Section ``model``: the transformer."""

    size: Literal["B", "L", "H", "G"] | None = None
    """A size of the paper (table 9); keys given beside it take precedence."""
    width: Count | None = None
    """Numbers in a token inside the network, W."""
    depth: Count | None = None
    """Blocks."""
    heads: Count | None = None
    """Attention heads; a head for every 64 of the width where not given."""
    bottleneck: Count | None = None
    """Width between a patch and its token (section 4.3); 128 where not given."""
    patch: Count | list[Count] | None = None
    """Cells of a token: one number for all axes, or one for each; the domain's where not given."""
    in_context_tokens: Natural | None = None
    """Tokens that carry the condition through the blocks; 32 with a size of the paper, else 4, and
    none where the condition is not one vector for the whole sample."""
    in_context_start: Natural | None = None
    """The block before which they join, counted from 0; a third of the depth where not given."""
    mlp_hidden: Count | None = None
    """Hidden numbers of SwiGLU; 8/3 of the width where not given."""
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
        """Every number the network needs, presets and defaults filled in (but for ``patch``)."""
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
    # Li & He 2025, table 9, and dropout and starting block from the authors' code
    "B": {"depth": 12, "width": 768, "heads": 12, "bottleneck": 128, "in_context_start": 4},
    "L": {"depth": 24, "width": 1024, "heads": 16, "bottleneck": 128, "in_context_start": 8},
    "H": {"depth": 32, "width": 1280, "heads": 16, "bottleneck": 256, "in_context_start": 10}
    | {"dropout": 0.2},
    "G": {"depth": 40, "width": 1664, "heads": 16, "bottleneck": 256, "in_context_start": 10}
    | {"dropout": 0.2},
}


class DiffusionSection(Section):
    """Section ``diffusion``: the path from noise to data and what the network says of it."""

    prediction: Literal["x", "eps", "v"] = "x"
    """What the network says: clean data, noise or velocity."""
    loss: Literal["x", "eps", "v"] = "v"
    """The space in which its error is measured."""
    t_distribution: Literal["logit-normal", "uniform"] = "logit-normal"
    """How times are drawn in training."""
    P_mean: Finite = -0.8
    """Mean of logit(t); lower is noisier."""
    P_std: Positive = 0.8
    """Standard deviation of logit(t)."""
    noise_scale: Literal["auto"] | Positive = "auto"
    """Standard deviation of the noise; auto is the square root of the number of cells over 256, at
    least 1 (1, 2, 4 at 256, 512, 1024 pixels, as in the paper). `set` axes do not count."""
    t_eps: Annotated[float, Limit(gt=0, lt=1)] = 0.05
    """The least value of 1 - t (and of t) in a division."""


class TrainSection(Section):
    """Section ``train``: how long, how fast, what is kept."""

    steps: Natural = 100_000
    """Steps in all; a run that goes on counts from where it was."""
    batch_size: Count = 256
    """Samples a step, of all processes together."""
    accumulate: Count = 1
    """Parts in which each process takes its share of a step, one after the other: less memory for
    the same step."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes (torchrun) share the model: each holds all of it (ddp) or a part
    (fsdp); auto is ddp where weights, gradients, means and optimizer fit in half the memory."""
    seed: Natural = 0
    """Everything a step does is a function of this and the step's number."""
    blr: Positive = 5e-5
    """Learning rate for 256 samples; the rate is blr x batch_size / 256."""
    lr: Positive | None = None
    """The learning rate itself, in place of blr."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up; cosine falls to zero at the last step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """The paper's AdamW; or Muon for the matrices of the blocks and AdamW for the rest, which had
    the lower loss on what we tried (docs/log.md). Not under fsdp."""
    betas: tuple[Annotated[float, Limit(ge=0, lt=1)], Annotated[float, Limit(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    """AdamW's averages."""
    weight_decay: Annotated[float, Limit(ge=0)] = 0.0
    """AdamW's decay, on matrices alone."""
    ema: list[Annotated[float, Limit(gt=0, lt=1)]] = Limit(default=[0.9999, 0.9996], min_length=1)
    """Decays of the running means of the weights, one or several; the first is used for samples."""
    ema_sigma_rel: list[Annotated[float, Limit(gt=0, lt=0.28)]] = []
    """Relative widths of power-function means (Karras et al. 2023), 0.05 and 0.1 as in the paper:
    from their snapshots `jitkit ema` makes a mean of any width after training."""
    ema_snapshot_every_steps: Count = 5_000
    """Steps between snapshots of the power-function means; a hundred over a run are plenty."""
    ema_device: Literal["auto", "cpu"] = "auto"
    """Where running means are kept: with the weights (auto), or in the processor's memory (cpu),
    which leaves that of a GPU free; they are then updated beside the GPU's work."""
    clip_gradient: Positive | None = None
    """Largest norm of the gradient; a longer one is shortened to it."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic inside the network; auto is bfloat16 where the machine has it in hardware. float16
    runs with a loss scale of its own."""
    tf32: bool = True
    """Products of float32 matrices in TF32 on GPUs that have it: 10 bits of mantissa, faster."""
    compile: Literal["auto"] | bool = False
    """Compile each block with torch.compile, which takes a minute at first; auto does on a GPU."""
    checkpoint_activations: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    workers: Natural = 0
    """Processes that read and decode items, in place of the threads that pictures and arrays are
    read in; 0 for none."""
    save_every_steps: Count = 5_000
    """Steps between checkpoints; the last step is always saved."""
    keep: Count = 2
    """Newest checkpoints kept."""
    keep_every_steps: Count | None = None
    """Checkpoints of every so many steps are kept for good."""
    max_bad_steps: Natural = 10
    """Steps in a row that may have a loss or gradient that is no finite number; each is passed
    over, and one more ends the run."""
    preview_every_steps: Count = 5_000
    """Steps between pictures of samples; the first is drawn before training."""
    preview_samples: Count = 16
    """Samples in such a picture."""
    validate_every_steps: Count = 5_000
    """Steps between held-out losses."""
    validate_items: Count = 512
    """Held-out items that the loss is taken on, at most."""
    log: Literal["auto"] | list[Literal["tensorboard", "wandb", "mlflow"]] = "auto"
    """Where the numbers go besides metrics.jsonl; auto is TensorBoard where it is installed."""


class SampleSection(Section):
    """Section ``sample``: how noise becomes data."""

    method: Literal["euler", "heun", "ab2", "ab3", "dpm2m"] = "heun"
    """Rule for one step of dz/dt = v; heun calls the network twice, the others once. ab2, ab3
    (Adams-Bashforth) and dpm2m (DPM-Solver++) use what it said at earlier steps."""
    steps: Count = 50
    """Steps from noise (t = 0) to data (t = 1)."""
    time_grid: Literal["uniform", "cosine"] = "uniform"
    """Where steps lie in time: evenly, or as a cosine, short at both ends, which is better where
    steps are few."""
    guidance: Finite = 1.0
    """Weight of the condition: v = v_null + guidance (v_cond - v_null); 1 is none."""
    guidance_interval: tuple[Fraction, Fraction] = (0.1, 1.0)
    """Times between which guidance acts, of either kind; the ends do not belong to it, but 0
    does."""
    autoguidance: str | None = None
    """Autoguidance (Karras et al. 2024): a weaker model of the same data, a run or checkpoint with
    the mean to use, such as `runs/small` or `runs/my/checkpoints/step-500@0.99`. With
    v = v_guide + guide_scale (v - v_guide) samples move away from where both err alike. Not
    together with `guidance`."""
    guide_scale: Finite = 2.0
    """Weight of autoguidance; 1 is none."""
    t_eps: Annotated[float, Limit(gt=0, lt=1)] | None = None
    """The least value of 1 - t in the sampler; diffusion.t_eps where not given."""
    batch_size: Count | None = None
    """Samples made at once; by the memory at hand where not given."""
    seed: Natural = 0
    """Sample i is a function of the weights, this and i."""

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
    """Section ``evaluate``: how samples are scored."""

    samples: Count = 1_000
    """Samples that are drawn and scored, for each seed."""
    seed: Natural = 1
    """Seed of these samples."""
    seeds: Count = 1
    """How many seeds, counted from `seed`: each score is the mean of theirs, and has a second
    interval from their scatter."""
    after_training: bool = False
    """Score the finished run at once, as `jitkit evaluate` does."""
