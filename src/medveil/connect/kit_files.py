"""The settings in a kit's ``local/`` folder: who may do what, and how patient the engine is."""

from collections.abc import Sequence
from typing import Any

from medveil.federation.engine.driver import SCHEME
from medveil.federation.engine.streams import IDLE_S, MOST_BLOB

SITE_PART = "medveil.connect.nvflare_parts.SiteExecutor"
COORDINATOR_PART = "medveil.connect.nvflare_parts.CoordinatorController"
JOB_PARTS = (SITE_PART, COORDINATOR_PART)

CLIENT_SILENT_S = 8
"""A site that sent no heartbeat for so long counts as gone; looked at every five seconds."""
HEARTBEAT_S = 2.0
CONNECTION_HEARTBEAT_S = 5

ALWAYS = {"shell_commands": "none", "byoc": "none", "clone_job": "none", "server-predeployed-flwr": "none"}
"""Nobody, whatever their role, runs commands on a machine, or code that a job brings along."""


def authorization() -> dict[str, Any]:
    """What each role may do, at the server and at every site."""
    return {
        "format_version": "1.0",
        "permissions": {
            "project_admin": {
                "submit_job": "any",
                "manage_job": "any",
                "download_job": "any",
                "get_job_log": "any",
                "view": "any",
                "operate": "any",
                **ALWAYS,
            },
            "lead": {
                "submit_job": "any",
                "manage_job": "n:submitter",
                "download_job": "n:submitter",
                "get_job_log": "n:submitter",
                "view": "any",
                "operate": "none",
                **ALWAYS,
            },
            "org_admin": {
                "submit_job": "none",
                "manage_job": "o:submitter",
                "download_job": "none",
                "view": "any",
                "operate": "o:site",
                **ALWAYS,
            },
            "member": {
                "submit_job": "none",
                "manage_job": "none",
                "download_job": "none",
                "view": "any",
                "operate": "none",
                **ALWAYS,
            },
        },
    }


def server_resources(parts: Sequence[str]) -> dict[str, Any]:
    """Of the server: one job at a time, tried again for as long as it takes for its sites to be there."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(parts),
        "client_outcome_wait_timeout": 10.0,
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": 100,
                "heart_beat_timeout": CLIENT_SILENT_S,
                "admin_timeout": 10.0,
                "check_engine_frequency": 0.5,
                "shutdown_period": 2.0,
            }
        ],
        "components": [
            {
                "id": "job_scheduler",
                "path": "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                "args": {
                    "max_jobs": 1,
                    "max_schedule_count": 1_000_000_000,
                    "min_schedule_interval": 1.0,
                    "max_schedule_interval": 3.0,
                },
            },
            {
                "id": "job_manager",
                "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                "args": {"uri_root": "jobs", "job_store_id": "job_store"},
            },
            {"id": "job_store", "path": "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"},
            {"id": "process_launcher", "path": "medveil.federation.engine.launchers.ServerLauncher"},
            {"id": "resumer", "path": "medveil.federation.engine.resumer.Resumer"},
        ],
    }


def site_resources(parts: Sequence[str]) -> dict[str, Any]:
    """Of a site: no logs to the server, and nothing about the site in its registration."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(parts),
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "site_config": {}, "communication_timeout": 20.0, "maint_msg_timeout": 5.0},
        "components": [
            {
                "id": "resource_manager",
                "path": "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0},
            },
            {
                "id": "resource_consumer",
                "path": "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
                "args": {},
            },
            {"id": "process_launcher", "path": "medveil.federation.engine.launchers.SiteLauncher"},
        ],
    }


def comm_config() -> dict[str, Any]:
    """The network: no connections besides those to the server, and mutual TLS inside a machine as well.

    What the engine streams is bounded (:mod:`medveil.federation.engine.streams` says to what, and bounds how many
    streams there are at a time): jobs are sent in pieces of 1 MiB, a run's results of any size in pieces of 5 MiB, and
    messages of the run not as streams at all.
    """
    return {
        "allow_adhoc_conns": False,
        "heartbeat_interval": CONNECTION_HEARTBEAT_S,
        "streaming_max_blob_size": MOST_BLOB,
        "streaming_read_timeout": IDLE_S,
        "internal": {"scheme": SCHEME, "resources": {"host": "127.0.0.1", "connection_security": "mtls"}},
    }


def log_config() -> dict[str, Any]:
    """Plain lines on the screen and in ``log.txt``, which is kept below 40 MB; of the engine, who came and what ran."""
    told = ("private.fed.server.client_manager", "private.fed.server.job_runner", "private.fed.client.client_executor")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "plain": {
                "()": "nvflare.fuel.utils.log_utils.BaseFormatter",
                "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s",
            }
        },
        "handlers": {
            "screen": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"},
            "file": {
                "class": "logging.handlers.RotatingFileHandler",
                "formatter": "plain",
                "filename": "log.txt",
                "maxBytes": 10_000_000,
                "backupCount": 3,
            },
        },
        "loggers": {
            "root": {"level": "INFO", "handlers": ["screen", "file"]},
            "nvflare": {"level": "WARNING"},
            **{f"nvflare.{name}": {"level": "INFO"} for name in told},
        },
    }
