"""Datasets with moderation, jobs, model versions and workers.

The page of datasets stands here rather than in datasets, because blocking one aborts its jobs.
"""

from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.models import User
from billing.prices import tokens
from datasets.models import Dataset, MediaFile, ModerationAction
from datasets.selectors import with_counts
from datasets.services import restore_dataset
from inference import services
from inference.models import Job, ModelVersion, WorkerHeartbeat, WorkUnit, progress_percent
from inference.services import JobFinishedError
from odproject.core.admin import ReadOnlyAdmin, ask_and_act

STATE_COLOURS = {
    "Pending": "#8a6d00",
    "Running": "#1d5fbf",
    "Completed": "#1a7f37",
    "Failed": "#b42318",
    "Aborted": "#6b6b6b",
}


class BlockForm(forms.Form):
    """Why; the owner reads it."""

    reason = forms.CharField(max_length=300, help_text="The owner of the dataset reads this.")


class RestoreForm(forms.Form):
    """Why, if there is something to say."""

    reason = forms.CharField(max_length=300, required=False)


class MediaFileInline(admin.TabularInline[MediaFile, Dataset]):
    """The files of a dataset, to read."""

    model = MediaFile
    fields = readonly_fields = ("name", "media_type", "width", "height", "frame_count")
    extra = 0
    can_delete = False
    max_num = 0


class ModerationInline(admin.TabularInline[ModerationAction, Dataset]):
    """Who blocked and restored a dataset, to read."""

    model = ModerationAction
    fields = readonly_fields = ("created_at", "kind", "actor", "reason")
    extra = 0
    can_delete = False
    max_num = 0


@admin.register(Dataset)
class DatasetAdmin(ReadOnlyAdmin[Dataset]):
    """Datasets with block and restore."""

    list_display = ("name", "user", "tag_list", "images", "frames", "status", "created_at")
    search_fields = ("name", "user__email")
    list_filter = (
        ("blocked_at", admin.EmptyFieldListFilter),
        ("deleted_at", admin.EmptyFieldListFilter),
    )
    ordering = ("-pk",)
    list_select_related = ("user",)
    inlines = (MediaFileInline, ModerationInline)
    fields = ("name", "user", "tag_list", "created_at", "deleted_at", "status", "block_reason")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Dataset]:
        """Datasets and how much is in each."""
        return with_counts(super().get_queryset(request))

    @admin.display(description="Tags")
    def tag_list(self, dataset: Dataset) -> str:
        """Tags as words."""
        return ", ".join(dataset.tags)

    @admin.display(ordering="image_count")
    def images(self, dataset: Dataset) -> int:
        """How many images."""
        return int(dataset.image_count)  # type: ignore[attr-defined]

    @admin.display(ordering="frame_count", description="Video frames")
    def frames(self, dataset: Dataset) -> int:
        """How many video frames."""
        return int(dataset.frame_count)  # type: ignore[attr-defined]

    @admin.display
    def status(self, dataset: Dataset) -> str:
        """Live, blocked or deleted."""
        if dataset.deleted_at:
            return "deleted"
        return "blocked" if dataset.blocked_at else "live"

    def get_urls(self) -> list[URLPattern]:
        """The moderation pages beside the usual ones."""
        view = self.admin_site.admin_view
        return [
            path("<int:dataset_id>/block/", view(self.block_view), name="datasets_dataset_block"),
            path(
                "<int:dataset_id>/restore/",
                view(self.restore_view),
                name="datasets_dataset_restore",
            ),
            *super().get_urls(),
        ]

    def block_view(self, request: HttpRequest, dataset_id: int) -> HttpResponse:
        """Ask for the reason, then block."""
        dataset = self._moderated(request, dataset_id)

        def act(answers: dict[str, Any]) -> str:
            services.block_dataset_and_abort_pending_jobs(
                dataset=dataset, actor=cast(User, request.user), reason=answers["reason"]
            )
            return f"{dataset.name} is blocked."

        return ask_and_act(
            site=self.admin_site,
            request=request,
            form_class=BlockForm,
            title="Block the dataset",
            explanation=f"{dataset.name} of {dataset.user} will take no uploads and no jobs. "
            "Its pending jobs are aborted, its running ones finish.",
            act=act,
            back_url=reverse("admin:datasets_dataset_change", args=[dataset_id]),
        )

    def restore_view(self, request: HttpRequest, dataset_id: int) -> HttpResponse:
        """Ask, then restore."""
        dataset = self._moderated(request, dataset_id)

        def act(answers: dict[str, Any]) -> str:
            restore_dataset(
                dataset=dataset, actor=cast(User, request.user), reason=answers["reason"]
            )
            return f"{dataset.name} is restored."

        return ask_and_act(
            site=self.admin_site,
            request=request,
            form_class=RestoreForm,
            title="Restore the dataset",
            explanation=f"{dataset.name} of {dataset.user} takes uploads and jobs again.",
            act=act,
            back_url=reverse("admin:datasets_dataset_change", args=[dataset_id]),
        )

    def _moderated(self, request: HttpRequest, dataset_id: int) -> Dataset:
        if not request.user.has_perm("datasets.change_dataset"):
            raise PermissionDenied
        return get_object_or_404(Dataset.objects.select_related("user"), pk=dataset_id)


class WorkUnitInline(admin.TabularInline[WorkUnit, Job]):
    """The units of a job, to read."""

    model = WorkUnit
    fields = readonly_fields = (
        "media_file",
        "state",
        "frames_done",
        "frame_count",
        "tries",
        "worker_name",
        "error",
    )
    extra = 0
    can_delete = False
    max_num = 0


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin[Job]):
    """Jobs with state, progress, cost and abort."""

    list_display = (
        "id",
        "user",
        "dataset",
        "model_version",
        "coloured_state",
        "progress",
        "quoted",
        "charged",
        "created_at",
    )
    list_filter = ("state", "model_version")
    search_fields = ("=id", "user__email", "dataset__name")
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("user", "dataset", "model_version")
    inlines = (WorkUnitInline,)
    actions = ("abort",)
    fields = (
        "user",
        "dataset",
        "model_version",
        "coloured_state",
        "progress",
        "quoted",
        "charged",
        "error",
        "weights_sha256",
        "created_at",
        "started_at",
        "finished_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """Jobs and how many of their frames are done."""
        return super().get_queryset(request).annotate(done=Sum("units__frames_done"))

    @admin.display(description="State", ordering="state")
    def coloured_state(self, job: Job) -> SafeString:
        """The state in its colour."""
        colour = STATE_COLOURS[job.state]
        return format_html('<b style="color: {}">{}</b>', colour, job.state)

    @admin.display
    def progress(self, job: Job) -> str:
        """Percent of the frames done."""
        done = job.done or 0  # type: ignore[attr-defined]
        return f"{progress_percent(frames_done=done, frame_count=job.frame_count):g}%"

    @admin.display(ordering="quoted_hundredths")
    def quoted(self, job: Job) -> str:
        """Tokens quoted."""
        return f"{tokens(job.quoted_hundredths):,.2f}"

    @admin.display(ordering="charged_hundredths")
    def charged(self, job: Job) -> str:
        """Tokens charged."""
        if job.charged_hundredths is None:
            return "-"
        return f"{tokens(job.charged_hundredths):,.2f}"

    def has_abort_permission(self, request: HttpRequest) -> bool:
        """Who may change jobs may abort them."""
        return request.user.has_perm("inference.change_job")

    @admin.action(description="Abort the selected jobs", permissions=["abort"])
    def abort(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        """Abort each job that has not ended."""
        aborted = 0
        for job_id in jobs.values_list("pk", flat=True):
            try:
                services.abort_job(job_id=job_id, reason=f"Aborted by {request.user}")
            except JobFinishedError as error:
                messages.warning(request, error.detail)
            else:
                aborted += 1
        messages.success(request, f"{aborted} jobs were aborted.")


@admin.register(ModelVersion)
class ModelVersionAdmin(admin.ModelAdmin[ModelVersion]):
    """Which models users may choose."""

    list_display = ("version", "model_id", "is_active", "created_at")
    readonly_fields = ("model_id", "version", "created_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Weights come with the package or by a setting."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ModelVersion | None = None) -> bool:
        """Jobs refer to model versions; one can be made inactive instead."""
        return False


@admin.register(WorkerHeartbeat)
class WorkerHeartbeatAdmin(ReadOnlyAdmin[WorkerHeartbeat]):
    """Workers and when they were last heard of."""

    list_display = ("name", "loaded_versions", "device", "last_seen_at")
