"""mirrorode: mirror flow of homogeneous networks, integrated as a differential inclusion.

Names are imported when they are first used, so that ``import mirrorode`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Dataset": "mirrorode.problem.datasets",
    "teacher_student": "mirrorode.problem.datasets",
    "InputError": "mirrorode.problem.errors",
    "Cosh": "mirrorode.problem.geometries",
    "Power": "mirrorode.problem.geometries",
    "Radial": "mirrorode.problem.geometries",
    "Scaled": "mirrorode.problem.geometries",
    "for_width": "mirrorode.problem.geometries",
    "Layerwise": "mirrorode.problem.layerwise",
    "Potential": "mirrorode.problem.mirror",
    "Network": "mirrorode.problem.modules",
    "MLP": "mirrorode.problem.networks",
    "DiagonalLinear": "mirrorode.problem.networks",
    "Euclidean": "mirrorode.problem.potentials",
    "HyperbolicEntropy": "mirrorode.problem.potentials",
    "SeparablePotential": "mirrorode.problem.potentials",
    "SmoothedHomogeneous": "mirrorode.problem.potentials",
    "MirrorDescent": "mirrorode.flow.mirror_descent",
    "MirrorFlow": "mirrorode.flow.mirror_flow",
    "Observable": "mirrorode.flow.observe",
    "Observed": "mirrorode.flow.observe",
    "solve": "mirrorode.flow.solve",
    "LogInverseLoss": "mirrorode.flow.stopping",
    "LogTime": "mirrorode.flow.stopping",
    "Time": "mirrorode.flow.stopping",
    "Event": "mirrorode.flow.trajectory",
    "Stats": "mirrorode.flow.trajectory",
    "Status": "mirrorode.flow.trajectory",
    "Trajectory": "mirrorode.flow.trajectory",
    "audit": "mirrorode.theory.audit",
    "Invariants": "mirrorode.theory.balance",
    "invariants": "mirrorode.theory.balance",
    "GlobalMargin": "mirrorode.theory.circle",
    "global_margin": "mirrorode.theory.circle",
    "MaxMargin": "mirrorode.theory.convex",
    "frozen_feature_max_margin": "mirrorode.theory.convex",
    "max_margin": "mirrorode.theory.convex",
    "KKT": "mirrorode.theory.kkt",
    "kkt": "mirrorode.theory.kkt",
    "norm_margin": "mirrorode.theory.margins",
    "q_margin": "mirrorode.theory.margins",
    "soft_q_margin": "mirrorode.theory.margins",
    "Outcome": "mirrorode.theory.verdicts",
    "Verdict": "mirrorode.theory.verdicts",
    "verify": "mirrorode.theory.verify",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mirrorode.flow.mirror_descent import MirrorDescent as MirrorDescent
    from mirrorode.flow.mirror_flow import MirrorFlow as MirrorFlow
    from mirrorode.flow.observe import Observable as Observable
    from mirrorode.flow.observe import Observed as Observed
    from mirrorode.flow.solve import solve as solve
    from mirrorode.flow.stopping import LogInverseLoss as LogInverseLoss
    from mirrorode.flow.stopping import LogTime as LogTime
    from mirrorode.flow.stopping import Time as Time
    from mirrorode.flow.trajectory import Event as Event
    from mirrorode.flow.trajectory import Stats as Stats
    from mirrorode.flow.trajectory import Status as Status
    from mirrorode.flow.trajectory import Trajectory as Trajectory
    from mirrorode.problem.datasets import Dataset as Dataset
    from mirrorode.problem.datasets import teacher_student as teacher_student
    from mirrorode.problem.errors import InputError as InputError
    from mirrorode.problem.geometries import Cosh as Cosh
    from mirrorode.problem.geometries import Power as Power
    from mirrorode.problem.geometries import Radial as Radial
    from mirrorode.problem.geometries import Scaled as Scaled
    from mirrorode.problem.geometries import for_width as for_width
    from mirrorode.problem.layerwise import Layerwise as Layerwise
    from mirrorode.problem.mirror import Potential as Potential
    from mirrorode.problem.modules import Network as Network
    from mirrorode.problem.networks import MLP as MLP
    from mirrorode.problem.networks import DiagonalLinear as DiagonalLinear
    from mirrorode.problem.potentials import Euclidean as Euclidean
    from mirrorode.problem.potentials import HyperbolicEntropy as HyperbolicEntropy
    from mirrorode.problem.potentials import SeparablePotential as SeparablePotential
    from mirrorode.problem.potentials import SmoothedHomogeneous as SmoothedHomogeneous
    from mirrorode.theory.audit import audit as audit
    from mirrorode.theory.balance import Invariants as Invariants
    from mirrorode.theory.balance import invariants as invariants
    from mirrorode.theory.circle import GlobalMargin as GlobalMargin
    from mirrorode.theory.circle import global_margin as global_margin
    from mirrorode.theory.convex import MaxMargin as MaxMargin
    from mirrorode.theory.convex import frozen_feature_max_margin as frozen_feature_max_margin
    from mirrorode.theory.convex import max_margin as max_margin
    from mirrorode.theory.kkt import KKT as KKT
    from mirrorode.theory.kkt import kkt as kkt
    from mirrorode.theory.margins import norm_margin as norm_margin
    from mirrorode.theory.margins import q_margin as q_margin
    from mirrorode.theory.margins import soft_q_margin as soft_q_margin
    from mirrorode.theory.verdicts import Outcome as Outcome
    from mirrorode.theory.verdicts import Verdict as Verdict
    from mirrorode.theory.verify import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mirrorode' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
