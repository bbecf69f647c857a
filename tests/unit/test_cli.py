"""The command line without servers: every command tells how it is used, and every failure has words and a code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service import __version__
from service.cli import app
from service.settings import Settings, described

COMMANDS = (
    "demo", "embedded", "migrate", "topics", "load", "run", "audit", "show reversal", "show redemption", "show customer",
    "show order", "show reward", "lanes list", "lanes reset", "parked list", "dlq list", "dlq show", "dlq replay", "settings",
)  # fmt: skip
GROUPS = ("show", "lanes", "parked", "dlq")
WITH_JSON = (
    "load", "audit", "show reversal", "show redemption", "show customer", "show order", "show reward", "lanes list",
    "parked list", "dlq list", "dlq show", "settings",
)  # fmt: skip
NOWHERE = ["--database-url", "postgresql://somebody:secret@127.0.0.1:1/points"]
NO_BROKER = ["--bootstrap-servers", "127.0.0.1:1"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, and lines that do not break."""
    for name in [name for name in os.environ if name.startswith("REVERSAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def said(result: Result) -> str:
    """What a person reads of an error, without line breaks."""
    return re.sub(r"\s+", " ", result.stderr)


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS])
def test_every_command_has_help(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Usage: points-reversal {command}" in result.stdout
    sentence = result.stdout.split("Usage:")[1].split("\n\n")[1:]
    assert sentence, result.stdout


@pytest.mark.parametrize("command", WITH_JSON)
def test_what_scripts_read_has_json(command: str) -> None:
    assert "--json" in call(*command.split(), "--help").stdout


def test_the_help_tells_the_exit_codes_and_lists_every_command() -> None:
    text = re.sub(r"[\s│]+", " ", call("--help").stdout)
    for words in (
        "0 all is well",
        "1 what was asked about is not",
        "2 a flag",
        "3 Postgres or Kafka",
        "4 a fault of this",
    ):
        assert words in text
    assert [command for command in COMMANDS if f" {command.split()[0]} " not in text] == []


def test_without_a_command_it_shows_the_help() -> None:
    assert "Usage: points-reversal" in call().output


def test_the_version() -> None:
    assert call("--version").stdout == f"points-reversal {__version__}\n"


def test_help_does_not_load_what_it_does_not_need() -> None:
    heavy = ("asyncpg", "aiokafka", "pydantic_settings", "uvloop", "service.app", "service.embedded")
    program = (
        "import sys; from typer.testing import CliRunner; from service.cli import app\n"
        "assert CliRunner().invoke(app, ['load', '--help']).exit_code == 0\n"
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# Settings


def test_settings_are_all_listed_with_default_and_reason() -> None:
    text = call("settings").stdout
    for one in described(Settings()):
        assert one.name in text
    document = json.loads(call("settings", "--json").stdout)
    listed = {one["name"]: one for one in document["settings"]}
    assert list(listed) == [one.name for one in described(Settings())]
    assert all(one["reason"] for one in listed.values())
    assert listed["REVERSAL_BATCH_RECORDS"]["default"] == "500"


def test_settings_show_the_values_in_force_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_DATABASE_URL", "postgresql://me:hush@db.example:5433/points?password=hush")
    monkeypatch.setenv("REVERSAL_KAFKA__SASL_PASSWORD", "hush")
    monkeypatch.setenv("REVERSAL_KAFKA__LINGER_MS", "7")
    for words in (("settings",), ("settings", "--json")):
        output = call(*words).output
        assert "hush" not in output
        assert "db.example:5433/points" in output
    listed = {one["name"]: one["value"] for one in json.loads(call("settings", "--json").stdout)["settings"]}
    assert listed["REVERSAL_KAFKA__LINGER_MS"] == "7"
    assert listed["REVERSAL_KAFKA__SASL_PASSWORD"] == "**********"


def test_settings_point_out_variables_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_BATCH_RECORD", "5")
    result = call("settings")
    assert result.exit_code == 0
    assert said(result).strip() == "REVERSAL_BATCH_RECORD names no setting"


@pytest.mark.parametrize("command", ["settings", "run", "migrate", "topics", "audit", "parked list", "dlq list"])
def test_a_setting_that_cannot_be_is_named_with_its_value(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_KAFKA__LINGER_MS", "-3")
    result = call(*command.split())
    assert result.exit_code == 2
    assert "REVERSAL_KAFKA__LINGER_MS is '-3': input should be greater than or equal to 0" in said(result)


def test_a_faulty_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_KAFKA", '{"sasl_password": ["hush"]}')
    result = call("settings")
    assert result.exit_code == 2
    assert "REVERSAL_KAFKA__SASL_PASSWORD input should be a valid string" in said(result)
    assert "hush" not in result.output


def test_settings_that_do_not_go_together_are_told_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("REVERSAL_KAFKA__SASL_PASSWORD", "hush")
    for command in ("settings", "run", "topics"):
        result = call(command)
        assert result.exit_code == 2
        assert "REVERSAL_KAFKA SASL_SSL needs REVERSAL_KAFKA__SASL_USERNAME and" in said(result)
        assert "hush" not in result.output


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSAL_HTTP_PORT", "1")
    assert "REVERSAL_HTTP_PORT is '70000'" in said(call("run", "--http-port", "70000"))
    monkeypatch.setenv("REVERSAL_HTTP_PORT", "nonsense")
    assert "REVERSAL_HTTP_PORT is '70001'" in said(call("run", "--http-port", "70001"))


# Failures


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"kind": "org", "orgId": 1}\n')
    return str(path)


@pytest.mark.parametrize(
    "command", ["migrate", "audit", "show order SO --org 1", "parked list", "lanes list", "load LINES"]
)
def test_a_database_that_does_not_answer_is_3_and_no_traceback(command: str, lines: str) -> None:
    result = call(*command.replace("LINES", lines).split(), *NOWHERE)
    assert result.exit_code == 3
    assert said(result).startswith("error: Postgres at 127.0.0.1:1/points cannot be used (")
    assert "REVERSAL_DATABASE_URL" in said(result)
    assert "secret" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command", ["topics", "dlq list", "dlq show --topic order.returned --partition 0 --offset 0", "dlq replay --all"]
)
def test_a_broker_that_does_not_answer_is_3_and_no_traceback(command: str) -> None:
    result = call(*command.split(), *NO_BROKER)
    assert result.exit_code == 3
    assert said(result).startswith("error: Kafka at 127.0.0.1:1 does not answer (")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@db/points", "not a url secret", "postgresql://me:secret@db:port/points"]
)
def test_an_address_that_is_none_is_2_and_keeps_its_secret(url: str) -> None:
    result = call("audit", "--database-url", url)
    assert result.exit_code == 2
    assert "postgresql://user:password@host:port/database" in said(result)
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("load nowhere.jsonl", "nowhere.jsonl"),
        ("load LINES --keep-going nowhere/rejected.jsonl", "there is no directory nowhere"),
        ("show order SO", "--org"),
        ("show order SO --org 0", "Invalid value for '--org'"),
        ("audit --org none", "Invalid value for '--org'"),
        ("dlq list --partition 1", "--partition goes with --topic"),
        ("dlq list --topic order.returned --offset 1", "--offset goes with --topic and --partition"),
        ("dlq list --reason bad", "bad is none of not_json"),
        ("dlq replay", "or say --all"),
        ("dlq replay --topic order.returned", "or say --all"),
        ("nonsense", "No such command 'nonsense'"),
        ("lanes reset order.returned 0", "--to"),
    ],
)
def test_misuse_is_2_and_told(command: str, words: str, lines: str) -> None:
    result = call(*command.replace("LINES", lines).split())
    assert result.exit_code == 2
    assert words in re.sub(r"[\s│]+", " ", result.stderr)


def test_a_pipe_in_place_of_a_file_is_2_and_told() -> None:
    words = [sys.executable, "-m", "service", "load", "/dev/stdin"]
    done = subprocess.run(words, input='{"kind": "org", "orgId": 7}\n', capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/dev/stdin is a pipe or a device" in re.sub(r"[\s│]+", " ", done.stderr)


def test_a_port_that_is_taken_is_2_and_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "service", "run", "--http-port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_also_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"points-reversal {__version__}\n")


AT_THE_START = """
import os, signal, sys
import uvloop

run = uvloop.run
uvloop.run = lambda work: (os.kill(os.getpid(), signal.SIGTERM), run(work))
sys.argv = ["points-reversal", "run", "--http-port", "0"]
from service.cli import main

main()
"""


def test_sigterm_before_the_loop_turns_ends_run_at_once_and_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_START], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
