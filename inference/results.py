"""A job's result as the original API shows it, piece by piece: JSON, and annotated files."""

import json
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from datasets.models import MediaFile
from inference.models import Job, JobFile
from inference.pipeline.options import DISPLAY_CONFIDENCE
from inference.selectors import Wanted, displayed_objects, files_of_job, frame_results
from odproject.core.files import open_stored
from odproject.core.text import printable

CHUNK_BYTES = 256 * 1024
MAX_PART_BYTES = 230  # file systems bear 255, and a number and an extension may follow
MAX_SUFFIX_BYTES = 20


def content_uri(job: Job) -> str:
    """The path at which the owner finds the zip of annotated files."""
    return f"/inference/content/{job.pk}"


def result_json(job: Job) -> Iterator[str]:
    """`{"contentURI": ..., "result": [...]}` piece by piece, however many frames there are."""
    yield f'{{"contentURI": {json.dumps(content_uri(job))}, "result": ['
    for position, file in enumerate(files_of_job(job=job).iterator(chunk_size=200)):
        if position:
            yield ", "
        yield from _file_json(job, file)
    yield "]}"


def _file_json(job: Job, file: JobFile) -> Iterator[str]:
    media_file = file.media_file
    head = {"filename": media_file.name, "type": media_file.media_type}
    if file.state != JobFile.State.COMPLETED:
        yield json.dumps({**head, "error": file.error or "The file was not processed."})
        return
    frames = frame_results(job=job, media_file=media_file)
    if media_file.media_type == MediaFile.MediaType.IMAGE:
        objects = [_objects(job, frame) for frame in frames]
        yield json.dumps({**head, "objects": objects[0] if objects else []})
        return
    yield json.dumps(head)[:-1] + ', "frames": ['
    for position, frame in enumerate(frames):
        entry = {
            "frame_number": frame.frame_index,
            "time": round(frame.time_seconds, 6),
            "objects": _objects(job, frame),
        }
        yield (", " if position else "") + json.dumps(entry)
    yield "]}"


def _objects(job: Job, frame: Any) -> list[dict[str, Any]]:
    return displayed_objects(frame, job.class_names, Wanted(DISPLAY_CONFIDENCE))


def annotated_name(file: JobFile) -> str:
    """The annotated file's name for its owner: the file's own, with the extension it now has."""
    name = safe_archive_name(file.media_file.name)
    extension = PurePosixPath(str(file.annotated.name)).suffix
    same_kind = {".jpg": {".jpg", ".jpeg", ".jpe", ".mpo"}, ".mp4": {".mp4", ".m4v"}}
    if PurePosixPath(name).suffix.lower() in same_kind.get(extension, {extension}):
        return name
    return name + extension


def annotated_content_type(file: JobFile) -> str:
    """The media type of an annotated file, which is of a kind that we wrote."""
    kinds = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
    suffix = PurePosixPath(str(file.annotated.name)).suffix
    return kinds.get(suffix, "application/octet-stream")


def safe_archive_name(name: str) -> str:
    """A relative path that unpacks inside the folder where it is unpacked, and nowhere else."""
    written = printable(name.replace("\\", "/"))
    parts = [_shortened(part) for part in written.split("/") if part not in {"", ".", ".."}]
    return posixpath.join(*parts) if parts else "file"


def _shortened(part: str) -> str:
    """A part of a path, short enough for every file system even with a number and an extension."""
    path = PurePosixPath(part)
    suffix = path.suffix if len(path.suffix.encode()) <= MAX_SUFFIX_BYTES else ""
    stem = part.removesuffix(suffix).encode()[: MAX_PART_BYTES - len(suffix.encode())]
    return stem.decode(errors="ignore") + suffix


class Pipe:
    """A file that is only written to, and emptied as it grows."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Take what a writer writes."""
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._chunks)
        self._chunks.clear()
        return taken


def annotated_zip(job: Job) -> Iterator[bytes]:
    """A zip of the job's annotated files, piece by piece, in constant memory.

    Nothing is compressed, because pictures and videos are compressed already. Of two files of one
    name the second gets a number. Raises StoredFileMissingError (404).
    """
    pipe = Pipe()
    names = UnusedNames()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        files = files_of_job(job=job).exclude(annotated="")
        for file in files.iterator(chunk_size=200):
            name = names.take(annotated_name(file))
            info = zipfile.ZipInfo(name, date_time=job.created_at.timetuple()[:6])
            info.external_attr = 0o644 << 16
            with (
                open_stored(str(file.annotated.name)) as source,
                archive.open(info, "w", force_zip64=True) as target,
            ):
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    yield pipe.take()
    yield pipe.take()


class UnusedNames:
    """Gives every name once: the second `a/car.jpg` becomes `a/car (2).jpg`.

    Names that differ in capitals only are one file on many a disk, and so they are here.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next_number: dict[str, int] = {}

    def reserve(self, name: str) -> None:
        """Never give this name."""
        self._taken.add(name.casefold())

    def take(self, name: str) -> str:
        """The name, or the name with the first number that is free."""
        path, folded = PurePosixPath(name), name.casefold()
        candidate, number = name, self._next_number.get(folded, 2)
        while candidate.casefold() in self._taken:
            candidate = str(path.with_name(f"{path.stem} ({number}){path.suffix}"))
            number += 1
        self._next_number[folded] = number
        self.reserve(candidate)
        return candidate
