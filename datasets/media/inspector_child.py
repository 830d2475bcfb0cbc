"""The process in which strangers' files are decoded for the first time.

Reads requests as JSON lines from standard input and answers each with JSON lines on standard
output: any number of `progress`, then `facts`, `error` or `os_error`. Started by `Inspector` only,
with the number of the parent's process, the limits as JSON, and then the folder that is hidden and
what is shown all the same, if any.
"""

import errno
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets.media.errors import MediaError, refused
from datasets.media.inspection import inspect_here
from datasets.media.limits import MediaLimits
from datasets.media.sandbox import allow_more_cpu, confine

_MAX_OPEN_FILES = 64


def main() -> None:
    """Serve until standard input ends or memory ran out."""
    parent_pid, limits = int(sys.argv[1]), MediaLimits(**json.loads(sys.argv[2]))
    folders = [Path(name) for name in sys.argv[3:]]
    answers_fd = _private_answers_fd()
    confine(
        parent_pid=parent_pid,
        memory_bytes=limits.child_memory_bytes,
        max_open_files=_MAX_OPEN_FILES,
        hidden=folders[0] if folders else None,
        shown=folders[1:],
    )
    _send(answers_fd, {"ready": True})
    for line in sys.stdin.buffer:
        allow_more_cpu(limits.child_cpu_seconds)
        answer = _answer(Path(json.loads(line)["path"]), limits, answers_fd)
        _send(answers_fd, answer)
        if "out_of_memory" in answer:
            return
        gc.collect()


def _private_answers_fd() -> int:
    """Move the way to the parent away from descriptor 1, on which libraries may print."""
    answers_fd = os.dup(1)
    nothing_fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing_fd, 1)
    os.close(nothing_fd)
    return answers_fd


def _answer(path: Path, limits: MediaLimits, answers_fd: int) -> dict[str, Any]:
    try:
        facts = inspect_here(
            path, limits=limits, on_progress=lambda frames: _send(answers_fd, {"progress": frames})
        )
        return {"facts": facts.to_dict()}
    except MediaError as error:
        return _error(error)
    except MemoryError:
        too_much = refused("decoder_crashed", "Decoding the file takes more memory than allowed.")
        return {**_error(too_much), "out_of_memory": True}
    except OSError as error:
        return {"os_error": [error.errno or errno.EIO, str(error.strerror)]}
    except Exception as error:
        # The file found a fault in a decoder or in this package; the parent writes down which.
        crashed = refused("decoder_crashed", "The decoder failed on the file.")
        return {**_error(crashed), "cause": repr(error)[:500]}


def _error(error: MediaError) -> dict[str, Any]:
    return {"error": [error.code, error.detail, error.status]}


def _send(answers_fd: int, message: dict[str, Any]) -> None:
    os.write(answers_fd, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
