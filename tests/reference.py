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

The certificate of a run is |∫‖G‖²_D dσ − (ℓ(end) − ℓ(0))|, which only the least-norm selection
makes zero; ∫‖G‖²_D dσ and t = ∫ e^ℓ dσ are integrated as two further components.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import RK45
from scipy.optimize import brentq, lsq_linear

import mirrorode as mo

TIMES = np.arange(5) / 4  # where a step is looked at
POWERS = RK45.P @ (TIMES[None, :] ** np.arange(1, 5)[:, None])  # (7, 5): the dense output there
SHIFT = 1e-14  # a kink counts as crossed this much beyond it, relative to ‖w‖‖v‖
FOLDER = Path(__file__).parent / "references"


@dataclass(frozen=True)
class Geometry:
    """θ(z) and D = 1/r''(θ), smooth beyond θ = 0 under a given sign of θ."""

    potential: mo.SeparablePotential

    def __post_init__(self) -> None:
        fine = isinstance(self.potential, mo.Euclidean | mo.HyperbolicEntropy)
        if not fine and not (self.folds and self.potential.p == 3 and self.potential.lam > 0):
            raise ValueError(f"no reference for {self.potential}")

    @property
    def folds(self) -> bool:
        """Whether r'' has a kink at zero."""
        return isinstance(self.potential, mo.SmoothedHomogeneous)

    def primal(self, dual: np.ndarray, sign: np.ndarray) -> np.ndarray:
        """θ(z)."""
        if isinstance(self.potential, mo.Euclidean):
            return dual
        lam = self.potential.lam
        if isinstance(self.potential, mo.HyperbolicEntropy):
            return math.sqrt(lam) * np.sinh(dual)
        return 2 * dual / (lam + np.sqrt(np.maximum(lam**2 + 4 * sign * dual, 0.01 * lam**2)))

    def inverse_hessian(self, theta: np.ndarray, sign: np.ndarray) -> np.ndarray:
        """D, the diagonal."""
        if isinstance(self.potential, mo.Euclidean):
            return np.ones_like(theta)
        lam = self.potential.lam
        if isinstance(self.potential, mo.HyperbolicEntropy):
            return np.sqrt(theta * theta + lam)
        return 1 / (2 * sign * theta + lam)


def surfaces(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kink surfaces of the samples: collinear samples share one, zero samples have none.

    Returns:
        Their normals v (S, d), and the matrix C (S, K) with x_i = C_si v_s for its members.
    """
    normals, share = [], np.zeros((0, len(x)))
    for i, row in enumerate(x):
        size = np.linalg.norm(row)
        for s, v in enumerate(normals):
            ratio = row @ v / (v @ v)
            if size > 0 and np.linalg.norm(row - ratio * v) < 1e-12 * size:
                share[s, i] = ratio
                break
        else:
            if size > 0:
                normals.append(row)
                share = np.vstack([share, np.eye(1, len(x), i)])
    return np.array(normals), share


class Reference:
    """The trajectory from `theta0`, advanced by `run`.

    Neurons are rows (a_j, w_j). The mode is `on` (neurons × samples), `side` (neurons × surfaces:
    ±1, 0 on a sliding or captured pair), `slides` (surfaces by neuron), `captured` and `sign`.

    Args:
        flow: a two-layer ReLU network, its data and potential.
        theta0: (n,) in the package's order.
        trainable: boolean (n,), all by default.
        rtol: tolerance of a step, relative to max(|z_k|, rms z); absolute in the certificate.
        sliding: False for the field by signs that the tests hold against it: kinks flip, that is
            all.
    """

    def __init__(self, flow, theta0, trainable=None, rtol=1e-10, sliding=True) -> None:
        self.x, self.y = flow.dataset.x.numpy(), flow.dataset.y.numpy()
        self.scale, self.rtol, self.sliding = float(flow.network.output_scale), rtol, sliding
        self.geometry = Geometry(flow.potential)
        count, dim = flow.network.widths[1], flow.network.widths[0]
        self.shape = (count, 1 + dim)
        frozen = torch.ones(len(theta0)) if trainable is None else torch.as_tensor(trainable)
        self.trainable = self._rows(frozen.double().numpy())
        dual = self._rows(flow.potential.gradient(torch.as_tensor(theta0)).double().numpy())
        self.sign = np.where(dual < 0, -1.0, 1.0)
        self.normals, self.share = surfaces(self.x)
        self.sizes = np.linalg.norm(self.normals, axis=1)
        self.plain = np.array_equal(self.share, np.eye(len(self.x)))
        self._edges()
        self.slides: dict[int, list[int]] = {}
        self.captured = np.zeros(count, bool)
        self.evaluations, self.events, self.target = 0, Counter(), (math.inf, math.inf)
        self.h, self.groups, self.pairs = 1e-4, [], []
        self.state = np.concatenate([dual.ravel(), [0.0, 0.0]])
        self._begin()

    # -- the state ---------------------------------------------------------------------------

    def _rows(self, theta: np.ndarray) -> np.ndarray:
        """The package's order (W_1, then W_2) as rows (a_j, w_j)."""
        count, width = self.shape
        inner = theta[: count * (width - 1)].reshape(count, width - 1)
        return np.column_stack([theta[count * (width - 1) :], inner])

    @property
    def dual(self) -> np.ndarray:
        """z as rows, a view of the state."""
        return self.state[:-2].reshape(self.shape)

    @property
    def primal(self) -> np.ndarray:
        """θ as rows (a_j, w_j)."""
        return self.geometry.primal(self.dual, self.sign)

    @property
    def theta(self) -> np.ndarray:
        """θ in the package's order."""
        rows = self.primal
        return np.concatenate([rows[:, 1:].ravel(), rows[:, 0]])

    @property
    def residual(self) -> float:
        """The certificate: |∫‖G‖²_D dσ − (ℓ(end) − ℓ(0))|."""
        return abs(self.state[-1] - (self.ell - self.ell0))

    def _begin(self) -> None:
        """Patterns of the start; on a kink that it starts on, the least-norm velocity decides."""
        pre = self.primal[:, 1:] @ self.normals.T
        self.side = np.where(pre > 0, 1.0, -1.0)
        self.on = (self.side @ np.sign(self.share) > 0).astype(float)
        self.slope = self.field(self.state)
        self.ell0 = self.ell
        tiny = SHIFT * np.linalg.norm(self.primal[:, 1:], axis=1)[:, None] * self.sizes
        for j, s in np.argwhere(np.abs(pre) <= tiny):
            self._decide(j, s, arriving=False)
        self.anchor, self.radius = self.primal[:, 1:].copy(), np.zeros(self.shape[0])
        self._regroup(range(self.shape[0]))

    def field(self, state: np.ndarray) -> np.ndarray:
        """(G, dt/dσ, ‖G‖²_D) on the mode; leaves ℓ, p and the sliding coefficients behind."""
        self.evaluations += 1
        dual = state[:-2].reshape(self.shape)
        theta = self.geometry.primal(dual, self.sign)
        metric = self.geometry.inverse_hessian(theta, self.sign) * self.trainable
        a, w = theta[:, :1], theta[:, 1:]
        q = self.scale * self.y * np.einsum("kd,kd->k", self.on.T @ (a * w), self.x)
        low = q.min()
        p = np.exp(low - q)
        total = p.sum()
        self.ell, self.p = low - math.log(total), p / total
        force = self.on @ ((self.scale * self.y * self.p)[:, None] * self.x)
        self.xi = self._project(force, metric)
        out = np.empty_like(state)
        rows = out[:-2].reshape(self.shape)
        rows[:, 0] = np.einsum("nd,nd->n", w, force)
        rows[:, 1:] = a * force
        rows *= self.trainable
        out[-2], out[-1] = math.exp(self.ell), np.vdot(rows, metric * rows)
        self.time = state[-2]
        return out

    def jumps(self) -> np.ndarray:
        """m_s: crossing surface s adds m_s v_s to the force F."""
        pull = self.scale * self.y * self.p
        return pull if self.plain else np.abs(self.share) @ pull

    def _project(self, force: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """F ← F − Vᵀ(VDVᵀ)⁻¹VDF on sliding neurons; the coefficients ξ = −(VDVᵀ)⁻¹VDF / m."""
        if not self.groups:
            return np.zeros(0)
        jumps, found = self.jumps(), []
        for neurons, members, v in self.groups:
            nu = self._solve(v, metric[neurons, 1:], force[neurons])
            force[neurons] -= np.einsum("jm,jmd->jd", nu, v)
            found.append((-nu / jumps[members]).ravel())
        return np.concatenate(found)

    @staticmethod
    def _solve(v: np.ndarray, metric: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """(V D Vᵀ)⁻¹ V D u for each neuron of a group."""
        scaled = v * metric[:, None, :]
        if v.shape[1] == 1:
            bottom = np.einsum("jmd,jmd->jm", scaled, v)
            return np.einsum("jmd,jd->jm", scaled, vector) / bottom
        right = np.einsum("jmd,jd->jm", scaled, vector)
        return np.linalg.solve(scaled @ v.transpose(0, 2, 1), right[..., None])[..., 0]

    def _snap(self) -> None:
        """z ← z − Vᵀ(VDVᵀ)⁻¹ V w: back onto the sliding kinks, to second order in V w."""
        if not self.groups:
            return
        theta = self.primal
        metric = self.geometry.inverse_hessian(theta, self.sign)
        for neurons, _, v in self.groups:
            # _solve takes D u, so hand it D⁻¹ w.
            inner = metric[neurons, 1:]
            nu = self._solve(v, inner, theta[neurons, 1:] / inner)
            self.dual[neurons, 1:] -= np.einsum("jm,jmd->jd", nu, v)

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
                self.h *= factor
                continue
            part, kind, keys, value = found
            if part > 0:
                h = part * self.h
                slopes, end, gauges = self._step(h)
                self._accept(slopes, end, gauges)
                self._land(value, h, *keys[0][:1])
            else:
                self.field(self.state)
            if kind == "stop":
                return self
            self._apply(kind, keys)
            self._refresh()
        raise RuntimeError(f"no end after {self.evaluations} evaluations at {self.ell=}")

    def _accept(self, slopes: np.ndarray, end: np.ndarray, gauges: np.ndarray) -> None:
        self.state, self.slope, self.gauges0 = end.copy(), slopes[6], gauges[6]
        self._snap()
        self._measure(self.near)

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
        hold = [-sign * (sign * (self.rays @ force)).max() * sign for sign in self.held]
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
        # On a line through 0 all other kinks and folds are met at once, at w_j = 0: that is a capture.
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

    # -- what an event does ------------------------------------------------------------------

    def _apply(self, kind: str, keys: list[tuple]) -> None:
        self.events[kind] += len(keys)
        touched = [key[0] for key in keys]
        if kind == "fold":
            self.sign[keys[0]] *= -1
        elif kind == "kink":
            self._decide(*keys[0], arriving=True)
        elif kind == "exit":
            for pair in keys:
                self._put(*pair, 1 if self.xi[self.pairs.index(pair)] > 0.5 else -1)
        elif kind == "output":
            for s in list(self.slides[touched[0]]):
                self._put(touched[0], s, -1)
        elif kind == "capture":
            self._capture(touched[0])
        else:
            touched = [j for j in np.flatnonzero(self.captured) if self._sign(j) == touched[0]]
            for j in touched:
                self._release(j)
        self._regroup(touched)
        self._snap()

    def _put(self, j: int, s: int, side: float) -> None:
        """Set a pair to off (−1), on (+1) or sliding (0, with `on` as on the off side)."""
        slides = self.slides.setdefault(j, [])
        if s in slides:
            slides.remove(s)
        if side == 0:
            slides.append(s)
        if not slides:
            del self.slides[j]
        self.side[j, s] = side
        members = np.flatnonzero(self.share[s])
        self.on[j, members] = np.sign(self.share[s, members]) == (side or -1)

    def _decide(self, j: int, s: int, arriving: bool) -> None:
        """The least-norm selection for neuron j on its sliding kinks and the new one, s."""
        before = self.side[j, s]
        a = self.primal[j, 0]
        if not self.sliding:
            return self._put(j, s, -before)
        boxed = list(self.slides.get(j, []))
        if a * self.jumps()[s] < 0:
            boxed.append(s)
        elif arriving:
            self._put(j, s, -before)
        if boxed:
            sides = self._box(j, boxed)
            for member, side in zip(boxed, sides, strict=True):
                stays = arriving and member == s and side == before
                self.events["stays"] += int(stays)
                self._put(j, member, -side if stays else side)
                self.events["slide"] += int(member == s and side == 0)
        return None

    def _box(self, j: int, boxed: list[int]) -> np.ndarray:
        """min ‖a_j (F + Σ ξ_s m_s v_s)‖_D over ξ in [0, 1]: 0 inside, else −1 (off) or 1 (on)."""
        for s in boxed:
            self._put(j, s, 0)
        metric = self.geometry.inverse_hessian(self.primal, self.sign)[j] * self.trainable[j]
        root_metric = np.sqrt(metric[1:])
        force = self.on[j] @ ((self.scale * self.y * self.p)[:, None] * self.x)
        v, jumps = self.normals[boxed] * root_metric, self.jumps()[boxed]
        if len(boxed) == 1:
            xi = -(v[0] @ (root_metric * force)) / (v[0] @ v[0]) / jumps[0]
            return np.array([0 if 0 < xi < 1 else (1 if xi >= 1 else -1)])
        # Unit columns: the m_s range over many orders of magnitude.
        length = np.linalg.norm(v, axis=1)
        bound = jumps * length
        fit = lsq_linear(
            (v / length[:, None]).T,
            -root_metric * force,
            (np.minimum(bound, 0), np.maximum(bound, 0)),
            method="bvls",
            tol=1e-15,
        )
        return np.where(
            fit.active_mask == 0, 0, np.where((fit.active_mask > 0) == (bound > 0), 1, -1)
        )

    def _sign(self, j: int) -> float:
        return 1.0 if self.dual[j, 0] > 0 else -1.0

    def _capture(self, j: int) -> None:
        self.dual[j, 1:] = 0
        self.slides.pop(j, None)
        self.side[j], self.on[j], self.captured[j] = 0, 0, True
        if self.shape[1] != 3:
            self.events["unreleasable capture"] += 1
        elif (self._sign(j) * (self.rays @ (self.y * self.p))).max() > 1e-12:
            self.events["release at once"] += 1
            self._release(j)

    def _edges(self) -> None:
        """In d = 2: the rays u ⟂ v_s as σ(u·x_i), and a direction inside each sector."""
        self.rays = np.zeros((0, len(self.x)))
        if self.shape[1] != 3:
            return
        unit = np.column_stack([-self.normals[:, 1], self.normals[:, 0]]) / self.sizes[:, None]
        angle = np.sort(np.arctan2(*np.vstack([unit, -unit]).T[::-1]))
        middle = angle + np.diff(angle, append=angle[0] + 2 * np.pi) / 2
        self.edge = np.vstack([unit, -unit])
        self.inside = np.column_stack([np.cos(middle), np.sin(middle)])
        self.rays = np.maximum(self.edge @ self.x.T, 0)

    def _release(self, j: int) -> None:
        """Leave w_j = 0 along the maximiser of a_j Σ p_i y_i σ(u·x_i): a ray, or inside a sector.

        On a sector with force F the function is F·u: stationary at u = F/‖F‖ if that is inside.
        """
        sign = self._sign(j)
        pull = sign * self.y * self.p
        on = self.inside @ self.x.T > 0
        force = on @ (pull[:, None] * self.x)
        own = ((force @ self.x.T > 0) == on).all(1)
        best = int(np.where(own, np.linalg.norm(force, axis=1), -1).argmax())
        ray = int((self.rays @ pull).argmax())
        along_ray = not own[best] or (self.rays @ pull)[ray] > np.linalg.norm(force[best])
        u = self.edge[ray] if along_ray else force[best]
        self.captured[j] = False
        self.side[j] = np.where(self.normals @ u > 0, 1.0, -1.0)
        self.on[j] = self.side[j] @ np.sign(self.share) > 0
        self.sign[j, 1:] = np.where(u < 0, -1.0, 1.0)
        if along_ray:
            self._put(j, ray % len(self.normals), 0)

    def _regroup(self, touched) -> None:
        """Rebuild the sliding blocks (neurons with equally many kinks) after a change of mode."""
        self.groups, self.pairs = [], []
        for count in sorted({len(members) for members in self.slides.values()}):
            neurons = [j for j, members in self.slides.items() if len(members) == count]
            members = np.array([self.slides[j] for j in neurons])
            self.groups.append((np.array(neurons), members, self.normals[members]))
            self.pairs += [(j, s) for j in neurons for s in self.slides[j]]
        signs = {self._sign(j) for j in np.flatnonzero(self.captured)}
        self.held = sorted(signs) if self.shape[1] == 3 else []
        self._measure(np.array(list(touched), int))

    def _measure(self, neurons: np.ndarray) -> None:
        """How far w_j may move from here before it can meet a kink (all ‖v·w‖/‖v‖ are larger)."""
        w = self.primal[neurons, 1:]
        distance = np.abs(w @ self.normals.T) / self.sizes
        distance[self.side[neurons] == 0] = np.inf
        self.anchor[neurons], self.radius[neurons] = w, distance.min(1)


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
