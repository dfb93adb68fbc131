"""Trajectories that several tests look at, integrated once."""

import pytest
import torch

import mirrorode as mo

POTENTIALS = {
    "hyperbolic": mo.HyperbolicEntropy(lam=0.1),
    "euclidean": mo.Euclidean(),
    "p3": mo.SmoothedHomogeneous(p=3, lam=1.0),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_flow():
    """12 neurons, 30 points: sliding and crossing in seconds."""

    def build(name: str) -> mo.MirrorFlow:
        return mo.MirrorFlow(mo.MLP((2, 12, 1)), mo.teacher_student(30, seed=3), POTENTIALS[name])

    return build


@pytest.fixture(scope="session")
def small_run(small_flow):
    """The small problem to log(1/loss) = 1e4, by potential."""
    runs = {}

    def integrate(name: str) -> mo.Trajectory:
        if name not in runs:
            flow = small_flow(name)
            rule = mo.LogInverseLoss(1e4)
            runs[name] = mo.solve(flow, flow.network.initial(1), until=rule, rtol=1e-6)
        return runs[name]

    return integrate
