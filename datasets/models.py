"""Datasets, their uploads and media files."""

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone


class Dataset(models.Model):
    """A named collection of media files. Deleting it only hides it: its jobs stay readable."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="datasets"
    )
    name = models.CharField(max_length=40)
    tags = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)
    blocked_at = models.DateTimeField(null=True, blank=True)
    block_reason = models.CharField(max_length=300, blank=True)
    flagged_at = models.DateTimeField(null=True, blank=True, help_text="Wants a second look.")

    class Meta:
        permissions = [("moderate_dataset", "Can flag, block and restore datasets")]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "name"],
                condition=Q(deleted_at__isnull=True),
                name="one_live_dataset_per_user_and_name",
            )
        ]

    def __str__(self) -> str:
        return self.name


class ModerationAction(models.Model):
    """Who flagged, blocked or restored a dataset, when and why."""

    class Kind(models.TextChoices):
        FLAG = "flag"
        BLOCK = "block"
        RESTORE = "restore"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="moderation")
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.kind} {self.dataset} by {self.actor}"


class Upload(models.Model):
    """One accepted upload with its report: what became a media file, and what was refused."""

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="uploads")
    file_name = models.CharField(max_length=255)
    cost_hundredths = models.BigIntegerField(default=0)
    refused = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.file_name


class ResumableUpload(models.Model):
    """A file that arrives piece by piece, and what became of it once it was whole."""

    class State(models.TextChoices):
        RECEIVING = "receiving"
        RECEIVED = "received", "received, but not accepted yet"
        ACCEPTED = "accepted"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="resumable_uploads")
    file_name = models.CharField(max_length=255)
    metadata = models.CharField(max_length=4096, blank=True, help_text="As its client sent it.")
    length_bytes = models.BigIntegerField()
    offset_bytes = models.BigIntegerField(default=0, help_text="So many have arrived.")
    upload = models.OneToOneField(Upload, on_delete=models.PROTECT, null=True)
    expires_at = models.DateTimeField(db_index=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(length_bytes__gte=1), name="resumable_upload_is_not_empty"
            ),
            models.CheckConstraint(
                condition=Q(offset_bytes__gte=0, offset_bytes__lte=F("length_bytes")),
                name="resumable_upload_offset_lies_within_its_length",
            ),
            models.CheckConstraint(
                condition=Q(upload__isnull=True) | Q(offset_bytes=F("length_bytes")),
                name="resumable_upload_is_accepted_only_when_it_is_whole",
            ),
        ]

    def __str__(self) -> str:
        return self.file_name

    @property
    def is_whole(self) -> bool:
        """Whether every byte has arrived."""
        return self.offset_bytes == self.length_bytes

    @property
    def state(self) -> State:
        """How far it is."""
        if self.upload_id is not None:
            return self.State.ACCEPTED
        return self.State.RECEIVED if self.is_whole else self.State.RECEIVING


class MediaFile(models.Model):
    """An image or a video of a dataset. Deleting it hides it; what jobs found in it stays readable.

    The content of what was deleted, or whose dataset was, leaves the storage some time later.
    """

    class MediaType(models.TextChoices):
        IMAGE = "image"
        VIDEO = "video"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="media_files")
    upload = models.ForeignKey(Upload, on_delete=models.PROTECT, related_name="media_files")
    name = models.CharField(max_length=1000, help_text="As the user calls it; never a path.")
    content = models.FileField(max_length=200)
    thumbnail = models.FileField(max_length=200, blank=True, help_text="JPEG, 320 pixels at most.")
    media_type = models.CharField(max_length=5, choices=MediaType.choices)
    format = models.CharField(max_length=20)
    size_bytes = models.BigIntegerField()
    width = models.PositiveIntegerField(help_text="Pixels of the upright picture.")
    height = models.PositiveIntegerField(help_text="Pixels of the upright picture.")
    frame_count = models.PositiveIntegerField(default=1)
    duration_seconds = models.FloatField(null=True)
    # Where decoding of a video can begin, tried at upload: `datasets.media.seeking.SeekPlan`.
    seek_plan = models.JSONField(null=True)
    warning = models.CharField(
        max_length=300, blank=True, help_text="What is wrong with a file that was accepted."
    )
    cost_hundredths = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)
    removed_at = models.DateTimeField(
        null=True, blank=True, help_text="When its content left the storage, for good."
    )

    class Meta:
        ordering = ["pk"]
        # The hourly search for stored files without a row asks by name.
        indexes = [
            models.Index(fields=["content"], name="media_file_by_content"),
            models.Index(fields=["thumbnail"], name="media_file_by_thumbnail"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def seek_indexes(self) -> list[int]:
        """The frames at which decoding can begin, besides the first; ascending."""
        return [point[0] for point in self.seek_plan["points"]] if self.seek_plan else []
