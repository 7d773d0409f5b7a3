"""Which messages the engine's processes hear: the table of a run's own, and what anybody might try besides."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.core_cell import CoreCell

from medveil.federation.engine import guard
from medveil.federation.engine.guard import HEARD, install_guard, refusal, role

JOB = "2f72b35a-56ea-4786-b0ca-3d2f5cb3e3aa"
OTHER_JOB = "765f2e51-9f11-4169-874c-48f7acd65d7b"
LEAD = "_admin_08a4c1d2-9f11-4169-874c-48f7acd65d7b"
CELLS = [
    "server",
    f"server.{JOB}",
    f"server.{OTHER_JOB}",
    "site-1",
    f"site-1.{JOB}",
    "site-2",
    f"site-2.{JOB}",
    f"site-2.{OTHER_JOB}",
    LEAD,
]


def headers(origin, destination, channel="medveil", topic="frame", kind="req", **more):
    names = {"msg_type": kind, "origin": origin, "destination": destination, "channel": channel, "topic": topic}
    return {f"cn__{name}": value for name, value in (names | more).items()}


def streamed(origin, destination, channel, topic):
    return headers(origin, destination, "sm__STREAM", "sm__DATA") | {"sm__ch": channel, "sm__tp": topic}


def test_the_names_of_the_engines_processes_are_told_apart():
    from nvflare.fuel.utils.admin_name_utils import new_admin_client_name

    assert role(new_admin_client_name()) == "person"
    assert [role(cell) for cell in CELLS[:5]] == ["server", "server job", "server job", "site", "site job"]
    for name in ("", "site-1.", ".", "site-1.job", f"site-1.{JOB}.0", f"{LEAD}.{JOB}", f"site 1.{JOB}", "site-1\n"):
        assert role(name) is None, name


# (who hears, over whose connection, message), as they were seen in a run
NEEDED = [
    ("server", "site-1", headers("site-1", "server", "task", "challenge")),
    ("server", "site-1", headers("site-1", "server", "task", "heart_beat")),
    ("server", "site-1", headers("site-1", "server", "admin", "admin", kind="reply")),
    ("server", LEAD, streamed(LEAD, "server", "hci_channel", "command")),
    ("server", LEAD, streamed(LEAD, "server", "aux_communication", "ObjectStreamer.Request")),
    ("server", f"site-1.{JOB}", headers(f"site-1.{JOB}", f"server.{JOB}")),
    ("server", "site-1", headers(f"site-1.{JOB}", f"server.{JOB}")),  # where the job's own connection is lost
    ("server", f"server.{JOB}", headers(f"server.{JOB}", f"site-1.{JOB}")),
    ("server", f"server.{JOB}", headers(f"server.{JOB}", "server", "server_parent_listener", "heartbeat")),
    (f"server.{JOB}", "server", headers(f"site-1.{JOB}", f"server.{JOB}")),
    (f"server.{JOB}", "server", streamed(f"site-1.{JOB}", f"server.{JOB}", "server_command", "get_task")),
    (f"server.{JOB}", "server", streamed("server", f"server.{JOB}", "server_command", "abort")),
    ("site-1", "server", headers("server", "site-1", "admin", "admin")),
    ("site-1", f"site-1.{JOB}", headers(f"site-1.{JOB}", "site-1", "admin", "train.notify_job_status")),
    ("site-1", f"site-1.{JOB}", headers(f"site-1.{JOB}", f"server.{JOB}")),
    ("site-1", "server", headers(f"server.{JOB}", f"site-1.{JOB}")),
    (f"site-1.{JOB}", "server", headers(f"server.{JOB}", f"site-1.{JOB}")),
    (f"site-1.{JOB}", "server", streamed(f"server.{JOB}", f"site-1.{JOB}", "aux_communication", "__end_run__")),
    (f"site-1.{JOB}", "site-1", headers("site-1", f"site-1.{JOB}", "client_command", "abort")),
]


@pytest.mark.parametrize(("me", "peer", "message"), NEEDED)
def test_what_a_run_needs_is_heard_and_passed_on(me, peer, message):
    assert refusal(me, peer, message) is None


SHELL = ("admin", "sys.shell")
HOSTILE = {
    "a site orders another, by the server": ("server", "site-2", headers("site-2", "site-1", *SHELL)),
    "a person orders a site, by the server": ("server", LEAD, headers(LEAD, "site-1", *SHELL)),
    "a person speaks with a job": ("server", LEAD, headers(LEAD, f"server.{JOB}")),
    "a person speaks with a site's job": ("server", LEAD, headers(LEAD, f"site-1.{JOB}")),
    "a site calls itself the server": ("server", "site-2", headers("server", "site-1", *SHELL)),
    "a site calls itself another": ("server", "site-2", headers("site-1", "server", "task", "heart_beat")),
    "a site's job calls itself another's": ("server", f"site-2.{JOB}", headers(f"site-1.{JOB}", f"server.{JOB}")),
    "a job at a site speaks with another": ("server", f"site-2.{JOB}", headers(f"site-2.{JOB}", f"site-1.{JOB}")),
    "a site's process speaks with the server's job": ("server", "site-2", headers("site-2", f"server.{JOB}")),
    "a job speaks with another job": ("server", f"site-2.{JOB}", headers(f"site-2.{JOB}", f"server.{OTHER_JOB}")),
    "a site gives a person's command": ("server", "site-2", streamed("site-2", "server", "hci_channel", "command")),
    "a site uploads": ("server", "site-2", streamed("site-2", "server", "aux_communication", "ObjectStreamer.Request")),
    "a site speaks as the server's job": (
        "server",
        "site-2",
        headers("site-2", "server", "server_parent_listener", "get_clients"),
    ),
    "an order of another site": ("site-1", "server", headers("site-2", "site-1", *SHELL)),
    "an order of a person": ("site-1", "server", headers(LEAD, "site-1", *SHELL)),
    "an order of the server's job": ("site-1", "server", headers(f"server.{JOB}", "site-1", *SHELL)),
    "an order in a stream": ("site-1", "server", streamed("server", "site-1", *SHELL)),
    "a bundle of messages": ("site-1", "server", headers("server", "site-1", "cellnet.channel", "bulk")),
    "somebody on the site's machine": ("site-1", "site-2", headers("site-2", "site-1", *SHELL)),
    "another site's frame to a site's job": (f"site-1.{JOB}", "server", headers(f"site-2.{JOB}", f"site-1.{JOB}")),
    "another job's frame": (f"site-1.{JOB}", "server", headers(f"server.{OTHER_JOB}", f"site-1.{JOB}")),
    "a task for the engine": (
        f"site-1.{JOB}",
        "server",
        headers("server", f"site-1.{JOB}", "client_command", "configure_job_log"),
    ),
    "a further connection": ("site-1", "server", headers("server", "site-1", "admin", "admin", conn_url="tcp://x:1")),
    "no sender": ("site-1", "server", headers(None, "site-1", *SHELL)),
    "no kind": ("site-1", "server", headers("server", "site-1", *SHELL, kind="order")),
    "somebody else's failure": (
        "server",
        "site-2",
        headers("site-2", "server", kind="return", original_headers={"cn__destination": "site-1"}),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_others_might_try_is_refused(what):
    assert refusal(*HOSTILE[what]) is not None


NET_AGENT = ["cells", "config_vars", "comm_config", "process_info", "stop", "stop_cell", "stress", "bulk_test"]


@given(
    me=st.sampled_from(CELLS),
    peer=st.sampled_from(CELLS),
    origin=st.sampled_from(CELLS),
    topic=st.sampled_from(NET_AGENT),
    inside=st.booleans(),
)
def test_the_engines_network_agent_is_asked_by_nobody(me, peer, origin, topic, inside):
    make = streamed if inside else headers
    assert refusal(me, peer, make(origin, me, "_net_manager", topic)) is not None


def test_the_server_hears_and_forwards_only_who_stands_at_the_connection():
    subjects = [("medveil", "frame"), SHELL, ("task", "register"), ("", "")]
    messages = itertools.product(CELLS, CELLS, CELLS, subjects, ["req", "reply", "return"])
    heard = [
        (peer, origin, target)
        for peer, origin, target, (channel, topic), kind in messages
        if refusal("server", peer, headers(origin, target, channel, topic, kind=kind)) is None
    ]
    forwarded = [(origin, target) for _, origin, target in heard if target != "server"]
    assert 0 < len(forwarded) < len(heard)
    for peer, origin, _ in heard:
        assert origin == peer or origin.startswith(f"{peer}.")
    for both in forwarded:  # between the two sides of one job, and nobody else
        sides = sorted(name.partition(".")[::2] for name in both)
        assert [sides[0][0], sides[0][1]] == ["server", sides[1][1]]
        assert sides[1][1]


def test_no_pair_is_offered_more_than_once_and_nobody_hears_a_stranger():
    assert all(mine != theirs for mine, theirs in HEARD)
    assert ("site", "person") not in HEARD
    assert ("site", "site") not in HEARD
    assert ("site", "server job") not in HEARD


def test_the_engine_itself_asks_the_rules(monkeypatch):
    class Message:
        def __init__(self, content):
            self.headers, self.payload = content, b""

    class Named:
        def __init__(self, name):
            self.name = self.fqcn = name

    heard = []
    monkeypatch.setattr(CoreCell, "process_message", lambda *arguments: heard.append(arguments[-1]))
    install_guard()
    guarded = CoreCell.process_message
    install_guard()
    assert CoreCell.process_message is guarded
    cell = CoreCell.__new__(CoreCell)
    cell.my_info = Named("site-1")
    good, bad = (Message(headers(origin, "site-1", "admin", "admin")) for origin in ("server", "site-2"))
    for message in (good, bad):
        cell.process_message(Named("server"), None, 1, message)
    assert heard == [good]


def test_refusals_do_not_fill_the_log(caplog):
    teller = guard._Teller()
    for _ in range(1000):
        teller.tell("site-2", headers("site-2\n", "site-1", topic="\x1b[2J" * 99), "it is not passed on")
    teller.tell("site-3", headers("site-3", "site-1"), "it is not passed on")
    assert len(caplog.records) == 2
    told = "".join(record.getMessage() for record in caplog.records)
    assert not {"\n", "\x1b"} & set(told)
