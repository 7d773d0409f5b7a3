"""What a mask alone says about its image: the control of attackers to whom the mask was given."""

import torch
from torch import Tensor
from torch.nn import functional

_VALUES = 20_000_000  # in the matrix of masks, at most: 80 MB
_HELD_OUT = 5
_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)


def image_of_mask(public: Tensor, public_masks: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Images by ridge regression from masks alone, fitted on public ones; no update is seen.

    The penalty is the one that does best on the last fifth of the public images, which stand in the order of their
    patients or in none.

    Args:
        public: images, (M, channels, *spatial), M >= 5.
        public_masks: (M, *spatial).
        masks: of the victims, (V, *spatial).
        num_classes: background included.

    Returns:
        (V, channels, *spatial).
    """
    most = max(_HELD_OUT, _VALUES // (num_classes * public_masks[0].numel()))
    step = -(-len(public) // most)
    images, features = public[::step].float(), _features(public_masks[::step], num_classes)
    fitted = len(images) - len(images) // _HELD_OUT
    train, held = slice(None, fitted), slice(fitted, None)
    errors = [
        float((_ridge(features[train], images[train], features[held], penalty) - images[held]).square().mean())
        for penalty in _PENALTIES
    ]
    return _ridge(features, images, _features(masks, num_classes), _PENALTIES[errors.index(min(errors))])


def _features(masks: Tensor, num_classes: int) -> Tensor:
    return functional.one_hot(masks.long(), num_classes).flatten(1).float()


def _ridge(features: Tensor, images: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """In the dual: as many equations as images."""
    centre, mean = features.mean(0), images.mean(0)
    rows = features - centre
    system = rows @ rows.T + penalty * torch.eye(len(rows))
    weights = torch.linalg.solve(system, (images - mean).flatten(1))
    found: Tensor = mean + ((wanted - centre) @ rows.T @ weights).reshape(len(wanted), *images.shape[1:])
    return found
