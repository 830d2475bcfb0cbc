"""Model versions: where weights come from, which may be chosen, and every write to their rows.

A version is uploaded as a draft, tried out by a worker in a confined process, then offered, and
at last retired. The row is the truth about all of that; a message only hints that a test waits.
A job keeps the digest of the weights with which it was submitted, and a worker loads by digest,
so that whatever happens to a version meanwhile does not touch jobs under way.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile
from django.db import DatabaseError, IntegrityError, InterfaceError, connection, transaction
from django.db.models import F, Q, QuerySet

from accounts.models import User
from inference import queue
from inference.confined import ChildLimits
from inference.model_checks import TryOutReport, read_facts, try_out
from inference.models import Job, ModelVersion
from inference.pipeline.errors import WeightsError
from inference.pipeline.options import DetectionOptions, OptionsError
from inference.pipeline.weights_file import WeightsFacts
from odproject.core.clock import database_now
from odproject.core.errors import ConflictError, DomainError, FieldError, NotFoundError
from odproject.core.files import storing

logger = logging.getLogger(__name__)
State, Format = ModelVersion.State, ModelVersion.Format

PRECISIONS_BY_FORMAT = {
    Format.PT: ["auto", "fp32", "bf16", "fp16"],
    Format.ONNX: ["auto", "fp32", "bf16"],
}
TEST_ATTEMPTS = 3
TWIN_SUFFIXES = (".int8.xml", ".int8.bin")  # beside weights, where they have a graph in int8
# What a version may set for jobs that do not; the rest is a matter of the job.
DEFAULTABLE_OPTIONS = frozenset(
    {
        "confidence_floor",
        "iou",
        "merge",
        "metric",
        "one_class_per_object",
        "image_size",
        "tiling",
        "max_detections",
    }
)


class UnknownModelError(DomainError):
    """No active model version of this name."""

    code = "unknown_model"
    title = "Unknown model"


class ModelNotFoundError(NotFoundError):
    """There is no such version, or none that the asker may see."""

    code = "model_not_found"
    title = "Model version not found"


class ModelVersionExistsError(ConflictError):
    """There is a version of this name; other weights need another name."""

    code = "model_version_exists"
    title = "The model version exists"


class ModelStateError(ConflictError):
    """The version is not in a state in which this can be done."""

    code = "model_version_state"
    title = "Not in this state"


class UnacceptableWeightsError(DomainError):
    """The file is not the weights of a detector that can be run here."""

    status = 422
    code = "unacceptable_weights"
    title = "The weights cannot be accepted"


class WeightsTooLargeError(DomainError):
    """The file is larger than weights may be."""

    status = 413
    code = "weights_too_large"
    title = "The weights are too large"


class InvalidDefaultsError(DomainError):
    """The default options of a version make no sense."""

    code = "invalid_default_options"
    title = "The default options are not valid"


# -- reads ---------------------------------------------------------------------------------------


def active_version(*, model_id: str, version: str) -> ModelVersion:
    """The version that users may choose under this name; raises UnknownModelError (400)."""
    active = ModelVersion.objects.filter(state=State.ACTIVE)
    found = active.filter(model_id=model_id, version=version).first()
    if found is not None:
        return found
    field = "model_version" if active.filter(model_id=model_id).exists() else "model_id"
    choices = ", ".join(f"{one.model_id}/{one.version}" for one in active.order_by("pk"))
    detail = f"There is no model {model_id}/{version}; choose one of {choices or 'none'}."
    raise UnknownModelError(detail, errors=(FieldError(field, "unknown", detail),))


def first_active_weights() -> str:
    """The digest of the weights that a worker loads before it is asked; empty if there are none."""
    active = ModelVersion.objects.filter(state=State.ACTIVE).order_by("pk")
    return active.values_list("weights_sha256", flat=True).first() or ""


def default_options(version: ModelVersion) -> DetectionOptions:
    """How the version is used where a job does not say otherwise."""
    service = DetectionOptions(
        confidence_floor=settings.CONFIDENCE_FLOOR,
        max_detections=settings.MAX_DETECTIONS_PER_FRAME,
        image_size=version.image_size or settings.NETWORK_IMAGE_SIZE,
    )
    return DetectionOptions.parse(version.default_options, defaults=service)


# -- where weights lie ---------------------------------------------------------------------------


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
        return _digest(self.path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, _size_bytes: int, _changed_ns: int) -> str:
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


def _precisions(weights_format: str, *, has_int8_twin: bool) -> list[str]:
    offered = PRECISIONS_BY_FORMAT[Format(weights_format)]
    return [*offered, "int8"] if has_int8_twin else list(offered)


# -- the package's models ------------------------------------------------------------------------


@transaction.atomic
def register_package_models() -> int:
    """Bring the rows of the package's models in line with its files; returns how many changed.

    Runs at every start. A new release may bring other weights under the same version: the row
    then names them, and jobs keep the digest that they were submitted with. Whether a version is
    offered stays as an administrator left it; one that is new is offered at once.
    """
    changed = 0
    for package in package_models():
        facts = {
            "format": Format.PT,
            "weights_sha256": package.sha256,
            "weights_bytes": package.path.stat().st_size,
            "class_names": list(package.class_names),
            "precisions": _precisions(
                Format.PT, has_int8_twin=package.path.with_suffix(".int8.xml").exists()
            ),
        }
        row, is_new = ModelVersion.objects.get_or_create(
            model_id=package.model_id,
            version=package.version,
            defaults={
                **facts,
                "state": State.ACTIVE,
                "default_options": package.default_options,
            },
        )
        if row.uploaded_by_id is not None:
            logger.warning("%s was uploaded here; the package's is not used", row.version)
        elif is_new or _differs(row, facts):
            # A draft without weights is a row from before there was a registry: it was offered.
            is_older = row.state == State.DRAFT and not row.weights_sha256
            state = State.ACTIVE if is_older else row.state
            ModelVersion.objects.filter(pk=row.pk).update(**facts, state=state)
            changed += 1
    return changed


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
            with _alone_with(package.sha256):
                copies = [_save(package.path, name)]
                for suffix in TWIN_SUFFIXES:
                    twin = package.path.with_suffix(suffix)
                    if twin.is_file():
                        copies.append(_save(twin, str(Path(name).with_suffix(suffix))))
        except OSError:
            logger.exception("The weights of %s are not kept", package.version)
        else:
            kept += any(copies)
    return kept


def _save(path: Path, name: str) -> bool:
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
def _alone_with(sha256: str) -> Iterator[None]:
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


def _differs(row: ModelVersion, facts: Mapping[str, Any]) -> bool:
    return any(getattr(row, name) != value for name, value in facts.items())


# -- uploads -------------------------------------------------------------------------------------


def upload_model(
    *,
    actor: User,
    model_id: str,
    version: str,
    content: UploadedFile[Any],
    default_options: Mapping[str, Any] | None = None,
    notes: str = "",
) -> ModelVersion:
    """Take in weights as a draft, and ask for their test run.

    The file is read by a confined process and stored under its digest. Raises
    WeightsTooLargeError (413), UnacceptableWeightsError (422), InvalidDefaultsError (400),
    ModelVersionExistsError (409), StorageFullError (507) and StorageUnavailableError (503); none
    leaves a trace.
    """
    if content.size is None or content.size > settings.MAX_WEIGHTS_BYTES:
        raise WeightsTooLargeError(f"Weights may have {settings.MAX_WEIGHTS_BYTES:,} bytes.")
    _check_name_is_free(model_id, version)
    try:
        with (
            storing("these weights"),
            tempfile.TemporaryDirectory(prefix="od-weights-") as folder,
        ):
            path = _on_disk(content, Path(folder))
            facts = read_facts(path, limits=_child_limits())
            check_default_options(default_options or {}, image_size=facts.image_size)
            sha256 = _digest(path, content.size, 0)
            with _stored(path, sha256, facts.format):
                return _record(
                    actor=actor,
                    model_id=model_id,
                    version=version,
                    sha256=sha256,
                    size_bytes=content.size,
                    facts=facts,
                    default_options=dict(default_options or {}),
                    notes=notes,
                )
    except WeightsError as error:
        raise UnacceptableWeightsError(error.detail, members={"reason": error.code}) from error


def _check_name_is_free(model_id: str, version: str) -> None:
    if ModelVersion.objects.filter(model_id=model_id, version=version).exists():
        raise ModelVersionExistsError(
            f"There is a version {model_id}/{version}; other weights need another name."
        )


def _on_disk(content: UploadedFile[Any], folder: Path) -> Path:
    """The upload as a file of ours, which nobody changes between its inspection and its storing.

    Raises UnacceptableWeightsError for an empty one.
    """
    path = folder / "weights.pt"  # Ultralytics opens no other suffix; ONNX does not mind
    with path.open("wb") as target:
        for chunk in content.chunks():
            target.write(chunk)
    if not path.stat().st_size:
        raise UnacceptableWeightsError("The file is empty.")
    return path


def _child_limits() -> ChildLimits:
    return ChildLimits(
        memory_bytes=settings.MODEL_CHILD_MEMORY_BYTES,
        seconds=settings.MODEL_CHILD_SECONDS,
        cpu_seconds=settings.MODEL_CHILD_SECONDS,
        hidden=Path(settings.DATA_DIR),
    )


def check_default_options(raw: Mapping[str, Any], *, image_size: int | None) -> None:
    """Raises InvalidDefaultsError (400) for options that make no sense as a version's defaults.

    `image_size`: the side of the network's input in pixels where it is fixed.
    """
    try:
        DetectionOptions.parse(raw)
    except OptionsError as error:
        raise InvalidDefaultsError(
            str(error),
            errors=tuple(
                FieldError(f"default_options.{one.field}", one.code, one.detail)
                for one in error.faults
            ),
        ) from error
    detail = ""
    strange = next(iter(sorted(set(raw) - DEFAULTABLE_OPTIONS)), "")
    if strange:
        detail = f"{strange} is a matter of each job, not of a model version."
    elif image_size is not None and raw.get("image_size", image_size) > image_size:
        strange, detail = (
            "image_size",
            f"These weights take pictures of {image_size} pixels at most.",
        )
    if strange:
        field = f"default_options.{strange}"
        raise InvalidDefaultsError(detail, errors=(FieldError(field, "invalid", detail),))


@contextlib.contextmanager
def _stored(path: Path, sha256: str, weights_format: str) -> Iterator[None]:
    """Put weights into the storage for the transaction in the block.

    Without it they go again, if this call brought them and nobody else names them: the weights of
    an older release are named by the jobs that wait for them only.
    """
    name = stored_name(sha256, weights_format)
    with _alone_with(sha256):
        is_new = _save(path, name)
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                if is_new and not _is_named(sha256):
                    default_storage.delete(name)
            raise


def _is_named(sha256: str) -> bool:
    return any(
        model.objects.filter(weights_sha256=sha256).exists() for model in (ModelVersion, Job)
    )


@transaction.atomic
def _record(
    *,
    actor: User,
    model_id: str,
    version: str,
    sha256: str,
    size_bytes: int,
    facts: WeightsFacts,
    default_options: dict[str, Any],
    notes: str,
) -> ModelVersion:
    now = database_now()
    try:
        with transaction.atomic():
            row = ModelVersion.objects.create(
                model_id=model_id,
                version=version,
                format=facts.format,
                weights_sha256=sha256,
                weights_bytes=size_bytes,
                class_names=list(facts.class_names),
                image_size=facts.image_size,
                default_options=default_options,
                precisions=_precisions(facts.format, has_int8_twin=False),
                notes=notes,
                uploaded_by=actor,
                test_requested_at=now,
            )
    except IntegrityError:
        _check_name_is_free(model_id, version)
        raise
    transaction.on_commit(lambda: enqueue_tests(version_id=row.pk), robust=True)
    return row


# -- the life of a version -----------------------------------------------------------------------


def change_model_version(
    *, version_id: int, notes: str, default_options: Mapping[str, Any]
) -> None:
    """Say what is worth knowing about a version, and how jobs use it that do not say otherwise.

    Jobs that were submitted keep their options. Raises InvalidDefaultsError (400).
    """
    row = ModelVersion.objects.get(pk=version_id)
    check_default_options(default_options, image_size=row.image_size)
    ModelVersion.objects.filter(pk=version_id).update(
        notes=notes, default_options=dict(default_options)
    )


def activate_model(*, version_id: int) -> None:
    """Offer a version to users, at once; raises ModelStateError (409) unless it was tested."""
    done = ModelVersion.objects.filter(
        Q(state=State.TESTED) | Q(state=State.RETIRED, weights_sha256__gt=""), pk=version_id
    ).update(state=State.ACTIVE)
    if not done:
        row = ModelVersion.objects.get(pk=version_id)
        raise ModelStateError(
            f"{row.version} is {row.state}: only a version whose test run went well can be "
            "offered, or one that was retired."
        )


def retire_model(*, version_id: int) -> None:
    """Offer a version no longer, at once; jobs that were submitted with it run on.

    Raises ModelStateError (409) unless it is offered or could be.
    """
    done = ModelVersion.objects.filter(
        pk=version_id, state__in=(State.ACTIVE, State.TESTED)
    ).update(state=State.RETIRED)
    if not done:
        row = ModelVersion.objects.get(pk=version_id)
        raise ModelStateError(f"{row.version} is {row.state}, so it cannot be retired.")


# -- the test run --------------------------------------------------------------------------------


@transaction.atomic
def request_test(*, version_id: int) -> None:
    """Ask a worker to try a draft out (again); raises ModelStateError (409) for other states."""
    asked = (
        ModelVersion.objects.filter(pk=version_id, state=State.DRAFT, test_requested_at=None)
        .exclude(weights_sha256="")
        .update(
            test_requested_at=database_now(),
            test_enqueued_at=None,
            test_lease_expires_at=None,
            test_attempt=0,
            test_error="",
        )
    )
    if not asked:
        row = ModelVersion.objects.get(pk=version_id)
        raise ModelStateError(f"{row.version} is {row.state}, or waits for its test run already.")
    transaction.on_commit(lambda: enqueue_tests(version_id=version_id), robust=True)


def enqueue_tests(*, version_id: int | None = None, now: datetime | None = None) -> int:
    """Send hints for test runs that wait, of one version or all; returns how many were sent."""
    now = now or database_now()
    waiting = _waiting_tests(now)
    stale = now - timedelta(seconds=settings.UNIT_HINT_SECONDS)
    waiting = waiting.filter(Q(test_enqueued_at=None) | Q(test_enqueued_at__lt=stale))
    if version_id is not None:
        waiting = waiting.filter(pk=version_id)
    sent = 0
    for waiting_id in waiting.order_by("pk").values_list("pk", flat=True):
        if not queue.send_model_test(waiting_id):
            break  # the broker is away; the sweeper comes again
        ModelVersion.objects.filter(pk=waiting_id).update(test_enqueued_at=now)
        sent += 1
    return sent


def next_test() -> int | None:
    """The version that has waited longest for its test run; None when none waits."""
    waiting = _waiting_tests(database_now()).order_by("test_requested_at", "pk")
    return waiting.values_list("pk", flat=True).first()


def _waiting_tests(now: datetime) -> QuerySet[ModelVersion]:
    """Versions whose test run nobody has begun, or whose worker died over it."""
    return ModelVersion.objects.filter(
        Q(test_lease_expires_at=None) | Q(test_lease_expires_at__lt=now),
        test_requested_at__isnull=False,
    )


@dataclass(frozen=True)
class TryOutClaim:
    """A worker's right to a test run; the attempt number fences."""

    version_id: int
    attempt: int


def _claim_test(version_id: int) -> TryOutClaim | None:
    """Take a test run that waits, or whose worker died; None when there is none to take."""
    now = database_now()
    lease_seconds = 2 * settings.MODEL_CHILD_SECONDS
    claimed = (
        _waiting_tests(now)
        .filter(pk=version_id)
        .update(
            test_attempt=F("test_attempt") + 1,
            test_lease_expires_at=now + timedelta(seconds=lease_seconds),
        )
    )
    if not claimed:
        return None
    attempt = ModelVersion.objects.values_list("test_attempt", flat=True).get(pk=version_id)
    return TryOutClaim(version_id, attempt)


def run_test(*, version_id: int) -> bool:
    """Try a version out in a confined process, in a worker; returns whether it was there to do.

    Weights that cannot be run, or not by their defaults, stay a draft with the reason. A worker
    that dies over it is followed by others, TEST_ATTEMPTS in all.
    """
    claim = _claim_test(version_id)
    if claim is None:
        return False
    if claim.attempt > TEST_ATTEMPTS:
        _end_test(claim=claim, error=f"The test run broke off {TEST_ATTEMPTS} times.")
        return True
    row = ModelVersion.objects.get(pk=version_id)
    try:
        report = try_out(
            local_weights(row.weights_sha256),
            sha256=row.weights_sha256,
            options=default_options(row),
            limits=_child_limits(),
        )
    except WeightsError as error:
        _end_test(claim=claim, error=error.detail)
    except OptionsError as error:  # the service's or the version's defaults are out of range
        _end_test(claim=claim, error=f"The default options are not valid: {error}")
    else:
        _keep_report(claim, row, report)
    return True


def _keep_report(claim: TryOutClaim, row: ModelVersion, report: TryOutReport) -> None:
    name = f"model-tests/{row.weights_sha256[:16]}-{row.pk}-{claim.attempt}.jpg"
    saved = default_storage.save(name, ContentFile(report.picture_jpeg))
    if not _end_test(claim=claim, figures=report.figures, picture=saved):
        default_storage.delete(saved)
    elif row.test_picture:
        with contextlib.suppress(OSError):
            default_storage.delete(str(row.test_picture.name))


def _end_test(
    *,
    claim: TryOutClaim,
    error: str = "",
    figures: Mapping[str, Any] | None = None,
    picture: str = "",
) -> bool:
    """Write down how a test run ended; False when it is somebody else's by now."""
    return bool(
        ModelVersion.objects.filter(
            pk=claim.version_id,
            test_attempt=claim.attempt,
            test_requested_at__isnull=False,
            state=State.DRAFT,
        ).update(
            state=State.DRAFT if error else State.TESTED,
            test_requested_at=None,
            test_lease_expires_at=None,
            tested_at=database_now(),
            test_error=error[:500],
            test_figures=dict(figures or {}),
            test_picture=picture,
        )
    )
