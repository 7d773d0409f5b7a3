"""What a site brings to a run: its data, and the plan's network as it built it."""

from dataclasses import dataclass

import torch
from torch import nn

from medveil import __version__
from medveil.connect.home import SiteConfig
from medveil.dp.plan import PrivacyPlan
from medveil.federation.messages import Ready, encode
from medveil.study.plan import Plan
from medveil.study.prepare import Prepared


@dataclass(frozen=True, eq=False)
class Own:
    """What this site brings.

    Args:
        name: of the site.
        plan: as submitted.
        bound: what the plan promises for this site's data; None promises nothing.
        prepared: this site's data.
        first: network of the plan, its weights not yet the run's.
        device: where it computes.
        config: the site's settings.
        architecture: SHA-256 of the network, as built here.
        parameters: trainable ones.
    """

    name: str
    plan: Plan
    bound: PrivacyPlan | None
    prepared: Prepared
    first: nn.Module
    device: torch.device
    config: SiteConfig
    architecture: str
    parameters: int

    def ready(self) -> bytes:
        """The first message."""
        dataset = self.prepared.dataset
        return encode(
            Ready(
                site=self.name,
                plan_hash=self.plan.digest(),
                version=__version__,
                input_shape=list(self.prepared.input_shape),
                class_names=list(dataset.class_names),
                data_kind=dataset.kind,
                data_name=dataset.name,
                validates=self.prepared.sites[0].validation is not None,
            )
        )
