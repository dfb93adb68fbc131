"""Two convex problems over a polyhedral cone {u: cone·u ≥ 0}, in NumPy.

`nearest` finds the nearest point of the image of a cone, `smallest` the point of least maximum norm
on a slice of it. Both expect columns of about unit size: what is small is small in the problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, qr
from scipy.optimize import linprog

Array = NDArray[np.float64]

ITERATIONS = 100
GAP = 1e-22  # slack × price on average: a residual is found to the root of this
FEASIBLE = 1e-14
SHORTEST = 1e-12  # a step that gets nowhere
TO_BOUNDARY = 0.995
RIDGES = (0.0, 1e-15, 1e-13, 1e-11)  # of the diagonal, where Cholesky stops
ROWS_AT_ONCE = 100  # rows that enter the linear program together
EXACT = 1e-10  # the tightest that HiGHS takes


def nearest(columns: Array, target: Array, cone: Array) -> Array:
    """u that minimises ‖columns·u − target‖₂ subject to cone·u ≥ 0.

    A primal-dual interior-point method with Mehrotra's predictor and corrector. The bounds of one
    variable depend on others here, so that `scipy.optimize.nnls` and `lsq_linear` do not apply;
    dependent columns are welcome, which rules out the reduction to a least-distance problem.

    Args:
        columns: (r, m), of about unit length.
        target: (r,), of about unit length.
        cone: (c, m), rows of unit length.

    Reference:
        S. Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optim.
        2 (1992).
    """
    size = columns.shape[1]
    triangle = qr(np.column_stack([columns, target]), mode="r")[0][: size + 1]
    matrix, aim = triangle[:, :size], triangle[:, size]
    normal = matrix.T @ matrix
    u, slack, price = np.zeros(size), np.ones(len(cone)), np.ones(len(cone))
    for _ in range(ITERATIONS):
        # The gradient from the residual itself: through the normal matrix it would lose half of
        # the digits near a perfect fit.
        dual = matrix.T @ (matrix @ u - aim) - cone.T @ price
        primal = cone @ u - slack
        gap = float(slack @ price) / len(cone)
        if gap < GAP and np.abs(primal).max() < FEASIBLE:
            break
        factor = _factor(normal + cone.T @ ((price / slack)[:, None] * cone))
        if factor is None:
            break
        newton = _Newton(cone, slack, price, dual, primal, factor)
        _, ds, dz = newton.direction(slack * price)
        reach = min(_reach(slack, ds), _reach(price, dz))
        predicted = float((slack + reach * ds) @ (price + reach * dz)) / len(cone)
        centre = gap * min(1.0, max(0.0, predicted / gap)) ** 3
        du, ds, dz = newton.direction(slack * price + ds * dz - centre)
        reach = TO_BOUNDARY * min(_reach(slack, ds), _reach(price, dz))
        if not np.isfinite(du).all() or reach < SHORTEST:
            break
        u, slack, price = u + reach * du, slack + reach * ds, price + reach * dz
    return u


@dataclass(frozen=True)
class _Newton:
    """One linearisation of: gradient = coneᵀ·price, cone·u = slack, slack × price = target."""

    cone: Array
    slack: Array
    price: Array
    dual: Array
    primal: Array
    factor: tuple[Array, bool]

    def direction(self, complementarity: Array) -> tuple[Array, Array, Array]:
        """Changes of u, slack and price that remove the residuals and ``complementarity``."""
        pull = (complementarity + self.price * self.primal) / self.slack
        du = -cho_solve(self.factor, self.dual + self.cone.T @ pull)
        ds = self.cone @ du + self.primal
        return du, ds, -(complementarity + self.price * ds) / self.slack


def _factor(matrix: Array) -> tuple[Array, bool] | None:
    """Cholesky with the smallest ridge that carries it through."""
    diagonal = np.diag(matrix).copy()
    for ridge in RIDGES:
        np.fill_diagonal(matrix, diagonal * (1 + ridge))
        try:
            return cho_factor(matrix, check_finite=False)
        except LinAlgError:
            continue
    return None


def _reach(value: Array, change: Array) -> float:
    """The longest step ≤ 1 on which ``value`` stays positive."""
    falling = change < 0
    return min(1.0, float((-value[falling] / change[falling]).min(initial=1.0)))


def smallest(columns: Array, cone: Array, plane: Array) -> Array:
    """u that minimises ‖columns·u‖_∞ subject to cone·u ≥ 0 and plane·u = 1.

    A linear program whose rows enter as they are needed: few coordinates of a network attain the
    maximum, and the other thousands would only cost time.

    Args:
        columns: (r, m), of about unit maximum norm.
        cone: (c, m).
        plane: (m,), itself in the cone: should the solver fail, it is what is returned.
    """
    count, size = columns.shape
    u = plane / (plane @ plane)
    start = np.argsort(-np.abs(columns).max(axis=1), kind="stable")[:ROWS_AT_ONCE]
    active = np.zeros(count, dtype=bool)
    active[start] = True
    while True:
        rows = columns[active]
        top = -np.ones((len(rows), 1))
        limits = np.block([[rows, top], [-rows, top], [-cone, np.zeros((len(cone), 1))]])
        found = linprog(
            np.append(np.zeros(size), 1.0), limits, np.zeros(len(limits)),
            np.append(plane, 0.0)[None], [1.0], bounds=(None, None), method="highs",
            options={"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT},
        )  # fmt: skip
        if found.x is None:
            return u
        u, largest = found.x[:-1], found.x[-1]
        excess = np.where(active, 0.0, np.abs(columns @ u) - largest)
        worst = np.argsort(-excess, kind="stable")[:ROWS_AT_ONCE]
        worst = worst[excess[worst] > EXACT * largest]
        if len(worst) == 0:
            return u
        active[worst] = True
