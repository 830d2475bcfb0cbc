"""Child processes that never outlive their parent, even when the parent is killed with SIGKILL.

Imported, it offers `die_with_parent` for a process that wants it for itself and `launcher_argv`
for one that starts others. Run as a script (`python -I -S process.py ...`) it *is* the launcher:
it prepares the process, then replaces itself with the real command, so the process id stays the
same. A launcher is used rather than `preexec_fn`, which is unsafe as soon as the parent has a
second thread.

Only the standard library is used and nothing of this project, so that the script starts in about
20 ms and without any import path.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_CLONE_NEWUSER = 0x10000000  # <linux/sched.h>

LAUNCH_FAILED_EXIT_CODE = 126


@dataclass(frozen=True)
class Identity:
    """As whom a child runs.

    `same`: as its parent. `namespace`: as user `uid` inside a new user namespace, which is the
    parent's own user seen from outside, so that no file needs another owner. `user`: as the real
    user `uid` with the group `gid`, which only root can do.
    """

    kind: Literal["same", "namespace", "user"] = "same"
    uid: int = -1
    gid: int = -1


SAME_IDENTITY = Identity()


def die_with_parent(signum: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """Ask the kernel to send `signum` to this process when its parent dies.

    With `parent_pid`, a parent that died before this call is noticed too: the signal is then sent
    at once. The kernel watches the *thread* that started this process. The request survives an
    exec, not a fork and not a change of user. Without effect where there is no prctl (not Linux).
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def launcher_argv(
    argv: Sequence[str],
    *,
    die_signal: int = signal.SIGKILL,
    identity: Identity = SAME_IDENTITY,
) -> list[str]:
    """Return the command line that runs `argv` as a child of this very process.

    The child gets `die_signal` when this process dies, has no signal blocked, and runs as
    `identity`. When that cannot be arranged it prints one line and exits with
    `LAUNCH_FAILED_EXIT_CODE`.
    """
    options = [die_signal, os.getpid(), identity.kind, identity.uid, identity.gid]
    script = str(Path(__file__).resolve())
    return [sys.executable, "-I", "-S", script, *(str(option) for option in options), *argv]


def enter_user_namespace(uid: int) -> None:
    """Make this process user and group `uid` of a new user namespace.

    Outside, it stays the user that it is: the files that it makes belong to that user. Raises
    OSError where user namespaces are not permitted.
    """
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # The kernel lets an ordinary user map its group only after giving up setgroups.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outside_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{uid} {outside_gid} 1")


def _become_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _launch(arguments: Sequence[str]) -> NoReturn:
    die_signal, parent_pid, kind, uid, gid = arguments[:5]
    argv = list(arguments[5:])
    if kind == "namespace":
        enter_user_namespace(int(uid))
    elif kind == "user":
        _become_user(int(uid), int(gid))
    # A change of user clears the request, so it comes after.
    die_with_parent(int(die_signal), parent_pid=int(parent_pid))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    try:
        _launch(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"cannot start {' '.join(sys.argv[6:7])}: {error}\n")
        sys.exit(LAUNCH_FAILED_EXIT_CODE)
