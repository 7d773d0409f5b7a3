"""What people can ask of the server."""

import pytest

pytest.importorskip("nvflare")

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.shareable import Shareable
from nvflare.app_common.streamers import file_streamer
from nvflare.fuel.hci.proto import InternalCommands
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps

from medveil.federation.engine import commands
from medveil.federation.engine.commands import OFFERED, install_commands, offered

USED = ["submit_job", "list_jobs", "get_job_meta", "abort_job", "download_job", "_cert_login", "_check_session"]


def test_what_we_use_is_offered_and_nothing_about_sites():
    assert all(offered([name, "anything"]) for name in USED)
    assert offered(["check_status", "server"])
    assert offered(["get_job_log", "id", "server"])
    for words in ([], ["check_status"], ["check_status", "client"], ["get_job_log", "id", "site-1"], ["get_job_log"]):
        assert not offered(words)


def test_everything_else_of_the_engines_console_is_refused():
    every = {value for key, value in vars(AdminCommandNames).items() if key.isupper()} | set(InternalCommands.commands)
    assert every > OFFERED
    for name in every - OFFERED:
        assert not offered([name, "server"])
    for name in ("cells", "stress", "process_info", "stop_cell", "shell", "sys_info", ""):
        assert not offered([name, "server"])


class Conn:
    def __init__(self, name):
        self.name, self.errors = name, []

    def get_prop(self, key, default=None):
        if key != ConnProps.CMD_ENTRY:
            return default
        entry = type("Entry", (), {"name": self.name, "authz_func": None})
        return entry()

    def append_error(self, text, meta=None):
        self.errors.append(text)


def test_the_engine_asks_us_before_it_looks_at_rights(monkeypatch):
    monkeypatch.setattr(file_streamer._ChunkConsumer, "consume", file_streamer._ChunkConsumer.consume)
    monkeypatch.setattr(AuthzFilter, "pre_command", lambda *_: True)
    install_commands()
    guarded = AuthzFilter.pre_command
    install_commands()
    assert AuthzFilter.pre_command is guarded
    good, bad = Conn("list_jobs"), Conn("process_info")
    assert AuthzFilter().pre_command(good, ["list_jobs"])
    assert not AuthzFilter().pre_command(bad, ["process_info", "site-1"])
    assert (good.errors, bad.errors) == ([], ["this server does not do that"])


def test_a_person_cannot_fill_the_servers_disk_with_one_file(monkeypatch, tmp_path):
    monkeypatch.setattr(AuthzFilter, "pre_command", AuthzFilter.pre_command)
    monkeypatch.setattr(file_streamer._ChunkConsumer, "consume", file_streamer._ChunkConsumer.consume)
    monkeypatch.setattr(commands, "MOST_UPLOADED", 2500)
    install_commands()
    taken = file_streamer._ChunkConsumer({}, str(tmp_path))
    chunk = Shareable()
    chunk[file_streamer.KEY_DATA], chunk[file_streamer.KEY_DATA_SIZE] = bytes(1000), 1000
    for _ in range(2):
        assert taken.consume(chunk, {}, None)[0]
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="not taken"):
        taken.consume(chunk, {}, None)
    assert list(tmp_path.iterdir()) == []
