"""A run's whole test set, diagnosed encrypted and in the clear: what changes.

OMP_NUM_THREADS=1 python benchmarks/encrypted_accuracy.py RUN [--batch 52] [--volumes N]

Hospital and vendor are two threads over a socket pair; the dealer deals anew for every batch. Errors of logits, how
many exceed the stated one; images or pixels whose most likely class differs, and how many of those are clear: their
margin is above twice the stated error. Classification: AUC of both. Segmentation: Dice of both over patients.
``--volumes`` takes the first ones only.
"""

import argparse
import io
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medveil.encrypted.protocol.deal import (
    deal,
    masked_weights,
    prepare_hospital,
    prepare_vendor,
    read_masked_weights,
    weight_masks,
)
from medveil.encrypted.protocol.evaluate import hospital, vendor
from medveil.encrypted.wire.link import Link
from medveil.evaluation.curves import FIXED_HALF
from medveil.study.diagnosis import decode, encode, serve_run
from medveil.study.evaluate import stored_plan
from medveil.study.folder import RunFolder
from medveil.study.prepare import input_scale, prepare
from medveil.study.scoring import Scorer, point_metrics


class Parties:
    """A served model with two ends."""

    def __init__(self, served):
        self.served, self.program = served, served.compiled.program
        seed = os.urandom(32)
        self.masks = weight_masks(self.program, seed)
        self.masked = read_masked_weights(self.program, masked_weights(self.program, served.compiled.weights, seed))
        self.front, self.back = served.description.parts()

    def logits(self, images):
        """Of a batch, through the protocol."""
        ours, theirs = os.urandom(32), os.urandom(32)
        count = len(images)
        dealt = b"".join(deal(self.program, self.masks, hospital=ours, vendor=theirs, images=count))
        halves = (
            prepare_hospital(self.program, self.masked, ours, count),
            prepare_vendor(self.program, theirs, io.BytesIO(dealt).read, count),
        )
        links = [Link(end, timeout_s=600) for end in socket.socketpair()]

        def serve():
            vendor(halves[1], links[1], self.served.compiled.weights)
            links[1].flush()

        thread = threading.Thread(target=serve)
        thread.start()
        result = hospital(halves[0], links[0], encode(images, self.program, self.front), os.urandom(32))
        thread.join()
        for link in links:
            link.close()
        return decode(result, self.back)


def main():
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=52)
    parser.add_argument("--volumes", type=int)
    options = parser.parse_args()
    served = serve_run(options.run)
    plan = stored_plan(RunFolder(options.run))
    test = prepare(plan).test
    data = test.data
    rows = np.arange(len(data))
    if options.volumes:
        kept = np.unique(data.subject)[: options.volumes]
        rows = np.flatnonzero(np.isin(data.subject, kept))
    images = input_scale(plan.data.preprocess)(data.images[rows])
    reached = []
    for module in served.module.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, given, _result: reached.append(given[0].max().item()))
    parties, begun, found, plain = Parties(served), time.perf_counter(), [], []
    for start in range(0, len(images), options.batch):
        part = images[start : start + options.batch]
        found.append(parties.logits(part))
        with torch.no_grad():
            plain.append(served.module(part).double())
    found, plain = torch.cat(found), torch.cat(plain)
    error, stated = found - plain, served.compiled.error_stated
    print(
        f"{len(images)} images, {time.perf_counter() - begun:.0f} s; logit error: largest {error.abs().max():.1e}, "
        f"mean {error.mean():+.1e}, root mean square {error.square().mean().sqrt():.1e} (estimated "
        f"{served.compiled.error_rms:.1e})"
    )
    beyond = int((error.abs() > stated).sum())
    print(f"stated error {stated:.1e}: {beyond} of {error.numel()} logit errors exceed it")
    print(f"largest value before a ReLU {max(reached):.1f}, largest logit {plain.abs().max():.1f}")
    differs = found.argmax(1) != plain.argmax(1)
    best = plain.sort(1, descending=True).values
    clear = (best[:, 0] - best[:, 1]) > 2 * stated
    wrong, what = int((differs & clear).sum()), "images" if plan.task == "classification" else "pixels"
    print(
        f"{what} whose most likely class differs: {int(differs.sum())} of {differs.numel()}; of {int(clear.sum())} "
        f"clear ones {wrong}"
    )
    if len(rows) < len(data):
        dice = [overlap(each.argmax(1).numpy(), data.targets[rows].numpy()) for each in (found, plain)]
        print(f"Dice over all pixels, encrypted {dice[0]:.5f}, in the clear {dice[1]:.5f}")
        return
    scorer = Scorer(plan, served.description.class_names, torch.device("cpu"))
    for name, logits in (("encrypted", found), ("in the clear", plain)):
        said = logits.softmax(1).numpy() if plan.task == "classification" else logits.argmax(1).to(torch.uint8).numpy()
        metrics = point_metrics(scorer.score(said, test, FIXED_HALF, intervals=False))
        print(f"{name}: " + ", ".join(f"{key} {value:.5f}" for key, value in metrics.items()))


def overlap(found, wanted):
    """Mean Dice of the foreground classes over all pixels together."""
    scores = [
        2 * ((found == label) & (wanted == label)).sum() / ((found == label).sum() + (wanted == label).sum())
        for label in np.unique(wanted[wanted > 0])
    ]
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
