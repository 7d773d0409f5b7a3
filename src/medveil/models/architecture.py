"""A fingerprint of a network's structure, so that a site can refuse a network that it did not agree to."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx, nn

from medveil.models.standardised import ScaledStdConv, ScaledStdConvTranspose

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TRACING_ERRORS: Final = (
    fx.proxy.TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    AssertionError,
    NotImplementedError,
)
"""What control flow on a traced value, or a function that wants a real tensor, raises."""


class _LeafTracer(fx.Tracer):
    """Keeps the zoo's own layers whole, as torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, ScaledStdConv | ScaledStdConvTranspose)
        return own or super().is_leaf_module(m, module_qualified_name)


def describe_architecture(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """The structure of a network as plain data that JSON can hold.

    Args:
        model: any module.
        input_shape: (channels, *spatial).

    Returns:
        Types and hyper-parameters of every module, names, shapes and dtypes of every parameter and buffer, and
        the order of operations where torch.fx can trace it (else None). No weights.
    """
    return {
        "input_shape": list(input_shape),
        "modules": [
            [path, _qualified(type(module)), _hyper_parameters(module)]
            for path, module in model.named_modules(remove_duplicate=False)
        ],
        "parameters": [
            [name, list(tensor.shape), str(tensor.dtype)]
            for name, tensor in model.named_parameters(remove_duplicate=False)
        ],
        "buffers": [
            [name, list(tensor.shape), str(tensor.dtype)]
            for name, tensor in model.named_buffers(remove_duplicate=False)
        ],
        "graph": _graph(model),
    }


def architecture_hash(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """SHA-256 of :func:`describe_architecture`, 64 hexadecimal digits.

    Equal for equal structures whatever their weights and mode; different when a layer, a hyper-parameter, a
    shape or the order of operations differs. It tells networks apart that were built from this code or a
    library's; it does not prove what a module's code does, and another version of torch or MONAI may give
    another hash.

    >>> a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> architecture_hash(a, (3,)) == architecture_hash(b, (3,))
    True
    >>> architecture_hash(nn.Linear(3, 2, bias=False), (3,)) == architecture_hash(a, (3,))
    False
    """
    text = json.dumps(describe_architecture(model, input_shape), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hyper_parameters(module: nn.Module) -> dict[str, Any]:
    if type(module).__module__.startswith("torch."):
        # A new version of torch may add attributes; constructor arguments are what its layers are known by.
        arguments = inspect.signature(type(module).__init__).parameters
        names = {name for name in arguments if name in vars(module)}
    else:
        names = {name for name in vars(module) if not name.startswith("_")}
    described = {name: _plain(vars(module)[name]) for name in names - {"training"}}
    hooks = sum(len(getattr(module, name)) for name in _HOOKS)
    overridden = {"forward": _plain(vars(module)["forward"])} if "forward" in vars(module) else {}
    return described | overridden | ({"hooks": hooks} if hooks else {})


def _graph(model: nn.Module) -> list[list[Any]] | None:
    there = set(vars(model))
    try:
        graph = _LeafTracer().trace(model)
    except TRACING_ERRORS:
        return None
    finally:  # torch.fx leaves the constants it meets behind, and numbers those of the next trace on from them
        for name in [name for name in vars(model) if name not in there and name.startswith("_tensor_constant")]:
            delattr(model, name)
    order = {node: index for index, node in enumerate(graph.nodes)}
    return [[node.op, _target(node), _plain(node.args, order), _plain(node.kwargs, order)] for node in graph.nodes]


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else _qualified(node.target)


def _plain(value: Any, order: Mapping[fx.Node, int] | None = None) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each, order) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each, order) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(each, order), sort_keys=True) for each in value)
    if isinstance(value, slice):
        return {"slice": _plain([value.start, value.stop, value.step], order)}
    if isinstance(value, fx.Node) and order is not None:
        return {"node": order[value]}
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return _qualified(value if hasattr(value, "__qualname__") else type(value))


def _qualified(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
