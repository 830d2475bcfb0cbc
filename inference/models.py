"""Model versions, jobs, their work units and what was found."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from billing.models import Hold
from datasets.models import Dataset, MediaFile


class ModelVersion(models.Model):
    """A detector: which weights, how they are used by default, and whether users may choose it.

    Weights are named by their SHA-256. Those of the package lie beside the code; uploaded ones
    are in the storage under their digest, and never change: other weights are another version.
    """

    class State(models.TextChoices):
        DRAFT = "draft", "draft: not tested, or its test failed"
        TESTED = "tested", "tested: may be offered"
        ACTIVE = "active", "active: users may choose it"
        RETIRED = "retired", "retired: runs what was submitted, takes nothing new"

    class Format(models.TextChoices):
        PT = "pt", "Ultralytics checkpoint (.pt)"
        ONNX = "onnx", "ONNX export (.onnx)"

    model_id = models.CharField(max_length=40)
    version = models.CharField(max_length=40)
    state = models.CharField(max_length=10, choices=State.choices, default=State.DRAFT)
    format = models.CharField(max_length=5, choices=Format.choices, default=Format.PT)
    weights_sha256 = models.CharField(max_length=64, blank=True)
    weights_bytes = models.PositiveBigIntegerField(default=0)
    class_names = models.JSONField(default=list, help_text="By class id.")
    image_size = models.PositiveIntegerField(
        null=True, help_text="Side of the network's input in pixels where it is fixed."
    )
    default_options = models.JSONField(
        default=dict,
        blank=True,
        help_text="Options of a detection that differ from the service's own, as an object.",
    )
    precisions = models.JSONField(default=list, help_text="Of its arithmetic, on offer.")
    notes = models.TextField(blank=True)
    uploaded_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    # The test run: asked for, under way (a worker has it until the lease ends), done.
    test_requested_at = models.DateTimeField(null=True)
    test_enqueued_at = models.DateTimeField(null=True)
    test_lease_expires_at = models.DateTimeField(null=True)
    test_attempt = models.PositiveIntegerField(default=0)
    tested_at = models.DateTimeField(null=True)
    test_error = models.CharField(max_length=500, blank=True)
    test_figures = models.JSONField(default=dict)
    test_picture = models.FileField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["model_id", "version"], name="one_row_per_model_and_version"
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["tested", "active"]) | ~Q(weights_sha256=""),
                name="offered_model_version_has_weights",
            ),
        ]
        indexes = [
            models.Index(
                fields=["test_requested_at"],
                name="model_version_to_be_tested",
                condition=Q(test_requested_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.version


class Job(models.Model):
    """Detection on the files that a dataset held when the job was submitted."""

    class State(models.TextChoices):
        PENDING = "Pending"
        RUNNING = "Running"
        COMPLETED = "Completed"
        FAILED = "Failed"
        ABORTED = "Aborted"

    UNFINISHED = (State.PENDING, State.RUNNING)

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="jobs")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT)
    options = models.JSONField(
        default=dict, help_text="inference.pipeline.options.DetectionOptions, every one of them."
    )
    hold = models.OneToOneField(Hold, on_delete=models.PROTECT, null=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    quoted_hundredths = models.BigIntegerField(default=0)
    charged_hundredths = models.BigIntegerField(null=True)
    frame_count = models.PositiveIntegerField(default=0, help_text="Images and video frames.")
    class_names = models.JSONField(default=list)
    weights_sha256 = models.CharField(
        max_length=64, blank=True, help_text="Those of its model version when it was submitted."
    )
    error = models.CharField(max_length=500, blank=True)
    rerun_of = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        related_name="reruns",
        help_text="The job whose files this one looks at again.",
    )
    deadline_at = models.DateTimeField(
        null=True, help_text="When it is aborted if it has not ended, by the database's clock."
    )
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True)
    served_at = models.DateTimeField(null=True, help_text="When a worker last took a unit of it.")
    finished_at = models.DateTimeField(null=True)

    class Meta:
        permissions = [
            ("abort_job", "Can abort jobs"),
            ("rerun_job", "Can run jobs again"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["rerun_of"],
                condition=Q(state__in=["Pending", "Running"]),
                name="one_unfinished_rerun_per_job",
            ),
            models.CheckConstraint(
                condition=Q(
                    state__in=["Pending", "Running"],
                    finished_at__isnull=True,
                    charged_hundredths__isnull=True,
                )
                | Q(
                    state__in=["Completed", "Failed", "Aborted"],
                    finished_at__isnull=False,
                    charged_hundredths__isnull=False,
                ),
                name="job_is_charged_and_dated_when_it_ends",
            ),
            models.CheckConstraint(
                condition=Q(charged_hundredths__isnull=True)
                | Q(charged_hundredths__gte=0, charged_hundredths__lte=F("quoted_hundredths")),
                name="job_costs_at_most_its_quote",
            ),
        ]
        indexes = [
            models.Index(fields=["user", "-id"], name="job_by_user"),
            models.Index(fields=["user", "served_at"], name="job_served_last"),
            models.Index(
                fields=["state"],
                name="job_unfinished",
                condition=Q(state__in=["Pending", "Running"]),
            ),
            models.Index(
                fields=["-finished_at"],
                name="job_completed_last",
                condition=Q(state="Completed"),
            ),
            models.Index(
                fields=["finished_at"],
                name="job_ended_lately",
                condition=Q(finished_at__isnull=False),
            ),
            models.Index(
                fields=["deadline_at"],
                name="job_that_has_a_deadline",
                condition=Q(state__in=["Pending", "Running"], deadline_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"job {self.pk}"


class JobFile(models.Model):
    """A media file as a job was quoted for it, and what became of it.

    Its frames are looked at by one or more work units; it ends when the last of them has.
    """

    class State(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        COMPLETED = "completed"
        FAILED = "failed"
        ABORTED = "aborted"

    UNFINISHED = (State.PENDING, State.RUNNING)
    UNDONE = (State.FAILED, State.ABORTED)

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="files")
    media_file = models.ForeignKey(MediaFile, on_delete=models.PROTECT)
    position = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    frame_count = models.PositiveIntegerField(help_text="Frames that are looked at.")
    frame_price_hundredths = models.PositiveIntegerField()
    error_code = models.CharField(max_length=60, blank=True)
    error = models.CharField(max_length=500, blank=True)
    annotated = models.FileField(max_length=200, blank=True)

    class Meta:
        ordering = ["position"]
        verbose_name = "file of a job"
        verbose_name_plural = "files of jobs"
        constraints = [
            models.UniqueConstraint(
                fields=["job", "media_file"], name="one_file_per_job_and_media_file"
            ),
            models.UniqueConstraint(fields=["job", "position"], name="one_file_per_job_position"),
        ]

    def __str__(self) -> str:
        return f"file {self.position} of job {self.job_id}"


class WorkUnit(models.Model):
    """A slice of a job, which one worker at a time has: of images, of frames, or of neither.

    A batch of images belongs to several files, a range of frames to one video. The finish of a
    video looks at no frame: it joins the annotated segments of its ranges.
    """

    class Kind(models.TextChoices):
        IMAGES = "images"
        FRAMES = "frames"
        FINISH = "finish"

    class State(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        COMPLETED = "completed"
        FAILED = "failed"
        ABORTED = "aborted"

    UNFINISHED = (State.PENDING, State.RUNNING)

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="units")
    kind = models.CharField(max_length=6, choices=Kind.choices)
    # That of its first file; units of one file come in the order of their making.
    position = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    # The attempt number fences: a worker that lost its lease writes nothing any more.
    attempt = models.PositiveIntegerField(default=0)
    tries = models.PositiveIntegerField(default=0, help_text="Attempts that were not handed back.")
    worker_name = models.CharField(max_length=100, blank=True)
    lease_expires_at = models.DateTimeField(null=True)
    enqueued_at = models.DateTimeField(null=True)
    waits_until = models.DateTimeField(null=True, help_text="After a failure that may pass.")

    class Meta:
        ordering = ["position", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="running", lease_expires_at__isnull=False)
                | (~Q(state="running") & Q(lease_expires_at__isnull=True)),
                name="work_unit_is_leased_while_it_runs",
            ),
        ]
        indexes = [
            models.Index(
                fields=["job", "position", "id"],
                name="work_unit_pending",
                condition=Q(state="pending"),
            ),
            models.Index(
                fields=["lease_expires_at"],
                name="work_unit_running",
                condition=Q(state="running"),
            ),
        ]

    def __str__(self) -> str:
        return f"unit {self.pk} of job {self.job_id}"


class UnitFile(models.Model):
    """The part of one file that a work unit looks at: an image, or a range of a video's frames.

    The range reaches from `first_frame_index` to before `end_frame_index`; of its frames so many
    are looked at as `frame_count` says.
    """

    unit = models.ForeignKey(WorkUnit, on_delete=models.PROTECT, related_name="parts")
    job_file = models.ForeignKey(JobFile, on_delete=models.PROTECT, related_name="parts")
    first_frame_index = models.PositiveIntegerField(default=0)
    end_frame_index = models.PositiveIntegerField()
    frame_count = models.PositiveIntegerField()
    frames_done = models.PositiveIntegerField(default=0)
    segment = models.CharField(
        max_length=200, blank=True, help_text="Stored name of the annotated range, until joined."
    )

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["unit", "job_file"], name="one_part_per_work_unit_and_file"
            ),
            models.CheckConstraint(
                condition=Q(frames_done__lte=F("frame_count")),
                name="work_unit_does_at_most_the_frames_it_was_quoted_for",
            ),
        ]

    def __str__(self) -> str:
        return f"part of file {self.job_file_id} in unit {self.unit_id}"


class FrameResult(models.Model):
    """What was found in one image or one frame of a video.

    The arrays are packed, little-endian and row by row: int16 class, float32 confidence, four
    float32 of a box in pixels of the upright original; the most confident detection first.
    """

    # Both indexes below begin with the job.
    job = models.ForeignKey(
        Job, on_delete=models.PROTECT, related_name="frame_results", db_index=False
    )
    media_file = models.ForeignKey(MediaFile, on_delete=models.PROTECT)
    frame_index = models.PositiveIntegerField()
    time_seconds = models.FloatField()
    class_ids = models.BinaryField()
    confidences = models.BinaryField()
    boxes_xyxy = models.BinaryField()
    track_ids = models.BinaryField(
        null=True, help_text="Packed int32, 0 for a doubtful box of no track; null: not tracked."
    )
    class_counts = models.JSONField(default=dict, help_text="Detections by class, as displayed.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["job", "media_file", "frame_index"],
                name="one_frame_result_per_job_media_file_and_frame",
            )
        ]
        indexes = [models.Index(fields=["job", "id"], name="frame_results_as_stored")]

    def __str__(self) -> str:
        return f"frame {self.frame_index} of file {self.media_file_id} in job {self.job_id}"


class WorkerHeartbeat(models.Model):
    """A worker that was there a moment ago, and the weights it has loaded."""

    name = models.CharField(max_length=100, unique=True)
    loaded_weights = models.JSONField(default=list, help_text="Their SHA-256.")
    device = models.CharField(max_length=60, blank=True)
    precisions = models.JSONField(
        default=list, help_text="Arithmetic that this worker's processor has at full speed."
    )
    last_seen_at = models.DateTimeField()

    class Meta:
        verbose_name = "worker"

    def __str__(self) -> str:
        return self.name


def progress_percent(*, frames_done: int, frame_count: int) -> float:
    """How much of a job is done, in percent with one decimal."""
    return round(100 * frames_done / frame_count, 1) if frame_count else 0.0


def job_payload(job: Job, **members: Any) -> dict[str, Any]:
    """What an event tells about a job."""
    return {"job_id": job.pk, "state": job.state, "dataset_id": job.dataset_id, **members}
