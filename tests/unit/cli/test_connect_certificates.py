"""``medveil connect renew`` and ``revoke``, as a coordinating office types them."""

import json

import pytest
from click.testing import CliRunner
from cryptography import x509

from medveil.cli.main import cli, main

pytest.importorskip("nvflare")


def run(*arguments):
    return CliRunner().invoke(cli, ["connect", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "fed"
    assert run("init", folder, "--sites", "1").exit_code == 0
    assert run("provision", folder).exit_code == 0
    return folder


def serial(folder, name="site-1"):
    return x509.load_pem_x509_certificate((folder / "kits" / name / "startup/client.crt").read_bytes()).serial_number


def test_without_a_name_it_lists_and_renews_nothing(folder):
    before = (folder / "ca" / "cert.json").read_bytes()
    answer = run("renew", folder)
    assert answer.exit_code == 0
    lines = {line.split()[0]: line for line in answer.output.splitlines()}
    assert list(lines) == ["authority", "server", "site-1", "lead@example.org"]
    assert lines["site-1"].endswith(" UTC  364 days left")
    assert lines["authority"].endswith(" UTC  3649 days left")
    assert (folder / "ca" / "cert.json").read_bytes() == before
    rows = json.loads(run("renew", folder, "--json").output)
    assert [(row["name"], row["stands"], row["earlier_end"]) for row in rows[2:]] == [
        ("site-1", "valid", []),
        ("lead@example.org", "valid", []),
    ]


def test_it_says_which_files_go_where(folder):
    old = serial(folder)
    answer = run("renew", folder, "site-1")
    assert answer.exit_code == 0
    assert "site-1: a new certificate, until 20" in answer.output
    assert "the old one is accepted until 20" in answer.output
    for name in ("client.crt", "client.key"):
        assert f"  {folder}/kits/site-1/startup/{name}\n" in answer.output
    assert "crl.pem" not in answer.output
    assert serial(folder) != old
    assert "the one before is accepted until 20" in run("renew", folder).output


def test_with_the_old_one_revoked_it_names_the_list_too(folder):
    answer = run("renew", folder, "site-1", "--revoke-old")
    assert "the old one is revoked\n" in answer.output
    assert (
        f"Copy {folder}/kits/server/startup/crl.pem into startup/ of the running server, every site and every person"
        in answer.output
    )
    (row,) = json.loads(run("renew", folder, "site-1", "--revoke-old", "--json").output)
    assert row["old_revoked"] is True
    assert row["files"] == [f"{folder}/kits/site-1/startup/client.{end}" for end in ("crt", "key")]


def test_within_days(folder):
    assert run("renew", folder, "--within", "30").output == "No certificate ends within 30 days.\n"
    assert json.loads(run("renew", folder, "--within", "30", "--json").output) == []
    old = serial(folder)
    answer = run("renew", folder, "--within", "366")
    assert [line.split(":")[0] for line in answer.output.splitlines() if ": a new" in line] == [
        "server",
        "site-1",
        "lead@example.org",
    ]
    assert serial(folder) != old


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["site-1", "--within", "30"], "not both"),
        (["--revoke-old"], "Name the parties"),
        (["--readmit"], "Name the parties"),
        (["--within", "-1"], "--within"),
    ],
)
def test_options_that_contradict_each_other(folder, arguments, said):
    answer = run("renew", folder, *arguments)
    assert answer.exit_code == 2
    assert said in answer.output


def test_who_was_shut_out_is_refused(folder, capsys):
    answer = run("revoke", folder, "site-1")
    assert answer.output.startswith(f"site-1 is revoked.\nCopy {folder}/kits/server/startup/crl.pem into startup/ of")
    with pytest.raises(SystemExit) as ended:
        main(["connect", "renew", str(folder), "site-1"])
    assert ended.value.code == 2
    assert "Error: The certificate of site-1 was revoked. Remedy: leave it so; if" in capsys.readouterr().err
    assert run("renew", folder, "site-1", "--readmit").exit_code == 0


def test_an_overlap_that_is_ended(folder):
    run("renew", folder, "site-1")
    assert run("revoke", folder, "site-1", "--old").output.startswith("The old certificates of site-1 are revoked.\n")
    assert "before" not in run("renew", folder).output
