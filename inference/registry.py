"""Model versions: which may be chosen, and every write to their rows.

A version is uploaded as a draft, tried out by a worker in a confined process, then offered, and
at last retired. The row is the truth about all of that; a message only hints that a test waits.
A job keeps the digest of the weights with which it was submitted, and a worker loads by digest,
so that whatever happens to a version meanwhile does not touch jobs under way.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import Q

from accounts.models import User
from inference.model_checks import read_facts
from inference.models import Job, ModelVersion
from inference.pipeline.errors import WeightsError
from inference.pipeline.options import DetectionOptions, OptionsError
from inference.pipeline.weights_file import WeightsFacts, int8_twin
from inference.try_outs import child_limits, enqueue_tests
from inference.weights_store import (
    alone_with,
    package_models,
    save_weights,
    stored_name,
    weights_digest,
)
from odproject.core.clock import database_now
from odproject.core.errors import ConflictError, DomainError, FieldError, NotFoundError
from odproject.core.files import storing

logger = logging.getLogger(__name__)
State, Format = ModelVersion.State, ModelVersion.Format

PRECISIONS_BY_FORMAT = {
    Format.PT: ["auto", "fp32", "bf16", "fp16"],
    Format.ONNX: ["auto", "fp32", "bf16"],
}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME = 40
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
            "precisions": _precisions(Format.PT, has_int8_twin=int8_twin(package.path).exists()),
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


def _precisions(weights_format: str, *, has_int8_twin: bool) -> list[str]:
    offered = PRECISIONS_BY_FORMAT[Format(weights_format)]
    return [*offered, "int8"] if has_int8_twin else list(offered)


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
            facts = read_facts(path, limits=child_limits())
            check_default_options(default_options or {}, image_size=facts.image_size)
            sha256 = weights_digest(path, content.size, 0)
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
    with alone_with(sha256):
        is_new = save_weights(path, name)
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
