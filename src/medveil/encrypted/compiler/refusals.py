"""What encrypted inference cannot evaluate, and what to do instead."""

from typing import Final

from medveil.errors import UnsupportedLayer

SUPPORTED: Final = (
    "convolution, transposed convolution, linear, batch normalisation, ReLU, maximum and average pooling, sums, "
    "concatenation along channels, nearest upsampling, flatten and dropout"
)

_NORM: Final = 'train with norm = "ws" (or batch normalisation), which folds into the weights'
_ACTIVATION: Final = 'use ReLU (activation = "relu")'
_LAST: Final = "leave it off: logits are what is revealed, and the hospital computes probabilities from them"
_POOL: Final = "use maximum or average pooling with a fixed window, without indices"
_SEQUENCE: Final = "choose a convolutional network"
_PAD: Final = "pad with zeros inside the convolution"
_UPSAMPLE: Final = 'use nearest upsampling (up = "nearest") or transposed convolution'
_COMBINE: Final = "combine branches by a sum or by concatenation along the channels"
_SHAPE: Final = "reshape only in ways that keep the batch and the order of the numbers"

_REMEDIES: Final[dict[str, str]] = (
    dict.fromkeys(
        (
            "groupnorm", "instancenorm1d", "instancenorm2d", "instancenorm3d", "layernorm", "localresponsenorm",
            "rmsnorm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm", "batch_norm",
            "syncbatchnorm", "normalize",
        ),
        _NORM,
    )
    | dict.fromkeys(
        (
            "leakyrelu", "prelu", "rrelu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
            "hardtanh", "hardsigmoid", "softplus", "softsign", "softshrink", "hardshrink", "tanh", "tanhshrink",
            "threshold", "glu", "swish", "memoryefficientswish", "leaky_relu", "leaky_relu_", "abs", "sqrt", "exp",
            "clamp", "square", "pow",
        ),
        _ACTIVATION,
    )
    | dict.fromkeys(
        ("sigmoid", "softmax", "softmax2d", "logsoftmax", "log_softmax", "logsigmoid", "softmin", "argmax"), _LAST
    )
    | dict.fromkeys(
        (
            "adaptivemaxpool2d", "adaptivemaxpool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "lppool2d",
            "max_pool2d_with_indices", "max_pool3d_with_indices",
            "fractionalmaxpool2d", "fractionalmaxpool3d", "maxunpool2d", "maxunpool3d", "max", "amax",
        ),
        _POOL,
    )
    | dict.fromkeys(
        (
            "rnn", "lstm", "gru", "multiheadattention", "transformer", "transformerencoder", "embedding",
            "scaled_dot_product_attention", "conv1d", "convtranspose1d", "maxpool1d", "avgpool1d",
        ),
        _SEQUENCE,
    )
    | dict.fromkeys(
        (
            "pad", "zeropad2d", "zeropad3d", "constantpad2d", "constantpad3d", "reflectionpad2d", "reflectionpad3d",
            "replicationpad2d", "replicationpad3d", "circularpad2d", "circularpad3d",
        ),
        _PAD,
    )
    | dict.fromkeys(("upsamplingbilinear2d", "pixelshuffle", "pixel_shuffle", "grid_sample"), _UPSAMPLE)
    | dict.fromkeys(("matmul", "bmm", "einsum", "sub", "where", "stack", "maximum", "minimum", "bilinear"), _COMBINE)
    | dict.fromkeys(("permute", "transpose", "getitem", "chunk", "split", "movedim", "expand", "repeat"), _SHAPE)
)  # fmt: skip


def refuse(layer: str, why: str, remedy: str) -> UnsupportedLayer:
    """The error for a layer whose kind is covered, but not with these arguments."""
    return UnsupportedLayer("Encrypted inference cannot evaluate a layer", layer=layer, got=why, remedy=remedy)


def refuse_kind(layer: str, kind: str) -> UnsupportedLayer:
    """The error for a layer of a kind that is not covered.

    Args:
        layer: dotted path and type.
        kind: name of its class or function.
    """
    remedy = _REMEDIES.get(kind.lower(), f"replace it: covered are {SUPPORTED}")
    return refuse(layer, kind, remedy)


def refuse_upsampling(layer: str, mode: str) -> UnsupportedLayer:
    """The error for an interpolation that is not a repetition."""
    return refuse(layer, f"upsampling with mode = {mode!r}, or not by whole factors", _UPSAMPLE)
