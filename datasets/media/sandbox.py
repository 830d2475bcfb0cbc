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
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2
_SECCOMP_ALLOW = 0x7FFF0000
_SECCOMP_REFUSE_WITH_EPERM = 0x00050001
_SECCOMP_REFUSE_WITH_ENOSYS = 0x00050026
_SECCOMP_KILL = 0x80000000
# System calls that are refused, by their numbers in the kernel's tables for x86-64 and ARM64; None
# where the newer processor has only the general form.
_REFUSED_CALLS: dict[str, tuple[int, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),  # which could do the work of the others
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "creat": (85, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rmdir": (84, None),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "fallocate": (285, 47),
    "fork": (57, None),
    "vfork": (58, None),
    # Memory and queues that stay when the process has ended.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
# Allowed to this process itself alone: abort() is a tgkill, setrlimit() a prlimit64 of process 0.
_TGKILL = (234, 131)
_PRLIMIT64 = (302, 261)
# A thread is made by a clone with this flag. The newer call has its flags where no filter can see
# them; where the kernel does not know it, libraries take the older one.
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x10000
# fcntl(F_SETOWN), F_SETSIG and F_SETOWN_EX would have the kernel send a signal.
_FCNTL = (72, 25)
_FCNTLS_OF_SIGNALS = (8, 10, 15)
_AUDIT_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# x86-64 has a second set of numbers (x32), which would pass by the filter.
_X32_CALLS_FROM = 0x40000000

# Landlock (<linux/landlock.h>), whose calls have the same numbers everywhere. Of the 16 rights to
# files all but reading a file and a folder are given up, with nothing excepted; and those, too, in
# a folder that is to be hidden.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_READ_FILE, _LANDLOCK_READ_FOLDER = 1 << 2, 1 << 3
_LANDLOCK_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many each version knows
_LANDLOCK_SCOPES = 3  # abstract sockets and signals, from the sixth version on


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def confine(
    *,
    parent_pid: int,
    memory_bytes: int,
    max_open_files: int,
    hidden: Path | None = None,
    shown: Sequence[Path] = (),
) -> None:
    """Confine this process: memory, files, priority, network; it dies with its parent.

    After this it cannot write, empty, remove, move or make a file, open a connection, start a
    program, signal another one or look into its memory or environment. It makes threads but no
    process, which would live on when it is killed, with limits of its own. It can read the files
    that its user may read, but of what is in the folder `hidden` only what is `shown`.

    All of that holds on Linux on x86-64 and ARM64 with Landlock, without which nothing is hidden
    and a file can be emptied by opening it. On other processors the filter of system calls is
    missing; on other systems (a developer's Mac) only the limits that exist there hold, and the
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
        with contextlib.suppress(OSError):
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities()
        _give_up_files_and_processes(hidden, shown)
        _refuse_system_calls()


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


def _drop_capabilities() -> None:
    """Keep nothing of what root may do beyond other users, but reading.

    Libraries load parts of themselves when they need them, from a folder that may be another
    user's. What is written is refused elsewhere.
    """
    libc = ctypes.CDLL(None)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; then higher ones
    libc.capget(header, held)
    kept = struct.unpack("=6I", held.raw)[1] & (_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _give_up_files_and_processes(hidden: Path | None, shown: Sequence[Path]) -> None:
    """Enter a Landlock domain that may read files, and touch no process outside of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return  # the kernel has none; the filter of system calls refuses most of it
    given_up = (1 << _LANDLOCK_FILE_RIGHTS[min(version, max(_LANDLOCK_FILE_RIGHTS))]) - 1
    readable = None if hidden is None else _beside(hidden)
    if readable is None:
        given_up &= ~(_LANDLOCK_READ_FILE | _LANDLOCK_READ_FOLDER)
    # struct landlock_ruleset_attr: rights to files, to the network, scopes; a kernel knows as much
    # of it as its version has.
    members = (given_up, 0, _LANDLOCK_SCOPES)[: 3 if version >= 6 else 1]
    ruleset = struct.pack(f"={len(members)}Q", *members)
    ruleset_fd = libc.syscall(
        _LANDLOCK_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), ctypes.c_uint(0)
    )
    if ruleset_fd < 0:
        return
    for path in () if readable is None else (*readable, *shown):
        with contextlib.suppress(OSError):
            _allow_reading(libc, ruleset_fd, path)
    libc.syscall(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset_fd), ctypes.c_uint(0))
    os.close(ruleset_fd)


def _beside(hidden: Path) -> list[Path] | None:
    """Everything there is but a folder, as the entries beside the way to it.

    Landlock knows only what is allowed. A link that leads to the folder, into it or above it is
    left out. None where a folder on the way cannot be listed.
    """
    hidden = hidden.resolve()
    found: list[Path] = []
    try:
        for above in hidden.parents:
            for one in above.iterdir():
                with contextlib.suppress(OSError, RuntimeError):  # a link to itself
                    found.append(one.resolve())
    except OSError:
        return None
    return [one for one in found if not (hidden.is_relative_to(one) or one.is_relative_to(hidden))]


def _allow_reading(libc: ctypes.CDLL, ruleset_fd: int, path: Path) -> None:
    """Let the domain read a file, or a folder and all that is in it."""
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        is_folder = stat.S_ISDIR(os.fstat(path_fd).st_mode)
        rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_FOLDER if is_folder else 0)
        rule = struct.pack("=Qi", rights, path_fd)  # struct landlock_path_beneath_attr
        libc.syscall(
            _LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset_fd),
            _LANDLOCK_RULE_PATH_BENEATH,
            rule,
            ctypes.c_uint(0),
        )
    finally:
        os.close(path_fd)


def _refuse_system_calls() -> None:
    known = _AUDIT_ARCHITECTURES.get(platform.machine())
    if known is None:
        return
    column, audit_arch = known
    calls = [numbers[column] for numbers in _REFUSED_CALLS.values()]
    program = _filter_program(
        audit_arch,
        refused=[call for call in calls if call is not None],
        unknown=_CLONE3[column],
        only_with_flag={_CLONE[column]: (0, _CLONE_THREAD)},
        only_with={_TGKILL[column]: (0, os.getpid()), _PRLIMIT64[column]: (0, 0)},
        never_with={_FCNTL[column]: (1, _FCNTLS_OF_SIGNALS)},
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    head = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    with contextlib.suppress(OSError):
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(head))


def _filter_program(
    audit_arch: int,
    *,
    refused: Sequence[int],
    unknown: int,
    only_with_flag: Mapping[int, tuple[int, int]],
    only_with: Mapping[int, tuple[int, int]],
    never_with: Mapping[int, tuple[int, Sequence[int]]],
) -> bytes:
    """A classic BPF program that refuses calls and allows every other one.

    `unknown`: a call that is answered as by a kernel without it. `only_with_flag`: calls that are
    allowed when the argument of that position has that bit; `only_with`: when it has that value;
    `never_with`: calls that are refused when it has one of those. Each instruction is (code, jump
    if true, jump if false, value), a jump being a number of rows to pass over or the answer to go
    to; struct seccomp_data holds the number of the call at offset 0, the architecture at offset 4
    and the lower halves of the arguments at 16, 24 and so on.
    """
    load, if_equal, if_at_least, if_any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    rows: list[tuple[int, int | str, int | str, int]] = [
        (load, 0, 0, 4),
        (if_equal, 1, 0, audit_arch),
        (answer, 0, 0, _SECCOMP_KILL),
        (load, 0, 0, 0),
        (if_at_least, "refuse", 0, _X32_CALLS_FROM),
        (if_equal, "unknown", 0, unknown),
    ]
    rows += [(if_equal, "refuse", 0, call) for call in refused]
    for compare, allowed in ((if_any_bit, only_with_flag), (if_equal, only_with)):
        for call, (position, value) in allowed.items():
            rows += [
                (if_equal, 0, 2, call),
                (load, 0, 0, 16 + 8 * position),
                (compare, "allow", "refuse", value),
            ]
    for call, (position, values) in never_with.items():
        rows += [(if_equal, 0, 1 + len(values), call), (load, 0, 0, 16 + 8 * position)]
        rows += [(if_equal, "refuse", 0, value) for value in values[:-1]]
        rows += [(if_equal, "refuse", "allow", values[-1])]
    answers = {
        "allow": _SECCOMP_ALLOW,
        "refuse": _SECCOMP_REFUSE_WITH_EPERM,
        "unknown": _SECCOMP_REFUSE_WITH_ENOSYS,
    }
    places = {name: len(rows) + row for row, name in enumerate(answers)}
    rows += [(answer, 0, 0, value) for value in answers.values()]

    def skipped(jump: int | str, row: int) -> int:
        return jump if isinstance(jump, int) else places[jump] - row - 1

    return b"".join(
        struct.pack("<HBBL", code, skipped(if_true, row), skipped(if_false, row), value)
        for row, (code, if_true, if_false, value) in enumerate(rows)
    )


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(ctypes.c_int(option), *padded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
