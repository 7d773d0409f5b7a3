"""Time of secure aggregation beside a plain NumPy sum and Flower's SecAgg+ in one run, and bytes of whole sessions.

OMP_NUM_THREADS=1 python benchmarks/secure_aggregation.py [--quick]

Flower is measured when ``flwr`` is installed (medveil does not need it): the functions its SecAgg+ calls for a vector,
without its messages. Times are of one core. ``--quick`` leaves out the session of 100 sites.
"""

import argparse
import os
import time
from collections import deque
from random import sample

import numpy as np

from medveil.dp.noise import NoiseMechanism
from medveil.rng import SecureRandom
from medveil.secagg.encoding import FixedPoint, choose_bits, to_ring
from medveil.secagg.ring import add_mask
from medveil.secagg.shamir import combine, combine_many, split_many
from side_by_side import table

DIMENSIONS = (60_000, 270_000, 1_000_000)
SITES = 10
ROUNDS = 15
# A clipped total of 64 units, in steps of the noise mechanism's grid.
UNITS = 64


def add_masks(vector, keys):
    for key in keys:
        add_mask(vector, key, 1)


def flower():
    """Flower's functions, or None."""
    try:
        from flwr.common.secure_aggregation import ndarrays_arithmetic, quantization, secaggplus_utils
        from flwr.common.secure_aggregation.crypto import shamir
    except ImportError as error:
        print(f"Flower is not measured: flwr is not installed ({error})\n")
        return None
    return ndarrays_arithmetic, quantization, secaggplus_utils, shamir


def flower_step(functions, values, seeds):
    """Quantise and mask as Flower's client does at its defaults: range 8, 2**22 levels, modulus 2**32.

    Its masks come from the Mersenne Twister, seeded with 32 bits: fast to expand, and open to exhaustive search.
    """
    arithmetic, quantization, utils, _ = functions
    (quantised,) = quantization.quantize([values], 8.0, 1 << 22)
    masked = [quantised]
    for seed in seeds:
        masked = arithmetic.parameters_addition(masked, utils.pseudo_rand_gen(seed, 1 << 32, [values.shape]))
    return arithmetic.parameters_mod(masked, 1 << 32)


def site_steps(peer):
    random = SecureRandom()
    for dimension in DIMENSIONS:
        mechanism = NoiseMechanism(1.0, 1.0, dimension, sites=SITES)
        noise_std = mechanism.std_grid * SITES**0.5
        bits = choose_bits(UNITS << 20, SITES, noise_std, dimension, 1e-12)
        total = np.random.default_rng(0).standard_normal(dimension)
        fixed = FixedPoint.fitting(8.0, SITES, 32)
        keys = [os.urandom(32) for _ in range(SITES)]
        noisy = mechanism.encode(total, random)
        vector, wide = to_ring(noisy, bits), to_ring(noisy, 64)

        def step(mechanism=mechanism, total=total, keys=keys, bits=bits):
            add_masks(to_ring(mechanism.encode(total, random), bits), keys)

        def step_without_noise(fixed=fixed, total=total, keys=keys):
            add_masks(fixed.encode(total)[0], keys)

        whole = f"noise + ring of {bits} bits + masks"
        functions = {
            "noise": lambda mechanism=mechanism, total=total: mechanism.encode(total, random),
            f"to the ring of {bits} bits": lambda noisy=noisy, bits=bits: to_ring(noisy, bits),
            f"{SITES} masks of {bits} bits": lambda vector=vector, keys=keys: add_masks(vector, keys),
            f"{SITES} masks of 64 bits": lambda wide=wide, keys=keys: add_masks(wide, keys),
            whole: step,
            "fixed point without noise": lambda fixed=fixed, total=total: fixed.encode(total),
            "fixed point + masks of 32 bits": step_without_noise,
        }
        if peer:
            functions["Flower: quantise + masks"] = lambda total=total, keys=keys: flower_step(peer, total, keys)
        table(f"A site's step, {dimension} parameters, {SITES} sites", whole, functions, rounds=ROUNDS)
    print()


def masks_by_sites():
    for dimension in DIMENSIONS:
        vector, keys = np.zeros(dimension, np.uint32), [os.urandom(32) for _ in range(50)]
        functions = {
            f"{sites} sites": lambda sites=sites, vector=vector, keys=keys: add_masks(vector, keys[:sites])
            for sites in (2, 5, 10, 50)
        }
        table(f"A site's masks of 32 bits, {dimension} parameters", "10 sites", functions, rounds=ROUNDS)
    print()


def server_sums():
    for dimension in DIMENSIONS:
        generator = np.random.default_rng(0)
        narrow = generator.integers(0, 2**32, (SITES, dimension), dtype=np.uint32)
        wide = generator.integers(0, 2**64, (SITES, dimension), dtype=np.uint64)
        double = generator.standard_normal((SITES, dimension))
        single = double.astype(np.float32)

        def add(rows):
            total = rows[0].copy()
            for row in rows[1:]:
                total += row

        table(
            f"Sum of {SITES} vectors of {dimension}",
            "plain NumPy sum, float32",
            {
                "32 bits": lambda rows=narrow: add(rows),
                "64 bits": lambda rows=wide: add(rows),
                "plain NumPy sum, float32": lambda rows=single: add(rows),
                "plain NumPy sum, float64": lambda rows=double: add(rows),
            },
            rounds=ROUNDS,
        )
    print()


def shares(peer):
    """Secrets of 32 bytes for both; Flower's private keys are longer."""
    random = SecureRandom()
    for sites in (10, 100):
        threshold = sites // 2 + 1
        secrets, points = [os.urandom(32) for _ in range(sites)], range(1, sites + 1)
        split_secrets = split_many(secrets, threshold, points, random)

        def open_one(of=split_secrets[0], sites=sites, threshold=threshold):
            # Other points at each call, so that nothing is known from the call before.
            return combine({x + 1: of[x + 1] for x in sample(range(sites), threshold)}, threshold)

        functions = {
            "a site shares two secrets": lambda s=secrets[:2], t=threshold, p=points: split_many(s, t, p, random),
            "the server opens one secret": open_one,
            f"the server opens {sites} secrets": lambda s=split_secrets, t=threshold: combine_many(s, t),
        }
        if peer:
            functions |= flower_shares(peer[3], secrets[:2], threshold, sites)
        table(f"Shares, {sites} sites, threshold {threshold}", "a site shares two secrets", functions, rounds=5)
    print()


def flower_shares(shamir, secrets, threshold, sites):
    theirs = shamir.create_shares(secrets[0], threshold, sites)[:threshold]
    return {
        "Flower: a site shares two secrets": lambda: [shamir.create_shares(s, threshold, sites) for s in secrets],
        "Flower: the server opens one secret": lambda: shamir.combine_shares(theirs),
    }


class Session:
    """One server and its sites in this process; every message's bytes are counted."""

    def __init__(self, sites):
        from medveil.secagg.identity import IdentityKey
        from medveil.secagg.parameters import Parameters, least_threshold
        from medveil.secagg.server import ServerSession
        from medveil.secagg.site import SiteSession

        identities = {f"site-{number:03d}": IdentityKey.generate() for number in range(sites)}
        parameters = Parameters(
            context=os.urandom(32),
            sites=tuple((name, identity.public) for name, identity in identities.items()),
            threshold=least_threshold(sites, 0),
        )
        self.server = ServerSession(parameters)
        self.sites = {name: SiteSession(parameters, name, identity) for name, identity in identities.items()}
        self.sent, self.received = dict.fromkeys(self.sites, 0), dict.fromkeys(self.sites, 0)

    def deliver(self, messages):
        """From a site to the server, and whatever follows from it."""
        waiting = deque(messages)
        while waiting:
            name, data = waiting.popleft()
            self.sent[name] += len(data)
            waiting.extend(self.answers(self.server.receive(name, data)))

    def answers(self, outgoing):
        """From the server to the sites: what they answer."""
        answers = []
        for message in outgoing:
            self.received[message.site] += len(message.data)
            answers += [(message.site, data) for data in self.sites[message.site].receive(message.data)]
        return answers

    def connect(self):
        """Up to where the server can begin a step."""
        for name, site in self.sites.items():
            self.deliver([(name, site.advertise())])

    def step(self, vectors, lost):
        """One sum, of the sites that are not lost after it began; takes each vector only when its site submits."""
        self.deliver(self.answers(self.server.begin()))
        for name, vector in vectors:
            self.deliver((name, data) for data in self.sites[name].submit(vector))
        for name in lost:
            self.deliver(self.answers(self.server.lose(name)))
        return self.server.opened


def session(sites, dimension, lost):
    made, spent = np.zeros(dimension, np.uint32), {"making": 0.0}
    begun = time.process_time()
    run = Session(sites)
    run.connect()
    connected = time.process_time() - begun
    before = dict(run.sent), dict(run.received)
    names = sorted(run.sites)

    def vectors():
        for number, name in enumerate(names[lost:]):
            started = time.process_time()
            vector = np.random.default_rng(number).integers(0, 2**32, dimension, dtype=np.uint32)
            np.add(made, vector, out=made)
            spent["making"] += time.process_time() - started
            yield name, vector

    opened = run.step(vectors(), names[:lost])
    seconds = time.process_time() - begun - spent["making"]
    if opened is None or not np.array_equal(opened.total, made) or len(opened.included) != sites - lost:
        raise SystemExit("The session did not open the sum of its sites")
    sent, received = (
        max(after[name] - earlier[name] for name in names[lost:])
        for after, earlier in ((run.sent, before[0]), (run.received, before[1]))
    )
    print(
        f"  {sites:3d} sites, {lost:2d} lost, d = {dimension:8d}: {seconds:7.2f} s of CPU for all parties together "
        f"({connected:.2f} s to connect); a site sends {sent} bytes a step = {sent / (4 * dimension):.4f} x 4d, "
        f"receives {received}"
    )


def sessions(quick):
    print("Whole sessions, one step, the sum checked")
    for sites in (SITES,) if quick else (SITES, 100):
        for lost in (0, sites // 3):
            for dimension in DIMENSIONS if sites == SITES else DIMENSIONS[-1:]:
                session(sites, dimension, lost)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the session of 100 sites")
    quick = parser.parse_args().quick
    peer = flower()
    site_steps(peer)
    masks_by_sites()
    server_sums()
    shares(peer)
    sessions(quick)


if __name__ == "__main__":
    main()
