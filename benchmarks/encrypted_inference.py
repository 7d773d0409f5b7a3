"""Bytes, processor time and seconds of encrypted diagnosis, beside the bound that bytes, latency and arithmetic set.

OMP_NUM_THREADS=1 python benchmarks/encrypted_inference.py [--nets lenet resnet20 resnet18] [--networks loopback lan]
                                                           [--repeats 3] [--peers DIR]

Hospital and vendor are two processes that talk over TCP; the dealer has dealt before. A LAN (1 Gbit/s, 1 ms one way)
and a WAN (100 Mbit/s, 40 ms one way) are simulated by a relay process that holds bytes back (``peers/relay.c``). What
it really delivers is measured first, and, if that is near, the bound is made of it: bytes over the rate, messages in
turn times the latency, and the vendor's integer arithmetic on a plain image. Two bounds are printed. The first takes
the bytes of both directions over one line, as the design computes it; directions can overlap, so a run may beat it.
The stricter one counts the busier direction alone. Seconds are the least of all runs, processor seconds the median.
Weights are random, batch normalisation has random statistics; nothing depends on them but the error. The link has
check sums and no TLS.

With ``--peers``, SPU and CrypTen answer for the same networks in the same run, from virtual environments in DIR
(``docs/how-to/benchmark-peers.md``).
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.protocol.deal import (
    deal,
    masked_weights,
    prepare_hospital,
    prepare_vendor,
    read_masked_weights,
    weight_masks,
)
from medveil.encrypted.protocol.evaluate import hospital, vendor
from medveil.encrypted.protocol.linear import apply
from medveil.encrypted.wire.link import Link
from peers.relay import NETWORKS, connected, measure
from peers.table import row

PEERS = {"spu": "spu_semi2k.py", "crypten": "crypten_beaver.py"}
"""Scripts in ``peers``, by the virtual environment that runs them."""


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, with batch normalisation."""

    def __init__(self, given, channels, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(given, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.short = nn.Identity()
        if stride != 1 or given != channels:
            self.short = nn.Sequential(nn.Conv2d(given, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        """Same shape but for the stride."""
        y = self.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.short(x))


def residual(stem, given, widths, depth, classes=3):
    """A residual network behind a stem."""
    blocks = []
    for place, width in enumerate(widths):
        for number in range(depth):
            blocks.append(Block(given, width, 2 if number == 0 and place else 1))
            given = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes))


def lenet():
    """LeNet-5 with ReLU and average pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def resnet20():
    """Of CIFAR's shape, one channel."""
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return residual(stem, 16, (16, 32, 64), 3)


def resnet18():
    """The common one: 7 x 7 stem with stride 2, 3 x 3 max pooling."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return residual(stem, 64, (64, 128, 256, 512), 2)


NETS = {"lenet": (lenet, (1, 28, 28)), "resnet20": (resnet20, (1, 64, 64)), "resnet18": (resnet18, (3, 224, 224))}


def trained_like(network):
    """Random statistics for batch normalisation, so that folding has something to do."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.0)
    return network.eval()


def one_run(compiled, image, network):
    """Seconds, processor seconds of both, bytes, frames and the result, for one image."""
    program = compiled.program
    seeds = [os.urandom(32) for _ in range(3)]
    begun = time.process_time()
    dealt = b"".join(deal(program, weight_masks(program, seeds[0]), hospital=seeds[1], vendor=seeds[2]))
    dealing = time.process_time() - begun
    masked = read_masked_weights(program, masked_weights(program, compiled.weights, seeds[0]))
    with connected(network) as (ours, theirs):
        read, write = os.pipe()
        other = os.fork()
        if other == 0:
            ours.close()
            del masked
            half = prepare_vendor(program, seeds[2], io.BytesIO(dealt).read)
            del dealt
            os.write(write, json.dumps(vendor_run(half, theirs, compiled.weights)).encode())
            os._exit(0)
        theirs.close()
        size = len(dealt)
        del dealt
        begun = time.process_time()
        half = prepare_hospital(program, masked, seeds[1])
        preparing = time.process_time() - begun
        found = hospital_run(half, ours, image)
        used, memory = json.loads(os.read(read, 1000))
        os.waitpid(other, 0)
        os.close(read)
        os.close(write)
    return found | {
        "cpu": (found["cpu"], used), "dealt": size, "dealing": dealing, "preparing": preparing, "memory": memory,
    }  # fmt: skip


def vendor_run(half, sock, weights):
    """Serve one image; processor seconds, and the process's largest memory in MiB."""
    link = Link(sock)
    link.tell({"ready": True})
    link.flush()
    begun = time.process_time()
    vendor(half, link, weights)
    link.close()
    used = time.process_time() - begun
    return used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hospital_run(half, sock, image):
    """Ask for one image."""
    link = Link(sock)
    link.hear(("ready",))
    before = link.bytes_sent, link.bytes_received, link.frames_sent + link.frames_received
    cpu, wall = time.process_time(), time.perf_counter()
    result = hospital(half, link, image, os.urandom(32))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = link.bytes_sent, link.bytes_received, link.frames_sent + link.frames_received
    link.close()
    sent, received, frames = (now - then for now, then in zip(after, before, strict=True))
    return {"wall": wall, "cpu": cpu, "sent": sent, "received": received, "frames": frames, "result": result}


def arithmetic(compiled):
    """Processor seconds of the vendor's integer arithmetic on one image."""
    shapes = {operation.name: operation.shape for operation in compiled.program.operations}
    total = 0.0
    for layer in compiled.program.linears():
        values = np.ones((1, *shapes[layer.inputs[0]]), np.uint64)
        begun = time.process_time()
        apply(layer, values, compiled.weights.weights[layer.name])
        total += time.process_time() - begun
    return total


def checked(kind):
    """What the bound is made of, bytes a second and seconds one way: what the relay delivers, if that is as stated."""
    stated = NETWORKS[kind]
    found = [measure(kind) for _ in range(3)]
    rate, delay = max(rate for rate, _ in found), min(delay for _, delay in found)
    if not rate:
        return rate, delay
    print(f"{kind}: the relay delivers {rate * 8e-6:.1f} Mbit/s and {1e3 * delay:.2f} ms one way")
    if rate > 0.95 * stated[0] and delay < 1.15 * stated[1]:
        return rate, delay
    print(f"note: the machine is busy; bounds are made of {stated[0] * 8e-6:.0f} Mbit/s and {1e3 * stated[1]:.0f} ms")
    return stated


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="folder with the peers' virtual environments, spu and crypten")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start")
    delivered = {kind: checked(kind) for kind in options.networks}
    for name in options.nets:
        make, shape = NETS[name]
        network = trained_like(make())
        compiled = compile_network(network, shape, (-2.0, 2.0))
        image = torch.rand(1, *shape, dtype=torch.double) * 4 - 2
        with torch.no_grad():
            wanted = network.double()(image).numpy()
        encoded = np.round(image.numpy() * 2.0**compiled.program.input.scale).astype(np.int64)
        told = compiled.describe()
        size = "x".join(map(str, shape))
        print(f"{name} {size}: {told['comparisons']:,} comparisons, {told['rounds']} messages in turn")
        work = min(arithmetic(compiled) for _ in range(5))
        for kind in options.networks:
            rate, delay = delivered[kind]
            runs = [one_run(compiled, encoded, kind) for _ in range(options.repeats)]
            best = min(runs, key=lambda run: run["wall"])
            cpu = [statistics.median(run["cpu"][side] for run in runs) for side in (0, 1)]
            total = best["sent"] + best["received"]
            busier = max(best["sent"], best["received"])
            bound, strict = (work + told["rounds"] * delay + (size / rate if rate else 0.0) for size in (total, busier))
            error = max(np.abs(run["result"] - wanted).max() for run in runs)
            row("medveil", kind, best["wall"], cpu, (best["sent"], best["received"]), error)
            print(
                f"{'':14}{best['wall'] / bound:.2f} x the bound {bound:.3f} s, {best['wall'] / strict:.2f} x the "
                f"stricter one {strict:.3f} s, {best['frames']} frames; ahead: "
                f"{best['dealt'] / 1e6:.1f} MB dealt, CPU dealer {best['dealing']:.2f}, hospital "
                f"{best['preparing']:.2f} s; vendor's memory {best['memory']:.0f} MiB",
                flush=True,
            )
            if options.peers:
                ask_peers(options.peers, name, kind)


def ask_peers(folder, net, network):
    """Let the peers print their rows, each in an environment of its own."""
    for name, script in PEERS.items():
        python = folder / name / "bin" / "python"
        if not python.exists():
            print(f"  {name}: no environment {python}")
            continue
        words = [python, Path(__file__).parent / "peers" / script, "--nets", net, "--networks", network]
        if subprocess.run(words, check=False).returncode:
            print(f"  {name}: failed on {net} over {network}", flush=True)


if __name__ == "__main__":
    main()
