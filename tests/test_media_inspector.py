"""Files are inspected in a confined child: a hostile one costs that child and nothing else."""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from datasets.media.errors import MediaError
from datasets.media.inspector import Inspector, InspectorUnavailableError, MediaFacts
from datasets.media.limits import MediaLimits
from tests.children import kill_once_it_is_read
from tests.mediafiles import (
    corner_picture,
    write_gif,
    write_image,
    write_video,
    write_zip,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def image(tmp_path) -> Path:
    return write_image(tmp_path / "image", orientation=6)


@pytest.fixture
def hang(tmp_path) -> Path:
    """A file whose reading never ends: a pipe into which nobody writes."""
    os.mkfifo(tmp_path / "hang")
    return tmp_path / "hang"


def is_gone(pid: int) -> bool:
    """Whether the process has ended, waited for up to ten seconds."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def refusal(inspector: Inspector, path: Path) -> tuple[int, str]:
    with pytest.raises(MediaError) as caught:
        inspector.inspect(path)
    return caught.value.status, caught.value.code


def test_images_and_videos_are_described_by_one_child(tmp_path, image):
    video = write_video(tmp_path / "v", container="mp4", frames=5, rotation=90, with_audio=True)
    animated = write_gif(tmp_path / "g", frames=3)
    with Inspector() as inspector:
        assert inspector.child_pid is None
        assert inspector.inspect(image) == MediaFacts("image", "jpeg", (48, 64), 1)
        pid = inspector.child_pid
        facts = inspector.inspect(video)
        assert (facts.kind, facts.format, facts.size_wh) == ("video", "mp4", (48, 64))
        assert (facts.frame_count, facts.codec, facts.rotation_degrees) == (5, "mpeg4", 90)
        assert (facts.average_rate_fps, facts.has_audio) == (25.0, True)
        assert facts.duration_seconds == pytest.approx(0.2)
        assert inspector.inspect(animated).frame_count == 3
        assert inspector.child_pid == pid
    assert inspector.child_pid is None
    assert is_gone(pid)


def test_refusals_arrive_as_they_were_raised_and_the_child_lives_on(tmp_path, image):
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    cut = tmp_path / "cut"
    cut.write_bytes(image.read_bytes()[:-200])
    archive = write_zip(tmp_path / "zip", [("a", b"x")])
    with Inspector(limits=MediaLimits(max_frames=4)) as inspector:
        inspector.inspect(image)
        pid = inspector.child_pid
        assert refusal(inspector, empty) == (400, "empty_file")
        assert refusal(inspector, cut) == (400, "corrupt_file")
        assert refusal(inspector, archive) == (415, "unsupported_media_type")
        video = write_video(tmp_path / "v", container="mp4", frames=5)
        assert refusal(inspector, video) == (422, "too_many_frames")
        assert inspector.child_pid == pid


def test_missing_file_is_an_error_of_ours(tmp_path, image):
    with Inspector() as inspector:
        with pytest.raises(FileNotFoundError) as caught:
            inspector.inspect(tmp_path / "missing")
        assert caught.value.errno == errno.ENOENT
        assert inspector.inspect(image).kind == "image"


def test_progress_of_a_video_is_told(tmp_path):
    video = write_gif(tmp_path / "g", frames=160)
    told: list[int] = []
    with Inspector() as inspector:
        assert inspector.inspect(video, on_progress=told.append).frame_count == 160
    assert told == [50, 100, 150]


def test_reading_that_hangs_is_refused_at_the_time_limit_and_the_next_file_is_read(hang, image):
    with Inspector(limits=MediaLimits(per_file_timeout_seconds=0.3)) as inspector:
        inspector.inspect(image)
        pid = inspector.child_pid
        assert refusal(inspector, hang) == (422, "inspection_timeout")
        assert is_gone(pid)
        assert inspector.inspect(image).kind == "image"
        assert inspector.child_pid != pid


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_crash_of_the_decoder_is_refused_and_the_next_file_is_read(hang, image, death):
    with Inspector() as inspector:
        inspector.inspect(image)
        pid = inspector.child_pid
        killer = threading.Timer(0.2, os.kill, (pid, death))
        killer.start()
        assert refusal(inspector, hang) == (422, "decoder_crashed")
        killer.join()
        assert inspector.inspect(image).kind == "image"
        assert inspector.child_pid != pid


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked here")
def test_end_of_the_fork_server_is_no_fault_of_the_file(hang, image):
    with Inspector() as inspector:
        inspector.inspect(image)
        server_pid = psutil.Process(inspector.child_pid).ppid()
        assert server_pid != os.getpid()
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(kill_once_it_is_read, server_pid, hang)
            with pytest.raises(InspectorUnavailableError):
                inspector.inspect(hang)
            os.close(opened.result())
        assert inspector.inspect(image).kind == "image"


def test_child_that_died_between_two_files_is_replaced_silently(image):
    with Inspector() as inspector:
        inspector.inspect(image)
        pid = inspector.child_pid
        os.kill(pid, signal.SIGKILL)
        assert is_gone(pid)
        assert inspector.inspect(image).kind == "image"


def test_picture_beyond_the_memory_limit_is_refused_and_the_next_file_is_read(tmp_path, image):
    large = write_image(tmp_path / "large", Image.new("1", (13_000, 13_000)), image_format="PNG")
    limits = MediaLimits(child_memory_bytes=320 * 1024**2)
    with Inspector(limits=limits) as inspector:
        assert refusal(inspector, large) == (422, "decoder_crashed")
        assert inspector.inspect(image).kind == "image"


def test_file_that_takes_too_much_processor_time_is_refused(tmp_path, image):
    endless = write_gif(tmp_path / "g", frames=19_000, size_wh=(600, 600))
    with Inspector(limits=MediaLimits(child_cpu_seconds=1)) as inspector:
        assert refusal(inspector, endless) == (422, "inspection_timeout")
        assert inspector.inspect(image).kind == "image"


def test_error_in_the_callback_ends_the_child_and_passes_through(tmp_path, image):
    video = write_gif(tmp_path / "g", frames=160)

    def disconnect(frames: int) -> None:
        raise ConnectionResetError

    with Inspector() as inspector:
        inspector.inspect(image)
        pid = inspector.child_pid
        with pytest.raises(ConnectionResetError):
            inspector.inspect(video, on_progress=disconnect)
        assert is_gone(pid)
        assert inspector.inspect(image).kind == "image"


def test_threads_have_a_child_each(image):
    def inspect(_: int) -> tuple[int | None, str]:
        with Inspector() as inspector:
            facts = inspector.inspect(image)
            return inspector.child_pid, facts.kind

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(inspect, range(4)))
    assert {kind for _, kind in found} == {"image"}
    assert len({pid for pid, _ in found}) == 4


def test_child_knows_no_secret_and_is_confined(image, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "not for strangers")
    with Inspector() as inspector:
        inspector.inspect(image)
        process = Path(f"/proc/{inspector.child_pid}")
        assert b"SECRET_KEY" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text()
        status = (process / "status").read_text()
    assert f"Max address space         {4 * 1024**3}           {4 * 1024**3}" in limits
    assert "Max file size             0                    0" in limits
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


CONFINED = """
import os, socket, subprocess, sys
from datasets.media.sandbox import confine
confine(parent_pid=os.getppid(), memory_bytes=2**30, max_open_files=64)
def attempt(action):
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return "done"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def write():
    with open(sys.argv[1], "wb") as file:
        file.write(b"x")
print(attempt(lambda: socket.socket()))
print(attempt(lambda: os.execv("/bin/true", ["true"])))
print(attempt(lambda: os.kill(os.getppid(), 0)))
print(attempt(write))
print(attempt(lambda: bytearray(2**31)))
print(attempt(lambda: open(sys.argv[0], "rb")))
"""


def test_confined_process_has_no_network_no_programs_no_signals_and_no_writing(tmp_path):
    script = tmp_path / "confined.py"
    script.write_text(CONFINED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == [
        "PermissionError",
        "PermissionError",
        "PermissionError",
        "PermissionError" if has_landlock() else "OSError",
        "MemoryError",
        "done",
    ]


PARENT = """
import os, signal, sys
from pathlib import Path
from datasets.media.inspector import Inspector
inspector = Inspector()
inspector.inspect(Path(sys.argv[1]))
print(inspector.child_pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


HARM = """
import ctypes, fcntl, json, os, resource, sys, threading
from pathlib import Path
from datasets.media.sandbox import confine
folder, other = Path(sys.argv[1]), int(sys.argv[2])
opened = open(folder / "kept", "r+b")
confine(parent_pid=os.getppid(), memory_bytes=2**30, max_open_files=64)
libc = ctypes.CDLL(None, use_errno=True)
TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
def thread_kill(pid, number):
    if libc.syscall(TGKILL, pid, pid, number):
        raise OSError(ctypes.get_errno(), "refused")
def get_shared_memory():
    found = libc.shmget(0, ctypes.c_size_t(4096), 0o600)
    if found < 0:
        raise OSError(ctypes.get_errno(), "refused")
    libc.shmctl(found, 0, None)  # which removes it
actions = {
    "remove": lambda: (folder / "kept").unlink(),
    "empty": lambda: os.truncate(folder / "kept", 0),
    "empty what is open": lambda: opened.truncate(0),
    "empty by opening": lambda: open(folder / "kept", "wb"),
    "make": lambda: (folder / "new").touch(),
    "make a folder": lambda: (folder / "new").mkdir(),
    "move": lambda: (folder / "kept").rename(folder / "new"),
    "link": lambda: (folder / "new").hardlink_to(folder / "kept"),
    "point": lambda: (folder / "new").symlink_to("/"),
    "rights": lambda: (folder / "kept").chmod(0o777),
    "times": lambda: os.utime(folder / "kept", (0, 0)),
    "end another": lambda: thread_kill(other, 9),
    "limit another": lambda: resource.prlimit(other, resource.RLIMIT_CPU, (1, 1)),
    "have the kernel signal another": lambda: fcntl.fcntl(opened, fcntl.F_SETOWN, other),
    "have it send another signal": lambda: fcntl.fcntl(opened, 10, 9),
    "rights by another way": lambda: os.setxattr(folder / "kept", "user.x", b"x"),
    "make another process": lambda: os.fork() or os._exit(0),
    "get memory that outlives it": get_shared_memory,
    "read another's environment": lambda: Path(f"/proc/{other}/environ").read_bytes(),
    "read another's memory": lambda: open(f"/proc/{other}/mem", "rb"),
    "read": lambda: (folder / "kept").read_bytes(),
    "signal itself": lambda: thread_kill(os.getpid(), 0),
    "limit itself": lambda: resource.setrlimit(resource.RLIMIT_CPU, (500, 500)),
    "set a flag of a file": lambda: fcntl.fcntl(opened, fcntl.F_SETFD, 0),
    "make a thread": lambda: threading.Thread(target=int).start(),
}
done = []
for name, action in actions.items():
    try:
        action()
        done.append(name)
    except OSError:
        pass
print(json.dumps(done))
"""


def has_landlock() -> bool:
    """Whether the kernel has the third version at least, which knows emptying."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 3


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_confined_process_changes_no_file_and_touches_no_other_process(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").write_text("precious")
    before = (folder / "kept").stat()
    with subprocess.Popen(["sleep", "600"], env={"OD_SECRET_KEY": "secret"}) as other:
        try:
            done = subprocess.run(
                [sys.executable, "-c", HARM, str(folder), str(other.pid)],
                capture_output=True,
                text=True,
                check=True,
                env={"PYTHONPATH": str(ROOT)},
            )
            assert other.poll() is None
        finally:
            other.kill()
    own = ["signal itself", "limit itself", "set a flag of a file", "make a thread"]
    assert json.loads(done.stdout) == ["read", *own]
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert (folder / "kept").read_text() == "precious"
    after = (folder / "kept").stat()
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)


HIDING = """
import json, os, sys
from pathlib import Path
from datasets.media.sandbox import confine
data, shown, beside = map(Path, sys.argv[1:])
confine(
    parent_pid=os.getppid(), memory_bytes=2**30, max_open_files=64, hidden=data, shown=[shown]
)
import email.message  # what is not loaded yet can be
seen = []
for path in (data / "secret_key", data / "media" / "a.png", shown / "upload", beside, data, shown):
    try:
        list(path.iterdir()) if path.is_dir() else path.read_bytes()
        seen.append(path.name)
    except PermissionError:
        pass
print(json.dumps(seen))
"""


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_confined_process_reads_nothing_of_the_service_but_what_it_is_shown(tmp_path):
    data, shown = tmp_path / "data", tmp_path / "data" / "tmp"
    shown.mkdir(parents=True)
    (data / "media").mkdir()
    beside = tmp_path / "beside"
    for path in (data / "secret_key", data / "media" / "a.png", shown / "upload", beside):
        path.write_text("something")
    done = subprocess.run(
        [sys.executable, "-c", HIDING, str(data), str(shown), str(beside)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stdout) == ["upload", "beside", "tmp"]


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_inspector_opens_temporary_files_and_what_is_shown_of_the_folder_that_is_hidden(
    tmp_path, image, monkeypatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    shutil.copy(image, temporary / "upload")
    shown = Path(shutil.copy(image, tmp_path / "shown"))
    with Inspector(hidden=tmp_path, shown=shown) as inspector:
        assert inspector.inspect(temporary / "upload").kind == "image"
        assert inspector.inspect(shown).kind == "image"
        with pytest.raises(PermissionError):
            inspector.inspect(image)


def test_child_never_outlives_a_parent_that_is_killed(image):
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(image)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert is_gone(int(done.stdout))


def test_many_files_cost_one_process(tmp_path):
    paths = [
        write_image(tmp_path / str(i), corner_picture((16, 8)), image_format="PNG")
        for i in range(60)
    ]
    with Inspector() as inspector:
        facts = [inspector.inspect(paths[0])]
        pid = inspector.child_pid
        facts += [inspector.inspect(path) for path in paths[1:]]
        assert inspector.child_pid == pid
    assert {fact.size_wh for fact in facts} == {(16, 8)}
