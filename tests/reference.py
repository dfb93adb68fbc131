"""An event-exact reference for two-layer ReLU networks, independent of `mirrorode.flow`.

The flow of f(x) = c Σ_j a_j σ(w_j·x) in the clock dσ = 𝓛 dt is dz/dσ = G = Σ_i p_i h_i. On one
activation pattern it is smooth; here it is integrated with Dormand–Prince 5(4) and its quartic
dense output (Hairer, Nørsett & Wanner, Solving ODEs I, sections II.5–II.6), and whatever ends
the smoothness is located on the dense output and stepped to exactly (ibid., II.6; Filippov 1988
for what happens there):

========  ====================================================================================
`kink`    w_j·v = 0 for a surface v. With F the force Σ p_i y_i c x_i of the active samples,
          the least-norm element of {a_j (F_off + Σ ξ_s m_s v_s), ξ_s in [0, 1]} in the metric D
          says whether the neuron crosses (ξ = 0 or 1) or slides on v (ξ between).
`exit`    a sliding coefficient ξ reaches 0 or 1: the neuron leaves tangentially.
`output`  a_j = 0 on a sliding neuron: its kinks turn repelling; the branch "off" is taken.
`fold`    θ_k = 0 where r''(θ) has a kink there (p = 3).
`capture` w_j = 0 is reached on a line, where d − 1 kinks slide. The neuron stays there while
`release` max_u a_j Σ p_i y_i σ(u·x_i) ≤ 0, and leaves along the maximiser (d = 2).
========  ====================================================================================

The certificate of a run is |∫‖G‖²_D dσ − (ℓ(end) − ℓ(0))|; ∫‖G‖²_D dσ and t = ∫ e^ℓ dσ are
integrated as two further components. It sees wrong crossings, missed kinks and missed captures.
It does not see a neuron that stays on a kink too long: that ξ lies in [0, 1] is watched instead.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import RK45
from scipy.optimize import brentq

import mirrorode as mo
from tests.inclusion import SHIFT, Inclusion

TIMES = np.arange(5) / 4  # where a step is looked at
POWERS = RK45.P @ (TIMES[None, :] ** np.arange(1, 5)[:, None])  # (7, 5): the dense output there
FOLDER = Path(__file__).parent / "references"


class Reference(Inclusion):
    """The trajectory from `theta0`, advanced by `run`.

    Args:
        flow, theta0, trainable: as for `Inclusion`.
        rtol: tolerance of a step, relative to max(|z_k|, rms z); absolute in the certificate.
    """

    def __init__(self, flow, theta0, trainable=None, rtol=1e-10) -> None:
        super().__init__(flow, theta0, trainable)
        self.rtol, self.h, self.target = rtol, 1e-4, (math.inf, math.inf)
        self.clock = 0.0  # σ

    @property
    def residual(self) -> float:
        """The certificate: |∫‖G‖²_D dσ − (ℓ(end) − ℓ(0))|."""
        return abs(self.state[-1] - (self.ell - self.ell0))

    # -- the step ----------------------------------------------------------------------------

    def _step(self, h: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One Dormand–Prince step: slopes (7, n), the end, and the gauges at the stages."""
        slopes = np.empty((7, len(self.state)))
        slopes[0] = self.slope
        gauges = [self.gauges0]
        for i in range(1, 6):
            slopes[i] = self.field(self.state + h * (RK45.A[i, :i] @ slopes[:i]))
            gauges.append(self._gauges())
        end = self.state + h * (RK45.B @ slopes[:6])
        slopes[6] = self.field(end)
        gauges.append(self._gauges())
        return slopes, end, np.array(gauges)

    def _error(self, slopes: np.ndarray, end: np.ndarray, h: float) -> float:
        error = h * (RK45.E @ slopes)
        size = np.maximum(np.abs(end), math.sqrt(np.mean(self.dual**2)))
        size[-1] = 1.0
        value = float(np.abs(error / size).max()) / self.rtol
        return value if math.isfinite(value) else 1e9

    def run(self, ell: float = math.inf, time: float = math.inf, limit: int = 10**7) -> Reference:
        """Integrate until log(1/loss) or t reaches its target, whichever is first."""
        self.target = (ell, time)
        self._refresh()
        while self.evaluations < limit:
            slopes, end, gauges = self._step(self.h)
            error = self._error(slopes, end, self.h)
            factor = min(4.0, max(0.2, 0.9 * max(error, 1e-12) ** -0.2))
            if error > 1:
                self.h *= factor
                self.field(self.state)
                continue
            found = self._first_event(slopes, self.h, gauges)
            if found is None:
                self._accept(slopes, end, gauges)
                self.clock += self.h
                self.h *= factor
                continue
            part, kind, keys, value = found
            if part > 0:
                h = part * self.h
                slopes, end, gauges = self._step(h)
                self._accept(slopes, end, gauges)
                self.clock += h
                self._land(value, h, *keys[0][:1])
            else:
                self.field(self.state)
            if kind == "stop":
                return self
            self.apply(kind, keys)
            self._refresh()
        raise RuntimeError(f"no end after {self.evaluations} evaluations at {self.ell=}")

    def _accept(self, slopes: np.ndarray, end: np.ndarray, gauges: np.ndarray) -> None:
        self.state, self.slope, self.gauges0 = end.copy(), slopes[6], gauges[6]
        self.snap()
        self.measure(self.near)

    def _refresh(self) -> None:
        self.slope = self.field(self.state)
        self.gauges0 = self._gauges()

    def _land(self, value: Callable | None, h: float, j: int = 0) -> None:
        """One Newton step along the flow: the step to the event, unlike the dense output that
        located it, ends 1e-11 beside it."""
        if value is None:
            return
        row, rate = self.dual[j], self.slope[:-2].reshape(self.shape)[j]
        here = value(row)
        change = (value(row + 1e-5 * h * rate) - here) / (1e-5 * h)
        if abs(here) < 1e-4 * h * abs(change):
            self.state = self.state - here / change * self.slope

    # -- events ------------------------------------------------------------------------------

    def _gauges(self) -> np.ndarray:
        """What must stay positive and needs p: ξ and 1 − ξ, the hold on captures, the goal."""
        force = self.scale * self.y * self.p
        hold = [-(sign * (self.rays @ force)).max() for sign in self.held]
        ell, time = self.target
        goal = min(ell - self.ell, 1 - self.time / time)
        return np.concatenate([np.minimum(self.xi, 1 - self.xi), hold, [goal]])

    def _keys(self) -> list[tuple[str, tuple]]:
        exits = [("exit", pair) for pair in self.pairs]
        return [*exits, *(("release", (sign,)) for sign in self.held), ("stop", (0,))]

    def _first_event(self, slopes: np.ndarray, h: float, gauges: np.ndarray):
        """The first event inside the step: (fraction of h, kind, keys, its function), or None."""
        states = self.state + h * (POWERS.T @ slopes)
        rows = states[:, :-2].reshape(5, *self.shape)
        found = self._local(rows)
        last = min((k for k, *_ in found), default=4)
        best = None
        for k, kind, key, value in found:
            if k == last:
                j = key[0]
                block = slopes[:, j * self.shape[1] : (j + 1) * self.shape[1]]
                part = root(
                    lambda s, f=value, b=block, j=j: f(self.dual[j] + h * (dense(s) @ b)), k
                )
                if best is None or part < best[0]:
                    best = (part, kind, [key], value)
        wide = self._wide(slopes, h, gauges, states, last if best else 4)
        return wide if wide and (best is None or wide[0] < best[0]) else best

    def _wide(self, slopes, h, gauges, states, last: int):
        """The first gauge to fall, up to checkpoint `last`.

        The stages tell which gauges come near zero; the dense output then decides.
        """
        low = gauges.min(0)
        if not (low < gauges.max(0) - low).any():
            return None
        values = [gauges[0]]
        for k in range(1, last + 1):
            if k < 4:
                self.field(states[k])
                values.append(self._gauges())
            else:
                values.append(gauges[6])
            bad = falls(np.array(values[-2:]), first=k == 1)[0]
            if bad.any():
                break
        else:
            return None

        def lowest(s: float) -> np.ndarray:
            self.field(self.state + h * (dense(s) @ slopes))
            return self._gauges()[bad]

        part = root(lambda s: lowest(s).min(), k)
        keys = [key for key, fallen in zip(self._keys(), bad, strict=True) if fallen]
        values = lowest(part)
        kind = keys[int(values.argmin())][0]
        tied = [key for key, v in zip(keys, values, strict=True) if key[0] == kind and v < 1e-11]
        late = part * (1 + 1e-8) if kind == "release" else part
        return late, kind, [key[1] for key in tied], None

    def _local(self, rows: np.ndarray) -> list[tuple[int, str, tuple, Callable]]:
        """Events that one neuron's row decides: (checkpoint, kind, key, function of the row)."""
        theta = self.geometry.primal(rows, self.sign)
        w = theta[..., 1:]
        away = np.sqrt(((w - self.anchor) ** 2).sum(-1)).max(0)
        self.near = np.flatnonzero(1.1 * away >= self.radius)
        pre = w[:, self.near] @ self.normals.T * self.side[self.near]
        pre += SHIFT * np.linalg.norm(w[:, self.near], axis=2)[..., None] * self.sizes
        sliding = np.array(sorted(self.slides), int)
        # On a line through 0 all other kinks and folds are met at once, at w_j = 0: a capture.
        line = [j for j in sliding if 0 < self.shape[1] - 2 == len(self.slides[j])]
        free = ~np.isin(self.near, line)[:, None]
        found = self._collect("kink", falls(pre) & free, self.near)
        if self.geometry.folds:
            moving = (self.trainable > 0) & ~self.captured[:, None]
            moving[line, 1:] = False
            found += self._collect("fold", falls(rows * self.sign + SHIFT) & moving)
        if len(sliding):
            out = theta[:, sliding, :1]
            found += self._collect("output", falls(out * np.sign(out[0])), sliding)
        if line:
            along = (w[:, line] * w[0, line]).sum(-1, keepdims=True)
            found += self._collect("capture", falls(along), np.array(line))
        return found

    def _collect(self, kind: str, bad: np.ndarray, neurons: np.ndarray | None = None) -> list:
        """The events of the first checkpoint at which `bad` (4, neurons, keys) is seen."""
        seen = bad.any((1, 2))
        if not seen.any():
            return []
        k, found = int(seen.argmax()), []
        for j, s in np.argwhere(bad[k]):
            j = int(j if neurons is None else neurons[j])
            found.append((k + 1, kind, (j, int(s)), self._function(kind, j, int(s))))
        return found

    def _function(self, kind: str, j: int, s: int) -> Callable[[np.ndarray], float]:
        """The function of the dual row z_j whose fall below zero is the event."""
        sign, a = self.sign[j], self.primal[j, 0]
        start = self.primal[j, 1:]
        if kind == "fold":
            return lambda row: row[s] * sign[s] + SHIFT
        if kind == "output":
            return lambda row: self.geometry.primal(row, sign)[0] * np.sign(a)
        if kind == "capture":
            return lambda row: self.geometry.primal(row, sign)[1:] @ start

        def height(row: np.ndarray, side: float = self.side[j, s]) -> float:
            w = self.geometry.primal(row, sign)[1:]
            return side * (w @ self.normals[s]) + SHIFT * np.linalg.norm(w) * self.sizes[s]

        return height


def dense(part: float) -> np.ndarray:
    """Weights (7,) of the slopes at a fraction of the step."""
    return RK45.P @ np.array([part, part**2, part**3, part**4])


def falls(values: np.ndarray, first: bool = True) -> np.ndarray:
    """Where `values` (T, …) falls below zero between two checkpoints, or keeps falling at first."""
    before, after = values[:-1], values[1:]
    fallen = (after < 0) & (before >= 0)
    if first:
        fallen[0] |= (after[0] < before[0]) & (after[0] < 0)
    return fallen


def root(value: Callable[[float], float], checkpoint: int) -> float:
    """Where `value` passes zero before a checkpoint; its left end if it is below zero already."""
    left, right = TIMES[checkpoint - 1], TIMES[checkpoint]
    if value(left) <= 0:
        return float(left)
    return float(brentq(value, left, right, xtol=1e-15, rtol=1e-14))


def problem(name: str) -> tuple[mo.MirrorFlow, torch.Tensor]:
    """The problem of a reference: potential_data_student, or potential_20d (see `NAMES`)."""
    potential, data, *student = name.split("_")
    potentials = {
        "gd": mo.Euclidean(),
        "p3": mo.SmoothedHomogeneous(3, 1.0),
        "hyp": mo.HyperbolicEntropy(0.1),
    }
    if data == "20d":
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 20, generator=generator, dtype=torch.float64)
        y = torch.randint(2, (200,), generator=generator) * 2.0 - 1.0
        network, dataset = mo.MLP((20, 100, 1)), mo.Dataset(x, y)
    else:
        network, dataset = mo.MLP((2, 100, 1)), mo.teacher_student(seed=int(data))
    flow = mo.MirrorFlow(network, dataset, potentials[potential])
    return flow, network.initial(int(student[0]) if student else 0)


NAMES = [
    f"{potential}_{data}"
    for data in ("42_0", "20d", "7_0", "11_0")
    for potential in ("hyp", "gd", "p3")
]


def compute(name: str, *folders: Path, ells: tuple[int, ...] = (2, 10)) -> None:
    """Integrate one problem and store θ and log t at each ℓ as soon as it is there."""
    flow, theta0 = problem(name)
    reference, found, start = Reference(flow, theta0), {}, time.perf_counter()
    for ell in ells:
        # From ℓ = 2 on stability, not this, limits most steps.
        reference.rtol = 1e-10 if ell <= 2 else 1e-11
        reference.run(ell=ell)
        found |= {
            f"theta{ell}": reference.theta,
            f"logt{ell}": math.log(reference.state[-2]),
            f"residual{ell}": reference.residual,
            "residual": reference.residual,
            f"evaluations{ell}": reference.evaluations,
            "evaluations": reference.evaluations,
            "events": str(dict(reference.events)),
            f"sliding{ell}": np.array(reference.pairs, int).reshape(-1, 2),
            f"seconds{ell}": time.perf_counter() - start,
        }
        for folder in folders:
            np.savez(folder / f"{name}.npz", **found)
        summary = {key: value for key, value in found.items() if np.ndim(value) == 0}
        print(name, summary, flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        compute(each, FOLDER)
