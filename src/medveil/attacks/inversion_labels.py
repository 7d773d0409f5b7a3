"""Which class a victim has, from its update alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medveil.attacks.inversion_update import simulator
from medveil.attacks.scene import Scene

_PUBLIC_PER_CLASS = 32


def likely_labels(
    scene: Scene, observed: Sequence[Tensor], count: int, *, noisy: bool, trained: bool = False
) -> Tensor:
    """The ``count`` likeliest classes of every victim from its update, the likeliest first; shape (V, count).

    Without noise the likeliest has the smallest entry of the last bias's gradient, which is softmax minus one-hot. With
    noise, or without such a bias: the class whose mean public gradient the update resembles most.

    Args:
        scene: of the attack.
        observed: updates, one tensor a parameter, (V, *shape).
        count: of classes, at most as many as there are.
        noisy: whether the updates have noise.
        trained: whether they are the finished model's.

    Reference:
        Zhao et al. 2020, arXiv 2001.02610 (iDLG).
    """
    place = _last_bias(scene)
    if place is not None and not noisy:
        return observed[place].argsort(1)[:, :count]
    simulate = simulator(scene, trained=trained)
    flat = torch.cat([each.flatten(1) for each in observed], 1)
    scores = torch.full((len(flat), scene.num_classes), -torch.inf)
    for label in range(scene.num_classes):
        chosen = scene.public[scene.public_targets == label][:_PUBLIC_PER_CLASS].float()
        if len(chosen):
            mean = simulate(scene.scaled(chosen)[None], torch.full((1, len(chosen)), label))
            scores[:, label] = functional.cosine_similarity(flat, torch.cat([each.flatten() for each in mean])[None])
    return scores.argsort(1, descending=True)[:, :count]


def _last_bias(scene: Scene) -> int | None:
    """Place of the last layer's bias among the trainable parameters."""
    linear = [each for each in scene.model.modules() if isinstance(each, nn.Linear)]
    if not linear or linear[-1].out_features != scene.num_classes or linear[-1].bias is None:
        return None
    trainable = [each for each in scene.model.parameters() if each.requires_grad]
    places = [place for place, each in enumerate(trainable) if each is linear[-1].bias]
    return places[0] if places else None
