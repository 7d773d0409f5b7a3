"""SecretFlow SPU, protocol SEMI2K in the ring modulo 2**64, two parties in two processes: one image, online.

DIR/spu/bin/python benchmarks/peers/spu_semi2k.py [--nets ...] [--networks ...]

What it assumes: both parties follow the protocol, and the correlated random numbers come from SPU's default, the
"trusted first party": party 0 makes them all from seeds that it knows, so that party 0 can unmask everything. That is
not secure between two parties; SPU offers a third party as a server for it, which its Python package does not contain.
Making them is part of the processor time (they are made while evaluating); where a dealer did it ahead, less would be
left. The weights are shared before. Connections go through the relay; bytes are counted by the kernel.
"""

import json
import sys
import time

import numpy as np
from nets import forward, image, parameters
from parties import arguments, bytes_received, run
from relay import free_ports, relayed
from table import row


class Ops:
    """jax.numpy with channels last, as SPU's convolution wants them."""

    @staticmethod
    def conv(x, weight, bias, stride, padding):
        """A convolution and its bias."""
        from jax import lax

        edges = [(padding, padding)] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, weight, (stride, stride), edges, dimension_numbers=layout) + bias

    @staticmethod
    def relu(x):
        """The larger of each value and 0."""
        import jax.numpy as jnp

        return jnp.maximum(x, 0)

    @staticmethod
    def average(x, size):
        """Means of squares."""
        from jax import lax

        return lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, size, size, 1), "VALID") / size**2

    @staticmethod
    def largest(x, size, stride, padding):
        """Max pooling."""
        import jax.numpy as jnp
        from jax import lax

        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))  # behind a ReLU: none is below 0
        return lax.reduce_window(x, -1000.0, lax.max, (1, size, size, 1), (1, stride, stride, 1), "VALID")

    @staticmethod
    def overall(x):
        """The mean of every channel."""
        return x.mean(axis=(1, 2), keepdims=True)

    @staticmethod
    def flatten(x):
        """Everything in a row."""
        return x.reshape(1, -1)

    @staticmethod
    def linear(x, weight, bias):
        """A dense layer."""
        return x @ weight + bias


def arranged(net):
    """Weights and image with channels last."""
    orders = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    weights = [np.ascontiguousarray(each.transpose(orders[each.ndim])) for each in parameters(net)]
    return weights, image(net).transpose(0, 2, 3, 1)


def give(link, share):
    """Send a share to the other party."""
    link.send(1 - link.rank, share.meta)
    link.send(1 - link.rank, len(share.share_chunks).to_bytes(8, "little"))
    for chunk in share.share_chunks:
        link.send(1 - link.rank, chunk)


def get(link):
    """Receive a share."""
    from spu import libspu

    share = libspu.Share()
    share.meta = link.recv(1 - link.rank)
    share.share_chunks = [link.recv(1 - link.rank) for _ in range(int.from_bytes(link.recv(1 - link.rank), "little"))]
    return share


def party(job):
    """One of the two: 0 has the image, 1 the weights."""
    import spu.api
    from spu import libspu
    from spu.utils import frontend

    rank, net = job["rank"], job["net"]
    weights, picture = arranged(net)
    secret = libspu.Visibility.VIS_SECRET
    config = libspu.RuntimeConfig(protocol=libspu.ProtocolKind.SEMI2K, field=libspu.FieldType.FM64)
    names = [f"in{place}" for place in range(len(weights) + 1)]
    program, _ = frontend.compile(
        frontend.Kind.JAX, lambda x, *given: forward(net, given, x, Ops), (picture, *weights), {}, names,
        [secret] * len(names), lambda found: [f"out{place}" for place in range(len(found))],
    )  # fmt: skip
    description = libspu.link.Desc()
    for other in (0, 1):
        description.add_party(f"party{other}", job["addresses"][other])
    description.recv_timeout_ms = 300_000
    link = libspu.link.create_brpc(description, rank)
    runtime, io = spu.api.Runtime(link, config), spu.api.Io(2, config)
    for name, weight in zip(names[1:], weights, strict=True):
        if rank == 1:
            shares = io.make_shares(weight, secret)
            runtime.set_var(name, shares[1])
            give(link, shares[0])
        else:
            runtime.set_var(name, get(link))
    link.barrier()
    before, cpu, wall = bytes_received(), time.process_time(), time.perf_counter()
    if rank == 0:
        shares = io.make_shares(picture, secret)
        give(link, shares[1])
        runtime.set_var(names[0], shares[0])
    else:
        runtime.set_var(names[0], get(link))
    runtime.run(program)
    result = runtime.get_var(program.output_names[0])
    logits = None
    if rank == 1:
        give(link, result)
    else:
        logits = io.reconstruct([result, get(link)])
    said = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if logits is not None:
        wanted = np.asarray(forward(net, weights, picture, Ops))
        said["error"] = float(np.abs(logits - wanted).max())
    link.barrier()
    print(json.dumps(said | {"received": bytes_received() - before}))


def main():
    """Measure and print."""
    options = arguments(__doc__)
    if options.job:
        party(options.job)
        return
    for net in options.nets:
        for network in options.networks:
            ports = free_ports(2)
            with relayed(network, [(1, ports[0]), (0, ports[1])]) as (shown, _):
                real = [f"127.0.0.1:{port}" for port in ports]
                seen = [f"127.0.0.1:{port}" for port in shown]
                addresses = [[real[0], seen[1]], [seen[0], real[1]]]
                found = run(__file__, [{"rank": r, "net": net, "addresses": addresses[r]} for r in (0, 1)])
            if found is None:
                print(f"  SPU: no result for {net} over {network}", flush=True)
                continue
            ours, theirs = found
            sent = theirs["received"], ours["received"]
            row("SPU SEMI2K", network, ours["wall"], (ours["cpu"], theirs["cpu"]), sent, ours["error"])


if __name__ == "__main__":
    sys.exit(main())
