"""A plan on a trial federation, from nothing to its record."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from medveil.connect.job import Federation
from medveil.connect.jobs import check_networked
from medveil.connect.project import read_project
from medveil.connect.provision import SERVER_KIT, provision
from medveil.connect.setup import LEAD, describe_federation, equip
from medveil.connect.submitting import submit_plan
from medveil.connect.trial import Kill, Trial, follow, wait_for_sites
from medveil.errors import ConfigError
from medveil.study.deal import deal
from medveil.study.plan import Plan


def try_plan(
    plan: Plan,
    out: Path,
    *,
    kills: Sequence[str] = (),
    port: int,
    timeout: float,
    say: Callable[[str], None],
) -> Path:
    """Provision, deal out, start, submit, follow.

    Args:
        plan: to run.
        out: folder of the federation; one that stands there already is used again.
        kills: faults, as :meth:`Kill.parse` reads them.
        port: of the server, on loopback.
        timeout: seconds.
        say: told what happens.

    Returns:
        ``out/run``: a copy of the server's run folder.

    Raises:
        ConfigError: the plan cannot run over a network, or a fault names nobody.
        MedveilError: as the run raises it.
    """
    faults = [Kill.parse(text) for text in kills]
    check_networked(plan)
    shares = deal(plan, out / "data")
    names = sorted(shares)
    strangers = {fault.who for fault in faults} - {SERVER_KIT, *names}
    if strangers:
        raise ConfigError("A fault names nobody of the trial", got=", ".join(sorted(strangers)), expected=names)
    if not (out / "federation.toml").exists():
        describe_federation(out, name="trial", sites=names, host="localhost", port=port)
    kits = provision(out)
    sites = {site.name: kits[site.name] for site in read_project(out).sites}
    equip(sites, plan, shares)
    say(f"{len(sites)} sites provisioned under {out}; starting the server and them")
    with Trial({SERVER_KIT: kits[SERVER_KIT], **sites}) as trial:
        with Federation(kits[LEAD]) as federation:
            wait_for_sites(federation.connected, list(sites), trial)
            job, _ = submit_plan(federation, plan, list(sites))
        say(f"submitted: job {job}")
        folder = follow(kits[SERVER_KIT], job, trial=trial, kills=faults, say=say, timeout=timeout)
        run = out / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder, run)
    return run
