"""Networks and weights that were made to copy images into gradients: what a site can refuse before it trains.

A malicious server reads images from an update when a linear layer sees the (almost) raw image and its units fire one
after the other (Fowl et al. 2022), or each for very few images (Boenisch et al. 2023). Both leave traces in what the
units answer: the first to any images, the second only to images like those that the units were made for, so synthetic
ones do not show it. Not a privacy guarantee: a server that knows these checks can evade them,
and weights may leak in ways that nobody has described. What bounds a leak is differential privacy.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from medveil.errors import GuaranteeError, ModelError
from medveil.models.architecture import architecture_hash

_LINEAR: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEWEST_UNITS: Final = 8
_FEWEST_INPUTS: Final = 16
_MOST_INPUTS: Final = 128
_MOST_PARALLEL: Final = 0.9
_MOST_SINGLE: Final = 0.5
_RARE: Final = 1 / 16


@dataclass(frozen=True)
class Layer:
    """How the units of one linear layer answer.

    Attributes:
        path: of the layer in the network.
        units: rows of its matrix (channels of a convolution with a kernel as large as the image).
        parallel: share of the units' variance over noise that one direction explains, in [0, 1]: 1 when all units
            measure the same thing.
        single: of the units that fire for any of the inputs, the share that fires for very few (at most one in 16,
            rounded up).
    """

    path: str
    units: int
    parallel: float
    single: float

    @property
    def suspicious(self) -> bool:
        """Whether a share is above its limit (0.9 and 0.5)."""
        return self.parallel > _MOST_PARALLEL or self.single > _MOST_SINGLE


def check_architecture(model: nn.Module, input_shape: tuple[int, ...], expected_hash: str) -> None:
    """Refuse a network whose structure is not the one that was approved.

    Args:
        model: about to be trained.
        input_shape: (channels, *spatial).
        expected_hash: :func:`medveil.models.architecture.architecture_hash` of the approved network.

    Raises:
        GuaranteeError: another structure.

    >>> from medveil.models.architecture import architecture_hash
    >>> check_architecture(nn.Linear(3, 2), (3,), architecture_hash(nn.Linear(3, 2), (3,)))
    """
    found = architecture_hash(model, input_shape)
    if not hmac.compare_digest(found, expected_hash):
        raise GuaranteeError(
            "The network is not the one that was approved",
            got=f"architecture hash {found[:16]}",
            expected=expected_hash[:16],
            remedy="do not train it: ask who sent it what was changed, and approve its plan anew if that is right",
        )


def check_weights_not_crafted(model: nn.Module, inputs: Tensor) -> tuple[Layer, ...]:
    """Refuse weights whose linear layers answer as those of an imprint or of trap weights do.

    Not a privacy guarantee: it finds these two attacks as they were published, and what is like them. Only layers that
    answer with a vector an image are measured (linear ones, and convolutions with one output position), and not the
    network's last. Few units, or a ladder hidden among many honest units, pass.

    Args:
        model: with the weights that arrived; left as it is.
        inputs: public or synthetic images as the network reads them, at least 16, shape (N, channels, *spatial): never
            a patient's, because whether they pass may become known.

    Returns:
        What was measured of every layer with at least 8 units.

    Raises:
        GuaranteeError: a layer's units measure all the same thing, or fire for single inputs.
        ModelError: fewer than 16 inputs, inputs without any difference, or answers that are not finite.

    References:
        Fowl et al. 2022, https://arxiv.org/abs/2110.13057; Boenisch et al. 2023, https://arxiv.org/abs/2112.02918
    """
    if len(inputs) < _FEWEST_INPUTS:
        raise ModelError(
            "Too few inputs to tell how units answer", got=len(inputs), expected=f"at least {_FEWEST_INPUTS}"
        )
    images = inputs[:_MOST_INPUTS].float()
    deviation = images.std(0).mean()
    if not float(deviation) > 0:
        raise ModelError("The inputs are all the same image", expected="images that differ", remedy="give other images")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images) * deviation
    on_noise = _answers(model, images.mean(0, keepdim=True) + noise)
    on_images = _answers(model, images)
    layers = tuple(
        Layer(path, on_noise[path].shape[1], _parallel(on_noise[path]), _single(on_images[path]))
        for path in on_noise
        if on_noise[path].shape[1] >= _FEWEST_UNITS
    )
    caught = [layer for layer in layers if layer.suspicious]
    if caught:
        worst = caught[0]
        raise GuaranteeError(
            "The weights look crafted to copy images into the update",
            got=f"layer {worst.path} of {worst.units} units: {100 * worst.parallel:.0f} % of what they answer is one "
            f"measurement, {100 * worst.single:.0f} % of them fire for very few inputs",
            expected=f"at most {100 * _MOST_PARALLEL:.0f} % and {100 * _MOST_SINGLE:.0f} %",
            remedy="do not train on them: ask for the plan's own first weights, or train with differential privacy",
        )
    return layers


def has_hidden_linear(model: nn.Module) -> bool:
    """Whether a linear layer with enough units stands before the network's last one: where images could be copied.

    >>> has_hidden_linear(nn.Linear(4, 9))
    False
    >>> has_hidden_linear(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)))
    True
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return any(module.out_features >= _FEWEST_UNITS for module in linear[:-1])


def synthetic_inputs(input_shape: tuple[int, ...], *, count: int = 32) -> Tensor:
    """Smooth random images with the range of the network's input, for :func:`check_weights_not_crafted`.

    Args:
        input_shape: (channels, *spatial).
        count: of images.

    Returns:
        Shape (count, *input_shape), in -2..2; always the same. No patient's image is needed. They show units that all
        measure the same, not traps that were fitted to real images: for those give public images of the site's kind.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = [max(2, side // 4) for side in input_shape[1:]]
    small = torch.rand(count, input_shape[0], *coarse, generator=generator)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(coarse)]
    images = functional.interpolate(small, tuple(input_shape[1:]), mode=mode, align_corners=True)
    brightness = torch.rand(count, *(1,) * len(input_shape), generator=generator)
    return 4 * (0.5 * images + 0.5 * brightness) - 2


def _parallel(answers: Tensor) -> float:
    """Share of the variance over inputs that the first principal direction explains; each unit counts alike."""
    centred = answers.double() - answers.double().mean(0)
    norms = centred.norm(dim=0)
    moving = norms > 1e-9 * norms.max().clamp(min=1e-30)
    if int(moving.sum()) < _FEWEST_UNITS:
        return 0.0
    singular = torch.linalg.svdvals(centred[:, moving] / norms[moving])
    return float(singular[0].square() / singular.square().sum())


def _single(answers: Tensor) -> float:
    """Of the units that fire, the share that fires for at most one input in 16."""
    fires = (answers > 0).sum(0)
    ever = fires > 0
    if int(ever.sum()) < _FEWEST_UNITS:
        return 0.0
    rare = max(1, int(len(answers) * _RARE))
    return float((ever & (fires <= rare)).sum() / ever.sum())


def _answers(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """By path, what every linear layer answers before its activation, shape (N, units); not the network's own answer.

    Rows of a last layer may well be parallel (two classes, one direction), and no later layer tells their units apart.
    """
    found: dict[str, Tensor] = {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _listening(model, found):
            answer = model(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not torch.isfinite(answer).all():
        raise ModelError(
            "The network's answer to public images is not finite",
            expected="finite numbers",
            remedy="do not train on these weights",
        )
    return {path: each for path, each in found.items() if each.shape != answer.shape or not torch.equal(each, answer)}


@contextmanager
def _listening(model: nn.Module, found: dict[str, Tensor]) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if output.ndim >= 2 and output[0, 0].numel() == 1:  # noqa: PLR2004 - (N, units)
                found[path] = output.detach().flatten(1)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, _LINEAR):
            handles.append(module.register_forward_hook(keep(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
