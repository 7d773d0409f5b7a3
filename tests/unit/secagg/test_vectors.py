"""The vectors in tests/vectors/secagg follow from the secrets they state, by this code and by the standards alone."""

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from medveil.rng import SecureRandom
from medveil.secagg import IdentityKey, Parameters, ServerSession, SiteSession
from medveil.secagg.keys import derive
from medveil.secagg.masking import mask_key
from medveil.secagg.messages import decode
from medveil.secagg.ring import mask
from medveil.secagg.shamir import PRIME, combine, split

FOLDER = Path(__file__).parents[2] / "vectors" / "secagg"


def vectors(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


class Stated(SecureRandom):
    """Draws what a vector states, in order; what comes after is random."""

    __slots__ = ("_bytes", "_numbers")

    def __init__(self, draws=(), numbers=()):
        super().__init__()
        self._bytes, self._numbers = list(draws), list(numbers)

    def bytes(self, count):
        return self._bytes.pop(0) if self._bytes else super().bytes(count)

    def below(self, limit, count):
        if not self._numbers:
            return super().below(limit, count)
        drawn = np.array(self._numbers.pop(0))
        assert drawn.size == count
        assert drawn.max() < limit
        return drawn


def hkdf(shared, purpose, *context):
    """RFC 5869 by hand."""
    info = b"".join(len(part).to_bytes(2, "little") + part for part in (b"medveil secagg 1", purpose, *context))
    return hmac.new(hmac.new(bytes(32), shared, hashlib.sha256).digest(), info + b"\1", hashlib.sha256).digest()


def stream(key, length, bits):
    """AES-256-CTR from counter 0 as Python's integers."""
    data = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(length * bits // 8))
    return [int.from_bytes(data[at : at + bits // 8], "little") for at in range(0, len(data), bits // 8)]


def polynomial(secret, coefficients, x):
    """A share by hand: the value at x of the polynomial of each limb."""
    number = int.from_bytes(secret, "little")
    words = []
    for place in range(9):
        value = (number >> 30 * place) & (2**30 - 1)
        for power, row in enumerate(reversed(coefficients), start=1):
            value += row[place] * x**power
        words.append((value % PRIME).to_bytes(4, "little"))
    return b"".join(words)


@pytest.mark.parametrize("vector", vectors("derive"))
def test_derive(vector):
    shared, purpose = bytes.fromhex(vector["shared"]), bytes.fromhex(vector["purpose"])
    context = [bytes.fromhex(part) for part in vector["context"]]
    assert derive(shared, purpose, *context).hex() == hkdf(shared, purpose, *context).hex() == vector["key"]


@pytest.mark.parametrize("vector", vectors("mask"))
def test_mask(vector):
    key, length, bits = bytes.fromhex(vector["key"]), vector["length"], vector["bits"]
    assert mask(key, length, bits).tolist() == stream(key, length, bits) == vector["words"]


@pytest.mark.parametrize("vector", vectors("shamir"))
def test_shamir(vector):
    secret, threshold, points = bytes.fromhex(vector["secret"]), vector["threshold"], vector["points"]
    rows = vector["coefficients"]
    stated = {int(x): share for x, share in vector["shares"].items()}
    shares = split(secret, threshold, points, Stated(numbers=[[number for row in rows for number in row]]))
    assert {x: share.hex() for x, share in shares.items()} == stated
    assert {x: polynomial(secret, rows, x).hex() for x in points} == stated
    some = dict(list(shares.items())[-threshold:])
    assert combine(some, threshold) == secret


def transcript(given):
    """Every frame and every value in between of one step in which one site drops out, from the stated secrets."""
    sites = given["sites"]
    identities = {name: IdentityKey.from_bytes(bytes.fromhex(site["identity_secret"])) for name, site in sites.items()}
    parameters = Parameters(
        bytes.fromhex(given["context"]),
        tuple((name, key.public) for name, key in identities.items()),
        given["threshold"],
        given["colluding"],
        given["min_included"],
        given["chunk_bytes"],
    )
    server = ServerSession(parameters)
    sessions = {}
    for name, site in sites.items():
        draws = [bytes.fromhex(site[key]) for key in ("run_secret", "mask_secret", "seed")]
        rows = zip(site["seed_coefficients"], site["mask_secret_coefficients"], strict=True)
        numbers = [number for of_seed, of_mask in rows for number in of_seed + of_mask]
        sessions[name] = SiteSession(parameters, name, identities[name], Stated(draws, [numbers]))

    frames = {}

    def to_server(kind, answers):
        outgoing = []
        for name, data in answers.items():
            frames.setdefault(kind, {})[name] = data.hex()
            outgoing += server.receive(name, data)
        return {one.site: one.data for one in outgoing}

    def to_sites(kind, outgoing):
        frames[kind] = {name: data.hex() for name, data in outgoing.items()}
        return {name: answers[0] for name, data in outgoing.items() if (answers := sessions[name].receive(data))}

    rosters = to_server("advertise", {name: session.advertise() for name, session in sessions.items()})
    to_server("prepare", to_sites("roster", rosters))
    context = bytes.fromhex(given["vector_context"])
    to_sites("begin", {one.site: one.data for one in server.begin(context=context)})
    first = sessions["alpha"]
    current = first._current
    values = {
        "parameters_digest": parameters.digest().hex(),
        "session": first._session.hex(),
        "view_hash": current.view.hex(),
        "shared_run": {
            f"alpha-{name}": first._shared[index].hex() for name, index in parameters.indices.items() if index > 1
        },
        "mask_keys": {
            f"{one}-{other}": mask_key(
                sessions[one]._current.pairs[parameters.indices[other]],
                *(first._session, 1, current.view, context),
                *(parameters.indices[one], parameters.indices[other]),
            ).hex()
            for one, other in (("alpha", "bravo"), ("alpha", "charlie"), ("bravo", "charlie"))
        },
        "commitments": {parameters.name(index): entry.commitment.hex() for index, entry in current.entries.items()},
    }
    for name, site in sites.items():
        if name != given["dropped"]:
            header, chunk, prepare = sessions[name].submit(np.array(site["vector"], np.uint32), context)
            to_server("upload", {name: header})
            to_server("chunk", {name: chunk})
            server.receive(name, prepare)
            values.setdefault("masked", {})[name] = np.frombuffer(decode(chunk).data, "<u4").tolist()
    survivors = {one.site: one.data for one in server.lose(given["dropped"])}
    agreed = to_server("agree", to_sites("survivors", survivors))
    values["survivors_hash"] = first._survivors_hash(first._current).hex()
    to_server("reveal", to_sites("agreed", agreed))
    return {"frames": frames, "values": values, "total": server.opened.total.tolist()}


def test_transcript():
    stated = vectors("transcript")
    found = transcript(stated["given"])
    for part in ("values", "frames", "total"):
        assert found[part] == stated[part]


def test_transcript_by_the_standards_alone():  # noqa: C901 - one message after the other, as the protocol goes
    """Without any code of the package but the names of its fields."""
    stated = vectors("transcript")
    given, frames, values = stated["given"], stated["frames"], stated["values"]
    step, context = (1).to_bytes(4, "little"), bytes.fromhex(given["vector_context"])
    secret = {
        name: {key: bytes.fromhex(value) for key, value in site.items() if isinstance(value, str)}
        for name, site in given["sites"].items()
    }
    order = sorted(secret)
    number = {name: (place + 1).to_bytes(2, "little") for place, name in enumerate(order)}

    def x25519(own, other):
        public = X25519PrivateKey.from_private_bytes(other).public_key().public_bytes_raw()
        return X25519PrivateKey.from_private_bytes(own).exchange(X25519PublicKey.from_public_bytes(public))

    def public(raw):
        return X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()

    def signature(name, purpose, scope, content):
        key = Ed25519PrivateKey.from_private_bytes(secret[name]["identity_secret"])
        return key.sign(b"medveil secagg 1 " + purpose + b"\n" + scope + content)

    def digest(purpose, *parts):
        return hashlib.sha256(b"medveil secagg 1 " + purpose + b"\n" + b"".join(parts)).digest()

    def little(value, size):
        return value.to_bytes(size, "little")

    parameters = b"medveil secagg 1 parameters" + bytes.fromhex(given["context"]) + little(3, 2)
    for name in order:
        raw = Ed25519PrivateKey.from_private_bytes(secret[name]["identity_secret"]).public_key().public_bytes_raw()
        parameters += little(len(name), 2) + name.encode() + raw
    for key in ("threshold", "colluding", "min_included"):
        parameters += little(given[key], 2)
    parameters = hashlib.sha256(parameters + little(given["chunk_bytes"], 4)).digest()
    assert parameters.hex() == values["parameters_digest"]

    head = b"MVSA\x02"
    advertised = {}
    for name in order:
        content = number[name] + public(secret[name]["run_secret"])
        advertised[name] = content + signature(name, b"advertise", parameters, content)
        assert (head + b"\x01" + advertised[name]).hex() == frames["advertise"][name]
    session = digest(b"session", parameters, *advertised.values())
    assert session.hex() == values["session"]

    entries, contents = {}, {}
    for name in order:
        contents[name] = number[name] + public(secret[name]["mask_secret"]) + digest(b"seed", secret[name]["seed"])
        entries[name] = contents[name] + signature(name, b"prepare", session + step, contents[name])
        site, sealed = given["sites"][name], b""
        for other in order:
            if other == name:
                continue
            x = order.index(other) + 1
            pair = polynomial(secret[name]["seed"], site["seed_coefficients"], x)
            pair += polynomial(secret[name]["mask_secret"], site["mask_secret_coefficients"], x)
            shared = x25519(secret[name]["run_secret"], secret[other]["run_secret"])
            key = hkdf(shared, b"share", session, step, number[name], number[other])
            bound = b"medveil secagg 1 prepare\n" + session + step + contents[name]
            sealed += number[other] + ChaCha20Poly1305(key).encrypt(bytes(12), pair, bound)
        body = head + b"\x03" + step + entries[name] + little(2, 2) + sealed
        assert (body + signature(name, b"shares", session, body)).hex() == frames["prepare"][name]
    view = digest(b"view", session, step, *contents.values())
    assert view.hex() == values["view_hash"]

    mask_keys, receipts = {}, b""
    for one, other in (("alpha", "bravo"), ("alpha", "charlie"), ("bravo", "charlie")):
        shared = x25519(secret[one]["mask_secret"], secret[other]["mask_secret"])
        mask_keys[one, other] = hkdf(shared, b"mask", session, step, view, context, number[one], number[other])
        assert mask_keys[one, other].hex() == values["mask_keys"][f"{one}-{other}"]
    included = [name for name in order if name != given["dropped"]]
    for name in included:
        vector = given["sites"][name]["vector"]
        rows = [vector, stream(secret[name]["seed"], len(vector), 32)]
        for (one, other), key in mask_keys.items():
            if name in {one, other}:
                rows.append([(1 if name == one else -1) * word for word in stream(key, len(vector), 32)])
        masked = [sum(column) % 2**32 for column in zip(*rows, strict=True)]
        assert masked == values["masked"][name]
        data = b"".join(little(word, 4) for word in masked)
        assert (head + b"\x06" + number[name] + step + little(0, 8) + data).hex() == frames["chunk"][name]
        content = number[name] + step + view + context + b"\x20" + little(len(masked), 8)
        content += hashlib.sha256(data).digest()
        receipts += content + signature(name, b"upload", session, content)
    assert (head + b"\x07" + step + little(2, 2) + receipts).hex() == frames["survivors"]["alpha"]
    survivors = digest(b"survivors", session, step, view, receipts)
    assert survivors.hex() == values["survivors_hash"]

    for name in included:
        agreement = number[name] + signature(name, b"agree", session, step + number[name] + survivors)
        assert (head + b"\x08" + step + agreement).hex() == frames["agree"][name]
        x, shares = order.index(name) + 1, b""
        for other in order:
            kind = ("mask_secret", b"\x02") if other == given["dropped"] else ("seed", b"\x01")
            rows = given["sites"][other][f"{kind[0]}_coefficients"]
            shares += number[other] + kind[1] + polynomial(secret[other][kind[0]], rows, x)
        body = head + b"\x0a" + step + number[name] + little(3, 2) + shares
        assert (body + signature(name, b"reveal", session + view, body)).hex() == frames["reveal"][name]
    columns = zip(*(given["sites"][name]["vector"] for name in included), strict=True)
    assert [sum(column) % 2**32 for column in columns] == stated["total"]
