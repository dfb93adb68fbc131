"""How fast: Lemmas D.2 and F.1, the exponents of Theorem 4.6; neither t nor 1/𝓛 is ever formed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

from mirrorode.theory.points import Path
from mirrorode.theory.verdicts import DRIFT, NEVER_LATE, NO_DEGREE, Outcome, Verdict

Array = NDArray[np.float64]

REACH = 45.0  # e⁻⁴⁵ of the last unit is below round-off
FROM = 20.0  # log t at which corrections of the order 1/log t may be extrapolated
DECADE = 10.0  # times that, up to where log t must go
FEWEST = 8  # points of a fit
ACCURATE = 0.02  # of an exponent
UNDECIDED = 0.2  # an uncertainty of an exponent that says nothing
SETTLING = 0.9  # growth of the margin in a decade, of that in the one before, that settles
WILD = 3.0  # distance of the plain slope of a log from theory that rules it out
FACTOR = 2.0  # that is Θ(1) in Lemma F.1


@dataclass(frozen=True)
class Exponent:
    """An exponent e of y ~ (log t)^e, extrapolated to t → ∞.

    Attributes:
        value: the exponent.
        uncertainty: half the width of an interval that should contain the limit: two standard
            errors, and what other corrections and a later window make of it.
        points: how many points it rests on.
        plain: the slope of log y without corrections.
    """

    value: float
    uncertainty: float
    points: int
    plain: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.uncertainty:.1g}"


def fit_exponent(log_time: Array, log_y: Array) -> Exponent | None:
    """The exponent of y in log t from log t and log y, (T,); None where log t is too small.

    On the later half of log log t, with x = log log t, least squares for

        log y = e·x + c + a·e^{−x} + b·x·e^{−x}:

    the corrections are of the order (log log t)/log t. The fit without b, those without both and
    with a slower correction e^{−x/2}, and the one to the later half of the window tell how far the
    exponent can be trusted.
    """
    kept = log_time > FROM
    if kept.sum() < FEWEST or log_time[-1] < DECADE * FROM:
        return None
    x, y = np.log(log_time[kept]), log_y[kept]
    middle = 0.5 * (x[-1] + math.log(FROM))
    if (x >= middle).sum() >= FEWEST:
        x, y = x[x >= middle], y[x >= middle]
    x0, size = x - x[0], np.exp(-(x - x[0]))
    corrections = {"none": [], "one": [size], "two": [size, x0 * size], "slow": [size**0.5]}
    fits = {name: _slope(x0, y, extra) for name, extra in corrections.items()}
    value, error = fits["one"]
    others = [fits[name][0] for name in ("none", "two", "slow")]
    half = len(x) // 2
    if len(x) - half >= FEWEST:
        others.append(_slope(x0[half:], y[half:], [size[half:]])[0])
    # The median deviation: a wild fit with too many terms for its window should not decide.
    spread = float(np.median(np.abs(np.array(others) - value)))
    return Exponent(value, 2 * error + 3 * spread, len(x), fits["none"][0])


def _slope(x: Array, y: Array, extra: list[Array]) -> tuple[float, float]:
    """The slope of a least-squares fit with a constant and ``extra`` terms; its standard error."""
    columns = np.column_stack([x, np.ones_like(x), *extra])
    scale = np.abs(columns).max(0)
    solution, _, rank, _ = np.linalg.lstsq(columns / scale, y, rcond=None)
    left = y - columns / scale @ solution
    variance = left @ left / max(1, len(x) - rank)
    covariance = np.linalg.pinv(columns.T @ columns / np.outer(scale, scale)) * variance
    return float(solution[0] / scale[0]), float(math.sqrt(max(0.0, covariance[0, 0])) / scale[0])


def log_integral(power: float, low: float, high: float) -> float:
    """log ∫ v^power e^v dv from ``low`` to ``high``, 0 < low: G(e^high) of Lemma D.2."""
    start = max(low, high - REACH)
    inside, _ = quad(
        lambda v: math.exp(power * math.log(v / high) + v - high), start, high,
        epsabs=0, epsrel=1e-9, limit=200,
    )  # fmt: skip
    return high + power * math.log(high) + math.log(inside) if inside > 0 else -math.inf


def loss_integral(path: Path) -> Verdict:
    """Lemma D.2 with its sharp constant L²; the first display of the paper has L²/α."""
    name = "Lemma D.2: G(1/𝓛) ≥ L² γ̃(t₀)^(α/L) (t − t₀)"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) < 2:
        return Verdict.not_applicable(name, NEVER_LATE)
    loss, log_time = (it[path.late].tolist() for it in (path.loss, path.trajectory.log_time))
    ratio = path.alpha / path.degree
    constant = 2 * math.log(path.degree) + ratio * float(path.soft_margin[0])
    least = math.inf
    for now, log_t in zip(loss[1:], log_time[1:], strict=True):
        if log_t > log_time[0] and now > loss[0]:
            passed = log_t + math.log1p(-math.exp(log_time[0] - log_t))
            least = min(least, log_integral(ratio - 2, loss[0], now) - constant - passed)
    slack = least + DRIFT * path.trajectory.rtol
    detail = f"smallest log of the ratio of the sides {least:.3g}, from log(1/𝓛) = {loss[0]:.2g} on"
    return Verdict.judged(name, slack, detail)


def integral_growth(path: Path) -> Verdict:
    """Lemma F.1, at the loss that was reached."""
    name = "Lemma F.1: G(x) = Θ((log x)^(α/L−2) x)"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    if len(path.late) < 2:
        return Verdict.not_applicable(name, NEVER_LATE)
    power, low = path.alpha / path.degree - 2, float(path.loss[path.late[0]])

    def excess(high: float) -> float:
        return abs(log_integral(power, low, high) - high - power * math.log(high))

    now, allowed = float(path.loss.amax()), math.log(FACTOR)
    detail = f"log of the ratio {excess(now):.2g}, at most log {FACTOR:g} asked"
    far = max(1e3, now)
    when = f"from log(1/𝓛) ≈ {brentq(lambda v: excess(v) - allowed, now, far):.3g} on" if (
        excess(now) > allowed > excess(far)) else "later"  # fmt: skip
    return Verdict.eventual(name, allowed - excess(now), detail, when)


def loss_rate(path: Path) -> Verdict:
    """Theorem 4.6, first half: r = −ℓ + log t + (2 − α/L) log log t is bounded."""
    name = "Theorem 4.6: 𝓛 ~ 1/(t (log t)^(2−α/L)), ≤ for α > 2"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    log_time, loss = _numbers(path)
    return _compare(
        name, path, fit_exponent(log_time, loss - log_time), 2 - path.alpha / path.degree
    )


def size_rate(path: Path) -> Verdict:
    """Theorem 4.6, second half: Q̂^{L/α} over log t is bounded."""
    name = "Theorem 4.6: (αQ)^(L/α) ~ log t, ≥ for α > 2"
    if path.alpha is None:
        return Verdict.not_applicable(name, NO_DEGREE)
    log_time, _ = _numbers(path)
    q_hat = path.points.q_hat[path.late].cpu().numpy()
    found = fit_exponent(log_time, path.degree / path.alpha * np.log(q_hat))
    verdict = _compare(name, path, found, 1.0)
    if verdict.outcome is not Outcome.FAILS or found is None or found.value > 1:
        return verdict
    # (αQ)^(L/α) is ℓ/γ̃: the exponent is one less that of γ̃, which is bounded, but slow to settle
    # where the direction passes a saddle. An exponent that stays is no such thing.
    before, last = _growth_of_margin(log_time, path.soft_margin.cpu().numpy())
    if last < SETTLING * before and 1 - found.value <= before + ACCURATE:
        when = f"the margin still grows like (log t)^{last:.2g}, after {before:.2g} a decade before"
        return Verdict.eventual(name, verdict.slack, verdict.detail, when)
    return verdict


def _growth_of_margin(log_time: Array, log_margin: Array) -> tuple[float, float]:
    """d log γ̃/d log log t over the last decade of log t but one, and over the last."""
    x = np.log(log_time[log_time > FROM])
    at = np.interp(x[-1] - math.log(10.0) * np.array([2.0, 1.0, 0.0]), x, log_margin[-len(x) :])
    before, last = np.diff(at) / math.log(10.0)
    return float(before), float(last)


def _numbers(path: Path) -> tuple[Array, Array]:
    """log t and ℓ at the late points."""
    log_time, loss = path.trajectory.log_time[path.late], path.loss[path.late]
    return log_time.cpu().numpy(), loss.cpu().numpy()


def _compare(name: str, path: Path, found: Exponent | None, expected: float) -> Verdict:
    """Whether a fitted exponent agrees with theory; for α > 2 it may exceed it."""
    if len(path.late) < 2:
        return Verdict.not_applicable(name, NEVER_LATE)
    assert path.alpha is not None
    when = f"needs {FEWEST} saved points from log t = {FROM:g} on, over one decade or more"
    if found is None:
        return Verdict.eventual(name, -1.0, "no fit", when)
    off = found.value - expected
    detail = f"exponent of log t {found} from {found.points} points, {expected:.4g} in theory"
    distance = max(0.0, -off) if path.alpha > 2 else abs(off)
    slack = ACCURATE + found.uncertainty - distance
    if abs(found.plain - expected) > WILD:
        # No correction of the order 1/log t does this: what should be bounded is not.
        return Verdict.judged(name, -abs(found.plain - expected), detail)
    if found.uncertainty > UNDECIDED:
        return Verdict.eventual(name, UNDECIDED - found.uncertainty, detail, when)
    return Verdict.judged(name, slack, detail)
