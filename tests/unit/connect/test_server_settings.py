"""The server's own settings: typed, with ranges, and never a reason to lose a run."""

import subprocess
import sys

import pytest

from medveil.connect.server_settings import ServerConfig, read_server_settings
from medveil.errors import ConfigError
from medveil.federation.patience import Patience


def test_without_a_file_the_defaults_hold(tmp_path):
    settings = read_server_settings(tmp_path / "server.json")
    assert settings == ServerConfig()
    assert settings.patience() == Patience()
    assert settings.links().max_message_bytes == 256 << 20


def test_what_the_file_says_holds(tmp_path):
    path = tmp_path / "server.json"
    path.write_text('{"dead_after_s": 30, "max_message_mb": 1}')
    settings = read_server_settings(path)
    assert settings.patience() == Patience(dead_after_s=30.0)
    assert settings.links().max_message_bytes == 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"dead_after": 12}',
        '{"hold_s": "long"}',
        '{"answer_s": 0}',
        '{"dead_after_s": NaN}',
        "\xff",
        "[" * 99999,
    ],
)
def test_anything_else_is_a_typed_error(tmp_path, text):
    path = tmp_path / "server.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"server\.json"):
        read_server_settings(path)


def test_reading_them_loads_no_torch():
    code = "import sys, medveil.connect.process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
