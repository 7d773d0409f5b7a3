"""From a configuration to a network: :func:`build`.

Every network answers with logits. Classification: (N, num_classes), two logits for a yes-or-no question, to be
trained with cross entropy. Segmentation: (N, num_classes, *spatial), background included.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medveil.errors import ConfigError, ModelError
from medveil.models.cnn import CnnConfig, build_cnn
from medveil.models.filterbank import FilterbankConfig, build_filterbank
from medveil.models.layers import FamilyConfig
from medveil.models.monai_nets import MonaiConfig, build_monai
from medveil.models.monet import MonetConfig, build_monet
from medveil.models.resnet import (
    Resnet9Config,
    Resnet18Config,
    Resnet20Config,
    build_resnet9,
    build_resnet18,
    build_resnet20,
)
from medveil.models.scattering import ScatteringConfig, build_scattering
from medveil.models.unet import UnetConfig, build_unet
from medveil.rng import Seeds

Task = Literal["classification", "segmentation"]
ModelConfig = Annotated[
    CnnConfig
    | Resnet9Config
    | Resnet18Config
    | Resnet20Config
    | ScatteringConfig
    | FilterbankConfig
    | UnetConfig
    | MonetConfig
    | MonaiConfig,
    Field(discriminator="kind"),
]
"""The ``[model]`` table of a plan."""

_BUILDERS: Final[dict[type, Callable[[Any, tuple[int, ...], int], nn.Module]]] = {
    CnnConfig: build_cnn,
    Resnet9Config: build_resnet9,
    Resnet18Config: build_resnet18,
    Resnet20Config: build_resnet20,
    ScatteringConfig: build_scattering,
    FilterbankConfig: build_filterbank,
    UnetConfig: build_unet,
    MonetConfig: build_monet,
    MonaiConfig: build_monai,
}
# What a forward pass raises when shapes or arguments do not fit.
_FORWARD_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


def build(
    config: ModelConfig,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int | Seeds,
    task: Task | None = None,
) -> nn.Module:
    """Make a network with reproducible initial weights, and try it on one image of zeros.

    Args:
        config: which network.
        input_shape: (channels, *spatial) of one image, two or three spatial axes.
        num_classes: at least 2; for segmentation the background counts.
        seed: of the initial weights; for :class:`Seeds` its node.
        task: what the network must answer; None accepts either answer.

    Returns:
        The network in training mode, on the processor, in float32.

    Raises:
        ConfigError: a shape, a number of classes or arguments that make no network.
        ModelError: images that the network cannot read, or an answer of another shape than the task needs.

    Guarantees:
        Equal arguments give bitwise equal weights; torch's global generator is left as it was.

    >>> from medveil.models.cnn import CnnConfig
    >>> model = build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=0)
    >>> sum(parameter.numel() for parameter in model.parameters())
    60530
    """
    _check_sizes(input_shape, num_classes)
    number = seed.integer() if isinstance(seed, Seeds) else seed
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also seed accelerators, which the fork does not restore.
        torch.default_generator.manual_seed(number)
        model = _BUILDERS[type(config)](config, input_shape, num_classes)
        # The zoo's nets do the same in both modes, and in training refuse maps too small to normalise; a dry
        # run in training could change the buffers of others.
        model.train(isinstance(config, FamilyConfig))
        shape = _answer_shape(model, input_shape)
    _check_answer(shape, input_shape, num_classes, task)
    return model


def _check_sizes(input_shape: tuple[int, ...], num_classes: int) -> None:
    if len(input_shape) not in (3, 4) or min(input_shape) < 1:
        raise ConfigError(
            "The shape of the images does not fit any network",
            got=input_shape,
            expected="(channels, rows, columns) or (channels, slices, rows, columns), all positive",
        )
    if num_classes < 2:  # noqa: PLR2004 - a yes-or-no question has two logits here
        raise ConfigError("A network needs classes to tell apart", got=num_classes, expected="at least 2")


def _answer_shape(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        with torch.no_grad():
            answer = model(torch.zeros(1, *input_shape))
    except _FORWARD_ERRORS as error:
        raise ModelError(
            "The network cannot read these images",
            got=f"images of shape {input_shape}; {type(error).__name__}",
            expected="a network and images that fit together",
            remedy="change the network's arguments, or pad or resize the images in the preprocessing",
        ) from error
    finally:
        model.train()
    if not isinstance(answer, Tensor):
        raise ModelError(
            "The network answers with several things",
            got=type(answer).__name__,
            expected="one tensor of logits",
            remedy="choose arguments without auxiliary outputs, or another network",
        )
    return tuple(answer.shape)


def _check_answer(shape: tuple[int, ...], input_shape: tuple[int, ...], num_classes: int, task: Task | None) -> None:
    answers: dict[Task, tuple[int, ...]] = {
        "classification": (1, num_classes),
        "segmentation": (1, num_classes, *input_shape[1:]),
    }
    wanted = list(answers.values()) if task is None else [answers[task]]
    if shape not in wanted:
        raise ModelError(
            f"The network's answer does not fit the task{'' if task is None else ' ' + task}",
            got=f"shape {shape} for one image of shape {input_shape}",
            expected=" or ".join(str(each) for each in wanted),
            remedy="choose a network for this task, or correct its arguments",
        )
