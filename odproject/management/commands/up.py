"""`manage.py up`: the whole service on one machine, until Ctrl-C.

Starts, in this order and each when the one before is ready: PostgreSQL and Redis (unless the
environment names others), the migrations, the package's models and the administrator's account,
the web processes, the workers, the sweeper and who delivers webhooks. What dies is started again;
what is stopped leaves nothing behind.

Environment:

    OD_DATA_DIR         everything that is kept; default `.data` beside manage.py
    OD_HTTP_HOST        address to listen on; default this machine only (127.0.0.1 and ::1),
                        0.0.0.0 for every address
    OD_HTTP_PORT        default 8080; 0 takes a free port, which up.json names
    OD_WEB_PROCESSES    default 2
    OD_WEB_THREADS      threads in each web process; default 16
    OD_WORKERS          worker processes; default one for each GPU, one without any
    OD_MAX_REQUEST_BYTES, OD_MAX_PARSED_BYTES, OD_STALLED_READER_SECONDS   see odproject.serve
    OD_SECRET_KEY       default: made once, kept in <data>/secret_key
    OD_ADMIN_EMAIL, OD_ADMIN_PASSWORD   the first administrator; see `manage.py ensure_admin`
    DATABASE_URL        a PostgreSQL of your own; DATABASE_OWNER_URL is then the role that
                        migrates, by default the same
    REDIS_URL           a Redis of your own
    OD_DIE_WITH_PARENT  process id of a parent with which this command ends too (set by make)

While it runs, <data>/up.json tells tools its address, its process ids and the engines' URLs.
"""

import hashlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from odproject.accelerators import visible_gpus, worker_environment
from odproject.core.process import die_with_parent
from odproject.engines import (
    APPLICATION_ROLE,
    OWNER_ROLE,
    EmbeddedPostgres,
    EmbeddedRedis,
    Engine,
    EngineError,
)
from odproject.supervisor import (
    ChildSpec,
    Supervisor,
    SupervisorError,
    bind_sockets,
    folder_lock,
    write_private,
)

ENGINES, MIGRATIONS, FIRST_ROWS, WEB, WORKERS = range(5)
PROBE_TIMEOUT_SECONDS = 5.0


class Command(BaseCommand):
    """Run the whole service on this machine."""

    help = "Runs the whole service on this machine until Ctrl-C."
    # The database that checks might look at is only started here.
    requires_system_checks = []

    def handle(self, *_args: Any, **_options: Any) -> None:
        """Run until stopped; exits with status 1 and one sentence when that cannot be."""
        parent_pid = os.environ.pop("OD_DIE_WITH_PARENT", "")
        if parent_pid:
            die_with_parent(signal.SIGTERM, parent_pid=int(parent_pid))
        data_dir: Path = settings.DATA_DIR
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with folder_lock(data_dir):
                status = self._run(data_dir)
        except (SupervisorError, EngineError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"The service cannot use {data_dir}: {error}") from error
        sys.exit(status)

    def _run(self, data_dir: Path) -> int:
        sockets = bind_sockets(
            os.environ.get("OD_HTTP_HOST", ""),
            _number("OD_HTTP_PORT", 8080, smallest=0, largest=65535),
        )
        address = sockets[0].getsockname()
        url = _http_url(address)
        self._say(f"Data and logs in {data_dir}")
        engines = _embedded_engines(data_dir)
        if not all((data_dir / engine.name).exists() for engine in engines):
            self._say("Preparing the engines; only the first start takes this long")
        for engine in engines:
            engine.prepare()
        environment = child_environment(data_dir, engines)
        supervisor = Supervisor(
            specs=[
                *(_engine_spec(engine) for engine in engines),
                *_step_specs(environment),
                *_web_specs(environment, sockets),
                *_worker_specs(environment),
            ],
            data_dir=data_dir,
            report=self._say,
            state={
                "port": address[1],
                "url": url,
                "database_url": environment["DATABASE_URL"],
                "owner_url": environment["DATABASE_OWNER_URL"],
                "redis_url": environment["REDIS_URL"],
            },
            on_ready=lambda: self._say(f"Serving on {url} (Ctrl-C stops everything)"),
        )
        # The sockets stay open here, so that a connection waits while a web process is replaced.
        return supervisor.run()

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def child_environment(data_dir: Path, engines: list[Engine]) -> dict[str, str]:
    """Return what the service's own processes find in their environment.

    Empties the folder for temporary files, and makes the secret key the first time.
    """
    temporary = data_dir / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, exist_ok=True)
    environment = dict(os.environ)
    for engine in engines:
        if isinstance(engine, EmbeddedPostgres):
            environment["DATABASE_URL"] = engine.url(APPLICATION_ROLE)
            environment["DATABASE_OWNER_URL"] = engine.url(OWNER_ROLE)
        elif isinstance(engine, EmbeddedRedis):
            environment["REDIS_URL"] = engine.url()
    environment.setdefault("DATABASE_OWNER_URL", environment["DATABASE_URL"])
    if not environment.get("OD_SECRET_KEY"):
        environment["OD_SECRET_KEY"] = _kept_secret(data_dir / "secret_key")
    return environment | {
        "OD_DATA_DIR": str(data_dir),
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
        # Ultralytics writes its settings, installs packages and calls home unless told not to.
        "YOLO_CONFIG_DIR": str(data_dir / "ultralytics"),
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
    }


def _embedded_engines(data_dir: Path) -> list[Engine]:
    engines: list[Engine] = []
    if not os.environ.get("DATABASE_URL"):
        engines.append(EmbeddedPostgres(data_dir))
    if not os.environ.get("REDIS_URL"):
        engines.append(EmbeddedRedis(data_dir))
    return engines


def _kept_secret(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_urlsafe(48))
    return path.read_text(encoding="utf-8").strip()


def _engine_spec(engine: Engine) -> ChildSpec:
    return ChildSpec(
        name=engine.name,
        stage=ENGINES,
        argv=engine.command(),
        env=engine.environment(),
        identity=engine.identity,
        stop_signal=engine.stop_signal,
        die_signal=engine.die_signal,
        grace_seconds=30.0,
        before_start=engine.before_start,
        is_ready=engine.is_ready,
        may_take_long=True,
    )


def _step_specs(environment: Mapping[str, str]) -> list[ChildSpec]:
    owner = {**environment, "DATABASE_URL": environment["DATABASE_OWNER_URL"]}
    return [
        ChildSpec(
            name="migrate",
            stage=MIGRATIONS,
            argv=_manage("migrate", "--noinput"),
            env=owner,
            cwd=settings.BASE_DIR,
            once=True,
        ),
        ChildSpec(
            name="register_models",
            stage=FIRST_ROWS,
            argv=_manage("register_models"),
            env=environment,
            cwd=settings.BASE_DIR,
            once=True,
        ),
        ChildSpec(
            name="ensure_admin",
            stage=FIRST_ROWS,
            argv=_manage("ensure_admin"),
            env=environment,
            cwd=settings.BASE_DIR,
            once=True,
            # It tells a new administrator's password, which no log may keep.
            to_terminal=True,
        ),
    ]


def _web_specs(environment: Mapping[str, str], sockets: list[socket.socket]) -> list[ChildSpec]:
    numbers = tuple(listener.fileno() for listener in sockets)
    inherited = [part for number in numbers for part in ("--fd", str(number))]
    return [
        ChildSpec(
            name=f"web-{index}",
            stage=WEB,
            argv=[sys.executable, "-m", "odproject.serve", *inherited],
            env=_with_own_temporary_folder(environment, f"web-{index}"),
            before_start=_emptied(environment, f"web-{index}"),
            cwd=settings.BASE_DIR,
            pass_fds=numbers,
            grace_seconds=15.0,
            is_ready=_answers(sockets[0].getsockname()),
        )
        for index in range(1, _number("OD_WEB_PROCESSES", 2, smallest=1) + 1)
    ]


def _worker_specs(environment: Mapping[str, str]) -> list[ChildSpec]:
    celery = [sys.executable, "-m", "celery", "-A", "odproject", "worker"]
    celery += ["-P", "solo", "-c", "1", "-Q", "units", "--without-gossip", "--without-mingle"]
    # Two services that share a database differ in the machine or in the folder.
    folder = hashlib.sha256(environment["OD_DATA_DIR"].encode()).hexdigest()[:8]
    place = f"{socket.gethostname()[:60]}:{folder}"
    gpus = visible_gpus(environment)
    count = _number("OD_WORKERS", max(1, len(gpus)), smallest=0)
    workers = [
        ChildSpec(
            name=f"worker-{index}",
            stage=WORKERS,
            argv=[*celery, "-n", f"worker-{index}@%h"],
            # A successor under the same name takes back at once what a killed worker had.
            env={
                **_with_own_temporary_folder(environment, f"worker-{index}"),
                **worker_environment(environment, index=index - 1, worker_count=count, gpus=gpus),
                "OD_WORKER_NAME": f"worker-{index}@{place}",
            },
            before_start=_emptied(environment, f"worker-{index}"),
            cwd=settings.BASE_DIR,
            grace_seconds=30.0,
        )
        for index in range(1, count + 1)
    ]
    sweeper = ChildSpec(
        name="sweeper",
        stage=WORKERS,
        argv=_manage("sweeper"),
        env=environment,
        cwd=settings.BASE_DIR,
    )
    webhooks = ChildSpec(
        name="webhooks",
        stage=WORKERS,
        argv=_manage("deliver_webhooks"),
        env=environment,
        cwd=settings.BASE_DIR,
        grace_seconds=20.0,  # what is under way is brought to its end
    )
    return [*workers, sweeper, webhooks]


def _with_own_temporary_folder(environment: Mapping[str, str], name: str) -> dict[str, str]:
    return {**environment, "TMPDIR": str(Path(environment["TMPDIR"]) / name)}


def _emptied(environment: Mapping[str, str], name: str) -> Callable[[], None]:
    """Return what makes a child's temporary folder anew: a killed child leaves large files."""
    folder = Path(environment["TMPDIR"]) / name

    def make_anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    return make_anew


def _manage(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), *arguments]


def _number(name: str, default: int, *, smallest: int, largest: int | None = None) -> int:
    text = os.environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < smallest or (largest is not None and number > largest):
        span = f"from {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise SupervisorError(f"{name} must be a whole number {span}, not {text!r}.")
    return number


def _http_url(address: tuple[Any, ...]) -> str:
    host = str(address[0])
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host) or (
        f"[{host}]" if ":" in host else host
    )
    return f"http://{shown}:{address[1]}"


def _answers(address: tuple[Any, ...]) -> Callable[[], bool]:
    """Return a check whether any web process answers at the address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address[0]), str(address[0]))

    def check() -> bool:
        client = http.client.HTTPConnection(host, address[1], timeout=PROBE_TIMEOUT_SECONDS)
        try:
            client.request("GET", "/livez", headers={"Connection": "close"})
            return client.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    return check
