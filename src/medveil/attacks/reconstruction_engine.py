"""Images from noisy linear views of them, by a Gaussian law of what such images look like."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_COMPONENTS = 400
_SPREAD = 1.5
_COARSE, _FINE = 49, 25
_LEAST_STD = 1e-12
_LEAST_VARIANCE = 1e-12
"""Along a principal component, as a share of the largest; below, squares in float64 tell nothing."""


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """The normal law that an attacker fits to public images: principal components, and one variance for the rest.

    Args:
        mean: shape (d,), float64.
        basis: orthonormal rows, shape (r, d).
        variances: along the rows, shape (r,).
        rest: variance along every direction that the rows do not span, measured on images that they were not fitted to.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def fit(cls, public: Tensor) -> "GaussianPrior":
        """Fit to public images.

        Args:
            public: shape (n, ...), n >= 4; flattened.
        """
        rows = public.double().flatten(1)
        components = max(1, min(len(rows) // 4, rows.shape[1], _COMPONENTS))
        mean, basis, _ = _principal(rows[::2], components)
        unseen = rows[1::2] - mean
        left = unseen - unseen @ basis.T @ basis
        free = max(rows.shape[1] - len(basis), 1)
        mean, basis, variances = _principal(rows, components)
        return cls(mean, basis, variances, max(float(left.square().sum() / (len(left) * free)), 1e-12))

    def reconstruct(
        self,
        seen: Tensor,
        constant: Tensor,
        *,
        noise_std: float | Tensor,
        typical: Tensor,
        both_signs: bool = False,
        trust: float = 1.0,
    ) -> Tensor:
        """The posterior mean of images from ``scale * [image - mean, 1] + noise``, the scale unknown.

        Args:
            seen: shape (N, d).
            constant: shape (N,): the view of the constant 1, from which the scale shows.
            noise_std: of every coordinate; a number, or shape (N,).
            typical: the scale to expect, shape (N,), > 0; its logarithm is normal around it with deviation one half.
            both_signs: whether the scale may be negative.
            trust: in [0, 1], how much the pixels' own size counts as evidence of the scale: real images are not as
                normal as the law has it.

        Returns:
            Shape (N, d), float64.

        Reference:
            Bishop 2006, Pattern Recognition and Machine Learning, equations 2.113 to 2.117, with the scale summed out
            on a grid.
        """
        std = torch.as_tensor(noise_std, dtype=torch.float64).expand(len(seen)).clamp(min=_LEAST_STD)
        view = _View(self, seen.double(), constant.double(), std, typical.double(), trust)
        steps = torch.linspace(-_SPREAD, _SPREAD, _COARSE, dtype=torch.float64)
        signs = (1.0, -1.0) if both_signs else (1.0,)
        grid = torch.cat([sign * typical.double()[:, None] * steps.exp() for sign in signs], 1)
        best = grid.gather(1, view.evidence(grid).argmax(1, keepdim=True))
        width = 2 * _SPREAD / (_COARSE - 1)
        fine = torch.cat([grid, best * torch.linspace(-width, width, _FINE, dtype=torch.float64).exp()], 1)
        # Points lie closer together around the best one: each counts with the stretch that it stands for.
        share = torch.full_like(fine, width)
        share[:, grid.shape[1] :] = 2 * width / (_FINE - 1)
        weights = torch.softmax(view.evidence(fine) + share.log(), 1)
        return self.mean + view.mean_given(fine, weights)


@dataclass(frozen=True, eq=False)
class _View:
    prior: GaussianPrior
    seen: Tensor
    constant: Tensor
    std: Tensor
    typical: Tensor
    trust: float

    def evidence(self, scales: Tensor) -> Tensor:
        """Logarithm of the density of what was seen, up to a constant, by scale; (N, T) -> (N, T)."""
        along, across = self._parts()
        found = torch.empty_like(scales)
        noise = self.std.square()[:, None]
        squares, left = along.square(), across.square().sum(1, keepdim=True)
        free = self.seen.shape[1] - along.shape[1]
        for place in range(scales.shape[1]):  # one scale at a time: (N, T, r) would not fit
            scale = scales[:, place : place + 1]
            spread = scale.square() * self.prior.variances + noise
            value = (squares / spread + spread.log()).sum(1, keepdim=True)
            rest = scale.square() * self.prior.rest + noise
            value = self.trust * (value + left / rest + free * rest.log())
            value = value + (self.constant[:, None] - scale).square() / noise
            off = (scale.abs() / self.typical[:, None]).log() / 0.5
            found[:, place] = -0.5 * (value + off.square())[:, 0]
        return found

    def mean_given(self, scales: Tensor, weights: Tensor) -> Tensor:
        """Posterior mean, less the prior's, over scales with weights (N, T)."""
        along, across = self._parts()
        noise = self.std.square()[:, None]
        kept, rest = torch.zeros_like(along), torch.zeros_like(self.constant)[:, None]
        for place in range(scales.shape[1]):
            scale, weight = scales[:, place : place + 1], weights[:, place : place + 1]
            kept += weight * scale * self.prior.variances / (scale.square() * self.prior.variances + noise)
            rest = rest + weight * scale * self.prior.rest / (scale.square() * self.prior.rest + noise)
        return (kept * along) @ self.prior.basis + rest * across

    def _parts(self) -> tuple[Tensor, Tensor]:
        along = self.seen @ self.prior.basis.T
        return along, self.seen - along @ self.prior.basis


def _principal(rows: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, orthonormal rows along which images vary most, and their variances.

    From the eigenvectors of the smaller of the two squares: a fraction of the time of a singular value decomposition.
    """
    mean = rows.mean(0)
    centred = rows - mean
    wide = len(centred) < centred.shape[1]
    squares = centred @ centred.T if wide else centred.T @ centred
    last, kept = len(squares) - 1, min(components, len(squares))
    from scipy.linalg import eigh

    found = eigh(squares.numpy(), subset_by_index=(last + 1 - kept, last), driver="evr", check_finite=False)
    values, vectors = (torch.from_numpy(np.ascontiguousarray(each[..., ::-1])) for each in found)
    clear = values > max(float(values[0]), 0.0) * _LEAST_VARIANCE
    basis = vectors[:, clear]
    if wide:
        # Through the images the eigenvectors lose their right angles a little.
        basis = torch.linalg.qr(centred.T @ basis).Q
    return mean, basis.T.contiguous(), (centred @ basis).square().sum(0) / max(len(rows) - 1, 1)
