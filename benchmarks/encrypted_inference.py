"""Bytes, processor time and seconds of encrypted diagnosis, beside the bound that bytes, latency and arithmetic set.

OMP_NUM_THREADS=1 python benchmarks/encrypted_inference.py [--nets lenet resnet20 resnet18] [--networks loopback lan]

Hospital and vendor are two processes; the dealer has dealt before. A LAN (1 Gbit/s, 1 ms one way) and a WAN (100
Mbit/s, 40 ms one way) are simulated by a relay process that holds bytes back. The bound: bytes over the rate, messages
times the latency, and the vendor's integer arithmetic on a plain image. Weights are random, batch normalisation has
random statistics; nothing depends on them but the error.
"""

import argparse
import io
import json
import os
import resource
import socket
import statistics
import threading
import time
from collections import deque

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

NETWORKS = {"loopback": (0.0, 0.0), "lan": (1e9 / 8, 1e-3), "wan": (1e8 / 8, 40e-3)}


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


def relay(one, other, rate, delay):
    """Pass bytes on both ways, no faster than ``rate``, no earlier than ``delay``; until both ends close."""

    def pump(source, target):
        waiting, ready = deque(), threading.Condition()

        def deliver():
            while True:
                with ready:
                    ready.wait_for(lambda: waiting)
                    due, data = waiting.popleft()
                if data is None:
                    target.shutdown(socket.SHUT_WR)
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                target.sendall(data)

        thread = threading.Thread(target=deliver)
        thread.start()
        free = 0.0
        while data := source.recv(1 << 16):
            free = max(free, time.perf_counter()) + len(data) / rate
            with ready:
                waiting.append((free + delay, data))
                ready.notify()
        with ready:
            waiting.append((0.0, None))
            ready.notify()
        thread.join()

    threads = [threading.Thread(target=pump, args=pair) for pair in ((one, other), (other, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ends(network):
    """Sockets of hospital and vendor, and the relay's process where there is one."""
    rate, delay = NETWORKS[network]
    if not rate:
        return *socket.socketpair(), None
    (ours, near), (far, theirs) = socket.socketpair(), socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.close()
        relay(near, far, rate, delay)
        os._exit(0)
    near.close()
    far.close()
    return ours, theirs, child


def one_run(compiled, image, network):
    """Seconds, processor seconds of both, bytes, frames and the result, for one image."""
    program = compiled.program
    seeds = [os.urandom(32) for _ in range(3)]
    begun = time.process_time()
    dealt = b"".join(deal(program, weight_masks(program, seeds[0]), hospital=seeds[1], vendor=seeds[2]))
    dealing = time.process_time() - begun
    ours, theirs, child = ends(network)
    read, write = os.pipe()
    other = os.fork()
    if other == 0:
        ours.close()
        half = prepare_vendor(program, seeds[2], io.BytesIO(dealt).read)
        del dealt
        link = Link(theirs)
        link.tell({"ready": True})
        link.flush()
        begun = time.process_time()
        vendor(half, link, compiled.weights)
        link.close()
        used = time.process_time() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(write, json.dumps([used, memory / 1024]).encode())
        os._exit(0)
    theirs.close()
    size = len(dealt)
    del dealt
    masked = read_masked_weights(program, masked_weights(program, compiled.weights, seeds[0]))
    begun = time.process_time()
    half = prepare_hospital(program, masked, seeds[1])
    preparing = time.process_time() - begun
    link = Link(ours)
    link.hear(("ready",))
    before = link.bytes_sent, link.bytes_received, link.frames_sent + link.frames_received
    cpu, wall = time.process_time(), time.perf_counter()
    result = hospital(half, link, image, os.urandom(32))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = link.bytes_sent, link.bytes_received, link.frames_sent + link.frames_received
    link.close()
    used, memory = json.loads(os.read(read, 1000))
    for process in (other, child):
        if process is not None:
            os.waitpid(process, 0)
    sent, received, frames = (now - then for now, then in zip(after, before, strict=True))
    return {
        "wall": wall, "cpu": (cpu, used), "sent": sent, "received": received, "frames": frames, "result": result,
        "dealt": size, "dealing": dealing, "preparing": preparing, "memory": memory,
    }  # fmt: skip


def arithmetic(compiled):
    """Seconds of the vendor's integer arithmetic on one image."""
    shapes = {operation.name: operation.shape for operation in compiled.program.operations}
    total = 0.0
    for layer in compiled.program.linears():
        values = np.ones((1, *shapes[layer.inputs[0]]), np.uint64)
        begun = time.perf_counter()
        apply(layer, values, compiled.weights.weights[layer.name])
        total += time.perf_counter() - begun
    return total


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
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
        work = min(arithmetic(compiled) for _ in range(3))
        for kind in options.networks:
            rate, delay = NETWORKS[kind]
            runs = [one_run(compiled, encoded, kind) for _ in range(options.repeats)]
            best = min(runs, key=lambda run: run["wall"])
            cpu = [statistics.median(run["cpu"][side] for run in runs) for side in (0, 1)]
            total = best["sent"] + best["received"]
            bound = work + told["rounds"] * delay + (total / rate if rate else 0.0)
            error = max(np.abs(run["result"] - wanted).max() for run in runs)
            row(kind, best, cpu, bound, error)


def row(kind, best, cpu, bound, error):
    """Print one network's figures."""
    total = best["sent"] + best["received"]
    print(
        f"  {kind:<9}{best['wall']:>7.3f} s ({best['wall'] / bound:.2f} x the bound {bound:.3f} s), CPU hospital "
        f"{cpu[0]:.3f} + vendor {cpu[1]:.3f} = {sum(cpu):.3f} s; {total / 1e6:.2f} MB online "
        f"({best['sent'] / 1e6:.2f} to the vendor), {best['frames']} frames, largest error {error:.1e}"
    )
    print(
        f"           ahead: {best['dealt'] / 1e6:.1f} MB dealt, CPU dealer {best['dealing']:.2f}, hospital "
        f"{best['preparing']:.2f} s; vendor's memory {best['memory']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
