"""Datasets and their files in the admin, with moderation.

They stand here rather than in datasets, because blocking one aborts its jobs.
"""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.files.storage import default_storage
from django.db.models import QuerySet, Value
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.defaultfilters import pluralize
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.models import User
from billing.prices import inference_price_hundredths, readable_tokens
from billing.selectors import current_prices
from datasets.models import Dataset, MediaFile, ModerationAction
from datasets.selectors import live_media_files, with_sizes
from datasets.services import flag_dataset, restore_dataset
from inference import services
from odproject.core.admin import (
    ObjectAction,
    ReadOnlyAdmin,
    ReadOnlyInline,
    ReasonForm,
    badge,
    list_link,
    object_link,
    readable_bytes,
)
from odproject.core.files import drawn_picture_response

THUMBNAILS_SHOWN = 24
NO_THUMBNAIL = format_html('<span class="od-thumbnail od-none">{}</span>', "no picture")


class OwnerReadsForm(ReasonForm):
    """Why; the owner reads it."""

    readers = "The owner of the dataset reads this."


class NoteForm(ReasonForm):
    """Why; for the other moderators."""

    readers = "For moderators; the owner is not told."


def _flag(actor: User, dataset: Dataset, answers: dict[str, Any]) -> str:
    flag_dataset(dataset=dataset, actor=actor, reason=answers["reason"])
    return f"The dataset {dataset.name} is flagged: {answers['reason']}"


def _block(actor: User, dataset: Dataset, answers: dict[str, Any]) -> str:
    services.block_dataset_and_abort_pending_jobs(
        dataset=dataset, actor=actor, reason=answers["reason"]
    )
    return f"The dataset {dataset.name} is blocked: {answers['reason']}"


def _restore(actor: User, dataset: Dataset, answers: dict[str, Any]) -> str:
    restore_dataset(dataset=dataset, actor=actor, reason=answers["reason"])
    return f"The dataset {dataset.name} is restored: {answers['reason']}"


DATASET_ACTIONS = (
    ObjectAction[Dataset](
        name="flag",
        title="Flag for a second look",
        permission="datasets.moderate_dataset",
        form_class=NoteForm,
        explain=lambda dataset: (
            f"{dataset.name} of {dataset.user} stays in use and stands in the "
            "list of flagged datasets until somebody blocks or restores it."
        ),
        act=_flag,
        is_fitting=lambda dataset: not dataset.flagged_at and not dataset.blocked_at,
    ),
    ObjectAction[Dataset](
        name="block",
        title="Block the dataset",
        permission="datasets.moderate_dataset",
        form_class=OwnerReadsForm,
        explain=lambda dataset: (
            f"{dataset.name} of {dataset.user} will take no uploads and no "
            "jobs. Its pending jobs are aborted, its running ones finish."
        ),
        act=_block,
        is_fitting=lambda dataset: not dataset.blocked_at,
        is_dangerous=True,
    ),
    ObjectAction[Dataset](
        name="restore",
        title="Restore the dataset",
        permission="datasets.moderate_dataset",
        form_class=OwnerReadsForm,
        explain=lambda dataset: (
            f"{dataset.name} of {dataset.user} is neither blocked nor flagged "
            "any more, and takes uploads and jobs."
        ),
        act=_restore,
        is_fitting=lambda dataset: bool(dataset.flagged_at or dataset.blocked_at),
    ),
)


class ModerationFilter(admin.SimpleListFilter):
    """What moderators have said about a dataset."""

    title = "moderation"
    parameter_name = "moderation"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices."""
        return [
            ("flagged", "Flagged, to be looked at"),
            ("blocked", "Blocked"),
            ("none", "Neither"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The datasets of the choice."""
        if self.value() == "flagged":
            return queryset.filter(flagged_at__isnull=False)
        if self.value() == "blocked":
            return queryset.filter(blocked_at__isnull=False)
        if self.value() == "none":
            return queryset.filter(flagged_at__isnull=True, blocked_at__isnull=True)
        return queryset


class DeletedFilter(admin.SimpleListFilter):
    """Whether the owner has deleted it."""

    title = "whether it exists"
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices."""
        return [("no", "Live"), ("yes", "Deleted by its owner")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The datasets of the choice."""
        if self.value() in ("yes", "no"):
            return queryset.filter(deleted_at__isnull=self.value() == "no")
        return queryset


class ModerationInline(ReadOnlyInline[ModerationAction, Dataset]):
    """Who flagged, blocked and restored a dataset, to read."""

    model = ModerationAction
    verbose_name_plural = "history of moderation"
    fields = readonly_fields = ("created_at", "kind", "actor_email", "reason")
    ordering = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModerationAction]:
        """With the moderators, in one query."""
        return super().get_queryset(request).select_related("actor")

    @admin.display(description="Who")
    def actor_email(self, action: ModerationAction) -> str:
        """Who did it."""
        return action.actor.email


@admin.register(Dataset)
class DatasetAdmin(ReadOnlyAdmin[Dataset]):
    """Datasets with flag, block and restore."""

    object_actions = DATASET_ACTIONS
    list_display = (
        "name",
        "owner",
        "tag_list",
        "content",
        "size",
        "detection_cost",
        "status",
        "created_at",
    )
    search_fields = ("name", "user__email")
    search_help_text = "Search by name or by the owner's e-mail address"
    list_filter = (ModerationFilter, DeletedFilter)
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("user",)
    inlines = (ModerationInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Dataset]:
        """Datasets, how much is in each, and the prices of now, in one query for them all."""
        prices = current_prices()
        return with_sizes(super().get_queryset(request)).annotate(
            image_price=Value(inference_price_hundredths(prices, images=1, frames=0)),
            frame_price=Value(inference_price_hundredths(prices, images=0, frames=1)),
        )

    def get_fieldsets(self, request: HttpRequest, obj: Dataset | None = None) -> Any:
        """Pictures are for those who may see them."""
        owner = "owner_page" if request.user.has_perm("accounts.view_user") else "owner"
        facts = ("name", owner, "tag_list", "content", "size", "detection_cost", "upload_cost")
        sets: list[tuple[str | None, dict[str, Any]]] = [
            (None, {"fields": ("status", *facts, "created_at")}),
            ("Moderation", {"fields": ("block_reason", "flagged_since", "deleted_at")}),
        ]
        if request.user.has_perm("datasets.view_mediafile"):
            sets.insert(1, ("Files", {"fields": ("files",)}))
        if request.user.has_perm("inference.view_job"):
            sets.append(("More", {"fields": ("jobs",)}))
        return sets

    @admin.display(description="Flagged at")
    def flagged_since(self, dataset: Dataset) -> datetime | None:
        """When somebody asked for a second look."""
        return dataset.flagged_at

    @admin.display(ordering="user__email")
    def owner(self, dataset: Dataset) -> str:
        """Whose it is."""
        return dataset.user.email

    @admin.display(description="Owner")
    def owner_page(self, dataset: Dataset) -> SafeString:
        """Whose it is, and the way there."""
        return object_link("accounts_user", dataset.user_id, dataset.user.email)

    @admin.display
    def jobs(self, dataset: Dataset) -> SafeString:
        """The way to the jobs that looked at it."""
        return list_link("inference_job", f"Jobs on {dataset.name}", dataset=dataset.pk)

    @admin.display(description="Tags")
    def tag_list(self, dataset: Dataset) -> str:
        """Tags as words."""
        return ", ".join(dataset.tags) or "-"

    @admin.display(ordering="file_count")
    def content(self, dataset: Dataset) -> str:
        """How many images, and how many frames of videos."""
        counts: Any = dataset
        images = f"{counts.image_count:,} image{pluralize(counts.image_count)}"
        return f"{images}, {counts.frame_count:,} video frame{pluralize(counts.frame_count)}"

    @admin.display(ordering="stored_bytes")
    def size(self, dataset: Dataset) -> str:
        """What its files take."""
        return readable_bytes(dataset.stored_bytes)  # type: ignore[attr-defined]

    @admin.display(description="Cost of detection now (tokens)")
    def detection_cost(self, dataset: Dataset) -> str:
        """What detection on everything in it costs at the prices of now."""
        row: Any = dataset
        return readable_tokens(
            row.image_count * row.image_price + row.frame_count * row.frame_price
        )

    @admin.display(description="Paid for uploads (tokens)")
    def upload_cost(self, dataset: Dataset) -> str:
        """What its owner paid for what is in it."""
        return readable_tokens(dataset.upload_hundredths)  # type: ignore[attr-defined]

    @admin.display
    def status(self, dataset: Dataset) -> SafeString:
        """What moderators and the owner have made of it."""
        if dataset.blocked_at:
            return badge("blocked", "bad")
        if dataset.flagged_at:
            return badge("flagged", "odd")
        return badge("deleted") if dataset.deleted_at else badge("live", "good")

    @admin.display
    def files(self, dataset: Dataset) -> SafeString:
        """The first files as pictures, and the way to all of them."""
        shown = live_media_files(dataset=dataset)[:THUMBNAILS_SHOWN]
        pictures = format_html_join(
            "", "<figure>{}<figcaption>{}</figcaption></figure>", ((thumbnail(m), m) for m in shown)
        )
        count = dataset.file_count  # type: ignore[attr-defined]
        link = list_link("datasets_mediafile", f"All {count:,} files", dataset=dataset.pk)
        return format_html('<div class="od-gallery">{}</div>{}', pictures, link)


def thumbnail(media_file: MediaFile) -> SafeString:
    """A small picture of a file, if there is one."""
    if not media_file.thumbnail or media_file.removed_at:
        return NO_THUMBNAIL
    return format_html(
        '<img class="od-thumbnail" loading="lazy" src="{}" alt="{}">',
        reverse("admin:datasets_mediafile_thumbnail", args=[media_file.pk]),
        f"Thumbnail of {media_file.name}",
    )


@admin.register(MediaFile)
class MediaFileAdmin(ReadOnlyAdmin[MediaFile]):
    """Files with their thumbnails; the pages of datasets lead here."""

    list_display = (
        "picture",
        "name",
        "dataset",
        "media_type",
        "format",
        "resolution",
        "frame_count",
        "size",
        "paid",
        "state",
    )
    list_display_links = ("name",)
    list_filter = ("media_type",)
    search_fields = ("name", "dataset__name", "dataset__user__email")
    search_help_text = "Search by file, dataset or the owner's e-mail address"
    ordering = ("pk",)
    list_select_related = ("dataset",)
    fields = (*list_display, "duration_seconds", "created_at", "deleted_at", "removed_at")

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Not on the front page: the pages of datasets lead here."""
        return {}

    def get_urls(self) -> list[URLPattern]:
        """The thumbnails beside the usual pages."""
        address = path(
            "<int:media_file_id>/thumbnail/",
            self.admin_site.admin_view(self.thumbnail_view, cacheable=True),
            name="datasets_mediafile_thumbnail",
        )
        return [address, *super().get_urls()]

    def thumbnail_view(self, request: HttpRequest, media_file_id: int) -> HttpResponse:
        """The JPEG that was made at upload, of anybody's file, for those who may see files."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        media_file = get_object_or_404(MediaFile, pk=media_file_id)
        stored_name = str(media_file.thumbnail.name or "")
        if not stored_name or not default_storage.exists(stored_name):
            raise Http404("This file has no thumbnail.")
        with default_storage.open(stored_name) as content:
            return drawn_picture_response(content.read())

    @admin.display(description="")
    def picture(self, media_file: MediaFile) -> SafeString:
        """The thumbnail."""
        return thumbnail(media_file)

    @admin.display
    def resolution(self, media_file: MediaFile) -> str:
        """Pixels of the upright picture."""
        return f"{media_file.width} x {media_file.height}"

    @admin.display(ordering="size_bytes")
    def size(self, media_file: MediaFile) -> str:
        """What it takes."""
        return readable_bytes(media_file.size_bytes)

    @admin.display(description="Paid (tokens)", ordering="cost_hundredths")
    def paid(self, media_file: MediaFile) -> str:
        """What its upload cost."""
        return readable_tokens(media_file.cost_hundredths)

    @admin.display
    def state(self, media_file: MediaFile) -> SafeString:
        """Whether its content is there, and for how long."""
        if media_file.removed_at:
            return badge("removed")
        is_deleted = media_file.deleted_at or media_file.dataset.deleted_at
        return badge("deleted") if is_deleted else badge("live", "good")
