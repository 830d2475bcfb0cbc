"""The child's side of `inference.confined`: give everything up, do one task, answer, end."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.media.errors import MediaError
from datasets.media.sandbox import allow_more_cpu, confine
from inference.pipeline.errors import PipelineError

MAX_OPEN_FILES = 64


def serve(
    do: Callable[[dict[str, Any], Path], dict[str, Any]],
    *,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Read a task from standard input, confine this process, and print what `do` answers.

    `prepare` may load libraries and write into the folder that it is given; `do`, with the task
    and the path of its file, cannot write, connect or start anything any more.
    """
    task = json.loads(sys.stdin.buffer.read())
    answers_fd = os.dup(1)
    os.dup2(2, 1)  # libraries may print
    prepare(Path(task["folder"]))
    confine(
        parent_pid=int(sys.argv[1]),
        memory_bytes=task["memory_bytes"],
        max_open_files=MAX_OPEN_FILES,
        hidden=None if task["hidden"] is None else Path(task["hidden"]),
        shown=[Path(task["path"]), Path(task["folder"])],
    )
    allow_more_cpu(task["cpu_seconds"])
    with os.fdopen(answers_fd, "wb") as answers:
        answers.write(json.dumps(_answer(do, task)).encode())


def _answer(
    do: Callable[[dict[str, Any], Path], dict[str, Any]], task: dict[str, Any]
) -> dict[str, Any]:
    try:
        return do(task, Path(task["path"]))
    except (PipelineError, MediaError) as error:
        return _refusal(error.code, error.detail, error.__cause__)
    except MemoryError:
        return _refusal("too_large", "Reading the file takes more memory than allowed.")
    except Exception as error:  # the file found a fault in a library
        return _refusal("unreadable", "The file cannot be read.", error)


def _refusal(code: str, detail: str, cause: BaseException | None = None) -> dict[str, Any]:
    """What the asker is told, and the cause, which the parent writes down for the operator."""
    refusal: dict[str, Any] = {"error": [code, detail]}
    if cause is not None:
        refusal["cause"] = repr(cause)[:500]
    return refusal
