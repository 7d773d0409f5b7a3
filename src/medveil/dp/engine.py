"""Which method computes the gradients of single examples, and how many at a time: chosen by timing noise images.

No real image is touched: the choice depends on the network, the shapes and the machine. It changes speed and the
last digits of a gradient, never what is computed; fix method and chunk size where runs must agree to the bit.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from medveil.dp.layerwise import Pool, by_layer, without_rule
from medveil.dp.methods import (
    WHAT_AUTOGRAD_RAISES,
    LossFunction,
    Method,
    PerExample,
    by_microbatch,
    by_vmap,
    trainable,
)
from medveil.errors import MedveilError

METHODS: Final[dict[Method, PerExample]] = {"layerwise": by_layer, "vmap": by_vmap, "microbatch": by_microbatch}

_CHUNKS: Final = (16, 64)
_GIVE_UP_S: Final = 2.0
_WORTH_IT: Final = 0.95
_TOLERANCE: Final = 1e-6
_ROOM_BYTES: Final = 2**30


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        method: by name.
        chunk_size: examples at a time; 0 where the method was ruled out before timing.
        seconds_per_example: the better of two runs; None where the method was ruled out.
        reason: why it was ruled out; "" otherwise.
    """

    method: Method
    chunk_size: int
    seconds_per_example: float | None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """What to use.

    Attributes:
        method: by name.
        chunk_size: examples at a time.
        trials: everything that was tried.
    """

    method: Method
    chunk_size: int
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """What one example looks like.

    Attributes:
        image: (channels, *spatial).
        target: () for a class, (*spatial) for a mask.
        target_dtype: integers are drawn below the number of the network's outputs, others from [0, 1).
    """

    image: tuple[int, ...]
    target: tuple[int, ...] = ()
    target_dtype: torch.dtype = torch.int64


_Answer = TypeVar("_Answer", Choice, str)
_CHOICES: Final[WeakKeyDictionary[LossFunction, dict[str, Choice]]] = WeakKeyDictionary()
_LAYERWISE: Final[WeakKeyDictionary[LossFunction, dict[str, str]]] = WeakKeyDictionary()


def choose(model: nn.Module, loss: LossFunction, shapes: Shapes, *, room_bytes: int = _ROOM_BYTES) -> Choice:
    """Try the methods on noise and take the fastest; the answer is remembered for this process.

    "vmap" is ruled out when torch cannot vectorise the network or the loss. "layerwise" needs a rule for every layer
    with parameters, a network that "vmap" can take too (so that no control flow depends on the data), and rows equal
    to those of a batch of one, on noise in double precision: evidence that no example touches another, not a proof;
    "vmap" and "microbatch" keep examples apart by construction. "microbatch" always remains.

    Args:
        model: a copy of it is run, in its present mode and on its device.
        loss: see :data:`medveil.dp.methods.LossFunction`.
        shapes: of one example.
        room_bytes: what the activations and gradients of one chunk may take, by estimate.

    Raises:
        UnsupportedModelError: nothing to train.
        MedveilError, RuntimeError, ValueError, TypeError: network, loss and shapes do not fit: not even a batch of
            one could be run.
    """
    key = f"{room_bytes} {torch.get_num_threads()} {_key(model, shapes)}"
    return _remembered(_CHOICES, loss, key, lambda: _choose(model, loss, shapes, room_bytes))


def layerwise_refusal(model: nn.Module, loss: LossFunction, shapes: Shapes) -> str:
    """Why "layerwise" must not be used, as :func:`choose` finds out; "" if it may. Remembered for this process."""

    def tried() -> str:
        with _forked_randomness():
            return _layerwise_refusal(copy.deepcopy(model), loss, shapes)

    return _remembered(_LAYERWISE, loss, _key(model, shapes), tried)


def run(
    method: Method,
    model: nn.Module,
    loss: LossFunction,
    images: Tensor,
    targets: Tensor,
    *,
    pool: Pool | None = None,
) -> list[Tensor]:
    """Per trainable parameter, in registration order, the gradients of the examples, (N, *shape).

    With a ``pool``, "layerwise" may write them over those of an earlier call.
    """
    if method == "layerwise":
        return by_layer(model, loss, images, targets, pool=pool)
    with warnings.catch_warnings():
        # Right but slow: an operation without a batching rule. The choice has timed it.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return METHODS[method](model, loss, images, targets)


def _choose(model: nn.Module, loss: LossFunction, shapes: Shapes, room_bytes: int) -> Choice:
    trainable(model)
    twin = copy.deepcopy(model)
    with _forked_randomness():
        ruled_out = [Trial(name, 0, None, reason) for name, reason in _unfit(twin, loss, shapes).items()]
        room = max(1, room_bytes // _bytes_per_example(twin, loss, shapes))
        out = {trial.method for trial in ruled_out}
        timed = [
            trial for method in METHODS if method not in out for trial in _timings(method, twin, loss, shapes, room)
        ]
    best = min(timed, key=lambda trial: trial.seconds_per_example or 0.0)
    return Choice(best.method, best.chunk_size, (*timed, *ruled_out))


def _unfit(model: nn.Module, loss: LossFunction, shapes: Shapes) -> dict[Method, str]:
    """Why a method cannot be used, by method."""
    reasons: dict[Method, str] = {"layerwise": layerwise_refusal(model, loss, shapes)}
    twin = copy.deepcopy(model)
    reasons["vmap"] = _refusal(twin, loss, *noise(twin, shapes, 2))
    return {method: reason for method, reason in reasons.items() if reason}


def _layerwise_refusal(model: nn.Module, loss: LossFunction, shapes: Shapes) -> str:
    missing = without_rule(model)
    if missing:
        return f"no rule for {', '.join(path or 'the network itself' for path in missing)}"
    # The loss may be looped over, but the network's control flow must be the same for all images.
    # On a copy: some networks keep their last answers, and one that torch has vectorised cannot be copied.
    twin = copy.deepcopy(model)
    if _refusal(twin, lambda outputs, _: outputs.square().mean(), *noise(twin, shapes, 2)):
        return "vmap refuses the network, so control flow may depend on the data"
    return _disagreement(model, loss, shapes)


def _refusal(model: nn.Module, loss: LossFunction, images: Tensor, targets: Tensor) -> str:
    """What torch raises when it cannot vectorise network and loss; "" if it can."""
    try:
        run("vmap", model, loss, images, targets)
    except WHAT_AUTOGRAD_RAISES as error:
        return f"torch cannot vectorise it: {type(error).__name__}"
    return ""


def _disagreement(model: nn.Module, loss: LossFunction, shapes: Shapes) -> str:
    """How the rows of "layerwise" differ from those of a batch of one; "" if they agree."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0  # both ways must compute the same function
    images, targets = noise(twin, shapes, 3)
    # Unequal sizes: what one image does to the next must show.
    images = images * torch.tensor([1.0, 5.0, 0.2]).to(images).view(-1, *(1,) * (images.dim() - 1)) + 0.1
    try:
        together = run("layerwise", twin, loss, images, targets)
        alone = run("microbatch", twin, loss, images, targets)
    except (MedveilError, *WHAT_AUTOGRAD_RAISES) as error:
        return f"{type(error).__name__} on noise"
    flat, oracle = (torch.cat([rows.flatten(1) for rows in each], 1) for each in (together, alone))
    distance = (flat - oracle).norm(dim=1) / oracle.norm(dim=1).clamp(min=1e-12)
    return "" if bool((distance <= _TOLERANCE).all()) else "gradients differ from those of a batch of one"


def _timings(method: Method, model: nn.Module, loss: LossFunction, shapes: Shapes, room: int) -> Iterator[Trial]:
    """Growing chunks, as long as they pay."""
    best = float("inf")
    for chunk in (1,) if method == "microbatch" else _CHUNKS:
        size = min(chunk, room)
        images, targets = noise(model, shapes, size)
        run(method, model, loss, images, targets)
        seconds = min(_seconds(method, model, loss, images, targets) for _ in range(2))
        yield Trial(method, size if method != "microbatch" else _CHUNKS[1], seconds / size)
        if size == room or seconds > _GIVE_UP_S or seconds / size > _WORTH_IT * best:
            return
        best = seconds / size


def _seconds(method: Method, model: nn.Module, loss: LossFunction, images: Tensor, targets: Tensor) -> float:
    begun = time.perf_counter()
    rows = run(method, model, loss, images, targets)
    float(rows[-1].flatten()[0])  # waits for an accelerator
    return time.perf_counter() - begun


def noise(model: nn.Module, shapes: Shapes, count: int) -> tuple[Tensor, Tensor]:
    """Images and targets that mean nothing, in the network's dtype and on its device."""
    like = next(iter(trainable(model).values()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *shapes.image, generator=generator).to(like)
    if shapes.target_dtype.is_floating_point:
        targets = torch.rand(count, *shapes.target, generator=generator).to(like.device, shapes.target_dtype)
        return images, targets
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    targets = torch.randint(0, classes, (count, *shapes.target), generator=generator)
    return images, targets.to(like.device, shapes.target_dtype)


def _bytes_per_example(model: nn.Module, loss: LossFunction, shapes: Shapes) -> int:
    """What autograd keeps for one example, and its gradient twice (as it arrives, and as it is handed on)."""
    kept: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, targets = noise(model, shapes, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model(images), targets)
    del value
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in trainable(model).values())
    return sum(kept.values()) + 2 * parameters


@contextmanager
def _forked_randomness() -> Iterator[None]:
    """Trials leave torch's generators as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def _key(model: nn.Module, shapes: Shapes) -> str:
    tensors = [
        (name, tuple(tensor.shape), str(tensor.dtype), str(tensor.device), tensor.requires_grad)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    ]
    modules = [(type(module).__module__, type(module).__qualname__, module.training) for module in model.modules()]
    return repr((str(model), tensors, modules, shapes))


def _remembered(
    memory: WeakKeyDictionary[LossFunction, dict[str, _Answer]],
    loss: LossFunction,
    key: str,
    make: Callable[[], _Answer],
) -> _Answer:
    try:
        answers = memory.setdefault(loss, {})
    except TypeError:  # a loss that cannot be hashed or referred to weakly is tried anew
        return make()
    if key not in answers:
        answers[key] = make()
    return answers[key]
