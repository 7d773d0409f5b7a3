"""The pages say what the code does: every key, option, error and file is there, no other; examples run; links lead."""

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import click
import pytest
from pydantic import BaseModel

from medveil import errors
from medveil.cli.main import EXIT_CODES, VERBS, cli
from medveil.configuration import Config
from medveil.data.sources import read_data_file
from medveil.federation import stages
from medveil.study.folder import RunFolder
from medveil.study.plan import Plan, load_plan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "decisions")
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SOURCES = sorted((ROOT / "src" / "medveil").rglob("*.py"))


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text, language):
    """(line number, content) of every fenced block of a language; the indentation of lists is taken off."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        (text[: match.start()].count("\n") + 1, re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE))
        for match in found
    ]


def cells(row):
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


# The plan


def variants(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in variants(part)]


def tables():
    """(paths, kind) -> model, for every table that a plan may hold."""
    paths = {Plan: {""}}
    waiting = [(Plan, "")]
    for kind in stages._REGISTRY.values():
        waiting.append((kind[0], "privacy.stages"))
        paths[kind[0]] = {"privacy.stages"}
    while waiting:
        model, path = waiting.pop()
        for name, field in model.model_fields.items():
            for below in [] if field.exclude else variants(field.annotation):
                place = f"{path}.{name}".lstrip(".")
                known = paths.setdefault(below, set())
                # What nests in itself is told once, where it stands first.
                if place not in known and not any(place.startswith(f"{outer}.") for outer in known):
                    known.add(place)
                    waiting.append((below, place))
    return {(frozenset(where), kind_of(model)): model for model, where in paths.items()}


def kind_of(model):
    field = model.model_fields.get("kind")
    kinds = get_args(field.annotation) if field else ()
    return kinds[0] if len(kinds) == 1 else None


def documented(text):
    """(paths, kind) -> key -> the other cells of its row."""
    found = {}
    for part in re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        before, _, kind = heading.partition(", kind ")
        paths = frozenset(re.findall(r"`([^`]+)`", before)) or frozenset({""})
        rows = {match[1]: cells(match[0])[1:] for match in re.finditer(r"^\| `(\w+)` \|.*$", body, re.MULTILINE)}
        assert (paths, kind) not in found, heading
        found[paths, kind.strip('`"') or None] = rows
    return found


def plain(value):
    """A default as TOML writes it."""
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    return json.dumps(value)


def default_of(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return None if isinstance(value, BaseModel | dict) else f"`{plain(value)}`"


def range_of(field):
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [(sign, getattr(part, name, None)) for part in field.metadata for name, sign in signs.items()]
    limits = {f"{sign} {value:g}" for sign, value in bounds if value is not None}
    lengths = [getattr(part, name, None) for part in field.metadata for name in ("min_length", "max_length")]
    return limits, {str(length) for length in lengths if length is not None}


def literals(annotation):
    if get_origin(annotation) is Literal:
        return {f"`{plain(value)}`" for value in get_args(annotation)}
    return {value for part in get_args(annotation) if not variants(part) for value in literals(part)}


def mistakes(text):
    """What the page of keys gets wrong, one line each."""
    wrong = []
    expected, found = tables(), documented(text)
    wrong += [f"no section for {sorted(paths)} {kind}" for paths, kind in expected.keys() - found.keys()]
    wrong += [f"section without a table: {sorted(paths)} {kind}" for paths, kind in found.keys() - expected.keys()]
    for place in expected.keys() & found.keys():
        fields = {name: field for name, field in expected[place].model_fields.items() if not field.exclude}
        rows = dict(found[place])
        if place[0] == {"data"}:
            rows.pop("file")  # a key of the file, replaced by source when the plan is read
        wrong += [f"{sorted(place[0])}: {name} is missing" for name in fields.keys() - rows.keys()]
        wrong += [f"{sorted(place[0])}: there is no {name}" for name in rows.keys() - fields.keys()]
        wrong += [
            f"{sorted(place[0])}: {name}: {said}"
            for name in fields.keys() & rows.keys()
            for said in mistakes_of_row(fields[name], rows[name])
        ]
    return wrong


def mistakes_of_row(field, row):
    kind, default, bounds, meaning = row
    limits, lengths = range_of(field)
    wanted = default_of(field)
    if wanted is not None and default != wanted:
        yield f"default {default}, not {wanted}"
    if not limits <= set(bounds.split(", ")):
        yield f"range {bounds}, not {limits}"
    if not lengths <= set(re.findall(r"\d+", bounds)):
        yield f"lengths {bounds}, not {lengths}"
    if missing := {value for value in literals(field.annotation) if value not in kind}:
        yield f"values {missing} are missing"
    if not meaning:
        yield "no meaning"


def test_every_key_of_the_plan_is_on_its_page_and_no_other():
    assert not mistakes(page("reference/plan.md"))


def test_the_check_of_keys_can_fail():
    text = page("reference/plan.md")
    rounds = next(line for line in text.splitlines() if line.startswith("| `rounds`"))
    assert mistakes(text.replace(rounds + "\n", "")) == ["['federation']: rounds is missing"]
    assert mistakes(text.replace("| `rounds`", "| `runds`"))
    assert mistakes(text.replace("≥ 1, ≤ 64", "≥ 1, ≤ 63"))
    assert mistakes(text.replace("[0.9, 0.999]", "[0.9, 0.99]"))
    assert mistakes(text.replace(', `"bf16"`', ""))


# The command line


def commands(group=cli, path=()):
    names = VERBS if group is cli else list(group.commands)
    for name in names:
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())


def options(command):
    made = [option for option in command.params if isinstance(option, click.Option)]
    return {name for option in made for name in (*option.opts, *option.secondary_opts)}


def sections_of_verbs(text):
    parts = re.split(r"^### `medveil ", text, flags=re.MULTILINE)[1:]
    return {name: next(part for part in parts if part.startswith(name)).split("\n## ")[0] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_its_verbs_section_and_no_other(name):
    section = sections_of_verbs(page("reference/command-line.md"))[name]
    rows = [line for line in section.splitlines() if line.startswith("| `-")]
    told = {word for row in rows for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", cells(row)[0])}
    assert told == options(COMMANDS[name])


def test_every_exit_code_is_told():
    text = page("reference/command-line.md")
    codes = set(re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE))
    assert codes == set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE))


def test_every_environment_variable_is_told():
    used = {
        name
        for path in SOURCES
        for name in re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"(?!\] = )", path.read_text(encoding="utf-8"))
    }
    assert used
    assert used == set(re.findall(r"^\| `(MEDVEIL_\w+)` \|", page("reference/command-line.md"), re.MULTILINE))


COMMAND_LINES = [
    (name_of(path), line.removeprefix("$ "))
    for path in TEXTS
    for _, block in blocks(path.read_text(encoding="utf-8"), "console")
    for line in block.splitlines()
    if re.match(r"\$ (\.venv/bin/)?medveil ", line)
]


@pytest.mark.parametrize(("where", "line"), COMMAND_LINES)
def test_every_command_of_the_pages_can_be_parsed(where, line):
    _, *words = shlex.split(line)
    verb = next(name for name in sorted(COMMANDS, key=len, reverse=True) if words[: len(name.split())] == name.split())
    COMMANDS[verb].make_context(verb, words[len(verb.split()) :])
    for index, word in enumerate(words):
        if word == "--set" and words[1] == "phantom":
            load_plan("phantom", [words[index + 1]])


# Records, files, errors


def test_every_key_of_the_record_is_told_and_no_other():
    schema = json.loads(page("reference/record.schema.json"))
    record = page("reference/run-folder.md").split("## The record")[1].split("\n## ")[0]
    assert set(schema["properties"]) == set(re.findall(r"^\| `(\w+)` \|", record, re.MULTILINE))


def test_every_file_of_a_run_is_told():
    folder = RunFolder(Path("run"))
    written = {path.name for name, path in vars(folder).items() if name not in {"path", "predictions"}}
    told = page("reference/run-folder.md")
    assert not [name for name in written if f"`{name}`" not in told and f"`{name}/`" not in told]


def test_every_error_has_its_exit_code():
    tree = {name: thing for name, thing in vars(errors).items() if isinstance(thing, type)}
    tree = {name: thing for name, thing in tree.items() if issubclass(thing, errors.MedveilError)}
    rows = dict(re.findall(r"^\| `(\w+(?:Error|Layer))` \| (\d) \|", page("reference/errors.md"), re.MULTILINE))
    assert rows == {name: str(thing.exit_code) for name, thing in tree.items()}


def test_every_reason_is_told_and_no_other():
    texts = [path.read_text(encoding="utf-8") for path in SOURCES]
    raised = {word for text in texts for word in re.findall(r'reason=\(?"([a-z-]+)"', text)}
    raised |= {word for text in texts for word in re.findall(r'dicom_errors\(\s*"[^"]+", "([a-z-]+)"', text)}
    counted = {word for text in texts for word in re.findall(r'\(\s*"([a-z-]+)",\s*"A[n]? [^"]*"\s*\)', text)}
    raised |= counted | {"truncated", "decode", "label", "archive", "missing"}
    table = page("reference/errors.md").split("## Why a file was not used")[1]
    assert raised == set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))


def test_the_floors_are_those_of_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = [floor.replace("medveil.", "").split(" | ") for floor in contracts[0]["layers"]]
    rows = re.findall(r"^\| (`\w+`(?: · `\w+`)*) \|", page("explanation/architecture.md"), re.MULTILINE)
    assert floors == [re.findall(r"`(\w+)`", row) for row in rows]


# Examples and links

PYTHON = [
    pytest.param(code, id=f"{path.name}:{line}")
    for path in sorted((DOCS / "how-to").glob("*.md"))
    for line, code in blocks(path.read_text(encoding="utf-8"), "python")
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "_REGISTRY", dict(stages._REGISTRY))
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    exec(compile(code, "example", "exec"), {"__name__": "example"})


TOML = [
    pytest.param(code, id=f"{path.relative_to(DOCS).as_posix()}:{line}")
    for path in PAGES
    for line, code in blocks(path.read_text(encoding="utf-8"), "toml")
]


@pytest.mark.parametrize("code", TOML)
def test_toml_examples_are_read(code, tmp_path):
    """A first line "# part" marks a piece of a plan; what has a kind is a data file, anything else a plan."""
    (tmp_path / "my-data.toml").write_text('kind = "phantom"\n', encoding="utf-8")
    file = tmp_path / "example.toml"
    file.write_text(code, encoding="utf-8")
    if code.startswith("kind ="):
        read_data_file(file)
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
    elif not code.startswith("# part"):
        load_plan(file)


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    (name_of(path), target)
    for path in TEXTS
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    if not target.startswith("https://")
]


@pytest.mark.parametrize(("where", "target"), LINKS)
def test_links_lead_somewhere(where, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / where).parent / path if path else ROOT / where
    assert file.exists()
    assert not anchor or anchor in anchors(file.read_text(encoding="utf-8"))


def test_every_page_is_in_the_index():
    index = page("README.md")
    missing = [path for path in PAGES if path.name != "README.md" and path.relative_to(DOCS).as_posix() not in index]
    assert not missing


def test_modules_that_pages_name_exist():
    for path in TEXTS:
        for name in re.findall(r"`(medveil(?:\.\w+)+)`", path.read_text(encoding="utf-8")):
            parts = name.split(".")
            module = importlib.import_module(".".join(parts[:-1]))
            assert hasattr(module, parts[-1]) or importlib.util.find_spec(name), f"{name_of(path)}: {name}"


def test_helpers_see_what_they_should():
    class Inner(Config):
        kind: Literal["a"] = "a"

    class Outer(Config):
        inner: tuple[Inner, ...] | None = None

    assert variants(Outer.model_fields["inner"].annotation) == [Inner]
    assert anchors("# What leaves a site, today?") == {"what-leaves-a-site-today"}
