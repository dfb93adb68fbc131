"""`verify`: every statement of the paper along one trajectory, each with its slack."""

from __future__ import annotations

from collections.abc import Callable

from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory import alignment, direction, growth, identities, limit, rates
from mirrorode.theory.points import Path
from mirrorode.theory.verdicts import Verdict, Verdicts

ALONG: tuple[Callable[[Path], Verdict], ...] = (
    identities.fenchel_young,
    identities.layer_balance,
    identities.unit_balance,
    identities.growth_of_q,
    identities.dissipation,
    growth.soft_margin_bounds,
    growth.assumption,
    growth.monotone,
    growth.margin_rate,
    growth.multi_margin,
    rates.loss_integral,
    rates.integral_growth,
    rates.loss_rate,
    rates.size_rate,
    direction.dual_speed,
    direction.growth_of_log_q,
    direction.approximate_kkt,
    direction.angle_integral,
    direction.angle,
    direction.horizon_gradient,
    alignment.horizon_bounds,
    alignment.alignment,
    limit.reformulation,
)

LIMITS: tuple[Callable[[Path, limit.Certificates], Verdict], ...] = (
    limit.stationarity,
    limit.inactive,
    limit.frozen_features,
)


def verify(trajectory: Trajectory) -> Verdicts:
    """Judge every statement of the paper along ``trajectory``, at its saved points.

    Returns:
        A list of `Verdict`, always the same statements, that prints as a table.
    """
    path = Path.along(trajectory)
    found = [statement(path) for statement in ALONG]
    certificates = limit.Certificates.along(path)
    found += [statement(path, certificates) for statement in LIMITS]
    return Verdicts(found)
