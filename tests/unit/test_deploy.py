"""The Dockerfile and the compose file keep what deploy/README.md promises, as far as their text shows it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from service.cli import app
from service.settings import Settings, described
from tests.containers import KAFKA_IMAGE, POSTGRES_IMAGE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = ("migrate", "topics")
SETTINGS = {one.name for one in described(Settings())}
HEALTHCHECK = DEPLOY / "healthcheck.py"


def instructions(stage: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile's stage, each with what follows it."""
    text = re.sub(r"^#.*\n", "", stage, flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


BEFORE, BUILDER, FINAL = (instructions(stage) for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE))


def only(name: str) -> str:
    """What follows the one instruction of that name in the final stage."""
    [found] = [rest for word, rest in FINAL if word == name]
    return found


# The image


def test_the_image_runs_as_a_user_named_by_number() -> None:
    user, _, group = only("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    places = [word for word, _ in FINAL]
    assert places.index("USER") > max(at for at, word in enumerate(places) if word in ("RUN", "COPY"))


def test_one_image_serves_every_command_and_run_by_default() -> None:
    assert only("ENTRYPOINT") == '["points-reversal"]'
    assert only("CMD") == '["run"]'
    assert only("STOPSIGNAL") == "SIGTERM"


def test_the_final_stage_takes_only_what_was_installed() -> None:
    assert [rest.split()[-1] for word, rest in FINAL if word == "COPY" and "--from=builder" in rest] == [
        "/opt/points-reversal"
    ]
    assert not [rest for word, rest in FINAL if word == "RUN" and re.search(r"\b(pip|uv|apt-get)\b", rest)]


def test_the_build_backend_is_the_project_s_own() -> None:
    [required] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [rest for word, rest in BUILDER if word == "RUN" and f'"{required}"' in rest]


def test_the_embedded_pair_and_the_tools_of_development_stay_out() -> None:
    [export] = [rest for word, rest in BUILDER if word == "RUN" and "uv export" in rest]
    assert "--frozen" in export
    assert "--no-dev" in export
    assert "--extra" not in export
    assert "--require-hashes" in export


def test_no_build_argument_or_variable_holds_a_secret_or_names_an_index() -> None:
    given = [rest for word, rest in BEFORE + BUILDER + FINAL if word in ("ARG", "ENV")]
    assert not [rest for rest in given if re.search(r"password|secret|token|://", rest, re.IGNORECASE)]
    assert [rest for word, rest in BUILDER if word == "ARG" and rest.startswith("PIP_")] == [
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_TRUSTED_HOST",
    ]


def test_the_context_holds_what_the_dockerfile_copies_and_no_more() -> None:
    copied = {
        path.rstrip("/")
        for word, rest in BUILDER + FINAL
        if word == "COPY" and "--from" not in rest
        for path in rest.split()[:-1]
    }
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert [path for path in kept if not (ROOT / path).exists()] == []


def test_what_pip_is_told_on_this_machine_is_never_committed() -> None:
    rules = [line for line in (DEPLOY / "pip" / ".gitignore").read_text().splitlines() if not line.startswith("#")]
    assert rules == ["*", "!.gitignore"]


# Compose


def test_every_setting_named_here_is_one() -> None:
    named = {
        name
        for path in DEPLOY.rglob("*")
        if path.is_file() and path.parent.name != "pip"
        for name in re.findall(r"REVERSAL_[A-Z_]*[A-Z]", path.read_text())
    }
    assert named - SETTINGS - {"REVERSAL_KAFKA"} == set()  # that one stands for its whole group, `REVERSAL_KAFKA__…`
    assert "REVERSAL_DATABASE_URL" in named


def test_the_servers_are_those_of_the_tests() -> None:
    assert SERVICES["postgres"]["image"] == POSTGRES_IMAGE
    assert SERVICES["kafka"]["image"] == KAFKA_IMAGE


def test_each_command_is_one_of_the_service_in_the_one_image() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    ours = {name: service for name, service in SERVICES.items() if "command" in service}
    assert {name: service["command"][0] for name, service in ours.items()} == {name: name for name in (*ONCE, "run")}
    assert set(ours) <= commands
    assert len({service["image"] for service in ours.values()}) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_asked_for_its_health_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


def test_each_waits_for_what_it_needs() -> None:
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits == {
        "postgres": {},
        "kafka": {},
        "migrate": {"postgres": {"condition": "service_healthy"}},
        "topics": {"kafka": {"condition": "service_healthy"}},
        "run": {name: {"condition": "service_completed_successfully"} for name in ONCE},
    }


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_more_processes_can_be_had_and_each_has_time_to_drain() -> None:
    run = SERVICES["run"]
    assert "container_name" not in run
    assert float(run["stop_grace_period"].removesuffix("s")) > Settings().drain_seconds


def test_the_passwords_can_be_set_and_stand_nowhere_else() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    owner, role = ("${POSTGRES_PASSWORD:-for-local-use-only}", "${RUN_PASSWORD:-for-local-use-only}")
    assert sorted(re.findall(r"PASSWORD: (.*)", text)) == [owner, owner, role, role]
    assert not re.search(r"://\w+:[^@/\s]+@", text)


def test_only_the_owner_migrates_and_run_has_a_role_of_its_own() -> None:
    users = {
        name: urlsplit(service["environment"]["REVERSAL_DATABASE_URL"]).username
        for name, service in SERVICES.items()
        if "REVERSAL_DATABASE_URL" in service["environment"]
    }
    owner, role = SERVICES["postgres"]["environment"]["POSTGRES_USER"], "reversal_run"
    assert users == {"migrate": owner, "topics": role, "run": role}
    assert SERVICES["migrate"]["command"] == ["migrate", "--grant", role]
    assert f"create role {role} login" in (DEPLOY / "run-role.sql").read_text()


def test_every_volume_is_named_or_stands_here() -> None:
    used = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    assert sorted(name for name in used if not name.startswith("./")) == sorted(COMPOSE["volumes"])
    assert all((DEPLOY / name).is_file() for name in used if name.startswith("./"))


# The health check


@pytest.fixture
def answering() -> Iterator[tuple[str, list[str]]]:
    """A service that is live but not ready: its port, and what it was asked."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, said = (200, b"live\n") if self.path == "/livez" else (503, b"kafka: does not answer\n")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield str(server.server_port), asked
        server.shutdown()
        thread.join()


def healthcheck(path: str, port: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, HEALTHCHECK, path],
        env={"REVERSAL_HTTP_PORT": port},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_health_check_says_what_the_service_says(answering: tuple[str, list[str]]) -> None:
    port, asked = answering
    assert healthcheck("livez", port) == (0, "live\n")
    assert healthcheck("readyz", port) == (1, "kafka: does not answer\n")
    assert asked == ["/livez", "/readyz"]


def test_the_health_check_fails_where_nobody_answers() -> None:
    code, said = healthcheck("livez", "1")
    assert code == 1
    assert said.startswith("no answer: ")


def test_the_image_and_compose_ask_with_it() -> None:
    [inside] = [rest.split()[-1] for word, rest in FINAL if word == "COPY" and HEALTHCHECK.name in rest]
    assert only("HEALTHCHECK").endswith(f'CMD ["python", "{inside}", "livez"]')
    assert SERVICES["run"]["healthcheck"]["test"] == ["CMD", "python", inside, "readyz"]
