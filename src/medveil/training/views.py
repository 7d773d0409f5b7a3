"""Where a step's views of images come from: drawn anew each time, or from a pool drawn once.

A pool suits a network whose first part is frozen: the part runs once over the pool, and steps train the rest alone.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from medveil.rng import Seeds
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.augmentation import Augmentation, augment

_AS_THEY_ARE = Augmentation()
# Images that pass a frozen front at a time: small parts stay in the processor's cache.
_PART = 16


@runtime_checkable
class FrozenFront(Protocol):
    """A network whose trainable parameters all lie in ``head``: it answers with ``head(front(images))``."""

    head: nn.Module

    def front(self, images: torch.Tensor) -> torch.Tensor:
        """Features of each image on its own; nothing here is trained."""
        ...


class Views:
    """Augmented views of one party's examples.

    Args:
        model: of the trainer.
        data: of the party.
        scale: of the input.
        augmentation: how views differ.
        pool: views of every example drawn once, at the first step; 0 draws fresh ones each time.
        seeds: of the pool.
        device: where views go.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ArrayData,
        *,
        scale: InputScale,
        augmentation: Augmentation,
        pool: int,
        seeds: Seeds,
        device: torch.device,
    ) -> None:
        self._data, self._scale, self._device = data, scale, device
        self._augmentation, self._seeds = augmentation, seeds
        self._count = pool or int(augmentation == _AS_THEY_ARE and isinstance(model, FrozenFront))
        self._front = model if self._count and isinstance(model, FrozenFront) else None
        self._pool: tuple[torch.Tensor, torch.Tensor] | None = None
        self.network = model if self._front is None else self._front.head

    def draw(self, picked: torch.Tensor, seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
        """One view of every picked example, and its target, on the device; :attr:`network` reads the view.

        Args:
            picked: shape (n,), indices of examples.
            seeds: of this draw.
        """
        if not self._count:
            return self._fresh(picked, seeds)
        numbers = torch.randint(self._count, (len(picked),), generator=seeds.torch())
        return self._pooled(picked, numbers)

    def several(self, picked: torch.Tensor, count: int, seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` views of every picked example, those of one example together: (n * count, ...)."""
        repeated = picked.repeat_interleave(count)
        if not self._count:
            return self._fresh(repeated, seeds)
        return self._pooled(repeated, torch.arange(count).repeat(len(picked)) % self._count)

    def _fresh(self, picked: torch.Tensor, seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._scale(self._data.images[picked].to(self._device))
        targets = self._data.targets[picked].to(self._device)
        masks = targets if targets.dim() > 1 else None
        if self._augmentation != _AS_THEY_ARE:
            images, masks = augment(images, masks, self._augmentation, seeds.torch())
        return images, (targets if masks is None else masks).long()

    def _pooled(self, picked: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pool is None:
            self._pool = self._made()
        rows = picked * self._count + numbers
        inputs, targets = self._pool
        return inputs[rows], targets[rows].long()

    @torch.no_grad()
    def _made(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(len(self._data)).repeat_interleave(self._count)
        parts = []
        for number, picked in enumerate(torch.split(rows, _PART)):
            images, targets = self._fresh(picked, self._seeds.child(number))
            parts.append((images if self._front is None else self._front.front(images), targets))
        inputs, targets = (torch.cat([part[which] for part in parts]) for which in (0, 1))
        return inputs, targets.to(self._data.targets.dtype)
