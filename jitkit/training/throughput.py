"""Training throughput: samples/s, TFLOP/s, MFU, time waiting for data, memory; peak FLOP/s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from jitkit.nn.memory import GIB

SMOOTHING_STEPS = 50  # time constant of the smoothed loss
SHOWN_SECONDS = 2.0  # shortest window of the values beside the progress bar
LINE = 79  # characters
PEAK_SECONDS = 0.3  # for measuring the peak, about
PRODUCT_SECONDS = 0.03  # of one timing: long compared with clock resolution and kernel launch
SIDES = (256, 8192)  # of the matrices: first, and largest (0.4 GiB for three in bfloat16)


@dataclass(frozen=True)
class _Mark:
    """Counts up to a moment."""

    seconds: float
    samples: int = 0
    waited: float = 0.0


@dataclass(kw_only=True)
class Meter:
    """Throughput, MFU and time waiting for data of a training loop; cheap enough for every step.

    On a GPU the loop runs ahead of the device, so values are valid over windows with at least one
    synchronization, such as reading a loss.

    Args:
        flops_per_sample: floating point operations of a training step per sample; an addition and
            a multiplication count as two; three times the forward pass.
        peak_flops: FLOP/s that the machine can reach, if known.
        device: whose memory is reported.
        clock: returns seconds.
    """

    flops_per_sample: float
    peak_flops: float | None
    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    _samples: int = field(default=0, init=False)
    _waited: float = field(default=0.0, init=False)
    _paused: float = field(default=0.0, init=False)
    _losses: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _shown: dict[str, float | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._read_from = self._shown_from = self._mark()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of waiting for data."""
        began = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context of work other than training (previews, validation): its time is not counted."""
        began = self.clock()
        try:
            yield
        finally:
            self._paused += self.clock() - began

    def step(self, n_samples: int) -> None:
        """Count a step on ``n_samples`` samples of this rank."""
        self._samples += n_samples

    def smooth(self, loss: float) -> float:
        """Exponential moving average of the loss over about 50 steps.

        m_k = b m_(k-1) + (1 - b) loss_k with b = 1 - 1/50, divided by 1 - b^k so that the first
        steps are not biased to zero (Kingma & Ba 2014, arXiv:1412.6980, section 3).
        """
        self._losses += 1
        self._mean += (loss - self._mean) / SMOOTHING_STEPS
        return self._smoothed()

    def read(self) -> dict[str, float | None]:
        """Throughput since the last call: ``samples_per_second``, ``tflops`` (10^12 FLOP/s),
        ``peak_share`` (MFU) and ``waiting_share`` (both 0 to 1), ``memory_gib``.

        Memory is the peak on a GPU, or the process's current resident memory. Unknown values are
        None.
        """
        now = self._mark()
        speed = self._speed(self._read_from, now)
        self._read_from = now
        return speed

    def line(self) -> str:
        """Loss and throughput of the last seconds for the progress bar, under 80 characters.

        ``loss 0.0812  412 samples/s  1.30 TFLOP/s (63 % MFU)  waiting 4 %  1.20 GiB``
        """
        now = self._mark()
        if now.seconds - self._shown_from.seconds >= SHOWN_SECONDS:
            self._shown = self._speed(self._shown_from, now)
            self._shown_from = now
        parts = []
        if self._losses:
            loss = self._smoothed()
            parts.append(f"loss {loss:.4f}" if 0.001 <= loss < 10_000 else f"loss {loss:.3g}")
        parts += _formatted(self._shown)
        while len("  ".join(parts)) > LINE:
            parts.pop()
        return "  ".join(parts)

    def _smoothed(self) -> float:
        return self._mean / (1 - (1 - 1 / SMOOTHING_STEPS) ** self._losses)

    def _mark(self) -> _Mark:
        return _Mark(self.clock() - self._paused, self._samples, self._waited)

    def _speed(self, since: _Mark, now: _Mark) -> dict[str, float | None]:
        seconds = now.seconds - since.seconds
        rate = (now.samples - since.samples) / seconds if seconds > 0 else 0.0
        flops = rate * self.flops_per_sample
        return {
            "samples_per_second": rate,
            "tflops": flops / 1e12,
            "peak_share": flops / self.peak_flops if self.peak_flops else None,
            "waiting_share": (now.waited - since.waited) / seconds if seconds > 0 else 0.0,
            "memory_gib": _memory_gib(self.device),
        }


def peak_flops(
    device: torch.device, dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Highest FLOP/s of products of square matrices on a machine, measured for about 0.3 s.

    Sides double as long as products stay short and gain speed. Float32 is measured with the
    process's TensorFloat-32 setting. Global random state is not touched.
    """
    before = _peak_bytes(device)
    best = max(_measured_flops(device, dtype, clock))
    if _peak_bytes(device) > before:  # raised by this measurement, not by the run
        torch.cuda.reset_peak_memory_stats(device)
    return best


@torch.no_grad()
def _measured_flops(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float]
) -> Iterator[float]:
    """FLOP/s of successive products; the matrices grow as long as products are quick."""
    side, repeats, smaller = SIDES[0], 1, 0.0
    matrices = _matrices(side, device, dtype)  # also loads the library for products
    began = now = clock()
    while now - began < PEAK_SECONDS:
        start = clock()
        _multiply(*matrices, repeats=repeats)
        now = clock()
        seconds = max(now - start, 1e-9)
        flops = 2 * side**3 * repeats / seconds
        yield flops
        # on a busy machine threads wait for each other longer than a small product takes
        worth = seconds < PRODUCT_SECONDS / 4 or flops > 1.5 * smaller
        if seconds < PRODUCT_SECONDS and worth and side < SIDES[1]:
            side, smaller = 2 * side, flops  # eight times the work
            try:
                matrices = _matrices(side, device, dtype)
            except torch.OutOfMemoryError:
                return  # keep the smaller results; the first size takes less than a MiB
        elif seconds < PRODUCT_SECONDS / 2:
            repeats = ceil(repeats * PRODUCT_SECONDS / seconds)


def _matrices(side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two factors and their product, multiplied once for warm-up.

    Random, because products of equal numbers draw less power and run faster on GPUs.
    """
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(side, side, generator=generator, device=device, dtype=dtype)
    matrices = left, left.T.contiguous(), torch.empty_like(left)
    _multiply(*matrices)
    return matrices


def _multiply(left: Tensor, right: Tensor, product: Tensor, *, repeats: int = 1) -> None:
    """Compute a product ``repeats`` times; synchronizes."""
    for _ in range(repeats):
        torch.mm(left, right, out=product)
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)


def _formatted(speed: Mapping[str, float | None]) -> list[str]:
    """Result of ``_speed`` as text, most important first; empty before the first result."""
    known = {name: value for name, value in speed.items() if value is not None}
    if not known:
        return []
    tflops = known["tflops"]
    flops = f"{_digits(tflops)} TFLOP/s" if tflops >= 0.1 else f"{_digits(tflops * 1e3)} GFLOP/s"
    if "peak_share" in known:
        flops += f" ({100 * known['peak_share']:.0f} % MFU)"
    parts = [
        f"{_digits(known['samples_per_second'])} samples/s",
        flops,
        f"waiting {100 * known['waiting_share']:.0f} %",
    ]
    if "memory_gib" in known:
        parts.append(f"{_digits(known['memory_gib'])} GiB")
    return parts


def _digits(number: float) -> str:
    """About three digits, without an exponent if possible.

    >>> [_digits(number) for number in (12345.6, 412.3, 41.23, 1.3, 0.0412)]
    ['12,346', '412', '41.2', '1.30', '0.041']
    """
    if number >= 100:
        return f"{number:,.0f}"
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 1 else f"{number:.2g}"


def _memory_gib(device: torch.device) -> float | None:
    used = _peak_bytes(device) if device.type == "cuda" else _resident_bytes()
    return None if used is None else used / GIB


def _peak_bytes(device: torch.device) -> int:
    """Peak memory of tensors on a GPU; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _resident_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Resident memory of this process; without ``/proc`` its peak; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
