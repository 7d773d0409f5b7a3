"""Mutual TLS over a socket pair: who may talk to whom, and what each side is told."""

import socket
import ssl
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from medveil.encrypted.wire.certificates import make_authority, make_certificate
from medveil.encrypted.wire.link import Link
from medveil.encrypted.wire.tls import check_role, client_context, secure, server_context
from medveil.errors import AuthenticityError, ConfigError, FederationError, ProtocolError


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    """Authority and a certificate a role, under "ours"; another authority's under "theirs"; one that has expired."""
    made = {}
    for owner in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(owner)
        authority = make_authority(folder)
        made[owner] = {"authority": authority.certificate}
        for role in ("hospital", "vendor", "dealer"):
            made[owner][role] = make_certificate(folder, authority=authority, role=role, name=f"{role} 1")
        if owner == "ours":
            old = datetime.now(UTC) - timedelta(days=100)
            made["expired"] = make_certificate(
                tmp_path_factory.mktemp("old"), authority=authority, role="hospital", name="h", days=90, now=old
            )
    return made


def agree(server, client, *, server_expects="hospital", client_expects="vendor"):
    """Both ends' results: a secured socket, or the error that this end raised."""
    ends = socket.socketpair()
    results = [None, None]

    def act(at, context, role):
        try:
            results[at] = secure(ends[at], context, role=role, timeout_s=5)
        except FederationError as error:
            results[at] = error

    threads = [
        threading.Thread(target=act, args=(0, server, server_expects)),
        threading.Thread(target=act, args=(1, client, client_expects)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def contexts(parties, client="hospital", server="vendor"):
    ours = parties["ours"]
    pair = ours[client] if isinstance(client, str) else client
    return server_context(ours["authority"], *ours[server]), client_context(ours["authority"], *pair)


def test_parties_of_one_authority_talk_in_tls_1_3(parties):
    with ExitStack() as stack:
        server, client = (stack.enter_context(end) for end in agree(*contexts(parties)))
        assert server.version() == client.version() == "TLSv1.3"
        assert check_role(server, "hospital") == "hospital 1"
        assert check_role(client, "vendor") == "vendor 1"
        for end in (server, client):
            with pytest.raises(AuthenticityError):
                check_role(end, "dealer")


def test_a_link_over_tls_carries_both_ways_at_once(parties):
    data = np.random.default_rng(1).integers(0, 256, 3_000_001, dtype=np.uint8)
    links = [Link(end, timeout_s=10) for end in agree(*contexts(parties))]
    got = [None, None]

    def act(at):
        with links[at] as link:
            for _ in range(3):
                link.send(data)
                got[at] = bytes(link.receive(len(data)))

    threads = [threading.Thread(target=act, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert got == [data.tobytes()] * 2


def test_why_one_gives_up_is_told_over_tls(parties):
    server, client = (Link(end, timeout_s=5) for end in agree(*contexts(parties)))
    client.send(b"much" * 1000)
    client.flush()
    server.stop("The image has another shape")
    with pytest.raises(ProtocolError, match=r"gave up.*another shape"):
        client.receive(1)
    client.close()


def test_what_is_changed_on_the_way_is_noticed(parties):
    """A proxy flips one bit of the encrypted data."""
    server, client = agree(*contexts(parties))
    between = socket.socketpair()
    client_raw = socket.socket(fileno=client.detach())
    with server, client_raw, between[0], between[1]:
        client_raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        link = Link(server, timeout_s=5)
        with pytest.raises(FederationError, match="TLS refused"):
            link.receive(1)
        link.close()


def test_another_authority_is_refused_at_both_ends(parties):
    theirs = parties["theirs"]
    server, _ = contexts(parties)
    trusting = client_context(parties["ours"]["authority"], *theirs["hospital"])
    refused, told = agree(server, trusting)
    assert isinstance(refused, AuthenticityError)
    assert "same authority.pem" in str(refused)
    assert isinstance(told, AuthenticityError), told
    assert "refused this certificate" in str(told)
    refused, other = agree(server, client_context(theirs["authority"], *theirs["hospital"]))
    assert isinstance(other, AuthenticityError)
    assert "same authority.pem" in str(other)
    assert isinstance(refused, FederationError)


@pytest.mark.parametrize("role", ["dealer", "vendor"])
def test_a_wrong_role_of_the_client_is_refused(parties, role):
    refused, told = agree(*contexts(parties, client=role))
    assert isinstance(refused, AuthenticityError)
    assert "Expected: hospital. Remedy:" in str(refused)
    assert isinstance(told, AuthenticityError), told
    assert "refused this certificate" in str(told)


def test_a_wrong_role_of_the_server_is_refused(parties):
    told, refused = agree(*contexts(parties, server="dealer"))
    assert isinstance(refused, AuthenticityError)
    assert "Expected: vendor" in str(refused)
    assert isinstance(told, AuthenticityError), told


def test_an_expired_certificate_is_refused(parties):
    refused, told = agree(*contexts(parties, client=parties["expired"]))
    assert isinstance(refused, AuthenticityError)
    assert "expired: make a new one" in str(refused)
    assert isinstance(told, AuthenticityError), told


def test_a_client_of_tls_1_2_is_refused(parties):
    server, client = contexts(parties)
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    for result in agree(server, client):
        assert isinstance(result, ProtocolError)
        assert "TLS 1.3" in str(result)
        assert "Remedy: run medveil with OpenSSL" in str(result)


def test_a_client_without_certificate_is_refused(parties):
    server, _ = contexts(parties)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(parties["ours"]["authority"])
    refused, told = agree(server, bare)
    assert isinstance(refused, AuthenticityError)
    assert "start it with its certificate and key" in str(refused)
    assert isinstance(told, AuthenticityError), told


def test_a_client_without_tls_is_refused(parties):
    ends = socket.socketpair()
    with ends[1]:
        ends[1].sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ProtocolError, match="does not speak TLS"):
            secure(ends[0], contexts(parties)[0], role="hospital", timeout_s=5)


def test_a_silent_peer_ends_in_time(parties):
    ends = socket.socketpair()
    with ends[1], pytest.raises(ProtocolError, match="silent"):
        secure(ends[0], contexts(parties)[0], role="hospital", timeout_s=0.2)
    assert ends[0].fileno() == -1


def test_files_that_do_not_fit_are_refused(parties, tmp_path):
    ours = parties["ours"]
    with pytest.raises(ConfigError, match="cannot be used"):
        server_context(ours["authority"], ours["vendor"].certificate, ours["hospital"].key)
    with pytest.raises(ConfigError, match="cannot be used"):
        server_context(tmp_path / "none", *ours["vendor"])
    with pytest.raises(ConfigError, match="private key"):
        client_context(ours["authority"], ours["vendor"].certificate, tmp_path / "none")


def test_without_the_authority_a_self_signed_party_would_get_in(parties):
    """The defence removed: a server that does not verify lets a stranger shake hands."""
    server, _ = contexts(parties)
    server.verify_mode = ssl.CERT_NONE
    theirs = parties["theirs"]
    stranger = client_context(parties["ours"]["authority"], *theirs["hospital"])
    ends = socket.socketpair()
    done = []
    thread = threading.Thread(target=lambda: done.append(server.wrap_socket(ends[0], server_side=True)))
    thread.start()
    with stranger.wrap_socket(ends[1]):
        thread.join(10)
    with done[0]:
        assert done[0].version() == "TLSv1.3"
