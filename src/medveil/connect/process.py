"""The process of a server or of a site, in the foreground, until it is told to stop."""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil
from nvflare.private.fed.app.client import client_train
from nvflare.private.fed.app.server import server_train

from medveil.connect import kit_files
from medveil.connect.kit import Kit, read_kit
from medveil.connect.server_settings import SERVER_SETTINGS, read_server_settings
from medveil.errors import ConfigError, FederationError, MedveilError
from medveil.federation.engine.commands import install_commands
from medveil.federation.engine.driver import install
from medveil.federation.engine.orders import install_orders
from medveil.federation.engine.signed import revocations
from medveil.federation.engine.tls import CRL_FILE

STOP_S = 3.0
_log = logging.getLogger("medveil.connect")


def run_server(folder: Path) -> NoReturn:
    """Run the server of a federation; never returns: the process ends with it.

    Ctrl-C or SIGTERM ends it; a run that was going on is continued when it starts again.

    Args:
        folder: the server's kit.

    Raises:
        ConfigError: before anything starts: not a server's kit, settings that are not valid, or the port is taken.
        AuthenticityError: the same: the kit's list of revoked certificates is missing or not sound.
    """
    kit = read_kit(folder, "server")
    read_server_settings(kit.folder / "medveil" / SERVER_SETTINGS)
    _check_revocations(kit)
    _check_port(kit)
    install_commands()
    jobs = kit.folder / "jobs"
    jobs.mkdir(exist_ok=True)
    os.environ["NVFL_JOB_STORE_ROOT"] = str(jobs)
    arguments = argparse.Namespace(workspace=str(kit.folder), fed_server="fed_server.json", set=_settings(kit))
    _run(kit, lambda: server_train.main(arguments))


def run_site(folder: Path) -> NoReturn:
    """Run a site; never returns: the process ends with it.

    A server that cannot be reached is tried again and again, and the log says so in words. When the server comes back
    with another key, the process begins again with the same command (``exec``).

    Args:
        folder: the site's kit.

    Raises:
        ConfigError: before anything starts: not a site's kit.
        AuthenticityError: the same: the kit's list of revoked certificates is missing or not sound.
    """
    kit = read_kit(folder, "site")
    _check_revocations(kit)
    install_orders()
    begun_in = Path.cwd()  # the engine goes to another folder, and the command may hold relative paths
    settings = [*_settings(kit), f"uid={kit.name}", f"heart_beat_interval={kit_files.HEARTBEAT_S}"]
    arguments = argparse.Namespace(workspace=str(kit.folder), fed_client="fed_client.json", set=settings, local_rank=0)
    _run(kit, lambda: client_train.main(arguments), when_new_key=lambda: _start_anew(begun_in))


def _check_revocations(kit: Kit) -> None:
    startup = kit.folder / "startup"
    revocations(startup / CRL_FILE, startup / "rootCA.pem")


def _settings(kit: Kit) -> list[str]:
    return ["secure_train=true", f"org={kit.org}", "config_folder=config"]


def _run(kit: Kit, main: Callable[[], None], when_new_key: Callable[[], None] | None = None) -> NoReturn:
    install(when_new_key)
    (kit.folder / "transfer").mkdir(exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=_stop, args=(0,)).start())
    try:
        main()
    except MedveilError as error:
        _end(error)
    except SystemExit as ended:
        _stop(ended.code if isinstance(ended.code, int) else 1)
    except Exception as error:  # noqa: BLE001 - whatever ended it: the engine's threads would keep the process alive
        _log.debug("the engine stopped", exc_info=True)
        _end(_refused(kit, error))
    _stop(0)


def _refused(kit: Kit, error: Exception) -> FederationError:
    return FederationError(
        f"The {kit.kind} {kit.name} could not go on",
        got=f"{type(error).__name__}: {str(error)[:200]}",
        remedy=f"log.txt in {kit.folder.name} has the details; a kit that was revoked or belongs to another federation "
        "has to be replaced",
    )


def _end(error: MedveilError) -> NoReturn:
    print(error, file=sys.stderr, flush=True)  # noqa: T201 - the engine's threads would outlive an exception
    _stop(error.exit_code)


def _stop(code: int) -> NoReturn:
    """End this process and those of its jobs; the engine's own threads do not end by themselves."""
    _end_jobs()
    os._exit(code)


def _start_anew(folder: Path) -> NoReturn:
    """This process begins again, with the command and in the folder that it was begun with.

    The engine asks for its token at the start only. No shell, no word from outside: the operating system's record of
    this process's own command, so that whoever watches the process (systemd, a terminal) goes on watching it.
    """
    _log.warning("the server has a new key: this site's program starts again, so that the two know each other")
    _end_jobs()
    os.chdir(folder)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - a shell would be one more to trust


def _end_jobs() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.terminate()
        except psutil.NoSuchProcess:
            continue
    for child in psutil.wait_procs(children, timeout=STOP_S)[1]:
        child.kill()
    logging.shutdown()
    sys.stdout.flush()


def _check_port(kit: Kit) -> None:
    """Whether the server can listen where its kit says."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", kit.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ConfigError(
                f"Port {kit.port} is taken by another program" if taken else f"Port {kit.port} cannot be used",
                got=error.strerror,
                remedy="stop the other program (is this server running already?), or provision another port",
            ) from None
