"""Mirror descent: SGD where it must be, the flow as η → 0, and what an optimizer owes torch."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import mirrorode as mo

POTENTIALS = {
    "hyperbolic": mo.HyperbolicEntropy(lam=0.1),
    "euclidean": mo.Euclidean(),
    "p3": mo.SmoothedHomogeneous(p=3, lam=1.0),
    "scaled": mo.for_width(mo.SmoothedHomogeneous(p=4, lam=1.0), 2),
}
TIME = 0.2


def module(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)]
    return nn.Sequential(*layers).to(dtype)


def batches(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(8, 4, generator=generator).to(dtype)
        yield x, torch.randint(3, (8,), generator=generator)


def train(model, optimizer, samples):
    for x, y in samples:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return torch.cat([it.detach().reshape(-1) for it in model.parameters()])


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euclidean_is_sgd_bit_for_bit(dual, dtype):
    ours, theirs = module(dtype), module(dtype)
    found = train(
        ours, mo.MirrorDescent(ours.parameters(), mo.Euclidean(), lr=0.1, dual=dual),
        batches(50, dtype),
    )  # fmt: skip
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1)
    assert torch.equal(found, train(theirs, sgd, batches(50, dtype)))
    assert not torch.equal(found, train(theirs, sgd, batches(1, dtype)))


def steps_to(potential, dual, count):
    """θ after ``count`` steps of the exponential loss that together take a time of `TIME`."""
    flow = problem(potential)
    theta = nn.Parameter(flow.network.initial(seed=0))
    optimizer = mo.MirrorDescent([theta], potential, lr=TIME / count, dual=dual)
    x, y = flow.dataset.x, flow.dataset.y
    for _ in range(count):
        optimizer.zero_grad()
        torch.exp(-y * flow.network.output(theta, x)).sum().backward()
        optimizer.step()
    return theta.detach()


def problem(potential):
    network = mo.MLP((2, 4, 1), activation="linear")  # no kinks, across which the order is not seen
    return mo.MirrorFlow(network, mo.teacher_student(10, seed=1), potential)


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("name", POTENTIALS)
def test_first_order_towards_the_flow(name, dual):
    """Half the step size, half the distance to what `solve` gives."""
    potential = POTENTIALS[name]
    flow = problem(potential)
    run = mo.solve(flow, flow.network.initial(seed=0), until=mo.Time(TIME), rtol=1e-9)
    assert run.success
    assert float((run.theta[-1] - run.theta[0]).norm()) > 0.05
    errors = [
        float((steps_to(potential, dual, count) - run.theta[-1]).norm())
        for count in (200, 400, 800)
    ]
    orders = [math.log2(errors[it] / errors[it + 1]) for it in (0, 1)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.05)


def test_another_potential_tends_elsewhere():
    """Negative control of the order: the flow of another λ."""
    flow = problem(mo.HyperbolicEntropy(lam=0.2))
    run = mo.solve(flow, flow.network.initial(seed=0), until=mo.Time(TIME), rtol=1e-9)
    errors = [
        float((steps_to(POTENTIALS["hyperbolic"], True, count) - run.theta[-1]).norm())
        for count in (400, 800)
    ]
    assert abs(math.log2(errors[0] / errors[1])) < 0.1


def test_dual_steps_are_those_of_the_dual():
    """z moves by −η g exactly, whatever θ does."""
    model = module(torch.float64)
    potential = mo.HyperbolicEntropy(lam=1e-3)
    before = [potential.gradient(it.detach()) for it in model.parameters()]
    optimizer = mo.MirrorDescent(model.parameters(), potential, lr=0.3)
    train(model, optimizer, batches(1, torch.float64))
    for dual, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(
            potential.gradient(parameter.detach()), dual - 0.3 * parameter.grad, rtol=1e-11,
            atol=1e-11,
        )  # fmt: skip


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("name", POTENTIALS)
def test_goes_on_from_its_state(name, dual, tmp_path):
    """Through a file without code, to the same bits."""
    ours = module()
    optimizer = mo.MirrorDescent(ours.parameters(), POTENTIALS[name], lr=0.05, dual=dual)
    samples = list(batches(20))
    train(ours, optimizer, samples[:10])
    torch.save([ours.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    end = train(ours, optimizer, samples[10:])
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = module()
    other.load_state_dict(weights)
    fresh = mo.MirrorDescent(other.parameters(), mo.Euclidean(), lr=1.0)
    fresh.load_state_dict(state)
    assert torch.equal(train(other, fresh, samples[10:]), end)


def test_groups_have_potentials_of_their_own():
    ours, theirs = module(), module()
    groups = [
        {"params": ours[0].parameters(), "potential": mo.HyperbolicEntropy(lam=0.1)},
        {"params": ours[2].parameters(), "lr": 0.0625},
    ]
    optimizer = mo.MirrorDescent(groups, mo.Euclidean(), lr=0.125)
    train(ours, optimizer, batches(1))
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.0625)
    train(theirs, sgd, batches(1))
    assert torch.equal(ours[2].weight, theirs[2].weight)
    assert not torch.equal(ours[0].weight, theirs[0].weight)


def test_width_scaled_metrics_of_the_paper():
    """Appendix J.3 with p = 10: as printed the steps are those of SGD, corrected they are not."""
    start = torch.cat([it.detach().reshape(-1) for it in module().parameters()])

    def moved(**options):
        model = module()
        if not options:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        else:
            potential = mo.SmoothedHomogeneous(p=10, lam=1e-2)
            optimizer = mo.MirrorDescent.for_width(model, potential, lr=0.1, **options)
        return train(model, optimizer, batches(5)) - start

    sgd, printed, corrected = moved(), moved(printed=True), moved(printed=False)
    assert float((printed - sgd).norm() / sgd.norm()) < 0.05
    assert float((corrected - sgd).norm() / sgd.norm()) > 0.5
    metric = mo.for_width(mo.HyperbolicEntropy(lam=0.01), 4)
    model = module()
    weight = model[0].weight.detach().clone()
    train(model, mo.MirrorDescent.for_width(model, mo.HyperbolicEntropy(lam=0.01), 0.1), batches(1))
    expected = weight - 0.1 * torch.sqrt(4 * weight**2 + 0.01) / math.sqrt(1.01) * (
        model[0].weight.grad
    )
    torch.testing.assert_close(model[0].weight.detach(), expected)
    torch.testing.assert_close(
        metric.inverse_hessian(weight), torch.sqrt(4 * weight**2 + 0.01) / math.sqrt(1.01)
    )


def test_autocast_closure_and_scheduler():
    model = module()
    optimizer = mo.MirrorDescent(model.parameters(), mo.HyperbolicEntropy(lam=0.1), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    losses = []
    for x, y in batches(30):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**30)
    assert all(map(math.isfinite, losses))
    assert all(it.dtype == torch.float32 for it in model.parameters())


def test_in_pieces_or_at_once(monkeypatch):
    """A large parameter is stepped piece by piece, to the same bits."""
    for dual in (True, False):
        found = []
        for size in (7, 10**6):
            monkeypatch.setattr("mirrorode.flow.mirror_descent.PIECE", size)
            model = module()
            optimizer = mo.MirrorDescent(model.parameters(), POTENTIALS["p3"], lr=0.1, dual=dual)
            found.append(train(model, optimizer, batches(5)))
        assert torch.equal(*found)


def test_parameters_without_a_gradient_stay():
    model = module()
    frozen = copy.deepcopy(model[0])
    optimizer = mo.MirrorDescent(model.parameters(), mo.Euclidean(), lr=0.1)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    train(model, optimizer, batches(3))
    assert torch.equal(model[0].weight, frozen.weight)


class Bent(mo.SeparablePotential):
    """|θ|: no mirror potential."""

    def value(self, theta):
        return theta.abs()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.0}, "`lr` must be positive, but is 0.0"),
        ({"lr": float("nan")}, "`lr` must be positive, but is nan"),
        (
            {"potential": "euclidean"},
            "`potential` must be a separable potential, but is 'euclidean'",
        ),
        ({"potential": Bent()}, "`potential` must"),
        (
            {"potential": mo.Scaled(mo.Euclidean(), torch.ones(64).double())},
            "`potential` must be the",
        ),
        ({"dual": "no"}, "`dual` must be True or False, but is 'no'"),
    ],
)
def test_refused(change, sentence):
    options = {"potential": mo.Euclidean(), "lr": 0.1} | change
    with pytest.raises(mo.InputError) as error:
        mo.MirrorDescent(module().parameters(), **options)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "change",
    [
        {"potential": None}, {"potential": {"kind": "Nothing"}}, {"lr": -1.0}, {"dual": 3},
        {"potential": {"kind": "HyperbolicEntropy", "lam": 0.1, "more": 1}},
        {"potential": {"kind": "Scaled", "potential": {"kind": "Euclidean"}, "factor": [1.0, 2.0]}},
    ],
)  # fmt: skip
def test_states_of_something_else(change):
    optimizer = mo.MirrorDescent(module().parameters(), mo.Euclidean(), lr=0.1)
    state = optimizer.state_dict()
    state["param_groups"][0] |= change
    with pytest.raises(mo.InputError, match=r"`(potential|state_dict|lr|dual)` must"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    sgd = torch.optim.SGD(module().parameters(), lr=0.1)
    with pytest.raises(mo.InputError, match="`state_dict` must hold potentials"):
        optimizer.load_state_dict(sgd.state_dict())


@pytest.mark.parametrize("dual", [True, False])
def test_embeddings_and_rates_that_are_tensors(dual, tmp_path):
    """Sparse gradients as dense ones, and scalars of numpy and torch."""
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=sparse)
        potential = mo.HyperbolicEntropy(np.float64(0.1))
        optimizer = mo.MirrorDescent(table.parameters(), potential, torch.tensor(0.1), dual=dual)
        table(torch.tensor([1, 1, 4])).sum().backward()
        optimizer.step()
        ends.append(table.weight.detach().clone())
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(*ends)


def test_half_precision_is_refused():
    with pytest.raises(mo.InputError, match="`params` must be of dtype float32 or float64"):
        mo.MirrorDescent(module(torch.bfloat16).parameters(), mo.Euclidean(), lr=0.1)
