"""`Network`: a module of linear maps, convolutions, pooling and kinks, as a homogeneous network."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_map

from mirrorode.problem import homogeneity
from mirrorode.problem.errors import InputError, require
from mirrorode.problem.gates import Gates, Plan, Reached
from mirrorode.problem.homogeneous import Forward, HomogeneousNetwork, Pattern
from mirrorode.problem.tracing import trace


@dataclass(frozen=True, eq=False)
class Network(HomogeneousNetwork):
    """A module as f(θ, x), θ its trainable parameters; its kinks are found, not declared.

    The module is built of linear maps, convolutions, average and max pooling, products, and of
    relu, leaky_relu, abs and max in any form, as functions, methods or submodules. It takes inputs
    (K, d), so one that convolves starts, for example, with ``nn.Unflatten(1, (1, 6, 6))``. Samples
    are evaluated one by one, as batches of one.

    Parameters with ``requires_grad=False`` and buffers are constants; all are copied, in double
    precision, when the network is made, and the module is left as it is. That the output is
    homogeneous, and a polynomial in θ once the activation pattern is given, is verified at random
    parameters and inputs.

    A maximum of m values is a tournament, ⌈log₂ m⌉ kink layers of pairs; where pooling windows
    overlap, two units can have the same kink. A ReLU just below max pooling is moved above it,
    which gives the same function with fewer kinks.

    Args:
        module: with one output a sample, (K, 1) or (K,).
        degree: L; found if 0.
        dim: d, the dimension of an input; if 0, the first that the module takes of those that
            its layers and parameters suggest.

    Raises:
        InputError: if the module is not homogeneous, or does what cannot be followed, by name.
    """

    module: nn.Module
    degree: int = 0
    dim: int = 0
    _copy: nn.Module = field(init=False, repr=False)
    _shapes: dict[str, tuple[int, ...]] = field(init=False, repr=False)
    _fixed: dict[str, Tensor] = field(init=False, repr=False)
    _plan: Plan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(isinstance(self.module, nn.Module), "module", "be a torch.nn.Module", self.module)
        for name in ("degree", "dim"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 0, name, "be a positive integer", value)
        self._set(*_split(self.module))
        theta = self.initial(0)
        x = homogeneity.sample(self.dim or _find_dim(self._copy))
        self._plain(theta, x)  # says what is wrong with its shape before anything else is looked at
        object.__setattr__(self, "dim", x.shape[1])
        _load_forward_mode()
        try:
            plan = trace(self._copy, self.unflatten(theta), self._constants(theta), x[:1])
            object.__setattr__(self, "_plan", plan)
            found = homogeneity.verified_degree(self, x, self._plain, plan.others)
        except InputError:
            raise
        except Exception as error:
            sentence = (
                f"`module` must be a function that torch.func can follow, but: {_first_line(error)}"
            )
            raise InputError(sentence) from None
        require(self.degree in (0, found), "degree", f"be {found}, as found", self.degree)
        object.__setattr__(self, "degree", found)

    def _set(
        self, own: nn.Module, shapes: dict[str, tuple[int, ...]], fixed: dict[str, Tensor]
    ) -> None:
        for name, value in (("_copy", own), ("_shapes", shapes), ("_fixed", fixed)):
            object.__setattr__(self, name, value)

    @property
    def input_dim(self) -> int:
        """As given or found."""
        return self.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The trainable parameters under the names that the module gives them."""
        return self._shapes

    @property
    def units(self) -> tuple[int, ...]:
        """The number of units of each kink layer, in the order in which they are evaluated."""
        return tuple(layer.units for layer in self._plan.layers)

    @property
    def slopes(self) -> tuple[tuple[float, float], ...]:
        """(0, 1) for relu and max, (−1, 1) for abs, (slope, 1) for leaky_relu."""
        return tuple(layer.slopes for layer in self._plan.layers)

    @property
    def fan_in(self) -> tuple[int, ...]:
        """Positive for a kink straight on an ``nn.Linear`` of its own; a bias counts."""
        shapes = self.shapes
        return tuple(
            sum(math.prod(shapes[name][1:]) for name in layer.sources)
            for layer in self._plan.layers
        )

    def incoming(self, layer: int, unit: Tensor) -> Tensor:
        """Rows of the weight, and entries of the bias, that feed the layer: (F, fan-in)."""
        own = [self.rows_of(name, unit) for name in self._plan.layers[layer].sources]
        return torch.cat(own, -1) if own else unit.new_zeros(len(unit), 0)

    def current(self) -> Tensor:
        """The trainable parameters as they are in the module now, (n,), float64."""
        values = dict(self.module.named_parameters())
        return torch.cat([values[name].detach().double().reshape(-1) for name in self.shapes])

    def forward(self, theta: Tensor, x: Tensor, pattern: Pattern | None = None) -> Forward:
        """One pass upwards on ``pattern`` (the true one if None): half an evaluation."""
        fan_in = self.fan_in

        def row(theta: tuple[Tensor], x: Tensor, on: Pattern | None, _: Any) -> Any:
            gates = Gates(self._plan, on)
            value = self._evaluate(gates, *theta, x)
            entering = [
                gates.entering[layer] if count else x[:0] for layer, count in enumerate(fan_in)
            ]
            return value, gates.preactivations, entering

        output, pre, entering = _over_rows(row, (theta,), x, pattern)
        used = pattern if pattern is not None else [value > 0 for value in pre]
        return Forward(theta, x, output, pre, entering, used)

    def backward(self, forward: Forward) -> tuple[Tensor, list[Tensor]]:
        """The way down: ∂f/∂θ (…, R, n), and the signals ∂f/∂(post-activation) of kink layers."""
        nudges = [forward.theta.new_zeros(units) for units in self.units]

        def value(theta: Tensor, nudges: list[Tensor], x: Tensor, on: Pattern) -> Tensor:
            return self._evaluate(Gates(self._plan, on, nudges), theta, x)

        def row(theta: tuple[Tensor], x: Tensor, on: Pattern, _: Any) -> Any:
            return grad(value, argnums=(0, 1))(*theta, nudges, x, on)

        return _over_rows(row, (forward.theta,), forward.x, forward.pattern)

    def normals(
        self, theta: Tensor, x: Tensor, pattern: Pattern, layer: int, unit: Tensor
    ) -> Tensor:
        """Gradients (…, R, n) of the pre-activation of ``unit[r]`` in kink ``layer`` at row r."""

        def value(theta: Tensor, x: Tensor, on: Pattern, unit: Tensor) -> Tensor:
            return self._preactivations(theta, x, on, layer)[layer].gather(0, unit[None])[0]

        def row(theta: tuple[Tensor], x: Tensor, on: Pattern, unit: Tensor) -> Tensor:
            return grad(value)(*theta, x, on, unit)

        return _over_rows(row, (theta,), x, pattern[:layer], unit)

    def rates(self, theta: Tensor, velocity: Tensor, x: Tensor, pattern: Pattern) -> list[Tensor]:
        """Derivatives of all pre-activations along ``velocity`` (…, n) on the pattern."""
        if not self.units:
            return []

        def row(both: tuple[Tensor, Tensor], x: Tensor, on: Pattern, _: Any) -> list[Tensor]:
            def pre(theta: Tensor) -> list[Tensor]:
                return self._preactivations(theta, x, on, len(self.units) - 1)

            return jvp(pre, both[:1], both[1:])[1]

        return _over_rows(row, (theta, velocity), x, pattern)

    def _preactivations(self, theta: Tensor, x: Tensor, on: Pattern, last: int) -> list[Tensor]:
        """Those of one sample up to the layer ``last``, (units,) each."""
        gates = Gates(self._plan, on, stop=last)
        with contextlib.suppress(Reached):
            self._evaluate(gates, theta, x)
        return gates.preactivations

    def _evaluate(self, gates: Gates, theta: Tensor, x: Tensor) -> Tensor:
        """f at one sample x (d,), on the pattern of the gates: a scalar."""
        values = {**self.unflatten(theta), **self._constants(theta)}
        with gates:
            value = functional_call(self._copy, values, (x[None],))
        gates.finish()
        return value.reshape(())

    def evaluate(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """The module itself at parameters by name and inputs (K, d), for who watches its calls."""
        return functional_call(self._copy, {**parameters, **self._constants(x)}, (x,))

    def _constants(self, like: Tensor) -> dict[str, Tensor]:
        """Frozen parameters and buffers, in the precision and on the device of ``like``."""
        return {
            name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            for name, value in self._fixed.items()
        }

    def _plain(self, theta: Tensor, x: Tensor) -> Tensor:
        """The module's own output (K,) at ``x`` (K, d), kinks and all."""
        try:
            output = self.evaluate(self.unflatten(theta), x)
        except Exception as error:
            sentence = f"`module` must take inputs (K, {x.shape[1]}), but: {_first_line(error)}"
            raise InputError(sentence) from None
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        fine = shape in ((len(x), 1), (len(x),))
        must = f"give one number a sample, of shape ({len(x)}, 1) or ({len(x)},)"
        require(fine, "module", must, f"{shape}")
        return output.reshape(-1)


def _over_rows(
    function: Callable[..., Any],
    theta: tuple[Tensor, ...],
    x: Tensor,
    pattern: Pattern | None,
    unit: Tensor | None = None,
) -> Any:
    """``function(theta, x, pattern, unit)`` of one row, over rows and leading dimensions.

    Args:
        function: of (n,) tensors, (d,), one (units,) a layer, and a scalar.
        theta: (…, n).
        x: (R, d).
        pattern: (R, units) or (…, R, units).
        unit: (R,).

    Returns:
        What it gives, with leading dimensions (…, R).
    """
    rows = len(x)
    if rows == 0:  # vmap needs one
        x = x.new_zeros(1, x.shape[1])
        pattern = pattern and [on.new_zeros(*on.shape[:-2], 1, on.shape[-1]) for on in pattern]
        unit = unit if unit is None else unit.new_zeros(1)
    leads = [theta[0].shape[:-1], *(on.shape[:-2] for on in pattern or ())]
    lead = torch.broadcast_shapes(*leads)
    axes = (None if pattern is None else 0, None if unit is None else 0)
    mapped = vmap(function, in_dims=(None, 0, *axes))
    if lead:
        theta = tuple(one.expand(*lead, -1).reshape(-1, one.shape[-1]) for one in theta)
        own = bool(pattern) and any(on.ndim > 2 for on in pattern or ())
        if pattern is not None and own:
            pattern = [on.expand(*lead, *on.shape[-2:]).flatten(0, len(lead) - 1) for on in pattern]
        mapped = vmap(mapped, in_dims=(0, None, 0 if own else None, None))
    found = mapped(theta, x, pattern, unit)
    if lead:
        found = tree_map(lambda value: value.unflatten(0, lead), found)
    if rows == 0:
        found = tree_map(lambda value: value.narrow(len(lead), 0, 0), found)
    return found


def _split(module: nn.Module) -> tuple[nn.Module, dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """A copy in double precision, the shapes of trainable parameters, and the constants."""
    moving = {name for name, value in module.named_parameters() if value.requires_grad}
    require(bool(moving), "module", "have trainable parameters", "without any")
    try:
        own = copy.deepcopy(module).double().requires_grad_(False)
    except Exception as error:
        sentence = f"`module` must allow a copy in double precision, but: {_first_line(error)}"
        raise InputError(sentence) from None
    named = dict(own.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in named.items() if name in moving}
    fixed = {name: value for name, value in named.items() if name not in moving}
    return own, shapes, {**fixed, **dict(own.named_buffers())}


def _find_dim(module: nn.Module) -> int:
    """The first dimension of inputs, of those that layers and parameters suggest, that runs."""
    module, reason = copy.deepcopy(module).eval(), "it suggests none"
    for dim in dict.fromkeys(_suggested_dims(module)):
        try:
            with torch.no_grad():
                module(torch.zeros(2, dim, dtype=torch.float64))
        except Exception as error:
            reason = _first_line(error)
        else:
            return dim
    raise InputError(
        f"`dim` must be given where no input (K, d) is seen to fit, but is 0: {reason}"
    )


def _suggested_dims(module: nn.Module) -> Iterator[int]:
    for part in module.modules():
        if isinstance(part, nn.Unflatten):
            yield math.prod(int(size) for size in part.unflattened_size)
        if isinstance(part, nn.Linear):
            yield part.in_features
    for value in (*module.parameters(), *module.buffers()):
        yield from value.shape[::-1]
    yield from range(1, 17)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load_forward_mode() -> None:
    """Make PyTorch load its forward mode now: loading it warns of its own use of TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.neg, (torch.ones(1),), (torch.ones(1),))
