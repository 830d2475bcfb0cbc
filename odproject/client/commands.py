"""What can be asked for: a function a command, which returns the document that `--json` prints."""

import argparse
import contextlib
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from tqdm import tqdm

from odproject.client.api import LARGE_BYTES, Api, sent_name
from odproject.client.errors import ClientError, InterruptedCommandError, RefusalError
from odproject.client.tables import plain_number

ENDED_STATES = ("Completed", "Failed", "Aborted")
POLL_SECONDS = 1.0
MAX_NAME_BYTES = 240  # Linux has 255, and a number may be added
JOB_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
# Statuses that say something about one file: the next may be accepted.
ABOUT_THE_FILE = {400, 413, 415, 422}


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, and of whom."""

    options: argparse.Namespace
    api: Api

    @property
    def hides_bars(self) -> bool | None:
        """As tqdm has it: no bar for `--json`, else one where a person looks on."""
        return True if self.options.json else None

    def say(self, line: str) -> None:
        """Tell a person something beside the document."""
        if not self.options.json:
            tqdm.write(line, file=sys.stderr)


def plural(count: int, word: str) -> str:
    """So many of them, in words."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def log_out(asked: Asked) -> Any:
    """End the session and all its tokens."""
    asked.api.log_out()
    return {}


def balance(asked: Asked) -> Any:
    """Show tokens to spend, and tokens held for jobs."""
    return asked.api.get("/api/v1/balance/")


def statement(asked: Asked) -> Any:
    """Show what a month began with, what moved, and what it ended with; by default that of now."""
    options = asked.options
    statements = "/api/v1/statements/"
    if options.month is None:
        found = next(asked.api.every(statements))
    else:
        found = asked.api.get(f"{statements}{options.month}/")
    if options.csv is not None:
        place: Path = options.csv
        _save(asked.api, f"{statements}{found['month']}/csv/", place.parent, lambda _: place)
        asked.say(f"Saved {place}")
    return found


def _warn_of_low_balance(asked: Asked) -> None:
    """Tell who has set a threshold that the balance is below it; what was done is done anyway."""
    with contextlib.suppress(ClientError):
        now = balance(asked)
        available, threshold = now["available_tokens"], now["alert_below_tokens"]
        if threshold is not None and available < threshold:
            asked.say(f"Your balance of {available:,.2f} tokens is below {threshold:,.2f}.")


def models(asked: Asked) -> Any:
    """List the model versions that a job can choose."""
    return list(asked.api.every("/api/v1/models/"))


def datasets(asked: Asked) -> Any:
    """List your datasets."""
    return list(asked.api.every("/api/v1/datasets/"))


def jobs(asked: Asked) -> Any:
    """List your jobs, the newest first."""
    params = {"state": asked.options.state} if asked.options.state else {}
    return list(asked.api.every("/api/v1/jobs/", **params))


def job(asked: Asked) -> Any:
    """Show a job and its files."""
    found = asked.api.get(f"/api/v1/jobs/{asked.options.job}/")
    return _followed(asked, found) if asked.options.wait else found


def abort(asked: Asked) -> Any:
    """Abort a job: frames that are done are charged, the rest is released."""
    return asked.api.post(f"/api/v1/jobs/{asked.options.job}/abort/")


# -- uploads


def upload(asked: Asked) -> Any:
    """Upload images, videos and zips, and what is in folders, into a dataset.

    A dataset that is not there is created. A file that the service refuses costs nothing and does
    not keep the others; what would be refused to every file, such as a balance that is spent, ends
    the command. Returns what became of each file.
    """
    files = list(_files_of(asked.options.paths))
    dataset = _dataset_to_fill(asked.api, asked.options.dataset)
    if asked.options.missing:
        files = _without_those_there(asked, dataset["id"], files)
    accepted: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with tqdm(
        total=sum(path.stat().st_size for path in files),
        desc="Uploading",
        unit="B",
        unit_scale=True,
        disable=asked.hides_bars,
    ) as bar:
        for path in files:
            try:
                report = asked.api.upload(dataset["id"], path, bar.update)
            except (ClientError, OSError) as error:
                if not isinstance(error, RefusalError) or error.status not in ABOUT_THE_FILE:
                    told = f"{path}: {error}\nAccepted before it: {plural(len(accepted), 'file')}."
                    raise ClientError(told) from error
                report = {"accepted": [], "refused": [_refused(path, error)]}
            except KeyboardInterrupt:
                count = plural(len(accepted), "file")
                is_large = path.stat().st_size >= LARGE_BYTES
                end = "which goes on there the next time" if is_large else "of which nobody knows"
                told = f"Interrupted in {path}, {end}. Accepted before it: {count}."
                raise InterruptedCommandError(told) from None
            accepted += report["accepted"]
            refused += report["refused"]
            for one in report["refused"]:
                asked.say(f"refused {one['filename']}: {one['error']}")
    if refused and not accepted:
        raise ClientError("None of the files was accepted.")
    _warn_of_low_balance(asked)
    return {"dataset_id": dataset["id"], "accepted": accepted, "refused": refused}


def _refused(path: Path, refusal: RefusalError) -> dict[str, str]:
    return {"filename": path.name, "code": refusal.code, "error": str(refusal)}


def _files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are named, and those in folders by name, nothing hidden; raises ClientError."""
    for path in paths:
        if path.is_dir():
            inside = (one for one in path.rglob("*") if one.is_file())
            yield from sorted(one for one in inside if not _is_hidden(one.relative_to(path)))
        elif path.is_file():
            yield path
        else:
            raise ClientError(f"{path} is neither a file nor a folder.")


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _dataset_named(api: Api, name: str) -> dict[str, Any] | None:
    return next(api.every("/api/v1/datasets/", name=name), None)


def _dataset_to_fill(api: Api, name: str) -> dict[str, Any]:
    """The dataset, a new one if need be; raises ClientError."""
    found = _dataset_named(api, name)
    if found is not None:
        return found
    try:
        return dict(api.post("/api/v1/datasets/", {"name": name}))
    except RefusalError as refusal:
        # Another command, or a try whose answer was lost, may have been quicker.
        found = _dataset_named(api, name) if refusal.status == 409 else None
        if found is None:
            raise
        return found


def _without_those_there(asked: Asked, dataset_id: int, files: list[Path]) -> list[Path]:
    """The files without those of which the dataset has one of the same name and size.

    Of a zip it has what is in it.
    """
    there = {
        (one["name"], one["size_bytes"])
        for one in asked.api.every(f"/api/v1/datasets/{dataset_id}/media-files/")
    }
    missing = [path for path in files if not _becomes(path) <= there]
    asked.say(f"Already there: {plural(len(files) - len(missing), 'file')}")
    return missing


def _becomes(path: Path) -> set[tuple[str, int]]:
    """Names and sizes of what a dataset has once the file is uploaded."""
    inside = set()
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        inside = {
            (one.filename, one.file_size)
            for one in archive.infolist()
            if not one.is_dir() and not _is_hidden(PurePath(one.filename))
        }
    return inside or {(sent_name(path), path.stat().st_size)}


# -- jobs


def predict(asked: Asked) -> Any:
    """Run a model on a dataset, at the price that is quoted first."""
    options = asked.options
    dataset = _dataset_named(asked.api, options.dataset)
    if dataset is None:
        raise ClientError(f"There is no dataset '{options.dataset}'.")
    choice = {
        "dataset_id": dataset["id"],
        "model_version": options.model,
        "options": dict(options.option),
    }
    return _started(asked, asked.api.post("/api/v1/quotes/", choice), "/api/v1/jobs/", choice)


def retry(asked: Asked) -> Any:
    """Run a new job on the files that a job has not done, at the price that is quoted first."""
    path = f"/api/v1/jobs/{asked.options.job}/retry/"
    return _started(asked, asked.api.get(path), path, {})


def _started(asked: Asked, quote: dict[str, Any], path: str, keys: dict[str, Any]) -> Any:
    """The job that was started at the quoted price, unless that is too much; raises ClientError."""
    options = asked.options
    quoted = quote["quoted_tokens"]
    looks = plural(quote["image_count"], "image"), plural(quote["frame_count"], "video frame")
    asked.say(f"{' and '.join(looks)}: at most {plain_number(quoted)} tokens")
    limit = options.maximum_tokens
    if limit is not None and quoted > limit:
        raise ClientError(f"That is more than {plain_number(limit)} tokens: no job was started.")
    terms = {"maximum_tokens": quoted}
    if options.deadline is not None:
        terms["deadline_seconds"] = options.deadline
    started = asked.api.post(path, {**keys, **terms}, once=True)
    asked.say(f"Job {started['id']}")
    _warn_of_low_balance(asked)
    return _followed(asked, started) if options.wait else started


def _followed(asked: Asked, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it has ended; raises ClientError unless it completed."""
    with tqdm(total=100, bar_format=JOB_BAR, disable=asked.hides_bars) as bar:
        try:
            while True:
                bar.set_description_str(described(job), refresh=False)
                bar.n = job["progress_percent"]
                bar.refresh()
                if job["state"] in ENDED_STATES:
                    break
                time.sleep(POLL_SECONDS)
                job = asked.api.get(f"/api/v1/jobs/{job['id']}/")
        except KeyboardInterrupt:
            told = f"Job {job['id']} goes on: `job {job['id']} --wait`, or `abort {job['id']}`."
            raise InterruptedCommandError(told) from None
    if job["state"] != "Completed":
        raise ClientError(f"Job {job['id']}: {job['state']}. {job['error']}".rstrip())
    return job


def described(job: dict[str, Any]) -> str:
    """How far a job is, in words; while it waits, how many turns others have before."""
    told = f"Job {job['id']} {job['state'].lower()}"
    before = (job["queue_position"] or 1) - 1
    return f"{told}, {plural(before, 'turn')} before it" if before else told


# -- results


def download(asked: Asked) -> Any:
    """Save the annotated files of a job, or what it found in the formats of --export."""
    options = asked.options
    folder: Path = options.to or Path(f"job-{options.job}")
    narrowed: dict[str, Any] = {}
    if options.minimum_confidence is not None:
        narrowed["minimum_confidence"] = options.minimum_confidence
    if options.class_name:
        narrowed["class_name"] = options.class_name
    if narrowed and not options.export:
        raise ClientError("Annotated files cannot be narrowed, only an --export can.")
    job_path = f"/api/v1/jobs/{options.job}/"
    asked.api.get(job_path)  # one that is not there leaves no folder behind
    wanted = [f"{job_path}exports/{name}/" for name in options.export] or [
        file["annotated_url"]
        for file in asked.api.every(f"{job_path}files/")
        if file["annotated_url"]
    ]
    if not wanted:
        raise ClientError(f"Job {options.job} has no annotated files.")
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []

    def place_of(name: str) -> Path:
        return _free(folder / local_name(name), saved)

    for path in tqdm(wanted, desc="Downloading", unit="file", disable=asked.hides_bars):
        saved.append(_save(asked.api, path, folder, place_of, **narrowed))
    return [str(path) for path in saved]


def _save(
    api: Api, path: str, folder: Path, place_of: Callable[[str], Path], **narrowed: Any
) -> Path:
    """Save a file where `place_of` its name says, in this folder; as a whole, or not at all."""
    part = folder / f".{uuid.uuid4().hex}.part"  # other commands may save into the same folder
    try:
        place = place_of(api.download(path, part, **narrowed))
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    return place


def local_name(told: str) -> str:
    """A name for a file here, from one that came over the network: no folder, nothing hidden."""
    last = PurePosixPath(told.replace("\\", "/")).name
    shown = "".join(letter if letter.isprintable() else "_" for letter in last).lstrip(".")
    return shown.encode()[-MAX_NAME_BYTES:].decode(errors="ignore") or "file"


def _free(path: Path, taken: Sequence[Path]) -> Path:
    """The path, numbered where there is a file already: it may be an original."""
    number, free = 1, path
    while free in taken or free.exists():
        number += 1
        free = path.with_stem(f"{path.stem} ({number})")
    return free
