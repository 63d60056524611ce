"""Rules that carry z along dz/dt = v from t = 0 to 1, and where in time their steps lie.

`euler` and `heun` look at one step alone. The multistep rules `ab2`, `ab3` and `dpm2m` also use
what was found at earlier steps, so that they have order 2 or 3 for one evaluation a step. The last
step is Euler's for all of them: v has a division by 1 - t, so t = 1 is never asked for, and a
network that says x makes that step end at x_hat.
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
    """What was found at the beginning of a step: time (float32, on the CPU), z and v."""

    t: Tensor
    z: Tensor
    v: Tensor


Step = Callable[[Velocity, Sequence[History], Tensor], Tensor]
"""z after a step, from v, what is known (newest first, at least one) and the time of its end."""


def integrate(
    velocity: Velocity,
    z: Tensor,
    *,
    steps: int,
    method: Method = "heun",
    time_grid: TimeGrid = "uniform",
    after_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Carry ``z`` from t = 0 to t = 1; the last step is always Euler's.

    Args:
        velocity: dz/dt at (z, t), t a float32 scalar on the CPU.
        z: noise at t = 0, (B, C, X1..Xn).
        steps: steps, at least 1; `evaluations` says how often v is asked for.
        method: rule of a step.
        time_grid: where the steps lie in time, as in `time_steps`.
        after_step: called with the number of steps done.

    Raises:
        JitkitError: steps, method or time_grid that cannot be meant.
    """
    if method not in SOLVERS:
        raise JitkitError(f"method {method!r} is none of {listed(SOLVERS)}")
    ends = time_steps(time_grid, steps)
    known: list[History] = []
    for i in range(steps):
        known = [History(ends[i], z, velocity(z, ends[i])), *known[:2]]
        rule = SOLVERS[method] if i < steps - 1 else euler
        z = rule(velocity, known, ends[i + 1])
        if after_step is not None:
            after_step(i + 1)
    return z


def evaluations(method: Method, steps: int) -> int:
    """How often v is asked for: once a step, and by Heun twice in all steps but the last.

    >>> [evaluations(method, 50) for method in ("euler", "heun", "ab3")]
    [50, 99, 50]
    """
    return 2 * steps - 1 if method == "heun" else steps


def time_steps(time_grid: TimeGrid, steps: int) -> Tensor:
    """Where steps begin and end, from 0 to 1, (steps + 1,) float32 on the CPU.

    ``uniform``: t = i / steps. ``cosine``: t = sin²(π i / (2 steps)), whose first and last steps
    are short, π² / (4 steps²), and whose middle ones are π / 2 times as long as uniform ones.

    Raises:
        JitkitError: steps or time_grid that cannot be meant.
    """
    if not isinstance(steps, int) or steps < 1:
        raise JitkitError(f"steps {steps} must be a whole number, at least 1")
    if time_grid not in TIME_GRIDS:
        raise JitkitError(f"time_grid {time_grid!r} is none of {listed(TIME_GRIDS)}")
    return TIME_GRIDS[time_grid](steps)


def _cosine(steps: int) -> Tensor:
    angle = torch.linspace(0, torch.pi / 2, steps + 1, dtype=torch.float64)
    return angle.sin().square().float()


TIME_GRIDS: dict[TimeGrid, Callable[[int], Tensor]] = {
    "uniform": lambda steps: torch.linspace(0, 1, steps + 1),
    "cosine": _cosine,
}


# Rules of one step, from t to t' = t + h


def euler(velocity: Velocity, known: Sequence[History], end: Tensor) -> Tensor:
    """z' = z + h v; order 1. Where v = (x_hat - z) / (1 - t) and t' = 1, that is x_hat."""
    now = known[0]
    return now.z + float(end - now.t) * now.v


def heun(velocity: Velocity, known: Sequence[History], end: Tensor) -> Tensor:
    """z' = z + h (v + v(z + h v, t')) / 2; order 2, two evaluations."""
    now = known[0]
    step = float(end - now.t)
    ahead = now.z + step * now.v
    return now.z + step * (now.v + velocity(ahead, end)) / 2


def adams_bashforth(order: int) -> Step:
    """z' = z + ∫ p dt, p the polynomial through v at the newest so many times; one evaluation.

    The weights are those of steps of any lengths (Hairer, Norsett & Wanner 1993, section III.5).
    While less is known the order is lower, 1 at the first step. Where v jumps inside a step, as at
    the ends of the interval of guidance, equal steps see it jump in the middle of that one, as
    Heun's do; who started anew behind the jump would see it at the end of that step.
    """

    def rule(velocity: Velocity, known: Sequence[History], end: Tensor) -> Tensor:
        used = known[:order]
        factors = adams_weights([float(one.t) for one in used], float(end))
        return used[0].z + sum(w * one.v for w, one in zip(factors, used, strict=True))

    return rule


def adams_weights(times: Sequence[float], end: float) -> list[float]:
    """w with Σ w_j f(t_j) = ∫ f dt from the first of the times to ``end``, f of degree below n.

    >>> [round(w, 6) for w in adams_weights([0.2, 0.1], 0.3)]  # 3/2 and -1/2 of equal steps
    [0.15, -0.05]
    """
    length, powers = end - times[0], torch.arange(len(times), dtype=torch.float64)
    places = (torch.tensor(times, dtype=torch.float64) - times[0]) / length
    weights = torch.linalg.solve(places ** powers[:, None], 1 / (powers + 1))
    return [length * w for w in weights.tolist()]


def dpm2m(velocity: Velocity, known: Sequence[History], end: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2) on the path of `flow`.

    With alpha = t, sigma = 1 - t and x(z, t) = z + (1 - t) v, dz/dt = (x - z) / sigma is
    d(z / sigma) = x d(alpha / sigma): the linear part is solved exactly, and x alone is taken from
    earlier times. In lambda = log(alpha / sigma), with h = lambda' - lambda and h_old of the step
    before, x at the middle of the step is D = x + h / (2 h_old) (x - x_old), and

        z' = sigma' / sigma z + (1 - sigma' / sigma) D = z + (t' - t) / (1 - t) (D - z).

    alpha' - alpha sigma' / sigma of the paper is 1 - sigma' / sigma here, since alpha = 1 - sigma.
    With D = x this is Euler's step. At t = 0, where lambda = -∞, h_old is infinite: the second step
    is Euler's as well as the first. So is the last, where lambda' = ∞. Order 2, one evaluation; the
    error is h² log(1 / h) on uniform times, whose steps in lambda are long at both ends.
    """
    now, t = known[0], float(known[0].t)
    guess = now.z + (1 - t) * now.v
    if len(known) > 1 and known[1].t > 0 and end < 1:
        old = known[1]
        before = old.z + (1 - float(old.t)) * old.v
        ahead, since = _lambda(end) - _lambda(now.t), _lambda(now.t) - _lambda(old.t)
        guess = guess + ahead / (2 * since) * (guess - before)
    return now.z + (float(end) - t) / (1 - t) * (guess - now.z)


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
