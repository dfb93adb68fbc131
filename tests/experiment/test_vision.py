"""The vision experiments: networks, images, trainings, scenarios; on digits and made-up batches."""

import json
import math
from dataclasses import replace

import pytest
import torch

import mirrorode as mo
from mirrorode.experiment import images, training, vgg, vision
from mirrorode.experiment.scenario import load
from mirrorode.experiment.training import Trained, Training
from mirrorode.theory.margins import layer_product_margin
from tests.experiment.commands import call, stored
from tests.experiment.test_images import batches

TINY = vgg.VGG((8, vgg.POOL, 16, vgg.POOL), hidden=(16,))


@pytest.fixture(scope="module")
def digits():
    whole = images.digits()
    return images.Images("digits", whole.x[:200], whole.y[:200], whole.test_x, whole.test_y)


def job(digits, **changes):
    options = {
        "name": "tiny", "images": digits, "vgg": TINY, "potential": mo.HyperbolicEntropy(0.1),
        "lr": 0.05, "epochs": 4, "batch": 10, "seed": 0, "device": "cpu",
    }  # fmt: skip
    return Training(**(options | changes))


def train(job, path, show=lambda *_: None):
    return job.compute(path / "checkpoint", show)


def same(one, other):
    return torch.equal(one.history, other.history) and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def test_vgg16_on_a_batch_of_cifar():
    """Forward, backward, a step, the margin and pruning, on the CPU."""
    network = vgg.VGG16.build(3, 32, 10, seed=0)
    kinds = [type(it).__name__ for it in network]
    assert (kinds.count("Conv2d"), kinds.count("Linear"), kinds.count("MaxPool2d")) == (13, 3, 5)
    named = dict(network.named_parameters())
    assert [name for name, it in named.items() if it.ndim == 1] == ["0.bias"]
    assert len(vgg.weights(network)) == 16
    for weight in vgg.weights(network).values():
        expected = math.sqrt(2 / math.prod(weight.shape[1:]))
        assert float(weight.std()) == pytest.approx(expected, rel=0.05)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    potential = mo.SmoothedHomogeneous(10, 0.1)
    optimizer = mo.MirrorDescent.for_width(network, potential, lr=0.01)
    before = [it.detach().clone() for it in network.parameters()]
    loss = torch.nn.functional.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = torch.nn.functional.cross_entropy(network(x), y)
        margin = layer_product_margin(network(x), y, vgg.weights(network).values())
    assert float(after) < float(loss.detach())
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert math.isfinite(float(margin))
    vgg.prune(network, 0.8)
    for weight in vgg.weights(network).values():
        assert float((weight == 0).double().mean()) == pytest.approx(0.8, abs=0.01)


def test_homogeneous_layer_by_layer():
    """Each layer scales the output; the bias of the first is part of it."""
    network = TINY.build(1, 8, 10, seed=0)
    with torch.no_grad():
        network[0].bias.normal_(generator=torch.Generator().manual_seed(0))
        x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        before = network(x)
        for layer in (it for it in network if hasattr(it, "weight")):
            for parameter in layer.parameters():
                parameter.mul_(2.0)
        torch.testing.assert_close(network(x), before * 2.0**4)


def test_margin_is_that_of_the_direction():
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(6, 4, generator=generator), torch.arange(6) % 4
    parts = [torch.randn(3, 2, generator=generator), torch.randn(4, 3, generator=generator)]
    found = float(layer_product_margin(outputs, labels, parts))
    gaps = [
        float(row[own]) - max(float(it) for place, it in enumerate(row) if place != own)
        for row, own in zip(outputs, labels.tolist(), strict=True)
    ]
    assert found == pytest.approx(min(gaps) / float(parts[0].norm() * parts[1].norm()))
    scaled = layer_product_margin(6 * outputs, labels, [2 * parts[0], 3 * parts[1]])
    assert float(scaled) == pytest.approx(found)


def test_pruning_takes_the_smallest():
    network = TINY.build(1, 8, 10, seed=0)
    before = {name: it.clone() for name, it in vgg.weights(network).items()}
    vgg.prune(network, 0.5)
    for name, weight in vgg.weights(network).items():
        gone, kept = before[name].abs()[weight == 0], before[name].abs()[weight != 0]
        assert len(gone) == round(0.5 * weight.numel())
        assert float(gone.max()) <= float(kept.min())
        assert torch.equal(weight[weight != 0], before[name][weight != 0])


def test_participation():
    assert vgg.participation(torch.full((7,), -3.0)) == pytest.approx(1.0)
    assert vgg.participation(torch.eye(1, 10)) == pytest.approx(0.1)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert vgg.participation(normal) == pytest.approx(2 / math.pi, rel=0.01)


def test_a_training_learns_and_is_reproducible(digits, tmp_path):
    found = train(job(digits, epochs=12), tmp_path)
    loss, accuracy = found.measure("train_loss"), found.measure("train_accuracy")
    assert float(loss[-1]) < 0.6 * float(loss[0])
    assert float(accuracy[-1]) > 0.7
    assert found.measure("epoch").tolist() == list(range(13))
    assert float(found.pruned[0]) == float(found.measure("test_accuracy")[-1])
    (tmp_path / "other").mkdir()
    assert same(found, train(job(digits, epochs=12), tmp_path / "other"))
    assert not same(found, train(job(digits, epochs=12, seed=1), tmp_path / "other"))


@pytest.mark.parametrize("printed", [False, True])
def test_one_epoch_by_hand(digits, tmp_path, printed):
    """The order of images, the metric, and every measure, with a bias that is not zero."""
    one = job(digits, epochs=1, seed=3, printed=printed, potential=mo.SmoothedHomogeneous(10, 0.01))
    found = train(one, tmp_path)
    network = TINY.build(1, 8, 10, seed=3)
    optimizer = mo.MirrorDescent.for_width(network, one.potential, one.lr, printed=printed)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    for places in order.split(10):
        optimizer.zero_grad()
        outputs = network(digits.x[places])
        torch.nn.functional.cross_entropy(outputs, digits.y[places]).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert torch.equal(found.weights[name], parameter)
    assert float(network[0].bias.detach().norm()) > 1e-3
    with torch.no_grad():
        outputs, test = network(digits.x), network(digits.test_x)
        first, bias, *others = network.parameters()
        parts = [torch.cat([first.flatten(), bias]), *others]
        margin = layer_product_margin(outputs, digits.y, parts)
        expected = [
            1.0, float(torch.nn.functional.cross_entropy(outputs, digits.y)),
            float((outputs.argmax(1) == digits.y).double().mean()),
            float((test.argmax(1) == digits.test_y).double().mean()), float(margin),
        ]  # fmt: skip
    assert found.history[-1].tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[2] != expected[3]


def test_the_mode_is_in_the_folder_and_any_is_read(digits, tmp_path):
    """A run in another precision is not passed off as this one, but serves to draw."""
    from mirrorode.experiment import keys, store

    modes = [{}, {"device": "cuda"}, {"device": "cuda", "deterministic": True}]
    every = [job(digits, **it) for it in modes]
    assert len({keys.place(tmp_path, "any", it) for it in every}) == 3
    assert keys.place(tmp_path, "any", job(digits, device="cpu:0")) == keys.place(
        tmp_path, "any", every[0]
    )
    there = keys.place(tmp_path, "any", every[1])
    there.mkdir(parents=True)
    store.save(there, "any", {}, every[1], train(every[0], tmp_path))
    assert not store.is_done(keys.place(tmp_path, "any", every[0]), every[0])
    assert store.find(tmp_path, "any", every[0]) == there
    assert store.of_other_code(tmp_path, "any", [every[0]]) == []


def test_a_training_that_is_interrupted(digits, tmp_path, monkeypatch):
    """It goes on to the same bits from what was written."""
    whole = train(job(digits), tmp_path)
    monkeypatch.setattr(training, "PAUSE", 0.0)

    def stop(share, _):
        if share > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(digits), tmp_path, stop)
    assert (tmp_path / "checkpoint").is_file()
    shares = []
    found = train(job(digits), tmp_path, lambda share, _: shares.append(share))
    assert shares == [0.75, 1.0]  # what had been done was not done again
    assert same(found, whole)
    with pytest.raises(mo.InputError, match="is of another integration"):
        train(job(digits, lr=0.1), tmp_path)


def test_saved_and_loaded(digits, tmp_path):
    found = train(job(digits), tmp_path)
    found.save(tmp_path / "run.npz")
    other = Trained.load(tmp_path / "run.npz")
    assert same(found, other)
    assert torch.equal(found.pruned, other.pruned)
    (tmp_path / "run.npz").write_bytes(b"nothing")
    with pytest.raises(mo.InputError, match="`path` must be a stored training"):
        Trained.load(tmp_path / "run.npz")


def test_a_training_that_diverges_says_so(digits, tmp_path):
    big = job(digits, lr=1e20, epochs=50, potential=mo.Euclidean())
    history = torch.tensor([[0, 2.3, 0.1, 0.1, 0], [5, 0.01, 1, 1, 0], [9, 2.3, 0.1, 0.1, 0]])
    lost = Trained(history.double(), {}, torch.zeros(9), 1.0)
    assert job(digits).told(lost)["status"] == "COLLAPSED"
    found = train(big, tmp_path)
    assert big.told(found)["status"] == "DIVERGED"
    assert len(found.history) < 10
    assert job(digits).told(train(job(digits), tmp_path))["status"] == "TRAINED"


def test_what_decides_a_training_is_in_its_name(digits):
    changes = [
        {"lr": 0.2}, {"seed": 1}, {"epochs": 5}, {"batch": 20}, {"printed": True},
        {"potential": mo.Euclidean()}, {"vgg": vgg.SMALL}, {"images": images.digits()},
    ]  # fmt: skip
    every = [job(digits).identity(), *(job(digits, **it).identity() for it in changes)]
    assert len({json.dumps(it) for it in every}) == len(every)
    homes = {"mirrorode.experiment." + it for it in ("training", "images", "vgg")}
    assert homes <= job(digits).modules()


def test_the_way_it_is_done_on_a_gpu(digits, tmp_path, monkeypatch):
    """bfloat16, channels last and compiled, here on the CPU and without a compiler."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda it: compiled.append(it) or it)
    monkeypatch.setattr(Training, "fast", True)
    found = train(job(digits, epochs=8), tmp_path)
    assert len(compiled) == 1
    assert float(found.measure("train_accuracy")[-1]) > 0.5
    assert all(it.dtype == torch.float32 for it in found.weights.values())
    monkeypatch.undo()
    assert not job(digits).fast
    assert job(digits, device="cuda").fast
    assert not job(digits, device="cuda", deterministic=True).fast


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the figures were drawn after two epochs."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("fig4", "fig14", "table9"):
            assert call("run", name, "--seeds", "1", "--epochs", "2") == 0
    return folder


def test_everything_is_written(home):
    written = {path.name for path in (home / "figures").iterdir()}
    for name, tables in (("fig4", 3), ("fig14", 1), ("table9", 2)):
        assert {f"{name}.png", f"{name}.pdf", f"{name}.csv"} <= written
        assert len([it for it in written if it.startswith(f"{name}_table")]) == 2 * tables
    told = json.loads((stored(home, "gd-lr0.1-seed0") / "run.json").read_text())
    assert told["status"] == "TRAINED"
    assert told["images"] == "digits"
    assert told["statistics"]["images_per_second"] > 0
    assert 0 < told["measured"]["test_accuracy"] <= 1
    assert "digits" in (home / "figures/table9_table.md").read_text()
    # Figure 14 and Table 9 find the networks of Figure 4 stored.
    assert len(list(home.glob("runs/*/hyperbolic-0.1-lr0.1-seed0-*"))) == 1


def test_checked_redrawn_and_reported_without_training(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(Training, "compute", None)
    assert call("check", "fig4") == 0
    assert "there is no statement to check" in capsys.readouterr().out
    assert call("check", str(stored(home, "gd-lr0.1-seed0"))) == 0
    (home / "figures/fig4.png").unlink()
    assert call("figures", "fig4") == 0
    assert (home / "figures/fig4.png").is_file()
    assert call("report") == 0
    assert "Figure 14" in (home / "report.html").read_text()


def test_metrics_beside_gradient_descent():
    """Mean |D − 1| at the start: nothing for gradient descent, little for a large λ."""
    scenario = load("fig4")()
    found = [
        scenario.deviation(it)
        for it in (vision.GD, vision.homogeneous(vision.LARGE_LAM), vision.homogeneous(0.1))
    ]
    assert found[0] == 0.0
    assert found[1] < 0.01
    assert found[2] > 0.3
    assert scenario.deviation(vision.homogeneous(0.1, printed=True)) < 1e-3


def made(sizes, pruned, accuracy=(0.1, 0.9, 0.8)):
    """A training whose first and last layer have these weights."""
    history = torch.tensor([[it, 1.0, 1.0, value, 1.0] for it, value in enumerate(accuracy)])
    weights = {"0.weight": sizes[0], "0.bias": torch.zeros(2), "9.weight": sizes[1]}
    found = torch.full((len(training.SPARSITIES),), pruned, dtype=torch.float64)
    return Trained(history.double(), weights, found, 1.0)


def test_tables_of_figure_4_and_14():
    """Each claim from numbers made for it."""
    sparse, normal, dense = torch.eye(4), torch.tensor([[3.0, 1.0, 1.0, 2.0]]), torch.ones(2, 2)
    scenario = replace(load("fig4")(), seeds=1)
    parts = zip(vision.DRAWN, ((sparse, 0.9), (normal, 0.5), (dense, 0.1)), strict=True)
    runs = {f"{it.name}-seed0": made((size, dense), pruned) for it, (size, pruned) in parts}
    assert [row[1][0] for row in scenario._orders(runs).rows] == ["0", "1", "1", "1"]
    worse = runs | {f"{vision.DRAWN[0].name}-seed0": made((dense, dense), 0.4)}
    assert [row[1][0] for row in scenario._orders(worse).rows] == ["0", "0", "0", "1"]
    (table,) = replace(load("fig14")(), seeds=1).tables(runs)
    assert table.rows[0][1:] == ("0.250", "1.000")


def test_table_9_tells_highest_and_end():
    scenario = replace(load("table9")(), seeds=1)
    weights = (torch.eye(2), torch.eye(2))
    runs = {
        f"{it.name}-seed0": made(weights, 0.5, (0.1, 0.9, 0.7 if it.lr > 0.1 else 0.95))
        for it in scenario.mirrors()
    }
    best, whole = scenario.tables(runs)
    assert all(row[2:4] == ("95.00", "95.00") and "0.1" in row[4] for row in best.rows)
    for row in whole.rows:
        assert row[2:] == (("95.00", "95.00", "0") if row[1] == "0.1" else ("90.00", "70.00", "1"))


def test_ordered_and_distance():
    rising = [torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 3.0])]
    assert vision.ordered(rising).tolist() == [True, False]

    def run(value):
        return Trained(torch.zeros(1, 5), {"w": torch.full((4,), value)}, torch.zeros(1), 1.0)

    found = vision.distance([run(3.0)], [run(2.0)], [torch.zeros(4).double()])
    assert found.tolist() == [0.5]


@pytest.mark.slow
def test_vgg16_on_batches_of_cifar(tmp_path, monkeypatch):
    """The whole of Figure 14 as it is on CIFAR-10, on a hundred random images and for one epoch."""
    batches(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call("run", "fig14", "--data", ".", "--epochs", "1", "--seeds", "1") == 0
    told = json.loads((stored(tmp_path, "gd-lr0.1-seed0") / "run.json").read_text())
    assert told["images"] == "CIFAR-10"
    run = Trained.load(stored(tmp_path, "gd-lr0.1-seed0") / "trajectory.npz")
    assert sum(it.numel() for it in run.weights.values()) == 15_239_936
    assert "VGG-16, CIFAR-10" in (tmp_path / "figures/fig14_table.md").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_gpu(digits, tmp_path, deterministic):
    found = train(job(digits, epochs=12, device="cuda", deterministic=deterministic), tmp_path)
    assert float(found.measure("train_accuracy")[-1]) > 0.7
    if deterministic:
        again = job(digits, epochs=12, device="cuda", deterministic=True)
        (tmp_path / "other").mkdir()
        assert same(found, train(again, tmp_path / "other"))
