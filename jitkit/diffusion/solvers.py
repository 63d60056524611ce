"""ODE solvers of dz/dt = v from t = 0 to 1, their number of network evaluations (NFE), time grids.

`euler` and `heun` are single-step solvers. The multistep solvers `ab2`, `ab3` and `dpm2m` reuse
evaluations of earlier steps and have order 2 or 3 with one evaluation per step. The last step is
always Euler's: v has the divisor 1 - t, so it is never evaluated at t = 1, and with x-prediction
that step ends at x_hat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jitkit.errors import JitkitError, listed

Method = Literal["euler", "heun", "ab2", "ab3", "dpm2m"]
TimeGrid = Literal["uniform", "cosine"]
Velocity = Callable[[Tensor, Tensor], Tensor]


class History(NamedTuple):
    """State at the beginning of a step: time (float32, on the CPU), z and v."""

    t: Tensor
    z: Tensor
    v: Tensor


Step = Callable[[Velocity, Sequence[History], Tensor], Tensor]
"""z after a step, from v, the history (newest first, at least one) and the time of its end."""


def integrate(
    velocity: Velocity,
    z: Tensor,
    *,
    steps: int,
    method: Method = "heun",
    time_grid: TimeGrid = "uniform",
    after_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Integrate dz/dt = v from t = 0 to t = 1; the last step is always Euler's.

    Args:
        velocity: dz/dt at (z, t), t a float32 scalar on the CPU.
        z: noise at t = 0, (B, C, X1..Xn).
        steps: number of steps, at least 1; `nfe` gives the number of evaluations of v.
        method: ODE solver.
        time_grid: spacing of the steps, as in `time_steps`.
        after_step: called with the number of completed steps.

    Raises:
        JitkitError: invalid steps, method or time_grid.
    """
    if method not in SOLVERS:
        raise JitkitError(f"method {method!r} is not one of {listed(SOLVERS)}")
    ends = time_steps(time_grid, steps)
    history: list[History] = []
    for i in range(steps):
        history = [History(ends[i], z, velocity(z, ends[i])), *history[:2]]
        step = SOLVERS[method] if i < steps - 1 else euler
        z = step(velocity, history, ends[i + 1])
        if after_step is not None:
            after_step(i + 1)
    return z


def nfe(method: Method, steps: int) -> int:
    """Number of network evaluations (NFE): one per step; Heun takes two except in the last step.

    >>> [nfe(method, 50) for method in ("euler", "heun", "ab3")]
    [50, 99, 50]
    """
    return 2 * steps - 1 if method == "heun" else steps


def time_steps(time_grid: TimeGrid, steps: int) -> Tensor:
    """Time grid: the ends of all steps from 0 to 1, (steps + 1,) float32 on the CPU.

    ``uniform``: t = i / steps. ``cosine``: t = sin²(π i / (2 steps)), whose first and last steps
    are short, π² / (4 steps²), and whose middle ones are π / 2 times as long as uniform ones.

    Raises:
        JitkitError: invalid steps or time_grid.
    """
    if not isinstance(steps, int) or steps < 1:
        raise JitkitError(f"steps {steps} must be a whole number, at least 1")
    if time_grid not in TIME_GRIDS:
        raise JitkitError(f"time_grid {time_grid!r} is not one of {listed(TIME_GRIDS)}")
    return TIME_GRIDS[time_grid](steps)


def _cosine(steps: int) -> Tensor:
    angle = torch.linspace(0, torch.pi / 2, steps + 1, dtype=torch.float64)
    return angle.sin().square().float()


TIME_GRIDS: dict[TimeGrid, Callable[[int], Tensor]] = {
    "uniform": lambda steps: torch.linspace(0, 1, steps + 1),
    "cosine": _cosine,
}


# Steps of the solvers, from t to t' = t + h


def euler(velocity: Velocity, history: Sequence[History], end: Tensor) -> Tensor:
    """z' = z + h v; order 1. Where v = (x_hat - z) / (1 - t) and t' = 1, that is x_hat."""
    now = history[0]
    return now.z + float(end - now.t) * now.v


def heun(velocity: Velocity, history: Sequence[History], end: Tensor) -> Tensor:
    """z' = z + h (v + v(z + h v, t')) / 2; order 2, two evaluations per step."""
    now = history[0]
    step = float(end - now.t)
    ahead = now.z + step * now.v
    return now.z + step * (now.v + velocity(ahead, end)) / 2


def adams_bashforth(order: int) -> Step:
    """Adams-Bashforth: z' = z + ∫ p dt, p the polynomial through the newest ``order`` values of v.

    One evaluation per step; the weights are for steps of any length (Hairer, Norsett & Wanner 1993,
    section III.5). With less history the order is lower, 1 at the first step. Where v jumps inside
    a step, as at the ends of the guidance interval, equal steps place the jump in the middle of
    that step, as Heun does; a restart behind the jump would place it at the end of the step.
    """

    def step(velocity: Velocity, history: Sequence[History], end: Tensor) -> Tensor:
        used = history[:order]
        weights = adams_weights([float(state.t) for state in used], float(end))
        return used[0].z + sum(w * state.v for w, state in zip(weights, used, strict=True))

    return step


def adams_weights(times: Sequence[float], end: float) -> list[float]:
    """w with Σ w_j f(t_j) = ∫ f dt from times[0] to ``end``, exact for degrees below len(times).

    >>> [round(w, 6) for w in adams_weights([0.2, 0.1], 0.3)]  # 3/2 and -1/2 of equal steps
    [0.15, -0.05]
    """
    length, powers = end - times[0], torch.arange(len(times), dtype=torch.float64)
    relative = (torch.tensor(times, dtype=torch.float64) - times[0]) / length
    weights = torch.linalg.solve(relative ** powers[:, None], 1 / (powers + 1))
    return [length * w for w in weights.tolist()]


def dpm2m(velocity: Velocity, history: Sequence[History], end: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2) on the path of `flow`.

    With alpha = t, sigma = 1 - t and x(z, t) = z + (1 - t) v, dz/dt = (x - z) / sigma is
    d(z / sigma) = x d(alpha / sigma): the linear part is solved exactly, and only x is extrapolated
    from earlier times. In lambda = log(alpha / sigma), with h = lambda' - lambda and h_old of the
    previous step, x at the middle of the step is D = x + h / (2 h_old) (x - x_old), and

        z' = sigma' / sigma z + (1 - sigma' / sigma) D = z + (t' - t) / (1 - t) (D - z).

    alpha' - alpha sigma' / sigma of the paper is 1 - sigma' / sigma here, since alpha = 1 - sigma.
    With D = x this is Euler's step. At t = 0, where lambda = -∞, h_old is infinite, so the first
    and the second step are Euler's. So is the last, where lambda' = ∞. Order 2, one evaluation; the
    error is h² log(1 / h) on the uniform time grid, whose steps in lambda are long at both ends.
    """
    now, t = history[0], float(history[0].t)
    x_hat = now.z + (1 - t) * now.v
    if len(history) > 1 and history[1].t > 0 and end < 1:
        old = history[1]
        x_old = old.z + (1 - float(old.t)) * old.v
        h, h_old = _lambda(end) - _lambda(now.t), _lambda(now.t) - _lambda(old.t)
        x_hat = x_hat + h / (2 * h_old) * (x_hat - x_old)
    return now.z + (float(end) - t) / (1 - t) * (x_hat - now.z)


def _lambda(t: Tensor) -> float:
    """log(t / (1 - t)), half the logarithm of the signal-to-noise ratio under unit noise."""
    return log(float(t)) - log(1 - float(t)) if t > 0 else -inf


SOLVERS: dict[Method, Step] = {
    "euler": euler,
    "heun": heun,
    "ab2": adams_bashforth(2),
    "ab3": adams_bashforth(3),
    "dpm2m": dpm2m,
}
