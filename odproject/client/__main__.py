"""The service from a command line: log in, upload, detect, watch, download.

    python -m odproject.client login ann@example.org
    python -m odproject.client upload street footage/
    python -m odproject.client predict street --option tiling=auto --wait
    python -m odproject.client download 1

An API key in `OD_API_KEY` takes the place of a log-in, at the service that `OD_SERVICE` names.

Tables, or with `--json` one JSON document, go to stdout, all else to stderr. The exit status is 0,
or 1 when the service refused or the job failed, or 2 when the command was not understood, or 130
after Ctrl-C.
"""

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from odproject.client import api, commands
from odproject.client.commands import plural
from odproject.client.errors import ClientError, InterruptedCommandError
from odproject.client.session import Session, SessionFile, session_of_key, session_path
from odproject.client.tables import aligned, plain_number

DEFAULT_SERVICE = "http://localhost:8080"
DEFAULT_MODEL = "YOLO8s_FSR"


def log_in(options: argparse.Namespace, session_file: SessionFile) -> dict[str, str]:
    """Begin a session; the password, or with --key an API key, is asked for or read from a pipe."""
    service = options.service.rstrip("/")
    if options.key and options.register:
        raise ClientError("A user registers with a password; keys are made after that.")
    if options.key:
        session = api.log_in_with_key(service, _secret("API key").strip())
    else:
        password = _secret("Password")
        session = api.log_in(service, options.email, password, register=options.register)
    session_file.write(session)
    return {"service": session.service, "email": session.email}


def _secret(what: str) -> str:
    try:
        if sys.stdin.isatty():
            return getpass.getpass(f"{what}: ")
        return sys.stdin.readline().rstrip("\r\n")
    except EOFError as error:
        raise ClientError(f"There was no {what[0].lower()}{what[1:]}.") from error


def session_of_environment() -> Session | None:
    """The session that `OD_API_KEY` and `OD_SERVICE` make, if the first is set.

    Raises ClientError for what is no key.
    """
    key = os.environ.get("OD_API_KEY", "").strip()
    service = os.environ.get("OD_SERVICE") or DEFAULT_SERVICE
    return session_of_key(service.rstrip("/"), key) if key else None


# -- what a person sees


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows below their columns' names; what they lack stays empty."""

    def cell(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(value)
        if isinstance(value, float):
            return plain_number(value)
        return "" if value is None else str(value)

    cells = [tuple(cell(row.get(name)) for name in columns) for row in rows]
    return "\n".join(aligned([tuple(columns), *cells]))


_JOB = (
    "id",
    "state",
    "progress_percent",
    "dataset_name",
    "model_version",
    "quoted_tokens",
    "charged_tokens",
)
_FILE = ("filename", "state", "frames_done", "frame_count", "charged_tokens", "error")
_DATASET = ("id", "name", "image_count", "frame_count", "inference_cost_tokens")


def _shown_job(found: dict[str, Any]) -> str:
    shown = [table([found], _JOB), "", table(found["files"], _FILE)]
    left = found["file_count"] - len(found["files"])
    return "\n".join(shown + ([f"and {left} more files"] if left else []))


def _shown_upload(report: dict[str, Any]) -> str:
    cost = sum(one["cost_tokens"] for one in report["accepted"])
    told = [f"{plural(len(report['accepted']), 'file')} accepted for {plain_number(cost)} tokens"]
    if report["refused"]:
        told.append(f"{plural(len(report['refused']), 'file')} refused")
    return ", ".join(told)


# What a movement of a kind does to the tokens to spend, and to those held.
_SIGNS = {
    "welcome": (1, 0),
    "top_up": (1, 0),
    "upload": (-1, 0),
    "hold": (-1, 1),
    "capture": (0, -1),
    "release": (1, -1),
}


def _shown_statement(found: dict[str, Any]) -> str:
    lines = [("opening", *found["opening"].values())]
    for kind, (available, held) in _SIGNS.items():
        if moved := found["moved"][f"{kind}_tokens"]:
            lines.append((kind, available * moved, held * moved))
    lines.append(("closing", *found["closing"].values()))
    columns = (found["month"], *found["opening"])
    rows = [(name, *(f"{amount:,.2f}" for amount in amounts)) for name, *amounts in lines]
    so_far = (
        [] if found["is_final"] else ["The month goes on, or its last movements may be missing."]
    )
    return "\n".join([*aligned([columns, *rows]), *so_far])


_SHOWN: dict[str, Callable[[Any], str]] = {
    "login": lambda it: f"Logged in at {it['service']} as {it['email']}",
    "logout": lambda it: "Logged out",
    "balance": lambda it: table([it], tuple(it)),
    "statement": _shown_statement,
    "models": lambda it: table(it, ("version", "class_names", "image_size", "precisions")),
    "datasets": lambda it: table(it, _DATASET),
    "upload": _shown_upload,
    "predict": _shown_job,
    "retry": _shown_job,
    "jobs": lambda it: table(it, _JOB),
    "job": _shown_job,
    "abort": _shown_job,
    "download": "\n".join,
}


# -- the command line


def _option(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` of a job's option: a value is JSON, or else the text that it is."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _tokens(text: str) -> float:
    number = float(text)  # argparse tells of what is no number
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of tokens")
    return number


def _month(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is no month, such as 2026-11")
    return text


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    whole = argparse.ArgumentParser(
        prog="odproject.client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--json", action="store_true", help="one JSON document on stdout")
    names = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, act: Callable[..., Any]) -> argparse.ArgumentParser:
        said = (act.__doc__ or "").split("\n")[0]
        one = names.add_parser(name, help=said, description=said, parents=[every])
        one.set_defaults(act=act)
        return one

    one = command("login", log_in)
    who = one.add_mutually_exclusive_group(required=True)
    who.add_argument("email", nargs="?")
    who.add_argument("--key", action="store_true", help="by an API key in place of a password")
    one.add_argument(
        "--service",
        default=os.environ.get("OD_SERVICE") or DEFAULT_SERVICE,
        metavar="URL",
        help="its address; by default OD_SERVICE, or %(default)s",
    )
    one.add_argument("--register", action="store_true", help="as a new user")
    command("logout", commands.log_out)
    command("balance", commands.balance)
    one = command("statement", commands.statement)
    one.add_argument("month", type=_month, nargs="?", metavar="MONTH", help="as 2026-11")
    one.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="save its movements there, in place of what is there",
    )
    command("models", commands.models)
    command("datasets", commands.datasets)
    one = command("upload", commands.upload)
    one.add_argument("dataset", help="its name")
    one.add_argument("paths", type=Path, nargs="+", metavar="FILE", help="files and folders")
    one.add_argument(
        "--missing",
        action="store_true",
        help="only files of which the dataset has none of the same name and size; a zip is there "
        "when all that is in it is",
    )
    _add_jobs(command)
    return whole


def _add_jobs(command: Callable[[str, Callable[..., Any]], argparse.ArgumentParser]) -> None:
    one = command("predict", commands.predict)
    one.add_argument("dataset", help="its name")
    one.add_argument("--model", default=DEFAULT_MODEL, metavar="VERSION")
    one.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the job, such as tiling=auto or frame_stride=5 (repeatable); see /api/docs/",
    )
    _add_terms(one)
    one = command("retry", commands.retry)
    one.add_argument("job", type=int)
    _add_terms(one)
    one = command("jobs", commands.jobs)
    one.add_argument("--state", choices=("Pending", "Running", *commands.ENDED_STATES))
    one = command("job", commands.job)
    one.add_argument("job", type=int)
    one.add_argument("--wait", action="store_true", help="until it has ended")
    one = command("abort", commands.abort)
    one.add_argument("job", type=int)
    one = command("download", commands.download)
    one.add_argument("job", type=int)
    one.add_argument("--to", type=Path, metavar="FOLDER", help="by default job-N")
    one.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="FORMAT",
        help="coco, yolo, csv, jsonl, mot or crops, in place of annotated files (repeatable)",
    )
    one.add_argument("--minimum-confidence", type=float, metavar="C", help="of an export")
    one.add_argument(
        "--class-name", action="append", metavar="NAME", help="of an export (repeatable)"
    )


def _add_terms(one: argparse.ArgumentParser) -> None:
    """What can be said of every job that a command starts."""
    one.add_argument(
        "--maximum-tokens", type=_tokens, metavar="N", help="start no job that would cost more"
    )
    one.add_argument(
        "--deadline",
        type=int,
        metavar="SECONDS",
        help="abort the job if it has not ended so long after it was submitted",
    )
    one.add_argument("--wait", action="store_true", help="until it has ended")


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for and return the exit status."""
    options = parser().parse_args(arguments)
    session_file = SessionFile(session_path())
    try:
        if options.act is log_in:
            document: Any = log_in(options, session_file)
        else:
            with api.Api(session_file, session=session_of_environment()) as service:
                document = options.act(commands.Asked(options, service))
    except InterruptedCommandError as interruption:
        sys.stderr.write(f"\n{interruption}\n")
        return 130
    except KeyboardInterrupt:
        return 130
    except (ClientError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shown = json.dumps(document) if options.json else _SHOWN[options.command](document)
    sys.stdout.write(f"{shown}\n")
    return 0


if __name__ == "__main__":
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
