"""CrypTen 0.4.1, Beaver triples in the ring modulo 2**64, two parties in two processes: one image, online.

DIR/crypten/bin/python benchmarks/peers/crypten_beaver.py [--nets ...] [--networks loopback]

What it assumes: both parties follow the protocol, and the correlated random numbers come from a "trusted first party",
that is, party 0 makes them all and can unmask everything; they are drawn with torch's generator, which is not made for
secrets. Making them is part of the processor time. The weights are shared before. ResNet-18 has average, not max
pooling. Its connections (gloo, ports of its own choice) cannot be led through the relay: loopback only. Bytes are
counted by the kernel. CrypTen is not maintained any more: a module that newer torch lacks is filled in.
"""

import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
from nets import forward, image, parameters
from parties import arguments, bytes_received, run
from table import row
from torch.nn import functional


class Plain:
    """Functions of torch, for what is right."""

    @staticmethod
    def conv(x, weight, bias, stride, padding):
        """A convolution and its bias."""
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def relu(x):
        """The larger of each value and 0."""
        return x.relu()

    @staticmethod
    def average(x, size):
        """Means of squares."""
        return functional.avg_pool2d(x, size)

    @staticmethod
    def largest(x, size, stride, padding):
        """Average pooling, where the other systems have max pooling."""
        return functional.avg_pool2d(x, size, stride, padding)

    @staticmethod
    def overall(x):
        """The mean of every channel."""
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def flatten(x):
        """Everything in a row."""
        return x.flatten(1)

    @staticmethod
    def linear(x, weight, bias):
        """A dense layer."""
        return x @ weight.T + bias


class Shared(Plain):
    """The same with CrypTen's tensors."""

    @staticmethod
    def conv(x, weight, bias, stride, padding):
        """A convolution and its bias."""
        return x.conv2d(weight, stride=stride, padding=padding) + bias.view(1, -1, 1, 1)

    @staticmethod
    def average(x, size):
        """Means of squares."""
        return x.avg_pool2d(size)

    @staticmethod
    def largest(x, size, stride, padding):
        """Average pooling, where the other systems have max pooling."""
        return x.avg_pool2d(size, stride=stride, padding=padding)

    @staticmethod
    def linear(x, weight, bias):
        """A dense layer."""
        return x.matmul(weight.t()) + bias


def load():
    """CrypTen, with the part of torch that its converter of models imports and that is not used here."""
    missing = types.ModuleType("torch.onnx._internal.registration")
    missing.registry = None
    sys.modules.setdefault(missing.__name__, missing)
    import crypten

    return crypten


def party(job):
    """One of the two: 0 has the image, 1 the weights."""
    torch.set_num_threads(1)
    rank, net = job["rank"], job["net"]
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "DISTRIBUTED_BACKEND": "gloo", "RENDEZVOUS": job["meeting"],
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    crypten = load()
    crypten.init()
    weights, picture = [torch.from_numpy(each) for each in parameters(net)], torch.from_numpy(image(net))
    with crypten.no_grad():
        shared = [crypten.cryptensor(each, src=1) for each in weights]
        crypten.communicator.get().barrier()
        before, cpu, wall = bytes_received(), time.process_time(), time.perf_counter()
        given = crypten.cryptensor(picture if rank == 0 else torch.zeros_like(picture), src=0)
        found = forward(net, shared, given, Shared).get_plain_text(dst=0)
        said = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        crypten.communicator.get().barrier()
        said["received"] = bytes_received() - before
    if rank == 0:
        said["error"] = float((found - forward(net, weights, picture, Plain)).abs().max())
    print(json.dumps(said), flush=True)


def main():
    """Measure and print."""
    options = arguments(__doc__)
    if options.job:
        party(options.job)
        return
    for net in options.nets:
        for network in options.networks:
            if network != "loopback":
                print(
                    f"  CrypTen     {network:<9} not measured: its connections cannot be led through the relay",
                    flush=True,
                )
                continue
            with tempfile.TemporaryDirectory() as folder:
                meeting = (Path(folder) / "meeting").as_uri()
                found = run(__file__, [{"rank": rank, "net": net, "meeting": meeting} for rank in (0, 1)])
            if found is None:
                print(f"  CrypTen: no result for {net}", flush=True)
                continue
            ours, theirs = found
            note = "average pooling" if net == "resnet18" else ""
            sent = theirs["received"], ours["received"]
            row("CrypTen", network, ours["wall"], (ours["cpu"], theirs["cpu"]), sent, ours["error"], note)


if __name__ == "__main__":
    sys.exit(main())
