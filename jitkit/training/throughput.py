"""How fast a run goes, against what its machine can do."""

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

REMEMBERED = 50  # steps that the smoothed loss is about
SHOWN_SECONDS = 2.0  # that the numbers beside the bar are about, at least
LINE = 79  # characters
PEAK_SECONDS = 0.3  # for measuring the peak, about
PRODUCT_SECONDS = 0.03  # for one timing: long against the clock and the start of a kernel
SIDES = (256, 8192)  # of the matrices: first, and largest (0.4 GiB for three in bfloat16)


@dataclass(frozen=True)
class _Mark:
    """What was counted up to a moment."""

    seconds: float
    samples: int = 0
    waited: float = 0.0


@dataclass(kw_only=True)
class Meter:
    """Samples, time and waiting of a training loop; bookkeeping alone, for every step.

    On a GPU the loop runs ahead of the device, so the numbers hold over windows in which it has
    waited for it at least once, as reading a loss does.

    Args:
        flops_per_sample: floating point operations of a training step for one sample, an addition
            and a multiplication counting as two: three times those of the forward pass.
        peak_flops: operations in a second that the machine can do, where known.
        device: whose memory is told.
        clock: seconds.
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
        """Around the wait for data."""
        began = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training (previews, held-out loss): its time is counted nowhere."""
        began = self.clock()
        try:
            yield
        finally:
            self._paused += self.clock() - began

    def step(self, n_samples: int) -> None:
        """A step is done on so many samples, of this process."""
        self._samples += n_samples

    def smooth(self, loss: float) -> float:
        """The mean loss of about the last 50 steps, the recent ones weighing more.

        m_k = b m_(k-1) + (1 - b) loss_k with b = 1 - 1/50, divided by 1 - b^k so that the first
        steps are not drawn to zero (Kingma & Ba 2014, arXiv:1412.6980, section 3).
        """
        self._losses += 1
        self._mean += (loss - self._mean) / REMEMBERED
        return self._smoothed()

    def read(self) -> dict[str, float | None]:
        """Speed since the last reading: ``samples_per_second``, ``tflops`` (10^12 operations a
        second), ``peak_share`` and ``waiting_share`` (of 1), ``memory_gib``.

        Memory is the most that the GPU has held, or what the process holds of the machine's now.
        What is not known is None.
        """
        now = self._mark()
        speed = self._speed(self._read_from, now)
        self._read_from = now
        return speed

    def line(self) -> str:
        """Loss and speed of the last seconds for the progress bar, less than 80 characters.

        ``loss 0.0812  412 samples/s  1.30 TFLOP/s (63 % of peak)  waiting 4 %  1.20 GiB``
        """
        now = self._mark()
        if now.seconds - self._shown_from.seconds >= SHOWN_SECONDS:
            self._shown = self._speed(self._shown_from, now)
            self._shown_from = now
        parts = []
        if self._losses:
            loss = self._smoothed()
            parts.append(f"loss {loss:.4f}" if 0.001 <= loss < 10_000 else f"loss {loss:.3g}")
        parts += _words(self._shown)
        while len("  ".join(parts)) > LINE:
            parts.pop()
        return "  ".join(parts)

    def _smoothed(self) -> float:
        return self._mean / (1 - (1 - 1 / REMEMBERED) ** self._losses)

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
    """The most operations in a second that products of square matrices reach on a machine.

    Sides double as long as products stay short and gain speed; the best of about 0.3 s counts.
    Float32 is measured as the process has it set, with TensorFloat-32 or without. No random state
    is touched but the function's own.
    """
    known = _most_bytes(device)
    best = max(_rates(device, dtype, clock))
    if _most_bytes(device) > known:  # ours, not the run's
        torch.cuda.reset_peak_memory_stats(device)
    return best


@torch.no_grad()
def _rates(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> Iterator[float]:
    """Operations in a second of product after product, larger ones as long as they are quick."""
    side, repeats, before = SIDES[0], 1, 0.0
    matrices = _matrices(side, device, dtype)  # which loads the library for products
    began = now = clock()
    while now - began < PEAK_SECONDS:
        start = clock()
        _multiply(*matrices, repeats=repeats)
        now = clock()
        seconds = max(now - start, 1e-9)
        rate = 2 * side**3 * repeats / seconds
        yield rate
        # on a busy machine threads wait for each other, longer than a small product takes
        worth = seconds < PRODUCT_SECONDS / 4 or rate > 1.5 * before
        if seconds < PRODUCT_SECONDS and worth and side < SIDES[1]:
            side, before = 2 * side, rate  # eight times the work
            try:
                matrices = _matrices(side, device, dtype)
            except torch.OutOfMemoryError:
                return  # the smaller ones have to do: the first takes less than a MiB
        elif seconds < PRODUCT_SECONDS / 2:
            repeats = ceil(repeats * PRODUCT_SECONDS / seconds)


def _matrices(side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two to multiply and one for the product, multiplied once: the first time is slower.

    Random, because multiplying equal numbers takes less power, and GPUs are faster at it.
    """
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(side, side, generator=generator, device=device, dtype=dtype)
    matrices = left, left.T.contiguous(), torch.empty_like(left)
    _multiply(*matrices)
    return matrices


def _multiply(left: Tensor, right: Tensor, product: Tensor, *, repeats: int = 1) -> None:
    """So many times the same product, done when this returns."""
    for _ in range(repeats):
        torch.mm(left, right, out=product)
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)


def _words(speed: Mapping[str, float | None]) -> list[str]:
    """What ``_speed`` found, in the order of what matters; nothing before it has."""
    found = {name: value for name, value in speed.items() if value is not None}
    if not found:
        return []
    tflops = found["tflops"]
    done = f"{_three(tflops)} TFLOP/s" if tflops >= 0.1 else f"{_three(tflops * 1e3)} GFLOP/s"
    if "peak_share" in found:
        done += f" ({100 * found['peak_share']:.0f} % of peak)"
    words = [
        f"{_three(found['samples_per_second'])} samples/s",
        done,
        f"waiting {100 * found['waiting_share']:.0f} %",
    ]
    if "memory_gib" in found:
        words.append(f"{_three(found['memory_gib'])} GiB")
    return words


def _three(number: float) -> str:
    """Three digits or a few more, never an exponent where there need be none.

    >>> [_three(number) for number in (12345.6, 412.3, 41.23, 1.3, 0.0412)]
    ['12,346', '412', '41.2', '1.30', '0.041']
    """
    if number >= 100:
        return f"{number:,.0f}"
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 1 else f"{number:.2g}"


def _memory_gib(device: torch.device) -> float | None:
    held = _most_bytes(device) if device.type == "cuda" else _resident_bytes()
    return None if held is None else held / GIB


def _most_bytes(device: torch.device) -> int:
    """The most that tensors have held of a GPU at once."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _resident_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Memory of the machine that this process holds; without Linux's record, the most it held."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
