"""``medveil connect``: hospitals over a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medveil.cli.connect_certificates import renew, revoke
from medveil.cli.output import print_json

_FOLDER = click.Path(path_type=Path, file_okay=False)
Function = TypeVar("Function", bound=Callable[..., Any])


def _metrics_options(function: Function) -> Function:
    """Options of the page for Prometheus."""
    port = click.IntRange(0, 65535)
    function = click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of that page.")(
        function
    )
    return click.option("--metrics-port", type=port, help="Serve a page of figures for Prometheus on this port.")(
        function
    )


def _serve_metrics(kit: Path, port: int | None, host: str) -> None:
    if port is not None:
        from medveil.connect.metrics_page import serve_metrics

        listener = serve_metrics(kit, port, host)
        click.echo(f"Figures for Prometheus: http://{host}:{listener.server_port}/metrics", err=True)


@click.group("connect")
def command() -> None:
    """Run plans between hospitals: real processes, mutual TLS, every site in control of its own data.

    \b
    Examples:
      medveil connect trial pneumonia-28-hospitals --out runs/federation
      medveil connect init fed --sites 3 && medveil connect provision fed
      medveil connect approve fed/kits/site-1
    """  # noqa: D301 - click wants the character itself


@command.command("init")
@click.argument("folder", type=_FOLDER)
@click.option("--name", default="federation", show_default=True, help="Of the federation.")
@click.option("--sites", default="3", show_default=True, help="How many hospitals, or their names, comma-separated.")
@click.option("--host", default="localhost", show_default=True, help="Name or address of the server.")
@click.option("--port", default=8102, show_default=True, type=click.IntRange(1024, 65535), help="Of the server.")
def init(folder: Path, name: str, sites: str, host: str, port: int) -> None:
    """Describe a federation in FOLDER/federation.toml, to be edited before it is provisioned."""
    from medveil.connect.setup import describe_federation

    names = [f"site-{number}" for number in range(1, int(sites) + 1)] if sites.isdigit() else sites.split(",")
    path = describe_federation(folder, name=name, sites=names, host=host, port=port)
    click.echo(f"Wrote {path}. Edit it, then: medveil connect provision {folder}")


@command.command("provision")
@click.argument("folder", type=_FOLDER)
@click.option("--equip", "plan", metavar="PLAN", help="For a trial: deal PLAN's data out to the sites.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of PLAN.")
def provision(folder: Path, plan: str | None, overrides: tuple[str, ...]) -> None:
    """Make certificates and a kit for everyone in FOLDER/federation.toml; keys that exist are kept."""
    from medveil.connect.project import read_project
    from medveil.connect.provision import provision as make

    kits = make(folder)
    if plan is not None:
        from medveil.connect.setup import equip
        from medveil.study.deal import deal
        from medveil.study.plan import load_plan

        loaded = load_plan(plan, overrides)
        sites = {site.name: kits[site.name] for site in read_project(folder).sites}
        equip(sites, loaded, deal(loaded, folder / "data"))
    for name, kit in kits.items():
        click.echo(f"{name:<24}{kit}")
    click.echo(f"Give each its kit and nobody else's. Keep {folder / 'ca'} where nobody reads it.")


@command.command("identity")
@click.argument("kit", type=_FOLDER)
def identity(kit: Path) -> None:
    """Make this hospital's own signing key in KIT, or show its public half, for the federation's description."""
    from medveil.connect.home import Home
    from medveil.secagg.identity import IdentityKey

    path = Home(kit).folder / "identity.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        IdentityKey.generate().save(path)
    click.echo(IdentityKey.load(path).public.hex())


@command.command("server")
@click.argument("kit", type=_FOLDER)
@_metrics_options
def server(kit: Path, metrics_port: int | None, metrics_host: str) -> None:
    """Run the server of KIT in the foreground; Ctrl-C ends it, and runs go on when it starts again."""
    from medveil.connect.process import run_server

    _serve_metrics(kit, metrics_port, metrics_host)
    run_server(kit)


@command.command("site")
@click.argument("kit", type=_FOLDER)
@_metrics_options
def site(kit: Path, metrics_port: int | None, metrics_host: str) -> None:
    """Run the site of KIT in the foreground. It connects outwards only, and tries again until the server is there."""
    from medveil.connect.process import run_site

    _serve_metrics(kit, metrics_port, metrics_host)
    run_site(kit)


@command.command("submit")
@click.argument("plan")
@click.option("--kit", required=True, type=_FOLDER, help="Of the person who submits.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option("--site", "sites", multiple=True, help="Who takes part; by default all that are connected.")
def submit(plan: str, kit: Path, overrides: tuple[str, ...], sites: tuple[str, ...]) -> None:
    """Sign PLAN and submit it to the hospitals; each checks it against its own rules before anything happens."""
    from medveil.connect.job import Federation
    from medveil.connect.submitting import submit_plan
    from medveil.study.plan import load_plan

    loaded = load_plan(plan, overrides)
    with Federation(kit) as federation:
        job, names = submit_plan(federation, loaded, sites)
    click.echo(f"Plan {loaded.name}, hash {loaded.digest()}")
    click.echo(f"Job {job} at {', '.join(names)}")
    click.echo(f"See how it goes: medveil connect status {kit}")


@command.command("status")
@click.argument("kit", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def status(kit: Path, as_json: bool) -> None:
    """How things stand for the owner of KIT: jobs and sites for a person, runs for the server, plans for a site."""
    from medveil.connect.standing import standing

    content = standing(kit)
    if as_json:
        print_json(content)
        return
    for title, lines in content.items():
        click.echo(f"{title}:")
        for line in lines or ["none"]:
            click.echo("  " + (line if isinstance(line, str) else "  ".join(str(value) for value in line.values())))


@command.command("approve")
@click.argument("kit", type=_FOLDER)
@click.argument("plan_hash", required=False)
@click.option("--refuse", is_flag=True, help="Refuse the plan instead, or take an approval back.")
@click.option("--by", default="", help="Who decides; by default the user's name on this machine.")
def approve(kit: Path, plan_hash: str | None, refuse: bool, by: str) -> None:
    """List the plans that wait at the site of KIT, or approve the one with PLAN_HASH (16 digits are enough)."""
    from medveil.connect.deciding import decide, waiting_plans

    if plan_hash is None:
        plans = waiting_plans(kit)
        for one in plans:
            click.echo(f"{one.plan_hash}\n  {one.summary}")
        if not plans:
            click.echo("No plan waits for a decision.")
        return
    decision = decide(kit, plan_hash, by=by, refuse=refuse)
    click.echo(f"{decision.decision}: {decision.plan} by {decision.by}")


@command.command("fetch")
@click.argument("kit", type=_FOLDER)
@click.argument("job")
@click.option("--out", required=True, type=_FOLDER, help="Folder for the run; new, or empty.")
def fetch(kit: Path, job: str, out: Path) -> None:
    """Bring the finished run of JOB (a run's last job) from the server, for the person of KIT, and make its report."""
    from medveil.connect.job import Federation
    from medveil.report.page import write_report

    with Federation(kit) as federation:
        folder = federation.fetch(job, out)
    click.echo(f"Run: {folder}")
    click.echo(f"Report: {write_report(folder)}")


@command.command("logs")
@click.argument("kit", type=_FOLDER)
@click.argument("job", required=False)
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1), help="How many.")
def logs(kit: Path, job: str | None, lines: int) -> None:
    """The last lines of what KIT's owner may read: the engine's log here, or for a person the server's log of JOB."""
    from medveil.connect.standing import log_lines

    for line in log_lines(kit, job, lines):
        click.echo(line)


@command.command("verify-log")
@click.argument("kit", type=_FOLDER)
@click.option("--expect", "head", help="Hash of the last line, as it was noted elsewhere: finds a log cut short.")
@click.option("--key", "public", help="The site's public identity key; by default that of the roster.")
def verify_log(kit: Path, head: str | None, public: str | None) -> None:
    """Check the audit log of the site of KIT; name the first line that was changed, removed or reordered."""
    from medveil.connect.deciding import verify_site_log

    verified = verify_site_log(kit, head=head, public=public)
    click.echo(f"{verified.lines} lines, unbroken and signed; head {verified.head}")


@command.command("export-mlflow")
@click.argument("run", type=_FOLDER)
@click.option("--store", required=True, metavar="sqlite:///FILE", help="Where MLflow keeps its runs.")
@click.option("--experiment", default="medveil", show_default=True, help="MLflow's name for a group of runs.")
def export_mlflow(run: Path, store: str, experiment: str) -> None:
    """Write plan, metrics and provenance of the finished RUN into MLflow's SQLite file; nothing is sent anywhere."""
    from medveil.connect.mlflow_export import export_mlflow as export

    click.echo(f"MLflow run {export(run, store, experiment=experiment)} in {store}")


@command.command("trial")
@click.argument("plan")
@click.option("--out", required=True, type=_FOLDER, help="Folder for the federation and its runs.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option("--kill", "kills", multiple=True, metavar="WHO@step:N", help="Kill a site or the server after a step.")
@click.option("--port", default=8102, show_default=True, type=click.IntRange(1024, 65535), help="Of the server.")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds after which the trial is given up.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
def trial(
    plan: str,
    out: Path,
    overrides: tuple[str, ...],
    kills: tuple[str, ...],
    port: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Run PLAN over real processes with certificates on this machine, each site with its own folder of data."""
    from medveil.connect.trying import try_plan
    from medveil.study.plan import load_plan

    folder = try_plan(
        load_plan(plan, overrides),
        out,
        kills=kills,
        port=port,
        timeout=timeout,
        say=lambda text: click.echo(text, err=True),
    )
    from medveil.cli.train import print_record
    from medveil.report.page import write_report
    from medveil.study.folder import read_json

    record = read_json(folder / "record.json")
    page = write_report(folder)
    print_json(record) if as_json else print_record(record, folder, page)


command.add_command(revoke)
command.add_command(renew)
