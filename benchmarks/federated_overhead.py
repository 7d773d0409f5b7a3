"""What the in-process transport costs: the demo's federated training against a plain central torch loop.

Both train the plan's network on the plan's data with one thread, the same batches in number and size. The plain
loop below uses nothing of medveil's training code. Prints the least seconds of the repeats, which a busy machine
disturbs least, and the ratio of federated to plain. The last lines are steadier on a machine whose speed varies:
within the federated runs themselves, everything but the sites' own training (messages, sums, checkpoints, final
validation) as a share of that training.

    python benchmarks/federated_overhead.py [PLAN] [--rounds 5] [--repeats 3]
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import nn

from medveil.federation import messages
from medveil.federation.local import LocalWork
from medveil.study.arms import Workshop, build_model, train_federated
from medveil.study.folder import MetricsLog, RunFolder
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.progress import Silent


def plain_loop(model, parties, *, rounds, batch_size, lr):
    """Central training: every round passes once over every site's data, one after the other."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        for party in parties:
            order = torch.randperm(len(party.train), generator=generator)
            for picked in order.split(batch_size):
                images = (party.train.images[picked].float() / 255 - 0.5) / 0.25
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images), party.train.targets[picked]).backward()
                optimiser.step()


def timed(function, *arguments, **settings):
    """Seconds of one call."""
    begun = time.perf_counter()
    function(*arguments, **settings)
    return time.perf_counter() - begun


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", nargs="?", default="pneumonia-28")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = load_plan(
        options.plan,
        [
            f"federation.rounds={options.rounds}",
            "performance.workers=1",
            "training.augmentation={}",
            f"federation.validate_every={options.rounds + 1}",
        ],
    )
    prepared = prepare(plan)
    plain, federated, transport, local = [], [], [], []
    for _ in range(options.repeats):
        model = build_model(plan, prepared.input_shape, prepared.num_classes)
        plain.append(
            timed(
                plain_loop,
                model,
                prepared.sites,
                rounds=options.rounds,
                batch_size=plan.training.batch_size,
                lr=plan.training.optimiser.lr,
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            run.state.mkdir()
            first = build_model(plan, prepared.input_shape, prepared.num_classes)
            shop = Workshop(plan, prepared, run, MetricsLog(run.metrics), Silent(), torch.device("cpu"), first)
            with local_training_timed() as spent:
                federated.append(timed(train_federated, shop))
            local.append(sum(spent))
        transport.append(message_seconds(model, sites=len(prepared.sites), rounds=options.rounds))
    print(f"plan {plan.name}, {len(prepared.sites)} sites, {options.rounds} rounds, one thread")
    print(f"{'':<34}{'seconds':>9}{'ratio':>8}")
    for name, values in (("plain central torch loop", plain), ("federated, in process", federated)):
        print(f"{name:<34}{min(values):>9.2f}{min(values) / min(plain):>8.3f}")
    shares = [(total - own) / own for total, own in zip(federated, local, strict=True)]
    print(f"{'all but local training, share of it':<34}{'':>9}{median(shares):>8.3f} (median of {len(shares)})")
    print(f"{'messages alone (encode, decode)':<34}{min(transport):>9.3f}{min(transport) / min(local):>8.3f}")


@contextmanager
def local_training_timed():
    """Collect the seconds that sites spend in their own training."""
    spent, honest = [], LocalWork.train

    def train(self, *arguments):
        begun = time.perf_counter()
        result = honest(self, *arguments)
        spent.append(time.perf_counter() - begun)
        return result

    LocalWork.train = train
    try:
        yield spent
    finally:
        LocalWork.train = honest


def message_seconds(model, *, sites, rounds):
    """Seconds to encode and decode every message of a training."""
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    header = messages.Result(round=1, form="weights", weight=1.0, train_loss=0.0)
    begun = time.perf_counter()
    for _ in range(2 * sites * rounds):
        messages.decode(messages.encode(header, {"values": vector, "buffers": vector[:0]}))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
