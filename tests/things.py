"""What one user has of everything that a route can name, for tests that ask every route."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accounts.models import User
from accounts.webhooks import create_webhook
from billing.statements import month_name, months_of
from datasets.models import Dataset, MediaFile, ResumableUpload
from datasets.resumable import create_resumable_upload
from inference import services, submission
from inference.models import FrameResult, Job, JobFile, WorkUnit
from tests.clients import key_of
from tests.factories import add_media_file, dataset_id_of, make_dataset
from tests.mediafiles import image_bytes, noise


@dataclass(frozen=True)
class Things:
    """Their numbers, by the names that paths give them."""

    dataset_id: int
    media_file_id: int
    upload_id: int
    job_id: int
    file_id: int
    version_id: int
    pending_job_id: int
    other_job_id: int
    key_id: int
    webhook_id: int
    resumable_upload_id: int
    month: str
    export_format: str = "coco"


def _submit(user: User, **options: float) -> Job:
    return submission.submit_job(
        user=user,
        dataset_id=dataset_id_of(user),
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
        options=options,
    )


def _find_a_car(job: Job, media_file: MediaFile) -> None:
    Job.objects.filter(pk=job.pk).update(class_names=["car"])
    FrameResult.objects.create(
        job=job,
        media_file=media_file,
        frame_index=0,
        time_seconds=0,
        class_ids=np.array([0], "<i2").tobytes(),
        confidences=np.array([0.9], "<f4").tobytes(),
        boxes_xyxy=np.arange(4).astype("<f4").tobytes(),
        class_counts={"car": 1},
    )


def _begin_upload(user: User, dataset: Dataset) -> ResumableUpload:
    return create_resumable_upload(
        user=user, dataset_id=dataset.pk, length_bytes=5, file_name="a.mp4", metadata=""
    )


def make_things(owner: User, media_root: Path) -> Things:
    """A dataset with a picture, and jobs: one that found something in it, another, one waits.

    And a webhook, whose address needs nobody to look it up.
    """
    dataset = make_dataset(owner)
    picture = image_bytes("JPEG", noise((16, 12)))
    media_file = add_media_file(dataset, content=picture)
    for name in ("thumbnails/x.jpg", "results/x.jpg"):
        (media_root / name).parent.mkdir(parents=True, exist_ok=True)
        (media_root / name).write_bytes(picture)
    MediaFile.objects.filter(pk=media_file.pk).update(thumbnail="thumbnails/x.jpg")
    job = _submit(owner)
    file = JobFile.objects.get(job=job)
    claim = services.claim_unit(unit_id=WorkUnit.objects.get(job=job).pk, worker_name="w")
    _find_a_car(job, media_file)
    services.complete_unit(claim=claim, annotated={file.pk: "results/x.jpg"})
    other = _submit(owner)
    _find_a_car(other, media_file)
    services.abort_job(job_id=other.pk)
    return Things(
        dataset_id=dataset.pk,
        media_file_id=media_file.pk,
        upload_id=media_file.upload_id,
        job_id=job.pk,
        file_id=file.pk,
        # Of other options: what an equal job is at is not tried again.
        pending_job_id=_submit(owner, confidence_floor=0.2).pk,
        other_job_id=other.pk,
        resumable_upload_id=_begin_upload(owner, dataset).pk,
        version_id=job.model_version_id,
        key_id=key_of(owner)[0].pk,
        month=month_name(months_of(user=owner)[0]),
        webhook_id=create_webhook(user=owner, url="https://8.8.8.8/hook").pk,
    )
