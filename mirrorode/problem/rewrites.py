"""How the kinks that PyTorch knows are written as gates.

Each rewrite takes the gates and then the arguments of the function that it stands for. The gates
are asked for two things: ``unit(u, (off, on))``, which is u times the slope of its side, and
``choose(a, b)``, the maximum of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from mirrorode.problem import tournaments
from mirrorode.problem.errors import InputError

Slopes = tuple[float, float]

CAN = "linear maps, convolutions, average and max pooling, relu, leaky_relu, abs and max"


class Gates(Protocol):
    """What kinks are made of."""

    def unit(self, u: Tensor, slopes: Slopes) -> Tensor:
        """The slope ``(off, on)`` of the side of ``u``, times u."""

    def choose(self, a: Tensor, b: Tensor) -> Tensor:
        """max(a, b), a gate on a − b."""


class Extremum(NamedTuple):
    """What ``torch.max`` over a dimension returns; the place of a maximum cannot be followed."""

    values: Tensor
    indices: None = None


def refuse(what: str) -> NoReturn:
    """Raise InputError: the module does ``what``."""
    raise InputError(f"`module` must be built of {CAN}, but {what}")


def name_of(function: Any) -> str:
    """The plain name of a torch function, method, operator or attribute."""
    name = getattr(function, "__name__", str(function)).split(".")[0].strip("_")
    if name == "get":  # an attribute of a tensor
        return (torch.overrides.resolve_name(function) or "attribute.get").split(".")[-2]
    return name.removeprefix("linalg_").removeprefix("special_")


@cache
def rewrite_of(function: Any) -> Callable[..., Any] | None:
    """What to call in place of a torch function, if it has a kink that can be followed."""
    return _REWRITES.get(name_of(function))


def _relu(gates: Gates, input: Tensor, inplace: bool = False) -> Tensor:
    return gates.unit(input, (0.0, 1.0))


def _leaky_relu(
    gates: Gates, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return gates.unit(input, (float(negative_slope), 1.0))


def _abs(gates: Gates, input: Tensor) -> Tensor:
    return gates.unit(input, (-1.0, 1.0))


def _clamp(gates: Gates, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if isinstance(min, int | float) and min == 0 and max is None:
        return gates.unit(input, (0.0, 1.0))
    if isinstance(max, int | float) and max == 0 and min is None:
        return -gates.unit(-input, (0.0, 1.0))
    refuse(f"clamps to [{min}, {max}]; of clamps only those at 0 on one side are homogeneous")


def _threshold(
    gates: Gates, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor:
    if threshold == 0 and value == 0:
        return gates.unit(input, (0.0, 1.0))
    refuse(f"has a threshold at {threshold} to {value}; only that at 0 to 0 is homogeneous")


def _maximum(gates: Gates, input: Tensor, other: Tensor) -> Tensor:
    return gates.choose(input, other)


def _minimum(gates: Gates, input: Tensor, other: Tensor) -> Tensor:
    return -gates.choose(-input, -other)


def _amax(gates: Gates, input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    dims = [dim] if isinstance(dim, int) else list(dim) or list(range(input.ndim))
    dims = sorted(axis % input.ndim for axis in dims)
    moved = input.movedim(dims, list(range(-len(dims), 0)))
    windows = [(tuple(range(size)),) for size in moved.shape[-len(dims) :]]
    best = tournaments.play(gates.choose, moved, windows)
    best = best.movedim(list(range(-len(dims), 0)), dims)
    return best if keepdim else best.squeeze(dims)


def _amin(gates: Gates, input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -_amax(gates, -input, dim, keepdim)


def _max(gates: Gates, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _extremum(_maximum, _amax, gates, input, *args, **kwargs)


def _min(gates: Gates, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _extremum(_minimum, _amin, gates, input, *args, **kwargs)


def _extremum(
    of_two: Callable[..., Tensor],
    along: Callable[..., Tensor],
    gates: Gates,
    input: Tensor,
    other: Any = None,
    keepdim: bool = False,
    *,
    dim: int | None = None,
) -> Any:
    if isinstance(other, Tensor):
        return of_two(gates, input, other)
    dim = dim if other is None else other
    if dim is None:
        return along(gates, input)
    return Extremum(along(gates, input, dim, keepdim))


def _max_pool(axes: int) -> Callable[..., Tensor]:
    def pool(
        gates: Gates,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        settings = (kernel_size, stride or kernel_size, padding, dilation)
        each = zip(*(_per_axis(value, axes) for value in settings), strict=True)
        sizes = input.shape[-axes:]
        windows = [
            tournaments.sliding(size, *values, ceil_mode=ceil_mode)
            for size, values in zip(sizes, each, strict=True)
        ]
        return tournaments.play(gates.choose, input, windows)

    return pool


def _adaptive_max_pool(axes: int) -> Callable[..., Tensor]:
    def pool(gates: Gates, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        pairs = zip(input.shape[-axes:], _per_axis(output_size, axes), strict=True)
        windows = [tournaments.adaptive(size, count or size) for size, count in pairs]
        return tournaments.play(gates.choose, input, windows)

    return pool


def _per_axis(value: Any, axes: int) -> Sequence[Any]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * axes if len(values) == 1 else values


POOLS = {f"{kind}{axes}d" for kind in ("max_pool", "adaptive_max_pool") for axes in (1, 2, 3)}
"""Maxima that may change places with a rising gate below: max σ(u) = σ(max u)."""

_REWRITES: dict[str, Callable[..., Any]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "abs": _abs,
    "absolute": _abs,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda gates, input, min: _clamp(gates, input, min=min),
    "clamp_max": lambda gates, input, max: _clamp(gates, input, max=max),
    "threshold": _threshold,
    "maximum": _maximum,
    "minimum": _minimum,
    "max": _max,
    "min": _min,
    "amax": _amax,
    "amin": _amin,
    **{f"max_pool{axes}d": _max_pool(axes) for axes in (1, 2, 3)},
    **{f"adaptive_max_pool{axes}d": _adaptive_max_pool(axes) for axes in (1, 2, 3)},
}

_REFUSED = """
gelu silu mish softplus softmax log_softmax softmin gumbel_softmax sigmoid logsigmoid
log_sigmoid hardsigmoid hardswish hardtanh relu6 elu selu celu rrelu prelu glu softshrink
hardshrink tanhshrink softsign tanh
exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh asinh acosh
atanh erf erfc erfinv expit sqrt rsqrt reciprocal hypot logsumexp logaddexp logcumsumexp lgamma
norm vector_norm matrix_norm normalize cosine_similarity pairwise_distance cdist dist renorm
weight_norm batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm
native_batch_norm native_layer_norm lp_pool1d lp_pool2d lp_pool3d std std_mean
max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d
scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh rnn_relu
sign sgn signbit heaviside copysign floor ceil round fix trunc frac fmod remainder
floor_divide fmax fmin aminmax gt ge lt le eq ne greater greater_equal less less_equal equal
not_equal isclose allclose argmax argmin sort argsort msort topk kthvalue median nanmedian
mode quantile nanquantile cummax cummin unique bucketize searchsorted nonzero histc
isnan isinf isfinite nan_to_num bool int float item tolist numpy detach data
logical_not logical_and logical_or logical_xor
inverse inv pinv det logdet slogdet svd eig eigh qr cholesky solve lstsq matrix_exp
"""
REFUSED = frozenset(_REFUSED.split())
"""Functions that are neither polynomial nor a kink that can be followed, refused by name."""

COMPARISONS = REFUSED & {"gt", "ge", "lt", "le", "eq", "ne", "greater", "less"}
COMPARES = ": what is chosen by comparing values of the parameters has kinks that are not seen"

_POLYNOMIAL = """
add sub rsub subtract mul multiply neg negative positive sum mean square prod matmul mm bmm mv
dot vdot inner outer ger addmm addmv baddbmm addbmm einsum tensordot bilinear linear kron
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
pad constant_pad_nd interpolate upsample pixel_shuffle pixel_unshuffle unfold fold
view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose
swapaxes swapdims movedim moveaxis t T mT H mH adjoint expand expand_as broadcast_to repeat
repeat_interleave tile cat concat concatenate stack hstack vstack split chunk unbind narrow
select index_select gather take diag diagonal diag_embed tril triu roll flip rot90 cumsum diff
getitem setitem clone contiguous to type type_as double identity dropout
shape size dim ndim dtype device numel stride requires_grad is_leaf layout len iter
"""
POLYNOMIAL = frozenset(_POLYNOMIAL.split())
"""Functions that are polynomial in their arguments: not to be blamed if the output is not."""
