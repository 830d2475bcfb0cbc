"""The supervisor: children start in order, are started again, and never outlive it."""

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from django.core.management import CommandError, call_command

from odproject import supervisor as supervisor_module
from odproject.engines import wait_until
from odproject.management.commands import up
from odproject.supervisor import (
    ChildSpec,
    Supervisor,
    SupervisorError,
    bind_sockets,
    folder_lock,
)

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 30.0

# A supervisor over stand-ins: each child is a few lines of Python, run in the data folder.
PROGRAM = """
import signal, sys
from pathlib import Path
from odproject.supervisor import ChildSpec, Supervisor

data_dir = Path(sys.argv[1])

def child(name, code, **options):
    return ChildSpec(name=name, argv=[sys.executable, "-c", code], cwd=data_dir, **options)

def say(line):
    print(line, flush=True)

RECORD_STOP = '''
import signal, sys
def stop(*_):
    with open("stopped", "a") as stream:
        stream.write(NAME + chr(10))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open("started-" + NAME, "w").close()
while True:
    signal.pause()
'''

def recording(name, **options):
    is_ready = (data_dir / f"started-{name}").exists
    return child(name, RECORD_STOP.replace("NAME", repr(name)), is_ready=is_ready, **options)

SPECS
sys.exit(Supervisor(specs=specs, data_dir=data_dir, report=say, on_ready=lambda: say("ready"),
                    state={"port": 8080}).run())
"""


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, data_dir: Path, specs: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir / "output.txt"
        program = PROGRAM.replace("SPECS", textwrap.dedent(specs))
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(data_dir)],
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    @property
    def state(self) -> dict:
        return json.loads((self.data_dir / "up.json").read_text())

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def until(self, condition: Callable[[], bool]) -> None:
        assert wait_until(condition, timeout_seconds=PATIENCE_SECONDS), self.lines

    def until_ready(self) -> None:
        self.until(lambda: "ready" in self.lines)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Running]]:
    running: list[Running] = []

    def starter(specs: str) -> Running:
        running.append(Running(tmp_path, specs))
        return running[-1]

    yield starter
    for one in running:
        one.process.kill()
        one.process.wait()


def _gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


THREE_STAGES = """
    specs = [recording("engine", stage=0), recording("web", stage=1), recording("worker", stage=2)]
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_ends_every_child_the_last_started_first(start, tmp_path, signum):
    running = start(THREE_STAGES)
    running.until_ready()
    children = running.descendants()
    assert len(children) == 3
    assert running.stop(signum) == 0
    assert (tmp_path / "stopped").read_text().split() == ["worker", "web", "engine"]
    assert all(_gone(child) for child in children)
    assert running.lines == ["ready"]
    assert not (tmp_path / "up.json").exists()


def test_killing_the_supervisor_leaves_no_orphan_not_even_a_grandchild(start, tmp_path):
    running = start("""
        parent = '''
        import subprocess, sys, time
        from odproject.core.process import launcher_argv
        subprocess.Popen(launcher_argv([sys.executable, "-c",
            "open('grandchild', 'w').close(); import time; time.sleep(600)"]))
        time.sleep(600)
        '''.replace(chr(10) + "        ", chr(10))
        specs = [
            child("parent", parent, env={"PYTHONPATH": str(Path.cwd())},
                  is_ready=(data_dir / "grandchild").exists),
            child("stubborn", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                  "time.sleep(600)"),
        ]
    """)
    running.until_ready()
    family = running.descendants()
    assert len(family) == 3
    running.process.kill()
    running.process.wait()
    running.until(lambda: all(_gone(member) for member in family))


def test_a_child_that_keeps_dying_is_started_again_after_longer_and_longer_pauses(start, tmp_path):
    running = start("""
        specs = [child("brief", "open('starts', 'a').write('x'); raise SystemExit(3)")]
    """)
    running.until(lambda: sum("brief ended" in line for line in running.lines) >= 3)
    log = tmp_path / "logs" / "brief.log"
    ends = [line for line in running.lines if "brief ended" in line]
    assert ends[:3] == [
        f"brief ended with status 3; starting it again in {pause} s (log: {log})"
        for pause in ("0.5", "1", "2")
    ]
    running.stop()
    assert len((tmp_path / "starts").read_text()) == len(ends)


def test_a_killed_child_gets_a_successor_whom_up_json_names(start, tmp_path):
    running = start(THREE_STAGES)
    running.until_ready()
    before = running.state
    assert before["pid"] == running.process.pid
    assert before["port"] == 8080
    assert set(before["children"]) == {"engine", "web", "worker"}
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600
    os.kill(before["children"]["web"], signal.SIGKILL)
    running.until(lambda: running.state["children"].get("web") not in {None, *_pids(before)})
    after = running.state["children"]
    assert {name: after[name] for name in ("engine", "worker")} == {
        name: before["children"][name] for name in ("engine", "worker")
    }
    assert running.lines[1].startswith("web was ended by SIGKILL; starting it again in 0.5 s")


def _pids(state: dict) -> list[int]:
    return list(state["children"].values())


def test_a_child_takes_what_it_started_with_it(start, tmp_path):
    running = start("""
        specs = [child("parent", "import subprocess, sys, time;"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
            "open('both', 'w').close(); time.sleep(600)",
            is_ready=(data_dir / "both").exists)]
    """)
    running.until_ready()
    parent, stray = sorted(running.descendants(), key=lambda process: process.create_time())
    parent.kill()
    running.until(lambda: _gone(stray))


def test_a_child_deaf_to_its_stop_signal_is_killed_when_its_grace_is_over(start, tmp_path):
    running = start("""
        specs = [child("deaf", "import signal, time;"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w').close();"
            "time.sleep(600)", grace_seconds=0.2, is_ready=(data_dir / "deaf").exists)]
    """)
    running.until_ready()
    (child,) = running.descendants()
    assert running.stop() == 0
    assert _gone(child)
    assert running.lines == ["ready", "deaf did not stop in time and is killed"]


def test_a_second_interrupt_does_not_wait_for_the_grace(start, tmp_path):
    running = start("""
        specs = [child("slow", "import signal, time;"
            "signal.signal(signal.SIGTERM, lambda *_: open('asked', 'w').close());"
            "open('slow', 'w').close()\\nwhile True: time.sleep(600)",
            grace_seconds=3600, is_ready=(data_dir / "slow").exists)]
    """)
    running.until_ready()
    running.process.send_signal(signal.SIGINT)
    running.until((tmp_path / "asked").exists)
    assert running.process.poll() is None
    assert running.stop(signal.SIGINT) == 0
    assert running.lines[-1] == "slow did not stop in time and is killed"


def test_a_step_that_fails_ends_everything_and_shows_why(start, tmp_path):
    running = start("""
        specs = [
            recording("engine", stage=0),
            child("migrate", "print('no such table'); raise SystemExit(1)", stage=1, once=True),
            recording("web", stage=2),
        ]
    """)
    assert running.process.wait(PATIENCE_SECONDS) == 1
    log = tmp_path / "logs" / "migrate.log"
    assert running.lines == [f"migrate failed. The end of {log}:", "    no such table"]
    assert (tmp_path / "stopped").read_text().split() == ["engine"]
    assert not (tmp_path / "started-web").exists()


def test_later_stages_wait_for_steps_and_for_readiness(start, tmp_path):
    running = start("""
        specs = [
            recording("engine", stage=0),
            child("step", "import os; os.path.exists('started-engine') or sys.exit(9);"
                  "open('step', 'w').close()", stage=1, once=True),
            child("web", "import os, time; open('web-saw-' + str(os.path.exists('step')), 'w');"
                  "time.sleep(600)", stage=2),
        ]
    """)
    running.until_ready()
    running.until(lambda: list(tmp_path.glob("web-saw-*")) != [])
    assert [path.name for path in tmp_path.glob("web-saw-*")] == ["web-saw-True"]
    assert "step" not in running.state["children"]


def test_a_child_that_never_comes_up_is_given_up_with_the_end_of_its_log(start):
    running = start("""
        import odproject.supervisor
        odproject.supervisor.MAX_START_FAILURES = 2
        specs = [child("web", "raise SystemExit('bad import')", is_ready=lambda: False)]
    """)
    assert running.process.wait(PATIENCE_SECONDS) == 1
    assert running.lines[-2:] == ["    bad import", "    bad import"]
    assert "web does not start. The end of" in running.lines[-3]


def test_a_step_or_a_database_that_takes_long_is_waited_for_and_others_are_not(start, tmp_path):
    running = start("""
        import time
        import odproject.supervisor
        odproject.supervisor.READY_TIMEOUT_SECONDS = 0.2

        def late(name, then, **options):
            told = f"'{name} is still at work' in open('output.txt').read()"
            return child(name, f"import time\\nwhile not {told}: time.sleep(0.02)\\n"
                         f"open('{name}', 'w').close(); {then}", **options)

        def has_begun_but_is_not_ready():
            while "begun" not in (data_dir / "logs" / "web.log").read_text():
                time.sleep(0.02)
            return False

        specs = [
            late("database", "time.sleep(600)", stage=0, may_take_long=True,
                 is_ready=(data_dir / "database").exists),
            late("migrate", "pass", stage=1, once=True),
            child("web", "import time; print('begun', flush=True); time.sleep(600)", stage=2,
                  is_ready=has_begun_but_is_not_ready),
        ]
    """)
    assert running.process.wait(PATIENCE_SECONDS) == 1
    logs = tmp_path / "logs"
    assert running.lines == [
        f"database is still at work (log: {logs / 'database.log'})",
        f"migrate is still at work (log: {logs / 'migrate.log'})",
        f"web does not start. The end of {logs / 'web.log'}:",
        "    begun",
    ]


def test_a_second_supervisor_over_a_folder_says_who_has_it(tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(SupervisorError, match=rf"^Process {os.getpid()} already runs .*\.$"),
        folder_lock(tmp_path, timeout_seconds=0),
    ):
        pytest.fail("two supervisors over one folder")
    with folder_lock(tmp_path, timeout_seconds=0):
        pass


def test_a_port_in_use_is_told_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SupervisorError) as refusal:
            bind_sockets("127.0.0.1", port)
    assert str(refusal.value) == (
        f"Port {port} on 127.0.0.1 is in use; stop what uses it, or set OD_HTTP_PORT."
    )


@pytest.mark.parametrize("port", ["65536", "70000", "-1", "http"])
def test_a_port_that_does_not_exist_is_told_in_one_sentence(port, tmp_path, settings, monkeypatch):
    settings.DATA_DIR = tmp_path
    monkeypatch.setenv("OD_HTTP_PORT", port)
    # The system would take such a number modulo 65536, and serve where nobody looks.
    monkeypatch.setattr(up, "bind_sockets", lambda host, number: pytest.fail(f"bound {number}"))
    with pytest.raises(CommandError) as refusal:
        call_command("up")
    assert str(refusal.value) == (
        f"OD_HTTP_PORT must be a whole number from 0 to 65535, not '{port}'."
    )
    assert not (tmp_path / "postgres").exists()


def test_by_default_only_this_machine_is_served():
    sockets = bind_sockets("", 0)
    hosts = {listener.getsockname()[0] for listener in sockets}
    ports = {listener.getsockname()[1] for listener in sockets}
    for listener in sockets:
        listener.close()
    assert hosts <= {"127.0.0.1", "::1"}
    assert len(ports) == 1


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(SupervisorError, match=r"OD_HTTP_HOST=192\.0\.2\.1 is no address of this"):
        bind_sockets("192.0.2.1", 0)


def test_a_log_never_outgrows_its_limit_and_the_last_part_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, "MAX_LOG_BYTES", 10)
    log = tmp_path / "web.log"
    with log.open("ab") as stream:
        stream.write(b"more than ten bytes")
        stream.flush()
        supervisor_module._bound_log(log)
        stream.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "web.log.1").read_bytes() == b"more than ten bytes"


def test_a_full_disk_costs_the_old_log_and_not_the_service(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, "MAX_LOG_BYTES", 10)
    log = tmp_path / "web.log"
    log.write_bytes(b"more than ten bytes")
    (tmp_path / "web.log.1").symlink_to("/dev/full")
    supervisor_module._bound_log(log)
    assert log.read_bytes() == b""
    assert not (tmp_path / "web.log.1").is_symlink()


def test_a_terminal_that_takes_no_line_ends_nothing(tmp_path):
    def report(line):
        raise OSError(errno.ENOSPC, "No space left on device")

    step = ChildSpec(name="step", argv=[sys.executable, "-c", "raise SystemExit(3)"], once=True)
    assert Supervisor(specs=[step], data_dir=tmp_path, report=report).run() == 1
