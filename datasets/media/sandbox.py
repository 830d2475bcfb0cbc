"""Takes from the calling process what a decoder does not need; never undone.

Written for the inspector's child, which applies it to itself at start: nothing here runs between
fork and exec, so it is safe to start such a child from any thread.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_SECCOMP_ALLOW = 0x7FFF0000
_SECCOMP_REFUSE_WITH_EPERM = 0x00050001
_SECCOMP_KILL = 0x80000000
# The numbers of socket, connect, execve, execveat, ptrace, kill, process_vm_readv,
# process_vm_writev and io_uring_setup (which could do the work of the first two), from the
# kernel's tables of system calls.
_AUDIT_ARCH_AND_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 62, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 129, 270, 271, 425)),
}
# x86-64 has a second set of numbers (x32), which would pass by the filter.
_X32_CALLS_FROM = 0x40000000


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def confine(*, parent_pid: int, memory_bytes: int, max_open_files: int) -> None:
    """Confine this process: memory, files, priority, network; it dies with its parent.

    After this it cannot write a file, open a connection, start a program or signal another one.
    All of that holds on Linux on x86-64 and ARM64. On other processors the filter of system calls
    is missing; on other systems (a developer's Mac) only the limits that exist there hold, and the
    process ends with its parent only once it reads its next request.
    """
    if sys.platform == "linux":
        _die_with_parent(parent_pid)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(10)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, max_open_files)
    if sys.platform == "linux":
        _refuse_network_and_programs()


def allow_more_cpu(seconds: int) -> None:
    """Let this process use that many more seconds of processor time; then SIGXCPU ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_seconds = int(usage.ru_utime + usage.ru_stime) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = used_seconds + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (allowed, allowed))
    except (ValueError, OSError):
        if sys.platform == "linux":
            raise


def _die_with_parent(parent_pid: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call above; then nobody will ever send the signal.
    if os.getppid() != parent_pid:
        sys.exit(0)


def _refuse_network_and_programs() -> None:
    known = _AUDIT_ARCH_AND_CALLS.get(platform.machine())
    if known is None:
        return
    audit_arch, calls = known
    program = _filter_program(audit_arch, calls)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    with contextlib.suppress(OSError):
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(head))


def _filter_program(audit_arch: int, calls: tuple[int, ...]) -> bytes:
    """A classic BPF program that refuses the calls and allows every other one.

    Each instruction is (code, jump if true, jump if false, value); struct seccomp_data holds the
    number of the call at offset 0 and the architecture at offset 4.
    """
    load, if_equal, if_at_least, answer = 0x20, 0x15, 0x35, 0x06
    rows = [
        (load, 0, 0, 4),
        (if_equal, 1, 0, audit_arch),
        (answer, 0, 0, _SECCOMP_KILL),
        (load, 0, 0, 0),
        (if_at_least, len(calls) + 1, 0, _X32_CALLS_FROM),
    ]
    # From each row the jump leads over the remaining ones and the allowance to the refusal.
    rows += [(if_equal, len(calls) - i, 0, call) for i, call in enumerate(calls)]
    rows += [(answer, 0, 0, _SECCOMP_ALLOW), (answer, 0, 0, _SECCOMP_REFUSE_WITH_EPERM)]
    return b"".join(struct.pack("<HBBL", *row) for row in rows)


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(ctypes.c_int(option), *padded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
