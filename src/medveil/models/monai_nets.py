"""Networks of MONAI by name, built without touching the network or a pickle file.

MONAI is imported when a plan asks for one of its nets, never before.
"""

import inspect
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from medveil.errors import ConfigError

_WEIGHT_SOURCES: Final = ("pretrained", "url", "path", "file", "checkpoint")
_REMEDY: Final = "see the documentation of monai.networks.nets for the network's arguments"
# What constructors of torch and MONAI modules raise on arguments that do not fit; OptionalImportError of MONAI,
# for nets that need a further package, is an ImportError.
_CONSTRUCTION_ERRORS: Final = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
)


class MonaiConfig(BaseModel):
    """Any network class of ``monai.networks.nets``.

    Args:
        kind: "monai".
        name: of the class, for example "UNet", "DenseNet121" or "SegResNet".
        arguments: of its constructor. Left out, ``spatial_dims``, ``in_channels`` and the number of outputs
            follow from the data, and nothing pretrained is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["monai"] = "monai"
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    arguments: dict[str, Any] = Field(default_factory=dict)


def build_monai(config: MonaiConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; weights come from torch's global generator (see :func:`medveil.models.registry.build`).

    Args:
        config: name and arguments.
        input_shape: (channels, *spatial).
        num_classes: outputs.

    Raises:
        ConfigError: no network of that name, arguments that its constructor refuses, or an argument that would
            fetch weights.
    """
    network = _network_class(config.name)
    accepted = inspect.signature(network.__init__).parameters
    arguments = _from_data(set(accepted), input_shape, num_classes) | config.arguments
    _refuse_weight_sources(config.arguments)
    try:
        return network(**arguments)
    except _CONSTRUCTION_ERRORS as error:
        raise ConfigError(
            f"The MONAI network {config.name} refuses its arguments",
            got=f"{type(error).__name__}: {_first_line(error)}",
            expected=f"arguments among {', '.join(name for name in accepted if name != 'self')}",
            remedy=_REMEDY,
        ) from error


def _network_class(name: str) -> type[nn.Module]:
    from monai.networks import nets

    found = getattr(nets, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(
            "MONAI has no network of that name",
            got=name,
            expected="a class of monai.networks.nets, such as UNet, DenseNet121 or SegResNet",
            remedy=_REMEDY,
        )
    return found


def _from_data(accepted: set[str], input_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    outputs = next((name for name in ("out_channels", "num_classes") if name in accepted), None)
    known: dict[str, Any] = {
        "spatial_dims": len(input_shape) - 1,
        "in_channels": input_shape[0],
        "img_size": input_shape[1:],
        "pretrained": False,
    }
    known |= {outputs: num_classes} if outputs else {}
    return {name: value for name, value in known.items() if name in accepted}


def _refuse_weight_sources(arguments: dict[str, Any]) -> None:
    sources = [
        name
        for name, value in arguments.items()
        if value and any(word in name.lower().split("_") for word in _WEIGHT_SOURCES)
    ]
    if sources:
        raise ConfigError(
            "A MONAI network may not fetch weights by itself",
            got=f"the argument {', '.join(sources)}",
            expected="a network without weights",
            remedy="load initial weights from a safetensors file instead",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
