"""A router in memory between one server session and its sites, and the parts of tests that several files share."""

import hashlib
from collections import deque
from dataclasses import replace

import numpy as np

from medveil.errors import ProtocolError
from medveil.rng import Seeds
from medveil.secagg import IdentityKey, Parameters, ServerSession, SiteSession, least_threshold
from medveil.secagg.messages import Advertise, Agree, Agreed, Prepare, Reveal, Upload, decode, encode
from medveil.secagg.records import NO_CONTEXT, Agreement, survivors_hash

PHASES = {"advertise": Advertise, "prepare": Prepare, "upload": Upload, "agree": Agree, "reveal": Reveal}


def identity(name):
    return IdentityKey.from_bytes(hashlib.sha256(f"test identity {name}".encode()).digest())


def names(n):
    return tuple(f"site-{index:03d}" for index in range(1, n + 1))


def parameters(n, *, threshold=None, colluding=0, min_included=0, chunk_bytes=1 << 20, context=b"plan"):
    return Parameters(
        context=hashlib.sha256(context).digest(),
        sites=tuple((name, identity(name).public) for name in names(n)),
        threshold=threshold or least_threshold(n, colluding),
        colluding=colluding,
        min_included=min_included,
        chunk_bytes=chunk_bytes,
    )


def vectors(n, length=4, bits=32, seed=0):
    generator = Seeds(seed).child("vectors", n, length, bits).numpy()
    kind = np.uint32 if bits == 32 else np.uint64
    return {name: generator.integers(0, 2**bits, length, dtype=kind) for name in names(n)}


def modular_sum(values, bits=32):
    """With Python's integers: an oracle without NumPy's wrapping."""
    rows = [value.tolist() for value in values]
    return [sum(column) % 2**bits for column in zip(*rows, strict=True)]


def sum_of(values, included, bits=32):
    return modular_sum([values[name] for name in included], bits)


def decoded(outgoing):
    """Site to message."""
    return {one.site: decode(one.data) for one in outgoing}


def agreements(driver, survivors, signers):
    """Valid agreements of ``signers`` to a list, made with their identity keys."""
    site = driver.sites["site-001"]
    hashed = survivors_hash(site._session, survivors.step, survivors.receipts[0].view, survivors.receipts)
    found = []
    for name in signers:
        agreement = Agreement(driver.parameters.indices[name])
        text = agreement.text(site._session, survivors.step, hashed)
        found.append(replace(agreement, signature=identity(name).sign(text)))
    return Agreed(survivors.step, tuple(found))


def changed(records, whose, /, **fields):
    return tuple(replace(one, **fields) if one.index == whose else one for one in records)


def without(records, *indices):
    return tuple(one for one in records if one.index not in indices)


class Driver:
    """Carries messages until nothing is left to carry.

    ``vanish`` says at which of its own messages a site falls silent: that one is never sent. Sites in ``gone`` neither
    get nor send anything. What sites sent is in ``log``.
    """

    def __init__(self, parameters, *, accept=None, vanish=None):
        self.parameters = parameters
        self.server = ServerSession(parameters)
        self.sites = {name: SiteSession(parameters, name, identity(name), accept=accept) for name in parameters.names}
        self.vanish = dict(vanish or {})
        self.gone = set()
        self.log = []
        self.refused = []

    def deliver(self, outgoing):
        queue = deque(outgoing)
        while queue:
            message = queue.popleft()
            if message.site in self.gone:
                continue
            for answer in self.sites[message.site].receive(message.data):
                queue.extend(self.send(message.site, answer))

    def send(self, name, data):
        if name in self.vanish and isinstance(decode(data), PHASES[self.vanish[name]]):
            self.gone.add(name)
        if name in self.gone:
            return []
        self.log.append((name, data))
        return self.server.receive(name, data)

    def sent(self, kind):
        return [(name, message) for name, data in self.log if isinstance(message := decode(data), kind)]

    def sent_prepares(self, step):
        return [(name, message) for name, message in self.sent(Prepare) if message.step == step]

    def set_up(self):
        for name in self.sites:
            self.deliver(self.send(name, self.sites[name].advertise()))
        return self

    def upload(self, name, vector, *context):
        for data in self.sites[name].submit(vector, *context):
            self.deliver(self.send(name, data))

    def upload_late(self, name, vector, *context):
        """Each message may be refused; which of them were, is kept."""
        for data in self.sites[name].submit(vector, *context):
            try:
                self.deliver(self.send(name, data))
            except ProtocolError as error:
                self.refused.append((decode(data), error))

    def lose(self, *lost):
        self.gone.update(lost)
        for name in lost:
            self.deliver(self.server.lose(name))

    def give_up_on_the_silent(self, how):
        """Until the server waits for nobody: one deadline after the other, or each silent site reported as gone."""
        while self.server.awaited:
            if how == "deadline":
                self.deliver(self.server.advance())
            else:
                self.lose(self.server.awaited[0])

    def step(self, values, **form):
        """One step with the vectors of those who are there; gives what was opened, if it was."""
        before = self.server.opened
        self.deliver(self.server.begin(**form))
        for name, vector in values.items():
            if name not in self.gone and self.sites[name].step is not None:
                self.upload(name, vector)
        return None if self.server.opened is before else self.server.opened

    def begin_and_hold(self, values=None, contexts=None):
        """A step up to the moment before the server sends Survivors: what it would send, by site.

        A server that is told ``contexts`` by site lets differences pass.
        """
        self.deliver(self.server.begin())
        held = []
        for name, vector in (values or {}).items():
            for data in self.sites[name].submit(vector, (contexts or {}).get(name, NO_CONTEXT)):
                if contexts is not None:
                    self.server._collection._context = None
                self.log.append((name, data))
                held += self.server.receive(name, data)
        return held

    def tell(self, name, message):
        """A message that a lying server made up; gives the site's answers."""
        return [decode(data) for data in self.sites[name].receive(encode(message))]


def advertised(n=3):
    """A session in which everyone has advertised: driver, roster as the server would send it."""
    driver = Driver(parameters(n))
    outgoing = []
    for name, site in driver.sites.items():
        outgoing += driver.server.receive(name, site.advertise())
    return driver, decoded(outgoing)["site-001"]


def begun(n=3, **options):
    """A session whose first step would begin: driver, Begin for each site."""
    driver = Driver(parameters(n, **options)).set_up()
    return driver, decoded(driver.server.begin())


def uploaded(n=4, missing=("site-004",), **options):
    """All but ``missing`` have uploaded: driver, vectors, the Survivors that the server would send."""
    driver = Driver(parameters(n, **options)).set_up()
    values = vectors(n)
    driver.begin_and_hold({name: values[name] for name in names(n) if name not in missing})
    held = driver.server.advance() if missing else None
    return driver, values, decoded(held)["site-001"] if held else None
