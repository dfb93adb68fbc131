"""What all figures share: one colour for each potential, everywhere, and the names in legends."""

from __future__ import annotations

from mirrorode.problem.geometries import Power
from mirrorode.problem.mirror import Potential
from mirrorode.problem.potentials import Euclidean, HyperbolicEntropy, SmoothedHomogeneous

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
TEACHER = "#D55E00"
_OTHER = "#CC79A7"


def colour(potential: Potential) -> str:
    """The colour of a potential."""
    if isinstance(potential, HyperbolicEntropy):
        return "#0072B2"
    if isinstance(potential, Euclidean):
        return "#E69F00"
    return "#009E73" if isinstance(potential, SmoothedHomogeneous) else _OTHER


def label(potential: Potential) -> str:
    """The name of a potential in legends and tables."""
    if isinstance(potential, HyperbolicEntropy):
        return f"hyperbolic, λ = {potential.lam:g}"
    if isinstance(potential, SmoothedHomogeneous):
        return f"p = {potential.p:g}, λ = {potential.lam:g}"
    if isinstance(potential, Power):
        return f"|θ|^{potential.p:g}"
    return "Euclidean" if isinstance(potential, Euclidean) else type(potential).__name__
