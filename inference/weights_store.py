"""Where weights lie: the package's in its folder, uploaded ones in the storage by their digest."""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import DatabaseError, InterfaceError, connection

from inference.models import ModelVersion
from inference.pipeline.errors import WeightsError
from inference.pipeline.weights_file import TWIN_SUFFIXES

logger = logging.getLogger(__name__)
Format = ModelVersion.Format


@dataclass(frozen=True)
class PackageModel:
    """A model whose weights come with the package."""

    model_id: str
    version: str
    path: Path
    class_names: tuple[str, ...]
    default_options: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the file as it is now."""
        stat = self.path.stat()
        return weights_digest(self.path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def weights_digest(path: Path, _size_bytes: int, _changed_ns: int) -> str:
    """The SHA-256 of a file, told again as long as it has this size and time of change (ns)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_models() -> list[PackageModel]:
    """The models that `models.json` beside the package's weights names, whose files are there."""
    folder: Path = settings.PACKAGE_WEIGHTS_DIR
    try:
        entries = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    found = [
        PackageModel(
            model_id=entry["model_id"],
            version=entry["version"],
            path=folder / entry["file"],
            class_names=tuple(entry["class_names"]),
            default_options=entry["default_options"],
        )
        for entry in entries
    ]
    return [one for one in found if one.path.is_file()]


def stored_name(sha256: str, weights_format: str) -> str:
    """Where uploaded weights are in the storage."""
    return f"models/{sha256}.{weights_format}"


def local_weights(sha256: str) -> Path:
    """The file with this digest, on this machine; raises WeightsError (`weights_missing`).

    A storage that is no folder is read once; the copy is kept under its digest.
    """
    for package in package_models():
        if package.sha256 == sha256:
            return package.path
    for weights_format in Format.values:
        name = stored_name(sha256, weights_format)
        if default_storage.exists(name):
            return _as_local_file(name)
    raise WeightsError("weights_missing", f"The weights {sha256[:12]} are not here any more.")


def _as_local_file(name: str) -> Path:
    with contextlib.suppress(NotImplementedError):
        return Path(default_storage.path(name))
    kept: Path = settings.DATA_DIR / name
    for part in (name, *(str(Path(name).with_suffix(suffix)) for suffix in TWIN_SUFFIXES)):
        target = kept.with_name(Path(part).name)
        if not target.exists() and default_storage.exists(part):
            _fetch(part, target)
    return kept


def _fetch(name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetched-") as folder:
        copy = Path(folder) / target.name
        with default_storage.open(name) as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        copy.replace(target)


def keep_package_weights() -> int:
    """Copy the package's weights into the storage, under their digest; returns how many are new.

    Runs at every start. A later release may bring other weights in their place, and jobs that
    wait then still find those they were submitted with. Nothing here is deleted: a job that is
    run again years later may want them. A storage that fails is no reason not to start.
    """
    kept = 0
    for package in package_models():
        name = stored_name(package.sha256, Format.PT)
        try:
            with alone_with(package.sha256):
                copies = [save_weights(package.path, name)]
                for suffix in TWIN_SUFFIXES:
                    twin = package.path.with_suffix(suffix)
                    if twin.is_file():
                        copies.append(save_weights(twin, str(Path(name).with_suffix(suffix))))
        except OSError:
            logger.exception("The weights of %s are not kept", package.version)
        else:
            kept += any(copies)
    return kept


def save_weights(path: Path, name: str) -> bool:
    """Put a file into the storage under this very name; whether it had to be copied.

    A copy of another size broke off earlier and is made again; one that breaks off now is
    removed. To be called by whoever is alone with the digest.
    """
    if default_storage.exists(name):
        if default_storage.size(name) == path.stat().st_size:
            return False
        default_storage.delete(name)
    try:
        with path.open("rb") as content:
            saved = default_storage.save(name, File(content))
    except BaseException:
        with contextlib.suppress(Exception):
            default_storage.delete(name)
        raise
    if saved != name:  # somebody who does not know of the lock has stored it meanwhile
        default_storage.delete(saved)
        return False
    return True


@contextlib.contextmanager
def alone_with(sha256: str) -> Iterator[None]:
    """Be the only one who stores, records or removes the weights of this digest.

    Otherwise a half-written file could be taken for one that broke off, and a file be removed
    under a row that is about to be committed. The lock is the database session's, and ends with
    it; who does not get it in time raises OperationalError (503).
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"weights {sha256}"])
    try:
        yield
    finally:
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [f"weights {sha256}"]
                )
        except (DatabaseError, InterfaceError):
            connection.close()
