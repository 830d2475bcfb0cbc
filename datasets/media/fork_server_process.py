"""The process behind a `ForkServer`: loads modules, then forks a child for each message.

`python -m datasets.media.fork_server_process <socket> <idle seconds> <module> ...`, the socket one
of packets. A message is the JSON list of a module and its arguments, with the child's standard
input, standard output and where its exit status is to be told. Answered with the number of the
child's process and a descriptor of it, or, where none can be made, with a reason alone. `null`
says that no other will come.

It opens nobody's file and has one thread, so that what is forked is whole. It ends with its asker,
or when nobody has asked for long; a child asks to be ended with it (`sandbox.confine`).
"""

import errno
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import NoReturn

_MAX_MESSAGE_BYTES = 64 * 1024
_FILES_OF_A_CHILD = 3


def main() -> None:
    """Serve until the asker is gone or asks no more."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):  # of a group of processes; the asker decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the children's statuses
    idle_seconds = float(sys.argv[2])
    for module in sys.argv[3:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is loaded stays shared with the children
    children: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        is_wanted = True
        while is_wanted or children:
            ready = selector.select(None if children else idle_seconds)
            if not ready:
                return
            for key, _ in ready:
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    _tell_status(key.fd, *children.pop(key.fd))
                    continue
                message, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, _FILES_OF_A_CHILD)
                if not message:
                    return
                if (words := json.loads(message)) is None:
                    is_wanted = False
                elif (forked := _fork(control, words, fds)) is not None:
                    pid_fd, pid, status_fd = forked
                    children[pid_fd] = pid, status_fd
                    selector.register(pid_fd, selectors.EVENT_READ)


def _fork(control: socket.socket, words: list[str], fds: list[int]) -> tuple[int, int, int] | None:
    """Make a child; its descriptor, its number and where to tell its status, None without one."""
    server_pid = os.getpid()
    try:
        if len(fds) < _FILES_OF_A_CHILD:  # this process may open no more
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        stdin_fd, stdout_fd, status_fd = fds
        pid = os.fork()
    except OSError as error:
        for fd in fds:
            os.close(fd)
        control.send(str(error).encode())
        return None
    if pid == 0:
        _be_child(words[0], [str(server_pid), *words[1:]], stdin_fd, stdout_fd)
    os.close(stdin_fd)
    os.close(stdout_fd)
    pid_fd = os.pidfd_open(pid)
    socket.send_fds(control, [str(pid).encode()], [pid_fd])
    return pid_fd, pid, status_fd


def _be_child(module: str, arguments: list[str], stdin_fd: int, stdout_fd: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        os.dup2(stdin_fd, 0)
        os.dup2(stdout_fd, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.argv = [module, *arguments]
        sys.modules[module].main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(status)


def _tell_status(pid_fd: int, pid: int, status_fd: int) -> None:
    os.close(pid_fd)
    _, status = os.waitpid(pid, 0)
    try:
        os.write(status_fd, str(os.waitstatus_to_exitcode(status)).encode())
    except BrokenPipeError:
        pass  # nobody wants to know
    finally:
        os.close(status_fd)


if __name__ == "__main__":
    main()
