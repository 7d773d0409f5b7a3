"""The layer that a malicious server puts before a network, and how it reads images from that layer's gradient."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from medveil.attacks.reconstruction_engine import GaussianPrior
from medveil.attacks.scene import Scene
from medveil.rng import Seeds
from medveil.training.optimisers import Adam, build_optimiser

_STRENGTH = 0.3
_LARGEST_ENTRY = 1 / 32
_EMPTY = 1e-7
_TRIAL = 16
_AT_ONCE = 32
_BELOW_EPS = 0.01
_SMALL_STEP = 1e-6
_STEP_PER_WEIGHT = 5e-4
_STIRRED = 0.05


class Imprinted(nn.Module):
    """A network behind a linear layer whose rows all measure the same and whose biases are a ladder of cut-offs.

    What the layer's units add up to goes back onto the image, so any network can follow. Every active unit has the
    same gradient, so neighbouring units' gradients differ by the images that lie between their cut-offs.

    Args:
        model: that follows; frozen here: the layer's gradient is made to outweigh every other one.
        measure: shape (d,): what every row measures.
        cutoffs: ascending, shape (bins,), of the measurement of the centred image.
        centre: shape (1, channels, *spatial), taken off the input first.
        pattern: shape (1, channels, *spatial): how the units' sum is added to the image.

    Reference:
        Fowl et al. 2022, https://arxiv.org/abs/2110.13057
    """

    def __init__(self, model: nn.Module, measure: Tensor, cutoffs: Tensor, centre: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.model = model
        self.linear = nn.Linear(measure.numel(), len(cutoffs))
        with torch.no_grad():
            self.linear.weight.copy_(measure.expand(len(cutoffs), -1))
            self.linear.bias.copy_(-cutoffs)
        self.register_buffer("centre", centre)
        self.register_buffer("pattern", pattern / len(cutoffs))
        self.centre: Tensor
        self.pattern: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the network that follows, on images with a little of the layer's answer on them."""
        active = relu(self.linear((inputs - self.centre).flatten(1))).sum(1)
        shape = (-1,) + (1,) * (inputs.ndim - 1)
        answer: Tensor = self.model(inputs + active.view(shape) * self.pattern)
        return answer

    def bins(self, inputs: Tensor) -> Tensor:
        """Which bin an image falls into: -1 below the first cut-off; shape (N,), int64."""
        with torch.no_grad():
            measured: Tensor = self.linear((inputs - self.centre).flatten(1))
            return (measured > 0).sum(1) - 1

    def amplify(self, factor: float) -> None:
        """Multiply the layer's gradients and change no answer: smaller weights, a larger pattern."""
        with torch.no_grad():
            self.linear.weight.div_(factor)
            self.linear.bias.div_(factor)
            self.pattern.mul_(factor)


@dataclass(frozen=True)
class Setting:
    """How the layer is made.

    Args:
        bins: units.
        measure: "brightness" (mean of the pixels) or "random" (a random projection).
    """

    bins: int
    measure: str


def imprint(scene: Scene, setting: Setting, seeds: Seeds) -> Imprinted:
    """Put the layer before the scene's model, with cut-offs at quantiles of public images.

    Gradients are scaled so that the largest entry that a batch of public images gives is 1/32: well inside the range
    of a secure sum.
    """
    inputs = scene.scaled(scene.public.float())
    centre = inputs.mean(0, keepdim=True)
    flat = (inputs - centre).flatten(1)
    draws = seeds.torch()
    measure = (
        torch.ones(flat.shape[1]) if setting.measure == "brightness" else torch.randn(flat.shape[1], generator=draws)
    )
    measure = measure / measure.norm()
    found = (flat @ measure).double()
    spread = max(float(found.std()), 1e-6)
    steps = torch.linspace(0, 1, setting.bins + 1, dtype=torch.float64)[:-1]
    cutoffs = _smooth_quantiles(found, steps, 0.1 * spread)
    cutoffs[0] = float(found.min()) - 10 * spread
    pattern = _STRENGTH * torch.randn(centre.shape, generator=draws)
    made = Imprinted(scene.model, measure, cutoffs.float(), centre, pattern)
    weight, _ = layer_gradient(scene, made, scene.public[:_TRIAL].float(), scene.public_targets[:_TRIAL])
    if not weight.any():  # first weights of zero let no gradient through: the server sends others
        made.model = _stirred(scene.model, seeds.child("stirred"))
        weight, _ = layer_gradient(scene, made, scene.public[:_TRIAL].float(), scene.public_targets[:_TRIAL])
    made.amplify(_LARGEST_ENTRY / max(float(weight.abs().max()), 1e-30))
    return made


def _stirred(model: nn.Module, seeds: Seeds) -> nn.Module:
    """A copy with a little noise on every trainable weight."""
    copied, draws = copy.deepcopy(model), seeds.torch()
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.requires_grad:
                parameter.add_(_STIRRED * torch.randn(parameter.shape, generator=draws))
    return copied


def layer_gradient(scene: Scene, made: Imprinted, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss by the layer's weight and bias; a few images at a time, which memory likes."""
    layer = (made.linear.weight, made.linear.bias)
    weight, bias = (torch.zeros_like(each) for each in layer)
    for some, truth in zip(torch.split(images, _AT_ONCE), torch.split(targets, _AT_ONCE), strict=True):
        value = scene.loss(made(scene.scaled(some)), truth).sum() / len(images)
        parts = torch.autograd.grad(value, layer)
        weight, bias = weight + parts[0], bias + parts[1]
    return weight, bias


def quiet(scene: Scene, made: Imprinted) -> Imprinted:
    """A copy for local steps: they move no cut-off far, and float32 still holds them.

    For Adam gradients lie a hundredfold below its ``eps``, so that its steps are sums of gradients again.
    """
    optimiser = scene.training.optimiser
    if isinstance(optimiser, Adam):
        step, gradient = _BELOW_EPS * optimiser.lr, _BELOW_EPS * optimiser.eps
    else:
        step, gradient = _SMALL_STEP, _SMALL_STEP / optimiser.lr
    copied = copy.deepcopy(made)
    copied.amplify(float(copied.linear.weight.detach().square().mean().sqrt()) / (step / _STEP_PER_WEIGHT))
    weight, _ = layer_gradient(scene, copied, scene.public[:_TRIAL].float(), scene.public_targets[:_TRIAL])
    copied.pattern.mul_(gradient / max(float(weight.abs().max()), 1e-30))
    return copied


def local_update(scene: Scene, made: Imprinted, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """How far a site's local steps, one a batch, take the layer from where they would without images, in float64.

    The plan's optimiser takes them. What it does without images (weight decay) the server knows. The layer is left as
    it was.
    """
    moved = _steps(scene, made, [layer_gradient_of(scene, made, *batch) for batch in batches])
    idle = _steps(scene, made, [None] * len(batches))
    weight, bias = (without - with_ for without, with_ in zip(idle, moved, strict=True))
    return weight, bias


def layer_gradient_of(scene: Scene, made: Imprinted, images: Tensor, targets: Tensor) -> Callable[[], Sequence[Tensor]]:
    """:func:`layer_gradient`, to be taken at the weights of the moment."""
    return lambda: layer_gradient(scene, made, images, targets)


def _steps(scene: Scene, made: Imprinted, gradients: Sequence[Callable[[], Sequence[Tensor]] | None]) -> list[Tensor]:
    layer = (made.linear.weight, made.linear.bias)
    before = [each.detach().clone() for each in layer]
    optimiser = build_optimiser(list(layer), scene.training.optimiser)
    for gradient in gradients:
        found = [torch.zeros_like(each) for each in layer] if gradient is None else gradient()
        for parameter, value in zip(layer, found, strict=True):
            parameter.grad = value
        optimiser.step()
    after = [each.detach().double() for each in layer]
    with torch.no_grad():
        for parameter, old in zip(layer, before, strict=True):
            parameter.copy_(old)
            parameter.grad = None
    return after


def read(made: Imprinted, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One candidate a bin, as network input: the quotient of neighbours' differences.

    Args:
        made: the layer.
        weight: its summed gradient, shape (bins, d).
        bias: likewise, shape (bins,).

    Returns:
        Shape (bins, channels, *spatial); and which bins held anything, shape (bins,).
    """
    across, step = _differences(weight), _differences(bias)
    full = step.abs() > _EMPTY * bias.abs().max().double()
    quotient = across / torch.where(full, step, torch.ones_like(step))[:, None]
    images = made.centre.double() + quotient.reshape(-1, *made.centre.shape[1:])
    return torch.where(full.view(-1, *(1,) * (images.ndim - 1)), images, made.centre.double()), full


def read_noisy(
    made: Imprinted, weight: Tensor, bias: Tensor, prior: GaussianPrior, *, noise_std: float, l2_clip_norm: float
) -> Tensor:
    """One candidate a bin, as network input, by an attacker who knows the noise, the clipping and public images.

    Args:
        made: the layer.
        weight: its summed clipped gradient with noise, shape (bins, d).
        bias: likewise, shape (bins,).
        prior: of network inputs; its mean is the layer's centre.
        noise_std: of every coordinate.
        l2_clip_norm: of a unit: an image in bin i moves i + 1 rows alike, so the scale of each is known.
    """
    rows = torch.arange(1, len(bias) + 1, dtype=torch.float64)
    length = float((prior.variances.sum() + prior.rest * (prior.mean.numel() - len(prior.variances)) + 1).sqrt())
    std = torch.full((len(bias),), noise_std * 2**0.5, dtype=torch.float64)
    std[-1] = noise_std
    found = prior.reconstruct(
        _differences(weight),
        _differences(bias),
        noise_std=std,
        typical=l2_clip_norm / (rows.sqrt() * length),
        both_signs=True,
    )
    return found.reshape(-1, *made.centre.shape[1:])


def secure_sum(parts: Sequence[Sequence[Tensor]], value_range: float = 1.0) -> list[Tensor]:
    """The sum of sites' gradients as a secure sum opens it: fixed-point numbers of 32 bits, modulo 2**32, in float64.

    Args:
        parts: of every site, its tensors.
        value_range: of one site's numbers; larger ones are clipped, as in a training.
    """
    from medveil.secagg.encoding import FixedPoint

    point = FixedPoint.fitting(value_range, len(parts), 32)
    sums = []
    for tensors in zip(*parts, strict=True):
        encoded = [point.encode(each.detach().double().numpy().reshape(-1))[0] for each in tensors]
        total = np.add.reduce(encoded, dtype=encoded[0].dtype)
        sums.append(torch.from_numpy(point.decode(total, sites_included=len(parts))).reshape(tensors[0].shape))
    return sums


def _differences(rows: Tensor) -> Tensor:
    """Each row less the next; the last as it is. float64."""
    rows = rows.double()
    return torch.cat([rows[:-1] - rows[1:], rows[-1:]])


def _smooth_quantiles(values: Tensor, levels: Tensor, width: float) -> Tensor:
    """Quantiles of the values, each widened to a normal law: few public images have many quantiles that way."""
    from scipy.special import ndtr

    ordered = values.numpy()
    grid = np.linspace(ordered.min() - 4 * width, ordered.max() + 4 * width, 4096)
    share = np.mean([ndtr((grid - value) / width) for value in ordered], axis=0)
    return torch.from_numpy(np.interp(levels.numpy(), share, grid))
