"""What the import contracts cover: a new module does not stay outside them unnoticed."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "medveil"


def contract(name):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (found,) = [one for one in contracts["contracts"] if one["name"] == name]
    return found


def modules(folder, prefix):
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return {f"{prefix}.{name}" for name in names if not name.startswith("__")}


def test_only_the_adapter_connect_and_the_command_line_may_know_the_engine():
    known = {"medveil.federation.engine", "medveil.connect", "medveil.cli"}
    everything = modules(PACKAGE, "medveil") - {"medveil.federation"}
    everything |= modules(PACKAGE / "federation", "medveil.federation")
    engine = contract("The engine is known to its adapter alone")
    assert set(engine["source_modules"]) == everything - known
    assert engine["forbidden_modules"] == ["nvflare", "medveil.federation.engine"]
    assert "allow_indirect_imports" not in engine
