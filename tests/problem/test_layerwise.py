"""A different potential for each layer acts on each as that potential would."""

import pytest
import torch

import mirrorode as mo

NETWORK = mo.MLP((2, 6, 5, 1))
THREE = {
    "W3": mo.SmoothedHomogeneous(3, 1.0),
    "W1": mo.Euclidean(),
    "W2": mo.HyperbolicEntropy(0.1),
}


def _flow(potential, network=NETWORK):
    return mo.MirrorFlow(network, mo.teacher_student(20, seed=3), potential)


@pytest.mark.parametrize(
    "method",
    ["value", "gradient", "inverse_gradient", "balance_term", "inverse_hessian", "conjugate"],
)
def test_layer_by_layer(method):
    theta = torch.stack([NETWORK.initial(seed) for seed in range(3)])
    found = NETWORK.unflatten(getattr(_flow(mo.Layerwise(THREE)).potential, method)(theta))
    for name, part in NETWORK.unflatten(theta).items():
        assert torch.equal(found[name], getattr(THREE[name], method)(part))


def test_one_degree_in_common():
    """All layers alike are the one potential; without a common degree there is no Q-margin."""
    theta, alike = NETWORK.initial(0), mo.SmoothedHomogeneous(3, 1.0)
    flow, single = _flow(mo.Layerwise(dict.fromkeys(NETWORK.shapes, alike))), _flow(alike)
    assert flow.potential.degree == 3
    torch.testing.assert_close(flow.potential.horizon(theta), alike.horizon(theta))
    torch.testing.assert_close(mo.q_margin(flow, theta), mo.q_margin(single, theta))
    other = _flow(mo.Layerwise(THREE))
    assert other.potential.degree is None
    for ask in (lambda: mo.q_margin(other, theta), lambda: other.potential.horizon(theta)):
        with pytest.raises(mo.InputError, match="degree"):
            ask()


@pytest.mark.parametrize("widths", [(2, 8, 1), (2, 6, 5, 1)], ids=["two layers", "three"])
def test_flow(tmp_path, widths):
    """Every statement that applies holds, and the file knows each layer's potential."""
    network = mo.MLP(widths)
    flow = _flow(mo.Layerwise({name: THREE[name] for name in network.shapes}), network)
    run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(1.0), rtol=1e-6)
    assert run.success
    verdicts = mo.verify(run)
    assert verdicts.passed
    held = {verdict.statement[:9]: verdict for verdict in verdicts}
    assert held["Lemma 3.1"].passed is True
    assert held["App. G.5:"].passed is True
    assert held["Theorem 4"].passed is None
    run.save(tmp_path / "run.npz")
    assert mo.Trajectory.load(tmp_path / "run.npz").flow.potential == flow.potential


def test_alike_layers_are_one_potential():
    """To the tolerance, as the two go by different integrators; other potentials end elsewhere."""
    network, one = mo.MLP((2, 8, 1)), mo.HyperbolicEntropy(0.1)
    ends = []
    for potential in (
        one,
        mo.Layerwise({"W1": one, "W2": one}),
        mo.Layerwise({"W1": one, "W2": mo.Euclidean()}),
    ):
        flow = _flow(potential, network)
        run = mo.solve(flow, network.initial(0), until=mo.LogInverseLoss(1.0), rtol=1e-8)
        ends.append(run.theta[-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[0], ends[2], rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: mo.Layerwise(mo.Euclidean()),
            "`potentials` must map parameter names to potentials, but is Euclidean()",
        ),
        (
            lambda: mo.Layerwise({"W1": 3}),
            "`potentials['W1']` must be a potential, but is 3",
        ),
        (
            lambda: _flow(mo.Layerwise({"W1": mo.Euclidean(), "W2": mo.Euclidean()})),
            "`potentials` must name exactly W1, W2, W3, but names W1, W2",
        ),
        (
            lambda: _flow(mo.Layerwise({**THREE, "first": mo.Euclidean()})),
            "`potentials` must name exactly W1, W2, W3, but names W3, W1, W2, first",
        ),
    ],
    ids=["no dict", "no potential", "missing", "unknown"],
)
def test_bad_input(build, sentence):
    with pytest.raises(mo.InputError) as error:
        build()
    assert str(error.value) == sentence
