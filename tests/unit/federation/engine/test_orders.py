"""A site against a server that lies: the engine's own agent, as a site's process builds it, without a network."""

import io
import zipfile
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, error_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader, SysCommandTopic, TrainingTopic, new_cell_message
from nvflare.private.fed.client.admin import FedAdminAgent, RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.scheduler_constants import ShareableHeader

from medveil.federation.engine import orders
from medveil.federation.engine.launchers import _use_module
from medveil.federation.engine.orders import OF_A_JOB, OF_OWN_JOB, OF_THE_SERVER, install_orders, obeyed, told

JOB = "2f72b35a-56ea-4786-b0ca-3d2f5cb3e3aa"
SECRET = "Doe, born 1950"


def order(topic, body="", job_id=JOB, **more):
    message = Message(topic=topic, body=body)
    for key, value in ({RequestHeader.JOB_ID: job_id} | more).items():
        if value is not None:
            message.set_header(key, value)
    return message


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Obeying(RequestProcessor):
    """A step of a job that tells too much, or fails with it."""

    def __init__(self, topic, failing=False):
        self.topic, self.failing = topic, failing

    def get_topics(self):
        return [self.topic]

    def process(self, req, app_ctx):
        if self.failing:
            raise ValueError(SECRET)
        return Message(topic="reply", body=SECRET)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    monkeypatch.setattr(AuditService, "the_auditor", None)
    AuditService.initialize(str(tmp_path / "audit.txt"))
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(ClientRequestProcessors.request_processors))
    monkeypatch.setattr(FedAdminAgent, "_dispatch_request", FedAdminAgent._dispatch_request)
    install_orders()
    context = MagicMock()
    context.new_context.return_value.__enter__.return_value = FLContext()
    made = FedAdminAgent("site-1", MagicMock(), app_ctx=context)
    for processor in ClientRequestProcessors.request_processors:
        made.register_processor(processor)
    yield made
    AuditService.close()


def ask(agent, message, origin="server"):
    return agent._dispatch_request(new_cell_message({"cn__origin": origin}, message)).payload


def test_the_engines_own_agent_reads_files_for_whoever_asks(tmp_path, monkeypatch):
    """The reason for all this: without our rules, the text of a file comes back, and no right was looked at."""
    from nvflare.private.fed.client.shell_cmd import ShellCommandProcessor

    (tmp_path / "patients.csv").write_text(SECRET)
    reply = ShellCommandProcessor().process(order(SysCommandTopic.SHELL, f"cat {tmp_path / 'patients.csv'}"), None)
    assert SECRET in str(reply.body)


def test_files_are_read_for_nobody(agent, tmp_path):
    (tmp_path / "patients.csv").write_text(SECRET)
    reply = ask(agent, order(SysCommandTopic.SHELL, f"cat {tmp_path / 'patients.csv'}"))
    assert reply.body == orders.REFUSED
    assert SECRET not in str(vars(reply))


def test_what_the_engine_offers_beyond_a_job_is_gone(agent):
    assert set(agent.processors) == OF_THE_SERVER | OF_OWN_JOB
    for topic in (TrainingTopic.SHUTDOWN, TrainingTopic.RESTART, SysCommandTopic.REPORT_ENV, SysCommandTopic.SYS_INFO):
        assert ask(agent, order(topic)).body == orders.REFUSED


@given(topic=st.text(max_size=30), job_id=st.none() | st.text(max_size=40) | st.integers())
def test_only_the_steps_of_a_job_are_obeyed_and_only_with_its_name(topic, job_id):
    assert not obeyed("server", order(topic, job_id=job_id))  # no text that Hypothesis finds is one of the steps
    for step in OF_A_JOB:
        assert not obeyed("server", order(step, job_id=job_id))


@pytest.mark.parametrize("job_id", ["../../medveil", f"{JOB}/../x", f"{JOB}\n", f"{JOB} --set x", JOB.upper(), ""])
def test_a_job_is_named_by_its_id_alone(job_id):
    assert obeyed("server", order(TrainingTopic.DELETE_RUN))
    assert not obeyed("server", order(TrainingTopic.DELETE_RUN, job_id=job_id))


def test_a_jobs_own_process_tells_of_itself_only():
    assert obeyed(f"site-1.{JOB}", order(TrainingTopic.NOTIFY_JOB_STATUS))
    assert not obeyed("site-1.765f2e51-9f11-4169-874c-48f7acd65d7b", order(TrainingTopic.NOTIFY_JOB_STATUS))
    assert not obeyed(f"site-1.{JOB}", order(TrainingTopic.DELETE_RUN))
    assert not obeyed("server", order(TrainingTopic.NOTIFY_JOB_STATUS))
    assert not obeyed("server", {"topic": TrainingTopic.DELETE_RUN})


def test_the_jobs_papers_must_name_the_same_job():
    small = packed({"plan.json": "{}"})
    for topic, body in ((TrainingTopic.DEPLOY, small), (TrainingTopic.START_JOB, {})):
        assert obeyed("server", order(topic, body, job_meta={"job_id": JOB}))
        for meta in (None, {}, {"job_id": "../x"}, [JOB]):
            assert not obeyed("server", order(topic, body, job_meta=meta))


def test_a_jobs_files_are_few_and_small():
    meta = {"job_id": JOB}
    many = packed({f"{n}.json": "" for n in range(orders.MOST_FILES + 1)})
    bomb = packed({"plan.json": bytes(orders.MOST_UNPACKED + 1)})
    assert len(bomb) < orders.MOST_PACKED
    for body in (many, bomb, b"no archive", "text", None, bytes(orders.MOST_PACKED + 1)):
        assert not obeyed("server", order(TrainingTopic.DEPLOY, body, job_meta=meta))


@pytest.mark.parametrize("failing", [False, True])
def test_the_server_is_told_no_text_of_the_site(agent, failing):
    agent.processors[TrainingTopic.ABORT] = Obeying(TrainingTopic.ABORT, failing)
    reply = ask(agent, order(TrainingTopic.ABORT))
    assert reply.body == (orders.FAILED if failing else "OK")
    assert (reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.ERROR) is failing
    assert SECRET not in str(vars(reply))


def test_what_is_no_order_does_no_harm(agent):
    assert ask(agent, {"topic": "sys.shell"}).body == orders.REFUSED
    assert ask(agent, None).body == orders.REFUSED


def test_a_failure_looks_the_same_whatever_it_was():
    for body in (error_reply(SECRET), Message("reply", f"{ERROR_MSG_PREFIX}: {SECRET}")):
        reply = told(order(TrainingTopic.START_JOB), body)
        assert (reply.body, reply.get_header(MsgHeader.RETURN_CODE)) == (orders.FAILED, ReturnCode.ERROR)


@pytest.mark.parametrize("enough", [True, False])
def test_of_resources_the_server_learns_whether_they_are_enough(enough):
    body = Shareable()
    body.set_header(ShareableHeader.IS_RESOURCE_ENOUGH, enough)
    body.set_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, "token" if enough else SECRET)
    body["more"] = SECRET
    reply = told(order(TrainingTopic.CHECK_RESOURCE), Message("reply", body))
    assert reply.body.get_header(ShareableHeader.IS_RESOURCE_ENOUGH) is enough
    assert reply.body.get_header(ShareableHeader.RESOURCE_RESERVE_TOKEN) == ("token" if enough else "")
    assert SECRET not in str(reply.body)


def test_what_the_server_says_stays_one_word_of_a_command():
    """The session's name in the command of a job's process comes from the server."""
    import shlex

    arguments = {"ssid": ("-d", "x --set evil # rest"), "options": ("--set", "a=1 b=2")}
    _use_module(SimpleNamespace(get_prop=lambda _: arguments), "our.module")
    words = shlex.split(" ".join(f"{option} {value}" for option, value in arguments.values()), True)
    assert words == ["-d", "x --set evil # rest", "--set", "a=1", "b=2", "-m", "our.module"]
