"""Two convex problems over a polyhedral cone {u: Gu ≥ 0}, in NumPy.

`nearest` is the nearest point of the image of a cone, `smallest` the point of least maximum norm on
a slice of it. Both expect columns of about unit size: what is small here is small in the problem.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import linprog

from mirrorode.problem.errors import InputError

Array = NDArray[np.float64]

ITERATIONS = 100
GAP = 1e-22  # of s·z over the number of constraints, with a target of unit length
TO_BOUNDARY = 0.995
RIDGE = 1e-15  # of the diagonal, where Cholesky stops
ROWS_AT_ONCE = 100  # rows that enter the linear program together
EXACT = 1e-10


def nearest(columns: Array, target: Array, cone: Array) -> Array:
    """u that minimises ‖columns·u − target‖₂ subject to cone·u ≥ 0.

    A primal-dual interior-point method with Mehrotra's predictor and corrector. The bounds of one
    variable depend on others here, so that `scipy.optimize.nnls` and `lsq_linear` do not apply;
    dependent columns are welcome, which rules out the reduction to a least-distance problem.

    Args:
        columns: (r, m), of about unit length.
        target: (r,), of about unit length.
        cone: (c, m).
    """
    triangle = np.linalg.qr(np.column_stack([columns, target]), mode="r")
    matrix, aim = triangle[:, :-1], triangle[:, -1]
    normal = matrix.T @ matrix
    u = np.zeros(matrix.shape[1])
    slack, price = np.ones(len(cone)), np.ones(len(cone))
    for _ in range(ITERATIONS):
        # The gradient from the residual itself: through the normal matrix it would lose half of
        # the digits near a perfect fit.
        dual = matrix.T @ (matrix @ u - aim) - cone.T @ price
        primal = cone @ u - slack
        gap = float(slack @ price) / len(cone)
        if gap < GAP and np.abs(primal).max() < 1e-14:
            break
        factor = _factor(normal + cone.T @ ((price / slack)[:, None] * cone))
        if factor is None:
            break

        def direction(complementarity, dual=dual, primal=primal, factor=factor):
            right = dual + cone.T @ ((complementarity + price * primal) / slack)
            du = -cho_solve(factor, right)
            ds = cone @ du + primal
            return du, ds, -(complementarity + price * ds) / slack

        _, ds, dz = direction(slack * price)
        reach = min(_reach(slack, ds), _reach(price, dz))
        predicted = float((slack + reach * ds) @ (price + reach * dz)) / len(cone)
        centre = gap * min(1.0, max(0.0, predicted / gap)) ** 3
        du, ds, dz = direction(slack * price + ds * dz - centre)
        reach = min(1.0, TO_BOUNDARY * min(_reach(slack, ds), _reach(price, dz)))
        if not np.isfinite(du).all() or reach < 1e-12:
            break
        u, slack, price = u + reach * du, slack + reach * ds, price + reach * dz
    return u


def _factor(matrix: Array):
    """Cholesky with the smallest ridge that carries it through."""
    diagonal = np.diag(matrix).copy()
    for ridge in (0.0, RIDGE, 100 * RIDGE, 1e4 * RIDGE):
        np.fill_diagonal(matrix, diagonal * (1 + ridge))
        try:
            return cho_factor(matrix, check_finite=False)
        except (LinAlgError, ValueError):
            continue
    return None


def _reach(value: Array, change: Array) -> float:
    """The longest step ≤ 1 on which ``value`` stays positive."""
    falling = change < 0
    return min(1.0, float((-value[falling] / change[falling]).min(initial=1.0)))


def smallest(columns: Array, cone: Array, slice_: Array) -> Array:
    """u that minimises ‖columns·u‖_∞ subject to cone·u ≥ 0 and slice·u = 1.

    A linear program whose rows enter as they are needed: few coordinates of a network attain the
    maximum, and the other thousands would only cost time.

    Args:
        columns: (r, m).
        cone: (c, m).
        slice_: (m,).
    """
    count, size = columns.shape
    start = np.argsort(-np.abs(columns).max(axis=1), kind="stable")[:ROWS_AT_ONCE]
    active = np.zeros(count, dtype=bool)
    active[start] = True
    tolerances = {"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT}
    while True:
        rows = columns[active]
        top = -np.ones((len(rows), 1))
        above = np.block(
            [[rows, top], [-rows, top], [-cone, np.zeros((len(cone), 1))]],
        )
        found = linprog(
            np.append(np.zeros(size), 1.0), above, np.zeros(len(above)),
            np.append(slice_, 0.0)[None], [1.0], bounds=(None, None), method="highs",
            options=tolerances,
        )  # fmt: skip
        if found.x is None:
            raise InputError(f"`theta` must give a solvable linear program, but: {found.message}")
        u, largest = found.x[:-1], found.x[-1]
        excess = np.where(active, -np.inf, np.abs(columns @ u) - largest)
        worst = np.argsort(-excess, kind="stable")[:ROWS_AT_ONCE]
        worst = worst[excess[worst] > EXACT * max(largest, EXACT)]
        if len(worst) == 0:
            return u
        active[worst] = True
