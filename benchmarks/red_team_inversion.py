"""Gradient inversion of networks of the zoo on real images: unprotected, summed, protected, over a curve of noise.

    MEDVEIL_DATA=... python benchmarks/red_team_inversion.py [--default] [--trained EPOCHS] [NETWORK ...]

Networks: flat, cnn, resnet9, resnet20, scattering (PneumoniaMNIST, noise and clip norm of pneumonia-28-private); unet,
unet-relu, filterbank (hippocampus slices at 32 x 32, noise and clip norm of hippocampus-2d-private).
"""

import argparse
import copy
import time
from functools import partial

import torch
from torch.nn import functional

from medveil.attacks.inversion import Inversion
from medveil.attacks.scene import Protection, Scene
from medveil.models.cnn import CnnConfig
from medveil.models.filterbank import FilterbankConfig
from medveil.models.registry import build
from medveil.models.resnet import Resnet9Config, Resnet20Config
from medveil.models.scattering import ScatteringConfig
from medveil.models.unet import UnetConfig
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare
from medveil.study.privacy import bind_plan
from medveil.training.objectives import per_example_loss

NETWORKS = {
    "flat": CnnConfig(head="flat"),
    "cnn": CnnConfig(),
    "resnet9": Resnet9Config(activation="silu"),
    "resnet20": Resnet20Config(activation="silu"),
    "scattering": ScatteringConfig(positions=(5, 5)),
    "unet": UnetConfig(activation="silu"),
    "unet-relu": UnetConfig(),
    "filterbank": FilterbankConfig(),
}
SIDE = 32


def scene(network, epochs):
    config = NETWORKS[network]
    name = "hippocampus-2d" if network in {"unet", "unet-relu", "filterbank"} else "pneumonia-28"
    plan, private = load_plan(name), bind_plan(load_plan(f"{name}-private"))
    prepared = prepare(plan)
    pool, test = prepared.pool().train, prepared.test.data
    images, targets = pixels(test)
    public, public_targets = pixels(pool)
    model = build(config, input_shape=tuple(images.shape[1:]), num_classes=prepared.num_classes, seed=1)
    made = Scene(
        model=model,
        trained=model,
        loss=partial(per_example_loss, config=plan.training.loss),
        scale=input_scale(plan.data.preprocess),
        task=plan.task,
        num_classes=prepared.num_classes,
        images=images,
        targets=targets,
        subject=test.subject,
        public=public,
        public_targets=public_targets,
        public_subject=pool.subject,
        training=plan.training,
        sites=len(prepared.sites),
        protection=Protection(
            clipping=private.mechanism.clipping,
            noise_multiplier=private.noise_multiplier,
            sampling_rate=private.sampling_rate,
            steps=private.steps,
            delta=private.delta,
            epsilon=private.total().epsilon,
            relation=private.relation,
            sites=len(prepared.sites),
        ),
    )
    object.__setattr__(made, "trained", trained(made, epochs))
    return made


def pixels(data):
    """Images in 0..1 and targets; slices at 32 x 32."""
    images = data.images.float() / (255 if data.images.dtype == torch.uint8 else 1)
    targets = data.targets.long()
    if targets.ndim > 1:
        images = functional.interpolate(images, size=(SIDE, SIDE), mode="area")
        targets = functional.interpolate(targets[:, None].float(), size=(SIDE, SIDE), mode="nearest")[:, 0].long()
    return images, targets


def trained(made, epochs):
    """The network after some epochs of Adam on what is public."""
    model = copy.deepcopy(made.model)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(made.public), generator=Seeds(3).torch()).split(32):
            optimiser.zero_grad()
            made.loss(model(made.scaled(made.public[rows])), made.public_targets[rows]).mean().backward()
            optimiser.step()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["flat"])
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--trained", type=int, default=1, metavar="EPOCHS")
    asked = parser.parse_args()
    for network in asked.networks:
        begun = time.process_time()
        report = Inversion().run(
            scene(network, asked.trained), effort="default" if asked.default else "quick", seeds=Seeds(6), tell=print
        )
        print(f"\n{network}: {report.seconds:.0f} s, {time.process_time() - begun:.0f} processor seconds")
        for outcome in (report.unprotected, report.control, report.protected, *report.curve):
            figures = {name: round(each.value, 3) for name, each in outcome.figures.items()}
            print(f"  {outcome.condition.name}: bound {outcome.bound}")
            for name, value in figures.items():
                print(f"      {name:44s} {value}")
        print(
            f"  succeeded unprotected: {report.succeeded_unprotected}", *report.resisted, *report.findings, sep="\n  "
        )


if __name__ == "__main__":
    main()
