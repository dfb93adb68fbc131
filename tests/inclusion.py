"""Two-layer ReLU networks as a differential inclusion: the field on a mode, and what changes it.

Half of the reference of `tests.reference`: here is what happens at a kink, there when. A mode says
which neuron is on for which sample, which pairs slide and which neurons are held at w_j = 0
(Filippov, Differential equations with discontinuous righthand sides, 1988, chapter 2).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import lsq_linear

import mirrorode as mo

SHIFT = 1e-14  # a kink counts as crossed this much beyond it, relative to ‖w‖‖v‖


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


class Inclusion:
    """A state (z, t, ∫‖G‖²_D dσ) and its mode.

    Neurons are rows (a_j, w_j). The mode is `on` (neurons × samples), `side` (neurons × surfaces:
    ±1, 0 on a sliding or captured pair), `slides` (surfaces by neuron), `captured` and `sign`.

    Args:
        flow: a two-layer ReLU network, its data and potential.
        theta0: (n,) in the package's order.
        trainable: boolean (n,), all by default.
    """

    def __init__(self, flow, theta0, trainable=None) -> None:
        self.x, self.y = flow.dataset.x.numpy(), flow.dataset.y.numpy()
        self.scale = float(flow.network.output_scale)
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
        self.evaluations, self.events = 0, Counter()
        self.groups, self.pairs = [], []
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

    def snap(self) -> None:
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

    # -- what an event does ------------------------------------------------------------------

    def apply(self, kind: str, keys: list[tuple]) -> None:
        self.events[kind] += len(keys)
        touched = [key[0] for key in keys]
        if kind == "fold":
            self.sign[keys[0]] *= -1
        elif kind == "kink":
            self._decide(*keys[0], arriving=True)
        elif kind == "exit":
            for pair in keys:
                self.put(*pair, 1 if self.xi[self.pairs.index(pair)] > 0.5 else -1)
        elif kind == "output":
            for s in list(self.slides[touched[0]]):
                self.put(touched[0], s, -1)
        elif kind == "capture":
            self._capture(touched[0])
        else:
            touched = [j for j in np.flatnonzero(self.captured) if self.charge(j) == touched[0]]
            for j in touched:
                self._release(j)
        self._regroup(touched)
        self.snap()

    def put(self, j: int, s: int, side: float) -> None:
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
        boxed = list(self.slides.get(j, []))
        if a * self.jumps()[s] < 0:
            boxed.append(s)
        elif arriving:
            self.put(j, s, -before)
        if boxed:
            sides = self._box(j, boxed)
            for member, side in zip(boxed, sides, strict=True):
                stays = arriving and member == s and side == before
                self.events["stays"] += int(stays)
                self.put(j, member, -side if stays else side)
                self.events["slide"] += int(member == s and side == 0)

    def _box(self, j: int, boxed: list[int]) -> np.ndarray:
        """min ‖a_j (F + Σ ξ_s m_s v_s)‖_D over ξ in [0, 1]: 0 inside, else −1 (off) or 1 (on)."""
        for s in boxed:
            self.put(j, s, 0)
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

    def charge(self, j: int) -> float:
        return 1.0 if self.dual[j, 0] > 0 else -1.0

    def _capture(self, j: int) -> None:
        self.dual[j, 1:] = 0
        self.slides.pop(j, None)
        self.side[j], self.on[j], self.captured[j] = 0, 0, True
        if self.shape[1] != 3:
            self.events["unreleasable capture"] += 1
        elif (self.charge(j) * (self.rays @ (self.y * self.p))).max() > 1e-12:
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
        sign = self.charge(j)
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
            self.put(j, ray % len(self.normals), 0)

    def _regroup(self, touched) -> None:
        """Rebuild the sliding blocks (neurons with equally many kinks) after a change of mode."""
        self.groups, self.pairs = [], []
        for count in sorted({len(members) for members in self.slides.values()}):
            neurons = [j for j, members in self.slides.items() if len(members) == count]
            members = np.array([self.slides[j] for j in neurons])
            self.groups.append((np.array(neurons), members, self.normals[members]))
            self.pairs += [(j, s) for j in neurons for s in self.slides[j]]
        signs = {self.charge(j) for j in np.flatnonzero(self.captured)}
        self.held = sorted(signs) if self.shape[1] == 3 else []
        self.measure(np.array(list(touched), int))

    def measure(self, neurons: np.ndarray) -> None:
        """How far w_j may move from here before it can meet a kink (all ‖v·w‖/‖v‖ are larger)."""
        w = self.primal[neurons, 1:]
        distance = np.abs(w @ self.normals.T) / self.sizes
        distance[self.side[neurons] == 0] = np.inf
        self.anchor[neurons], self.radius[neurons] = w, distance.min(1)
