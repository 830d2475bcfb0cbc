"""The container files against the repository: there is no Docker engine where the tests run.

`tests.containers.by_hand` does the same steps for real, where mounting is allowed.
"""

import io
import os
import re
import socket
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import yaml
from django.core.management import CommandError, call_command, get_commands

from inference import services
from inference.tasks import worker_name
from odproject.management.commands import prepare_database
from tests.containers.files import (
    REPOSITORY,
    VARIABLE,
    MissingVariableError,
    compose_text,
    dockerfile_steps,
    read_compose,
)

SECRETS = {"OD_SECRET_KEY": "long and secret", "POSTGRES_PASSWORD": "also secret"}
PACKAGES = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"][
    "root_packages"
]
# What one part of the service tells another; nobody else sets these.
INTERNAL = {"OD_DIE_WITH_PARENT", "OD_WORKER_NAME"}
SETTING = re.compile(r'"(OD_[A-Z0-9_]+|DATABASE_URL|DATABASE_OWNER_URL|REDIS_URL)"')
SERVICE_KEYS = {
    *("image", "build", "restart", "environment", "env_file", "volumes", "depends_on"),
    *("healthcheck", "command", "ports", "stop_grace_period", "deploy"),
}
CONDITIONS = {"service_healthy", "service_completed_successfully", "service_started"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose(SECRETS)


def copied_sources() -> list[str]:
    steps = [step for step in dockerfile_steps() if step.instruction == "COPY"]
    return [word for step in steps if "--from=" not in step.text for word in step.words[:-1]]


def commands_of(service: dict[str, Any]) -> list[list[str]]:
    """The command and the health check of a service, those of a shell taken apart."""
    found = [list(service.get("command", []))]
    check = service.get("healthcheck", {})
    found.append(list(check.get("test", [])[1:]))
    told = []
    for command in found:
        if command[:2] == ["sh", "-c"]:
            told += [part.split() for part in command[2].split("&&")]
        elif command:
            told.append(command)
    return told


def test_every_source_that_is_copied_exists_and_is_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for source in copied_sources():
        assert (REPOSITORY / source).exists(), source
        assert source not in ignored


def test_every_package_is_in_the_image():
    assert {*PACKAGES, "manage.py", "templates", "LICENSE"} <= set(copied_sources())


def test_image_runs_as_a_user_without_rights():
    steps = dockerfile_steps()
    users = [step.text for step in steps if step.instruction == "USER"]
    assert users == ["od"]
    made = next(s.text for s in steps if s.instruction == "RUN" and "useradd" in s.text)
    assert int(re.search(r"--uid (\d+) od", made)[1]) > 0
    runs = [step.instruction for step in steps]
    assert "RUN" not in runs[runs.index("USER") :]
    assert "COPY" not in runs[runs.index("USER") :]


def test_torch_of_another_index_is_the_version_of_the_requirements():
    step = next(
        s.text for s in dockerfile_steps() if "TORCH_INDEX_URL" in s.text and "pip" in s.text
    )
    pattern = re.search(r"grep -oE '([^']+)'", step)[1]
    lines = (REPOSITORY / "requirements.txt").read_text()
    assert len(re.findall(pattern, lines, re.MULTILINE)) == 1


def test_every_service_is_as_compose_understands_it(compose):
    roles = {"migrate", "web", "worker", "beat", "webhooks"}
    assert set(compose["services"]) == {"postgres", "redis", *roles}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS
            if how["condition"] == "service_healthy":
                assert "test" in compose["services"][other]["healthcheck"]
        for volume in service["volumes"]:
            assert volume.split(":")[0] in compose["volumes"]


def test_every_command_of_the_services_exists(compose):
    known = get_commands()
    for service in compose["services"].values():
        for command in commands_of(service):
            if command[:2] == ["python", "manage.py"]:
                assert command[2] in known
            elif command[0] == "celery":
                assert command[1:3] == ["-A", "odproject"]
            else:
                assert command[0] in {"redis-server", "redis-cli", "pg_isready"}
    command = next(step.words for step in dockerfile_steps() if step.instruction == "CMD")
    assert command[:2] == ["python", "-m"]
    assert (REPOSITORY / f"{command[2].replace('.', '/')}.py").exists()


def test_whoever_answers_or_works_is_asked_whether_it_is_well(compose):
    for name in ("postgres", "redis", "worker"):
        assert compose["services"][name]["healthcheck"]["test"], name
    assert "healthcheck" not in compose["services"]["web"]  # that of the image
    assert "/livez" in next(s.text for s in dockerfile_steps() if s.instruction == "HEALTHCHECK")


@pytest.mark.django_db
def test_container_of_a_dead_worker_is_not_well_because_another_one_works(monkeypatch, compose):
    asked = compose["services"]["worker"]["healthcheck"]["test"][3:]
    services.record_heartbeat(worker_name="first:7", loaded_weights=["a" * 64], device="cpu")
    monkeypatch.delenv("OD_WORKER_NAME", raising=False)
    for host, is_well in (("first", True), ("second", False), ("fir", False)):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert worker_name().startswith(f"{host}:")
        with nullcontext() if is_well else pytest.raises(CommandError, match="No worker"):
            call_command(*asked)
    call_command("worker_alive")  # any


def test_container_that_is_started_again_removes_what_its_predecessor_left(tmp_path):
    entry = next(s.words for s in dockerfile_steps() if s.instruction == "ENTRYPOINT")
    left, others = tmp_path / "od-upload-x", tmp_path / "others"
    left.mkdir()
    (left / "half").touch()
    others.touch()
    entry[2] = entry[2].replace("/tmp/", f"{tmp_path}/")
    command = ["sh", "-c", "echo $#; exit 3", "sh", "a word", "b"]
    done = subprocess.run([*entry, *command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("2\n", 3)
    assert list(tmp_path.iterdir()) == [others]


def test_database_that_is_only_half_there_is_waited_for(monkeypatch):
    """The server that initialises a folder ends before the real one starts."""
    asked: list[str] = []

    def connect(url, **settings):
        asked.append(url)
        if len(asked) < 3:
            raise psycopg.OperationalError("connection refused")
        return SimpleNamespace(close=lambda: asked.append("closed"))

    monkeypatch.setenv("DATABASE_URL", "postgresql://od@nowhere/od")
    monkeypatch.delenv("DATABASE_OWNER_URL", raising=False)
    monkeypatch.setattr(prepare_database.psycopg, "connect", connect)
    monkeypatch.setattr(prepare_database, "RETRY_SECONDS", 0)
    steps: list[str] = []

    def run(argv, **settings):
        steps.append(argv[2])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(prepare_database.subprocess, "run", run)
    told = io.StringIO()
    call_command("prepare_database", stderr=told)
    assert asked == ["postgresql://od@nowhere/od"] * 3 + ["closed"]
    assert told.getvalue() == "Waiting for the database: connection refused\n"
    assert steps == ["migrate", "register_models"]


def test_database_that_never_answers_is_told(monkeypatch):
    def connect(url, **settings):
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setenv("DATABASE_URL", "postgresql://od@nowhere/od")
    monkeypatch.setattr(prepare_database.psycopg, "connect", connect)
    monkeypatch.setattr(prepare_database, "PATIENCE_SECONDS", -1)
    with pytest.raises(CommandError, match=r"does not answer: connection refused"):
        call_command("prepare_database")


def test_redis_keeps_what_it_has_and_evicts_nothing(compose):
    command = compose["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_ports_are_those_of_the_dashboard_and_of_the_original_service(compose):
    assert compose["services"]["web"]["ports"] == ["8080:8080", "3000:8080"]
    assert not [
        name for name, one in compose["services"].items() if "ports" in one and name != "web"
    ]


def test_workers_take_the_queue_that_hints_go_to(compose, settings):
    command = compose["services"]["worker"]["command"]
    assert command[command.index("-Q") + 1] == settings.CELERY_TASK_DEFAULT_QUEUE


@pytest.mark.parametrize("missing", SECRETS)
def test_containers_do_not_start_without_their_secrets(missing):
    others = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(MissingVariableError, match=missing):
        read_compose(others)


def test_web_refuses_the_default_secret_outside_development():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OD_")}
    code = "import odproject.asgi"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ImproperlyConfigured: OD_SECRET_KEY is not set." in done.stderr


def test_gpu_file_adds_a_reservation_to_the_worker_only(compose):
    added = yaml.safe_load(compose_text("compose.gpu.yaml"))["services"]
    assert list(added) == ["worker"]
    assert set(added["worker"]) <= SERVICE_KEYS
    (device,) = added["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_example_of_the_environment_explains_every_setting_and_no_other():
    read = set()
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            read |= set(SETTING.findall(path.read_text()))
    of_compose = {match["name"] for match in VARIABLE.finditer(compose_text("docker-compose.yml"))}
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    explained = [match[1] for line in lines if (match := re.match(r"#? ?([A-Z0-9_]+)=", line))]
    assert sorted(explained) == sorted((read - INTERNAL) | of_compose)
