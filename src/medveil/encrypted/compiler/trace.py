"""From a module to steps, by torch.fx; each layer is tried on zeros to learn its shape."""

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn

from medveil.encrypted.compiler.fronts import FRONTS
from medveil.encrypted.compiler.graph import Step, reachable
from medveil.encrypted.compiler.walk import Reader
from medveil.encrypted.program import Shape
from medveil.errors import ModelError, WeightsError
from medveil.models.architecture import TRACING_ERRORS
from medveil.models.checks import describe_hazards
from medveil.models.standardised import ScaledStdConv, ScaledStdConvTranspose, fold


@dataclass(frozen=True, eq=False)
class Traced:
    """A network as steps.

    Args:
        steps: by name, in order; the first is the :class:`Image`, all others are needed for the output.
        output: name of what is revealed.
        front: fixed features between the image and the first step, as it stands in the network, or None.
        front_path: its dotted path, or None.
        back: interpolation of what is revealed, or None.
        plain: the network in float64 with folded weights, in evaluation mode.
    """

    steps: dict[str, Step]
    output: str
    front: nn.Module | None
    front_path: str | None
    back: nn.Module | None
    plain: nn.Module


def trace(module: nn.Module, input_shape: Shape) -> Traced:
    """Read a network.

    Args:
        module: left as it is; a copy in evaluation mode is read.
        input_shape: (channels, *spatial), or (features,).

    Raises:
        UnsupportedLayer: a layer that is not covered, named.
        ModelError: a network that torch.fx cannot trace or that cannot read such images; hooks.
        WeightsError: weights that are not finite.
    """
    tracer = _Tracer()
    if tracer.is_leaf_module(module, "") or isinstance(module, ScaledStdConv | ScaledStdConvTranspose):
        module = nn.Sequential(module)
    plain = fold(copy.deepcopy(module).cpu().eval().double())
    _require_plain(plain)
    try:
        graph = tracer.trace(plain)
    except TRACING_ERRORS as error:
        raise ModelError(
            "The network's code cannot be traced",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
            expected="a forward pass without control flow that depends on the image",
            remedy="write it without branches on tensors or their shapes",
        ) from error
    reader = Reader(plain, graph, input_shape)
    with torch.no_grad():
        for node in graph.nodes:
            reader.read(node)
    assert reader.output is not None
    path = reader.front
    front = None if path is None else copy.deepcopy(module.get_submodule(path)).cpu().eval()
    return Traced(reachable(reader.steps, reader.output), reader.output, front, path, reader.back, plain)


class _Tracer(fx.Tracer):
    """Keeps fixed features whole, as torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FRONTS) or super().is_leaf_module(m, module_qualified_name)


def _require_plain(module: nn.Module) -> None:
    hooked = [hazard.module for hazard in describe_hazards(module) if hazard.reason == "hooks"]
    if hooked:
        raise ModelError(
            "Hooks run code that is not part of the network's structure",
            got=", ".join(hooked),
            expected="no hook",
            remedy="remove them, or compute in the forward pass",
        )
    bad = [name for name, tensor in module.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise WeightsError("Weights are NaN or infinite", got=", ".join(bad[:3]), expected="finite numbers")
