"""Which step a layer of torch is: modules by type, functions and methods by name and arguments."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from medveil.encrypted.compiler.graph import (
    Affine,
    Join,
    Maximum,
    Mean,
    PerChannel,
    Rearrange,
    Rectify,
    Repeat,
    Same,
    Sum,
    What,
    windowed,
)
from medveil.encrypted.compiler.refusals import refuse, refuse_kind, refuse_upsampling
from medveil.encrypted.program import LinearKind, Shape

_CONVOLUTIONS: Final[dict[type[nn.Module], LinearKind]] = {
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}
_After = Callable[[], Shape]

_RESHAPES: Final = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous")
# The parameters of functions, in order, after the values.
_PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "relu": ("inplace",),
    "dropout": ("p", "training", "inplace"),
    "max_pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive_avg_pool": ("output_size",),
    "interpolate": ("size", "scale_factor", "mode", "align_corners"),
    "mean": ("dim", "keepdim"),
}
SUMS: Final = ("add", "iadd", "add_")
PRODUCTS: Final = ("mul", "imul", "mul_", "multiply")
QUOTIENTS: Final = ("truediv", "itruediv", "div", "div_", "divide")
JOINS: Final = ("cat", "concat", "concatenate")


def of_module(module: nn.Module, layer: str, before: Shape, after: Callable[[], Shape]) -> What:
    """The step that a leaf module is.

    Args:
        module: in evaluation mode, float64.
        layer: dotted path and type.
        before: shape of its input.
        after: runs the module and says the shape of its result; called for supported kinds only.

    Raises:
        UnsupportedLayer: a kind, or arguments, that are not covered.
    """
    for kinds, handler in _MODULES:
        if isinstance(module, kinds):
            return handler(module, layer, before, after)
    raise refuse_kind(layer, type(module).__name__)


def of_function(
    name: str, layer: str, arguments: tuple[Sequence[Any], Mapping[str, Any]], before: Shape, after: Callable[[], Shape]
) -> What:
    """The step that a function or method with one value is.

    Args:
        name: of the function.
        layer: where it is called.
        arguments: after the value, by place and by name.
        before: as for :func:`of_module`.
        after: likewise.

    Raises:
        UnsupportedLayer: as :func:`of_module`.
    """
    base = name.rstrip("_").removesuffix("2d").removesuffix("3d")
    if base in _RESHAPES:
        return Rearrange()
    known = _PARAMETERS.get(base)
    if known is None or name.endswith("1d"):
        raise refuse_kind(layer, name)
    settings = dict(zip(known, arguments[0], strict=False)) | dict(arguments[1])
    return _FUNCTIONS[base](settings, layer, before, after)


def combination(name: str, layer: str, shapes: Sequence[Shape], settings: Mapping[str, Any], dim: int) -> Sum | Join:
    """The step that joins several values: a sum, or a concatenation along ``dim`` (the batch is axis 0)."""
    if name in JOINS:
        if dim not in (1, -len(shapes[0])):
            raise refuse(layer, f"concatenation along axis {dim}", "concatenate along the channels, dim = 1")
        return Join()
    if len(set(shapes)) != 1:
        raise refuse(layer, f"a sum of shapes {' and '.join(map(str, shapes))}", "add values of equal shape")
    if settings.get("alpha", 1) != 1:
        raise refuse(layer, "a sum with alpha", "multiply the branch by a number instead")
    return Sum()


def _convolution(module: nn.Module, layer: str, *_: object) -> Affine:
    kind = next(kind for type_, kind in _CONVOLUTIONS.items() if isinstance(module, type_))
    settings: Mapping[str, Any] = vars(module)
    if settings["padding_mode"] != "zeros":
        raise refuse(layer, f"padding_mode = {settings['padding_mode']!r}", 'use padding_mode = "zeros"')
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    return Affine(
        kind,
        weight.detach(),
        _bias(bias, settings["out_channels"]),
        settings["stride"],
        _padding(settings, layer),
        settings["dilation"],
        settings["output_padding"],
        settings["groups"],
    )


def _padding(settings: Mapping[str, Any], layer: str) -> Shape:
    padding: Shape | str = settings["padding"]
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return (0,) * len(settings["kernel_size"])
    totals = [
        dilation * (side - 1) for dilation, side in zip(settings["dilation"], settings["kernel_size"], strict=True)
    ]
    if any(total % 2 for total in totals):
        raise refuse(layer, "padding = 'same' with an even kernel", "use odd kernels, or padding by a number")
    return tuple(total // 2 for total in totals)


def _bias(bias: Tensor | None, channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.detach()


def _linear(module: nn.Linear, layer: str, before: Shape, _: _After) -> Affine:
    if len(before) != 1:
        raise refuse(layer, f"input of shape {before}", "flatten before a linear layer, or use a 1x1 convolution")
    return Affine("linear", module.weight.detach(), _bias(module.bias, module.out_features))


def _batch_norm(module: _BatchNorm, layer: str, *_: object) -> PerChannel:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise refuse(layer, "statistics of the batch at hand", "train with track_running_stats = True")
    scale = (variance + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.detach()
    shift = -mean * scale if module.bias is None else module.bias.detach() - mean * scale
    return PerChannel(scale, shift)


def _dropout(settings: Mapping[str, Any], layer: str, *_: object) -> Same:
    if settings.get("training", True):
        raise refuse(layer, "dropout that stays on after training", "pass training=self.training, or nn.Dropout")
    return Same()


def _maximum(settings: Mapping[str, Any], layer: str, before: Shape, _: _After) -> Maximum:
    if settings.get("ceil_mode") or settings.get("return_indices"):
        raise refuse(layer, "ceil_mode or return_indices", "leave both off")
    axes = len(before) - 1
    if set(_sides(settings.get("dilation", 1), axes)) != {1}:
        raise refuse(layer, "dilated maximum pooling", "use dilation = 1")
    kernel = _sides(settings["kernel_size"], axes)
    padding = _sides(settings.get("padding", 0), axes)
    return Maximum(kernel, _sides(settings.get("stride") or kernel, axes), padding)


def _mean(settings: Mapping[str, Any], layer: str, before: Shape, _: _After) -> Mean | Affine:
    axes = len(before) - 1
    if settings.get("ceil_mode") or any(_sides(settings.get("padding", 0), axes)):
        raise refuse(layer, "average pooling with padding or ceil_mode", "leave both off")
    if settings.get("divisor_override") is not None:
        raise refuse(layer, "divisor_override", "leave it off")
    kernel = _sides(settings["kernel_size"], axes)
    stride = _sides(settings.get("stride") or kernel, axes)
    return Mean(kernel) if kernel == stride else windowed(1 / math.prod(kernel), before[0], kernel, stride)


def _adaptive(_: object, layer: str, before: Shape, after: _After) -> Mean:
    pairs = list(zip(before[1:], after()[1:], strict=True))
    if any(length % wanted for length, wanted in pairs):
        wanted_sides = tuple(wanted for _, wanted in pairs)
        raise refuse(
            layer, f"windows of unequal sides, {before[1:]} to {wanted_sides}", "use a size that divides, as 1"
        )
    return Mean(tuple(length // wanted for length, wanted in pairs))


def _mean_of_all(settings: Mapping[str, Any], layer: str, before: Shape, _: _After) -> Mean:
    dims = settings.get("dim")
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    rank = len(before) + 1
    if not before[1:] or {dim % rank for dim in dims} != set(range(2, rank)):
        raise refuse(layer, f"a mean over axes {dims}", "take the mean over all spatial axes")
    return Mean(before[1:])


def _repeat(settings: Mapping[str, Any], layer: str, before: Shape, after: _After) -> Repeat:
    mode, pairs = settings.get("mode", "nearest"), list(zip(before[1:], after()[1:], strict=True))
    if mode not in ("nearest", "nearest-exact") or any(longer % length for length, longer in pairs):
        raise refuse_upsampling(layer, mode)
    return Repeat(tuple(longer // length for length, longer in pairs))


def _sides(value: int | Sequence[int], axes: int) -> Shape:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def _always(what: What) -> Callable[..., What]:
    return lambda *_: what


def _of_settings(handler: Callable[..., What]) -> Callable[..., What]:
    return lambda module, layer, before, after: handler(vars(module), layer, before, after)


_MODULES: Final[tuple[tuple[Any, Callable[..., What]], ...]] = (
    (tuple(_CONVOLUTIONS), _convolution),
    (nn.Linear, _linear),
    (_BatchNorm, _batch_norm),
    (nn.ReLU, _always(Rectify())),
    ((nn.Identity, _DropoutNd), _always(Same())),
    ((nn.Flatten, nn.Unflatten), _always(Rearrange())),
    (nn.Upsample, _of_settings(_repeat)),
    ((nn.MaxPool2d, nn.MaxPool3d), _of_settings(_maximum)),
    ((nn.AvgPool2d, nn.AvgPool3d), _of_settings(_mean)),
    ((nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive),
)
_FUNCTIONS: Final[dict[str, Callable[..., What]]] = {
    "relu": _always(Rectify()),
    "dropout": _dropout,
    "max_pool": _maximum,
    "avg_pool": _mean,
    "adaptive_avg_pool": _adaptive,
    "interpolate": _repeat,
    "mean": _mean_of_all,
}
