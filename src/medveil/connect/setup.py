"""Begin a federation: its description on paper, and for a trial on one machine data and rules for every site."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from medveil.connect.home import Home
from medveil.connect.policy import PrivacyFloor
from medveil.connect.policy_checks import honest_epsilon
from medveil.connect.project import PROJECT_FILE
from medveil.data.sources.share import ShareSource
from medveil.errors import ConfigError
from medveil.models.architecture import architecture_hash
from medveil.study.arms import build_model
from medveil.study.plan import Plan
from medveil.study.prepare import prepare_own
from medveil.study.privacy import bind_plan
from medveil.training.vectors import trainable

LEAD = "lead@example.org"
_TRIAL_MINUTES = 1


def describe_federation(folder: Path, *, name: str, sites: Sequence[str], host: str, port: int) -> Path:
    """Write ``federation.toml``, to be edited.

    Args:
        folder: made where there is none.
        name: of the federation.
        sites: names of the hospitals.
        host: name or address that the sites reach the server by.
        port: of the server.

    Returns:
        The file.

    Raises:
        ConfigError: there is one already, or the folder cannot be written.
    """
    path = folder / PROJECT_FILE
    lines = [
        "# Who takes part. After a change: medveil connect provision FOLDER. Keys that exist are kept.",
        f'name = "{name}"',
        "",
        "[server]                 # the only machine that anybody connects to, on one TCP port",
        f'host = "{host}"',
        f"port = {port}",
        'org = "coordination"',
    ]
    for number, site in enumerate(sites, start=1):
        lines += ["", "[[sites]]", f'name = "{site}"', f'org = "hospital_{number}"']
        lines += [
            '# identity = ""          # what `medveil connect identity` prints at the hospital, if it makes its own key'
        ]
    lines += ["", "[[users]]", f'name = "{LEAD}"', 'org = "hospital_1"', 'role = "lead"        # may submit plans', ""]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines))
    except FileExistsError:
        raise ConfigError(
            "This federation is described already", got=path.name, remedy="edit the file, or choose another folder"
        ) from None
    except OSError as error:
        raise ConfigError("The folder cannot be written", got=error.strerror, remedy="choose another folder") from None
    return path


def equip(kits: Mapping[str, Path], plan: Plan, shares: Mapping[str, ShareSource]) -> None:
    """For a trial: give the sites their shares of a plan's data, and a policy that allows this very plan.

    What stands in a kit already stays.

    Args:
        kits: by site.
        plan: whose data, and whom the policies are written for.
        shares: by site, of :func:`medveil.study.deal.deal`.

    Raises:
        ConfigError: the plan has other sites than there are kits.
    """
    if sorted(shares) != sorted(kits):
        raise ConfigError(
            "The plan's data are not dealt to the sites of the federation",
            got=", ".join(sorted(shares)),
            expected=", ".join(sorted(kits)),
            remedy="set data.partition.sites to the number of sites, and name the sites site-1, site-2, ...",
        )
    policy = trial_policy(plan, next(iter(shares.values())))
    for name, share in shares.items():
        home = Home(kits[name])
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(home.site_path, _site_toml(share))
        _write_new(home.policy_path, policy)


def trial_policy(plan: Plan, share: ShareSource) -> str:
    """A policy that allows a plan as it stands and nothing beyond it; read and change it before real use."""
    bound, privacy, settings = bind_plan(plan), plan.privacy, plan.privacy.secure_aggregation
    own = prepare_own(plan, share, Path(), "trial")
    model = build_model(plan, own.input_shape, own.num_classes)
    count = sum(parameter.numel() for parameter in trainable(model))
    lines = [
        "# Allows the plan that this trial was set up for, and nothing beyond it.",
        f"tasks = {_toml([plan.task])}",
        f"datasets = {_toml([own.dataset.name])}",
        f"max_rounds = {plan.federation.rounds}",
        f"max_parameters = {count}",
        "deidentified = true",
        "",
        "[models]",
        f"architectures = {_toml([architecture_hash(model, own.input_shape)])}",
        "",
        "[[submitters]]",
        'role = "lead"',
        "",
        "[privacy]",
        f"modes = {_toml(['none' if privacy.dp is None else privacy.dp.kind])}",
        "min_sites = 2",
        f"secure_aggregation = {_toml(settings is not None)}",
        f"colluding = {settings.colluding if settings is not None else 0}",
        "min_included = 2",
    ]
    if bound is not None and privacy.dp is not None:
        floor = PrivacyFloor(
            delta=bound.delta, relation=bound.relation, colluding=settings.colluding if settings else 0
        )
        epsilon = honest_epsilon(floor, bound)
        lines += [
            f"units = {_toml([privacy.unit])}",
            f"epsilon = {epsilon * 1.001:.4f}",
            f"epsilon_total = {10 * epsilon:.4f}     # a trial on public images may be repeated",
            f"delta = {bound.delta!r}",
            f"relation = {_toml(privacy.relation)}",
            f"held_out = {_toml([privacy.held_out])}",
            f"one_image_per_patient = {_toml(privacy.one_image_per_patient)}",
            f"debug_randomness = {_toml(not bound.secure)}",
            f"overrides = {_toml(list(privacy.overrides))}",
        ]
    lines += ["", "[approval]", 'rule = "policy"', f"wait_minutes = {_TRIAL_MINUTES}", ""]
    return "\n".join(lines)


def _site_toml(share: ShareSource) -> str:
    return "\n".join(
        [
            "# This site's own data, and what it declares of them.",
            "deidentified = true      # public images",
            "",
            "[source]",
            'kind = "share"',
            f"path = {_toml(str(share.path))}",
            f"subject_rule = {_toml(share.subject_rule)}",
            f"names_patients = {_toml(share.names_patients)}",
            "",
        ]
    )


def _toml(value: object) -> str:
    """A text, number, flag or list of texts as TOML: JSON is the same for these."""
    return json.dumps(value)


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text, encoding="utf-8")
