"""From the nodes of a traced graph to steps; each node is run on zeros to learn its shape."""

import copy
import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from medveil.encrypted.compiler.fronts import FRONTS
from medveil.encrypted.compiler.graph import Image, Mean, Rearrange, Same, Scale, Step, What
from medveil.encrypted.compiler.recognise import JOINS, PRODUCTS, QUOTIENTS, SUMS, combination, of_function, of_module
from medveil.encrypted.compiler.refusals import SUPPORTED, refuse, refuse_kind
from medveil.encrypted.program import Shape
from medveil.errors import ModelError
from medveil.models.architecture import TRACING_ERRORS

# Two images, so that the batch can be told from an axis of length one.
_BATCH: Final = 2
_QUESTIONS: Final = ("size", "dim", "getattr")
_COMBINATIONS: Final = SUMS + JOINS


class Reader:
    """Reads the nodes of one graph, one after the other.

    Args:
        module: the network, in float64 and evaluation mode.
        graph: of it.
        input_shape: of one image.

    Attributes:
        steps: read so far, by name.
        output: name of the result, once the whole graph was read.
        front: dotted path of the fixed features, or None.
        back: the interpolation at the end, or None.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, input_shape: Shape) -> None:
        self.module, self.input_shape = module, input_shape
        self.last_use = {each: index for index, node in enumerate(graph.nodes) for each in node.all_input_nodes}
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.values: dict[fx.Node, Any] = {}
        self.names: dict[fx.Node, str] = {}
        self.steps: dict[str, Step] = {}
        self.output: str | None = None
        self.front: str | None = None
        self.back: nn.Module | None = None

    def read(self, node: fx.Node) -> None:
        """Make the step of one node."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "get_attr":
            self.values[node] = _attribute(self.module, str(node.target))
        elif node.op == "output":
            self._output(node)
        elif not any(each in self.names for each in node.all_input_nodes):
            self.values[node] = self._run(node)  # arithmetic on shapes
        elif node.op == "call_module":
            self._module(node)
        else:
            self._function(node)
        for each in node.all_input_nodes:
            if self.last_use[each] == self.order[node]:
                self.values.pop(each, None)

    def _placeholder(self, node: fx.Node) -> None:
        if self.steps:
            if not node.args:
                raise ModelError("The network reads several inputs", got=node.name, expected="one image")
            self.values[node] = node.args[0]
            return
        self.values[node] = torch.zeros(_BATCH, *self.input_shape, dtype=torch.float64)
        self._add(node, "the image", Image(), ())

    def _output(self, node: fx.Node) -> None:
        answer = node.args[0]
        if not isinstance(answer, fx.Node) or answer not in self.names:
            raise ModelError(
                "The network answers with something other than one tensor that depends on the image",
                got=type(answer).__name__,
                expected="one tensor of logits",
                remedy="leave out auxiliary outputs",
            )
        self.output = self.names[answer]

    def _module(self, node: fx.Node) -> None:
        module = self.module.get_submodule(str(node.target))
        layer = f"{node.target} ({type(module).__name__})"
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(node.all_input_nodes) != 1 or "forward" in vars(module):
            raise refuse(layer, "several inputs, or a replaced forward", f"use plain layers: {SUPPORTED}")
        if isinstance(module, FRONTS):
            self._front(node, layer, source)
            return
        if isinstance(module, nn.Upsample) and module.mode in ("bilinear", "trilinear") and self._is_last(node):
            # What is revealed is the small map: the hospital interpolates it, which reveals nothing more.
            self.back = copy.deepcopy(module)
            self.names[node] = self.names[source]
            return
        self._step(node, layer, of_module(module, layer, self._shape(source), lambda: self._try(node)), (source,))
        if getattr(module, "inplace", False):
            self._overwrite(node)

    def _front(self, node: fx.Node, layer: str, source: fx.Node) -> None:
        if not isinstance(self.steps[self.names[source]].what, Image) or len(source.users) != 1:
            raise refuse(layer, "fixed features of something other than the image", "put them first in the network")
        self.front = str(node.target)
        self.steps.clear()
        self._try(node)
        self._add(node, layer, Image(), ())

    def _function(self, node: fx.Node) -> None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        layer = _where(node, name)
        if name in _QUESTIONS:
            self.values[node] = self._run(node)
            if isinstance(self.values[node], Tensor):
                raise refuse_kind(layer, name)
            return
        if isinstance(node.target, FunctionType) and not node.target.__module__.startswith("torch"):
            raise refuse_kind(layer, name)
        if name in _COMBINATIONS:
            self._combination(node, name, layer)
        elif name in PRODUCTS + QUOTIENTS:
            self._product(node, name, layer)
        else:
            source = node.args[0] if node.args else node.kwargs.get("input")
            if not isinstance(source, fx.Node) or source not in self.names:
                raise refuse_kind(layer, name)
            settings = {key: self._plain(value) for key, value in node.kwargs.items() if key != "input"}
            arguments = [self._plain(value) for value in node.args[1:]]
            what = of_function(name, layer, (arguments, settings), self._shape(source), lambda: self._try(node))
            self._step(node, layer, what, (source,))
            if name.endswith("_") or settings.get("inplace"):
                self._overwrite(node)

    def _combination(self, node: fx.Node, name: str, layer: str) -> None:
        joined = name in JOINS
        given: Any = (node.args or (node.kwargs.get("tensors"),))[0] if joined else node.args[:2]
        dim = node.args[1] if joined and len(node.args) > 1 else node.kwargs.get("dim", 0)
        sources = [each for each in given if isinstance(each, fx.Node) and each in self.names]
        if len(sources) != len(given):
            raise refuse(layer, "a sum or concatenation with a constant", "put the constant into a layer's bias")
        assert isinstance(dim, int)
        what = combination(name, layer, [self._tried(each) for each in sources], node.kwargs, dim)
        self._step(node, layer, what, tuple(sources))
        if name in ("iadd", "add_"):
            self._overwrite(node)

    def _product(self, node: fx.Node, name: str, layer: str) -> None:
        given = [*node.args, *node.kwargs.values()]
        sources = [each for each in given if isinstance(each, fx.Node) and each in self.names]
        others = [self._plain(each) for each in given if not (isinstance(each, fx.Node) and each in self.names)]
        turned = name in QUOTIENTS and sources and given[0] is not sources[0]
        if len(sources) != 1 or len(others) != 1 or turned:
            raise refuse(layer, "a product or quotient of values", f"multiply by numbers only; covered are {SUPPORTED}")
        value = others[0]
        public = isinstance(value, int | float)
        if not public and not (isinstance(value, Tensor) and value.numel() == 1):
            raise refuse(layer, "a product with a tensor", "multiply by a single number, or use batch normalisation")
        number = float(value)
        if not math.isfinite(number) or (name in QUOTIENTS and number == 0):
            raise refuse(layer, "a factor that is not finite", "multiply by a finite number")
        self._step(node, layer, Scale(1 / number if name in QUOTIENTS else number, public), (sources[0],))
        if name in ("imul", "mul_", "itruediv", "div_"):
            self._overwrite(node)

    def _step(self, node: fx.Node, layer: str, what: What, sources: tuple[fx.Node, ...]) -> None:
        self._try(node)
        if isinstance(what, Rearrange) and len(self.values[node]) != _BATCH:
            raise refuse(layer, "a reshape that mixes images", "keep the batch as the first axis")
        if isinstance(what, Mean) and len(self._tried(node)) == 1:
            kept = (self._shape(sources[0])[0], *(1,) * len(what.kernel))
            pooled = Step(f"{node.name}_pooled", layer, what, (self.names[sources[0]],), kept)
            self.steps[pooled.name] = pooled
            self._add(node, layer, Rearrange(), (pooled.name,))
            return
        unchanged = isinstance(what, Rearrange) and self._tried(node) == self._shape(sources[0])
        self._add(node, layer, Same() if unchanged else what, tuple(self.names[each] for each in sources))

    def _add(self, node: fx.Node, layer: str, what: What, inputs: tuple[str, ...]) -> None:
        self.names[node] = node.name
        self.steps[node.name] = Step(node.name, layer, what, inputs, self._tried(node))

    def _overwrite(self, node: fx.Node) -> None:
        """After an operation in place, every name of that memory means the result."""
        memory = self.values[node].untyped_storage().data_ptr()
        for other, value in self.values.items():
            shared = isinstance(value, Tensor) and value.untyped_storage().data_ptr() == memory
            if other is node or not shared or self.last_use.get(other, 0) <= self.order[node]:
                continue
            if value.shape != self.values[node].shape or other not in self.names:
                raise refuse(_where(node, str(node.target)), "memory changed in place and read again", "inplace=False")
            self.names[other] = node.name

    def _is_last(self, node: fx.Node) -> bool:
        return all(user.op == "output" for user in node.users)

    def _shape(self, node: fx.Node) -> Shape:
        return self.steps[self.names[node]].shape

    def _tried(self, node: fx.Node) -> Shape:
        return tuple(self.values[node].shape[1:])

    def _try(self, node: fx.Node) -> Shape:
        if node not in self.values:
            self.values[node] = self._run(node)
        return self._tried(node)

    def _run(self, node: fx.Node) -> Any:
        arguments = fx.map_arg(node.args, lambda each: self.values[each])
        settings: Mapping[str, Any] = fx.map_arg(node.kwargs, lambda each: self.values[each])
        try:
            if node.op == "call_module":
                return self.module.get_submodule(str(node.target))(*arguments, **settings)
            if isinstance(node.target, str):
                return getattr(arguments[0], node.target)(*arguments[1:], **settings)
            return node.target(*arguments, **settings)
        except TRACING_ERRORS as error:
            raise ModelError(
                "The network cannot read these images",
                got=f"images of shape {self.input_shape}; {type(error).__name__} at {node.name}",
                expected="a network and images that fit together",
                remedy="give the shape (channels, *spatial) that the network was trained with",
            ) from error

    def _plain(self, value: Any) -> Any:
        return fx.map_arg(value, lambda each: self.values[each])


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    return value.detach() if isinstance(value, Tensor) else value


def _where(node: fx.Node, name: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name} ({name})" if inside else f"{node.name} ({name})"
