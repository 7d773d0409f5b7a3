"""Errors, seeds and configuration."""

import re
import subprocess
import sys

import numpy as np
import pytest
from pydantic import Field

from medveil import errors
from medveil.configuration import Config, parse_config
from medveil.errors import ConfigError, MedveilError
from medveil.rng import Seeds


def test_message_says_what_got_expected_and_remedy():
    error = MedveilError("A thing is wrong.", got=3, expected="2", remedy="count again.")
    assert str(error) == "A thing is wrong. Got: 3. Expected: 2. Remedy: count again."


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__))
    built = {name for name in vars(errors) if name.endswith("Error")}
    assert drawn == built


def test_exit_codes_in_the_docstring_are_those_of_the_classes():
    drawn = dict(re.findall(r"(\w+Error) \[(\d)\]", errors.__doc__))
    assert drawn == {name: str(getattr(errors, name).exit_code) for name in drawn}
    assert len(drawn) == 7


def test_seeds_are_the_same_in_another_process():
    code = "from medveil.rng import Seeds; print(Seeds(5).child('a', 1).integer())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == Seeds(5).child("a", 1).integer()


def test_seed_paths_do_not_run_into_each_other():
    assert Seeds(1).child("ab", "c").integer() != Seeds(1).child("a", "bc").integer()
    assert Seeds(1).child("2").integer() != Seeds(12).integer()


def test_children_draw_independent_numbers():
    first = Seeds(0).child("x").numpy().standard_normal(20_000)
    second = Seeds(0).child("y").numpy().standard_normal(20_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_numpy_and_torch_generators_repeat():
    import torch

    assert torch.equal(torch.rand(3, generator=Seeds(3).torch()), torch.rand(3, generator=Seeds(3).torch()))


class _Inner(Config):
    size: int = Field(ge=1)


class _Outer(Config):
    inner: _Inner
    name: str = ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"inner": {"size": 1}, "nme": "x"}, "unknown key nme"),
        ({"inner": {}}, "inner.size is missing"),
        ({"inner": {"size": 0}}, "Got: 0"),
        ({"inner": {"size": "many"}}, "inner.size is not valid"),
        ({"inner": {"size": 0}, "nme": 1}, "(and 1 more)"),
    ],
)
def test_configuration_errors_name_the_place(values, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_config(_Outer, values, where="plan.toml")


def test_importing_medveil_and_its_command_line_does_not_import_torch():
    code = "import sys, medveil.cli.main; print('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_reading_images_does_not_import_torch():
    code = "import sys, medveil.imaging.dicom, medveil.imaging.preprocess; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"]
