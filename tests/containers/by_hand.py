"""Does the steps of the Dockerfile by hand, in order, and runs what docker-compose.yml starts.

    sudo .venv/bin/python -m tests.containers.by_hand --python-folder /usr/local/bin

For machines without a Docker engine. The steps run in a throw-away copy of this machine's file
system (an overlay in memory, seen by nobody else), the roles then as the user that the Dockerfile
names and in a network of their own: migrate, web, worker, beat and webhooks with their commands,
environments and health checks, up to a finished job. Only mounting needs root, as a Docker engine
does. The embedded PostgreSQL and Redis stand in for the two images that are not ours.
"""

import argparse
import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from odproject.engines import Engines, running_engines, socket_folder
from tests.browser import PASSWORD, drawn_image
from tests.containers.files import REPOSITORY, dockerfile_steps, read_compose

NEW_NETWORK = 0x40000000  # CLONE_NEWNET
IGNORED = shutil.ignore_patterns("__pycache__")
SECONDS = 300
SECRETS = {
    "OD_SECRET_KEY": "a secret of the steps by hand, long enough for a key",
    "POSTGRES_PASSWORD": "stands-in",
    "OD_ADMIN_PASSWORD": "an administrator by hand",
}


class StepError(Exception):
    """A step did not do what it should; the text says which and how it ended."""


@dataclass
class Image:
    """What the steps so far have made: a root folder, an environment, a user."""

    root: Path
    python_folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def argv(self, command: list[str], *, user: str | None = None) -> list[str]:
        """The command as a container runs it: in the root folder, as the user, with no rights."""
        user = user or self.user
        who = [] if user == "root" else ["--userspec", f"{user}:{user}"]
        drop = [] if user == "root" else ["setpriv", "--bounding-set=-all", "--no-new-privs"]
        script = f'cd {shlex.quote(self.workdir)} && exec "$@"'
        return [
            str(shutil.which("chroot")),
            *who,
            str(self.root),
            *drop,
            "sh",
            "-c",
            script,
            "sh",
            *command,
        ]

    def run(self, command: list[str], **extra: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            self.argv(command),
            env=self.environment | extra,
            capture_output=True,
            text=True,
            check=False,
        )


ROLES = ("web", "worker", "beat", "webhooks")
RUN_BY_DEFAULT = {"ENTRYPOINT": "entrypoint", "CMD": "command"}


def build(image: Image, arguments: dict[str, str]) -> None:
    """Do every step; the stages share one root folder. Raises StepError."""
    for step in dockerfile_steps():
        print(f"{step.instruction} {step.text}"[:150], flush=True)
        if step.instruction == "FROM":
            image.user, image.workdir = "root", "/"
            image.environment = {
                "HOME": "/root",
                "PATH": f"{image.python_folder}:/usr/local/bin:/usr/sbin:/usr/bin:/bin",
            }
            image.environment |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
        elif step.instruction == "ARG":
            name, _, default = step.text.partition("=")
            image.environment[name] = arguments.get(name, default)
        elif step.instruction == "ENV":
            for word in step.words:
                name, _, value = word.partition("=")
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        elif step.instruction == "RUN":
            done = image.run(["sh", "-c", step.text])
            if done.returncode:
                raise StepError(f"RUN {step.text}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        elif step.instruction == "COPY":
            _copy(image, step.words)
        elif step.instruction == "WORKDIR":
            image.workdir = step.text
            (image.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.instruction == "USER":
            image.user = step.text
            image.environment["HOME"] = f"/home/{step.text}"
        elif step.instruction in RUN_BY_DEFAULT:
            setattr(image, RUN_BY_DEFAULT[step.instruction], step.words)
        elif step.instruction == "HEALTHCHECK":
            image.health = shlex.split(step.text.partition("CMD ")[2])


def _copy(image: Image, words: list[str]) -> None:
    """Copy from the repository; what an earlier stage made is in the same root already."""
    if words[0].startswith("--from="):
        return
    *sources, target = words
    for source in sources:
        there = image.root / image.workdir.lstrip("/") / target.lstrip("/")
        if target.startswith("/"):
            there = image.root / target.lstrip("/")
        if target.endswith("/"):
            there = there / Path(source).name
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, there, ignore=IGNORED, dirs_exist_ok=True)
        else:
            shutil.copy2(REPOSITORY / source, there)


# -- the roles of the compose file ---------------------------------------------------------------


def role(
    image: Image, service: dict[str, Any], engines: Engines
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one service, on the engines that stand in."""
    environment = {key: str(value) for key, value in service["environment"].items()}
    environment["DATABASE_URL"] = engines.database_url
    environment["REDIS_URL"] = engines.redis_url
    if "DATABASE_OWNER_URL" in environment:
        environment["DATABASE_OWNER_URL"] = engines.owner_url
    command = service.get("command") or image.command
    return [*image.entrypoint, *command], image.environment | environment


def health_command(image: Image, service: dict[str, Any]) -> list[str]:
    """What tells whether the service is well; empty where nothing does."""
    check = service.get("healthcheck", {})
    if check.get("disable"):
        return []
    return list(check["test"][1:]) if "test" in check else image.health


def run_roles(image: Image, engines: Engines, folder: Path) -> None:
    """Migrate, start the others, wait until they are well, run a job. Raises StepError."""
    services = read_compose(SECRETS)["services"]
    command, environment = role(image, services["migrate"], engines)
    done = subprocess.run(image.argv(command), env=environment, text=True, check=False)
    if done.returncode:
        raise StepError(f"migrate ended with {done.returncode}")
    with contextlib.ExitStack() as running:
        for name in ROLES:
            running.enter_context(_started(image, services[name], engines, folder / f"{name}.log"))
        for name in ROLES:
            check = health_command(image, services[name])
            _, environment = role(image, services[name], engines)
            if check:
                _wait_until_well(image, name, check, environment)
        run_a_job("http://127.0.0.1:8080", folder)


@contextlib.contextmanager
def _started(
    image: Image, service: dict[str, Any], engines: Engines, log_path: Path
) -> Iterator[None]:
    command, environment = role(image, service, engines)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            image.argv(command), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield
        if process.poll() is not None:
            raise StepError(f"{command} ended with {process.returncode}")
    finally:
        owners = Path(f"/proc/{process.pid}").stat().st_uid if process.poll() is None else "nobody"
        process.terminate()
        status = process.wait(60)
        print(f"{log_path.stem}: ran as uid {owners}, ended with {status}")
        print(log_path.read_text(errors="replace")[-1500:])


def _wait_until_well(
    image: Image, name: str, check: list[str], environment: dict[str, str]
) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run(image.argv(check), env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            print(f"{name} is well: {shlex.join(check)[:90]}")
            return
        time.sleep(1)
    raise StepError(f"{name} is not well: {done.stderr.decode()[-1500:]}")


def run_a_job(base_url: str, folder: Path) -> None:
    """From registration to an annotated file. Raises StepError."""
    client = httpx.Client(base_url=f"{base_url}/api/v1", timeout=120)
    keys = {"email": "by-hand@example.org", "password": PASSWORD}
    client.post("/users/", json=keys).raise_for_status()
    access = client.post("/tokens/", json=keys).raise_for_status().json()["access"]
    client.headers["Authorization"] = f"Bearer {access}"
    dataset = client.post("/datasets/", json={"name": "By hand"}).raise_for_status().json()["id"]
    picture = drawn_image(folder / "street.jpg").read_bytes()
    files = {"file": ("street.jpg", picture)}
    client.post(f"/datasets/{dataset}/uploads/", files=files).raise_for_status()
    keys = {"dataset_id": dataset, "model_version": "YOLO8s_FSR"}
    job = client.post("/jobs/", json=keys).raise_for_status().json()
    deadline = time.monotonic() + SECONDS
    while job["finished_at"] is None and time.monotonic() < deadline:
        time.sleep(0.5)
        job = client.get(f"/jobs/{job['id']}/").raise_for_status().json()
    if job["state"] != "Completed":
        raise StepError(f"The job is {job['state']}: {job['error']}")
    found = client.get(f"/jobs/{job['id']}/frame-results/").json()["results"][0]["class_counts"]
    annotated = client.get(job["files"][0]["annotated_url"].removeprefix("/api/v1")).content
    print(f"Job {job['id']} is Completed, found {found}, charged {job['charged_tokens']} tokens;")
    print(f"the annotated picture has {len(annotated)} bytes.")


# -- the place -----------------------------------------------------------------------------------


def mount_root(place: Path, python_folder: Path) -> Path:
    """A copy of this machine's file system in memory, without what the image would not have.

    Everything lies in one file system in memory, which ends with the namespace of its mounts:
    nothing has to be deleted, and nothing may be, because a deletion would follow the mounts.
    """

    def mount(kind: str, target: Path, *options: str) -> None:
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", kind, *options, kind, str(target)], check=True)

    mount("tmpfs", place)
    root, upper, work = (place / name for name in ("root", "upper", "work"))
    upper.mkdir()
    work.mkdir()
    mount("overlay", root, "-o", f"lowerdir=/,upperdir={upper},workdir={work}")
    mount("proc", root / "proc")
    mount("sysfs", root / "sys", "-o", "ro")
    mount("tmpfs", root / "tmp", "-o", "mode=1777")
    mount("tmpfs", root / "dev")
    mount("tmpfs", root / "dev/shm", "-o", "mode=1777")
    for name in ("null", "zero", "full", "random", "urandom"):
        status = Path("/dev", name).stat()
        os.mknod(root / "dev" / name, status.st_mode, status.st_rdev)
        (root / "dev" / name).chmod(0o666)
    mount("tmpfs", root / str(REPOSITORY).lstrip("/"))  # the image has what it copied, no more
    for parent in (python_folder, *python_folder.parents[:-1]):  # may lie below a closed home
        inside = root / str(parent).lstrip("/")
        inside.chmod(inside.stat().st_mode | 0o055)
    return root


def _as_the_image_of_postgres(engines: Engines) -> None:
    """There the role that owns the database may do everything."""
    with psycopg.connect(engines.superuser_url, autocommit=True) as connection:
        connection.execute("ALTER ROLE od_owner SUPERUSER")


def _inside(place: Path, arguments: argparse.Namespace) -> None:
    """The whole of it, with mounts and a network of its own."""
    root = mount_root(place, arguments.python_folder)
    image = Image(root, arguments.python_folder)
    build(image, {"TORCH_INDEX_URL": arguments.torch_index_url})
    print(f"Built; the roles run as {image.user}", flush=True)
    if ctypes.CDLL(None).unshare(NEW_NETWORK):
        raise StepError("A network of its own cannot be had.")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with running_engines(place / "engines") as engines:
        # Sockets are reached through a mount of their own folder, not through the overlay, and
        # by a user who is not the engines': they stand in for engines on a network.
        sockets = socket_folder(place / "engines")
        subprocess.run(["chmod", "-R", "a+rwX", str(sockets)], check=True)
        there = root / str(sockets).lstrip("/")
        there.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(sockets), str(there)], check=True)
        _as_the_image_of_postgres(engines)
        run_roles(image, engines, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Path(sys.base_prefix) / "bin"
    parser.add_argument("--python-folder", type=Path, default=usual, help="where `python` is")
    parser.add_argument("--torch-index-url", default="")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.place:
        _inside(arguments.place, arguments)
        return
    place = tempfile.mkdtemp()
    again = [sys.executable, "-m", "tests.containers.by_hand", *sys.argv[1:], "--place", place]
    done = subprocess.run(["unshare", "--mount", *again], check=False)
    Path(place).rmdir()  # its mounts have gone with their namespace
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
