"""The child's side of `inference.confined`: give everything up, do one task, answer, end."""

import json
import os
import sys
from collections.abc import Callable, Iterator
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

    def do_it(task: dict[str, Any], paths: list[Path]) -> Iterator[dict[str, Any]]:
        yield do(task, paths[0])

    serve_each(do_it, prepare=prepare)


def serve_each(
    do: Callable[[dict[str, Any], list[Path]], Iterator[dict[str, Any]]],
    *,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> None:
    """As `serve`, for a task of several files and answers, each of which is printed as a line."""
    task = json.loads(sys.stdin.buffer.read())
    answers_fd = os.dup(1)
    os.dup2(2, 1)  # libraries may print
    prepare(Path(task["folder"]))
    paths = [Path(path) for path in task["paths"]]
    confine(
        parent_pid=int(sys.argv[1]),
        memory_bytes=task["memory_bytes"],
        max_open_files=MAX_OPEN_FILES,
        hidden=None if task["hidden"] is None else Path(task["hidden"]),
        shown=[*paths, Path(task["folder"])],
    )
    allow_more_cpu(task["cpu_seconds"])
    with os.fdopen(answers_fd, "wb") as answers:
        for answer in _answers(do, task, paths):
            answers.write(json.dumps(answer).encode() + b"\n")


def _answers(
    do: Callable[[dict[str, Any], list[Path]], Iterator[dict[str, Any]]],
    task: dict[str, Any],
    paths: list[Path],
) -> Iterator[dict[str, Any]]:
    """What `do` answers, and in the end why it cannot go on."""
    try:
        yield from do(task, paths)
    except (PipelineError, MediaError) as error:
        yield _refusal(error.code, error.detail, error.__cause__)
    except MemoryError:
        yield _refusal("too_large", "Reading the file takes more memory than allowed.")
    except Exception as error:  # the file found a fault in a library
        yield _refusal("unreadable", "The file cannot be read.", error)


def _refusal(code: str, detail: str, cause: BaseException | None = None) -> dict[str, Any]:
    """What the asker is told, and the cause, which the parent writes down for the operator."""
    refusal: dict[str, Any] = {"error": [code, detail]}
    if cause is not None:
        refusal["cause"] = repr(cause)[:500]
    return refusal
