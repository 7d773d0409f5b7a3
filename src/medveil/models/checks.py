"""What in a network stands in the way of private training: batch statistics, buffers, randomness, sharing."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

Reason = Literal[
    "batch-statistics", "running-statistics", "buffers", "random", "shared-parameters", "recurrent", "hooks"
]
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Hazard:
    """One property that a later stage must know about, or refuse.

    Args:
        reason: a short stable word.
        module: dotted path inside the network; "" is the network itself.
        detail: one sentence.
    """

    reason: Reason
    module: str
    detail: str


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a layer's answer for one image depends on the other images of the batch.

    Recognises every batch normalisation of torch and what derives from it (MONAI's nets use these). For layers
    of other origin ask :func:`mixes_examples`.

    >>> has_batch_statistics(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    True
    >>> has_batch_statistics(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))
    False
    """
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that are part of the model and not trained, by dotted path.

    They are not clipped, not noised and not covered by a gradient's privacy guarantee, so none may leave a site
    unless a policy says so.
    """
    return dict(model.named_buffers())


def mixes_examples(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether, in training, an image changes the answer for its neighbour in the batch: tried on noise.

    Args:
        model: left as it is; a copy runs in training mode on the processor.
        input_shape: (channels, *spatial).

    Returns:
        True when two batches that differ in their second image give different answers for the first. False is
        evidence from one try, not a proof.
    """
    twin = copy.deepcopy(model).cpu().train()
    generator = torch.Generator().manual_seed(0)
    first, second, other = torch.randn(3, *input_shape, generator=generator)
    before = _answer_for_first(twin, torch.stack((first, second)))
    after = _answer_for_first(twin, torch.stack((first, 5 * other + 3)))
    return not torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def describe_hazards(model: nn.Module) -> tuple[Hazard, ...]:
    """Everything in the network's structure that private training must know about; empty for the zoo's nets."""
    found = [hazard for path, module in model.named_modules() for hazard in _of_module(path, module)]
    return (*found, *_shared_parameters(model))


def _answer_for_first(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # Dropout must fall the same way in both tries.
        torch.default_generator.manual_seed(0)
        answer: Tensor = model(batch)
    return answer[0]


def _of_module(path: str, module: nn.Module) -> Iterator[Hazard]:
    kind = type(module).__name__
    if isinstance(module, _BatchNorm):
        detail = f"{kind} normalises with the other images of the batch: no gradient of one image exists"
        yield Hazard("batch-statistics", path, detail)
    if isinstance(module, _NormBase) and module.track_running_stats:
        detail = f"{kind} keeps running statistics of the images it has seen"
        yield Hazard("running-statistics", path, detail)
    if not isinstance(module, _BatchNorm | _InstanceNorm):
        names = sorted(name for name, _ in module.named_buffers(recurse=False))
        if names:
            yield Hazard("buffers", path, f"{kind} keeps {', '.join(names)} outside the trained parameters")
    if isinstance(module, _DropoutNd) and module.p > 0:
        yield Hazard("random", path, f"{kind} draws random numbers in training")
    if isinstance(module, nn.RNNBase):
        yield Hazard("recurrent", path, f"{kind} has no per-example gradients in torch.func")
    if any(getattr(module, name) for name in _HOOKS):
        yield Hazard("hooks", path, f"{kind} runs functions that are not part of the network's structure")


def _shared_parameters(model: nn.Module) -> Iterator[Hazard]:
    places = [(name, id(tensor)) for name, tensor in model.named_parameters(remove_duplicate=False)]
    counts = Counter(identity for _, identity in places)
    for name, identity in places:
        if counts[identity] > 1:
            path, _, parameter = name.rpartition(".")
            yield Hazard("shared-parameters", path, f"{parameter} is used in {counts[identity]} places")
