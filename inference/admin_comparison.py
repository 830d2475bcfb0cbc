"""The page of a job beside another one on the same dataset."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from inference import comparison
from inference.comparison import LARGEST_FRAME_INDEX, Comparison, Rules
from inference.models import Job
from odproject.core.admin import ReadOnlyAdmin
from odproject.core.errors import DomainError
from odproject.core.files import drawn_picture_response
from odproject.core.listing import LARGEST_ID

PICTURES_SHOWN = 12
OTHERS_SHOWN = 10

if TYPE_CHECKING:
    Base = ReadOnlyAdmin[Job]
else:
    Base = object


class WhichForm(forms.Form):
    """The other job and what counts, as the page's address names them."""

    minimum_confidence = forms.FloatField(min_value=0, max_value=1, required=False)
    iou = forms.FloatField(min_value=0.01, max_value=1, required=False)
    media_file_id = forms.IntegerField(min_value=1, required=False)
    frame_index = forms.IntegerField(min_value=0, max_value=LARGEST_FRAME_INDEX, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["with"] = forms.IntegerField(min_value=1, max_value=LARGEST_ID)

    @property
    def rules(self) -> Rules:
        """What counts, as far as the address says."""
        given = {key: self.cleaned_data[key] for key in ("minimum_confidence", "iou")}
        return Rules(**{key: value for key, value in given.items() if value is not None})


class ComparisonPages(Base):
    """For the admin of jobs: the page, its pictures, and the links that lead to it.

    The numbers are for those who may see jobs, the pictures for those who may see files.
    """

    def get_urls(self) -> list[URLPattern]:
        """The page and the pictures beside the usual ones."""
        view = self.admin_site.admin_view
        return [
            path(
                "<int:job_id>/comparison/",
                view(self.comparison_view),
                name="inference_job_comparison",
            ),
            path(
                "<int:job_id>/comparison/picture/",
                view(self.comparison_picture_view),
                name="inference_job_comparison_picture",
            ),
            *super().get_urls(),
        ]

    def comparison_view(self, request: HttpRequest, job_id: int) -> HttpResponse:
        """Counts by class, how far the jobs agree, and the files that differ most."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        first = get_object_or_404(Job.objects.select_related("model_version"), pk=job_id)
        context = {
            **self.admin_site.each_context(request),
            "title": "Comparison",
            "opts": self.model._meta,
            "original": first,
            "back_url": reverse("admin:inference_job_change", args=[first.pk]),
        }
        form = WhichForm(request.GET)
        try:
            second = self._other(form)
            comparison.check_comparable(first, second)
            found = comparison.compare(first, second, rules=form.rules)
        except DomainError as error:
            context["refusal"] = error.detail
        else:
            context |= _shown(found, with_pictures=request.user.has_perm("datasets.view_mediafile"))
        return TemplateResponse(request, "admin/comparison.html", context)

    def comparison_picture_view(self, request: HttpRequest, job_id: int) -> HttpResponse:
        """A frame with what one found and the other did not."""
        may_see = request.user.has_perm("datasets.view_mediafile")
        if not (may_see and self.has_view_permission(request)):
            raise PermissionDenied
        first = get_object_or_404(Job.objects.select_related("model_version"), pk=job_id)
        form = WhichForm(request.GET)
        try:
            second = self._other(form)
            comparison.check_comparable(first, second)
            picture = comparison.difference_picture(
                first,
                second,
                media_file_id=form.cleaned_data["media_file_id"] or 0,
                frame_index=form.cleaned_data["frame_index"] or 0,
                rules=form.rules,
            )
        except DomainError as error:
            return HttpResponse(error.detail, status=error.status, content_type="text/plain")
        return drawn_picture_response(picture)

    def _other(self, form: WhichForm) -> Job:
        """The other job; raises NotComparableError."""
        if not form.is_valid():
            raise comparison.NotComparableError("The address names no other job to compare with.")
        others = Job.objects.select_related("model_version")
        found = others.filter(pk=form.cleaned_data["with"]).first()
        if found is None:
            raise comparison.NotComparableError(f"There is no job {form.cleaned_data['with']}.")
        return found

    @admin.display(description="Compare with")
    def comparisons(self, job: Job) -> SafeString | str:
        """The latest other jobs on the same dataset that have ended."""
        if job.finished_at is None:
            return "-"
        others = (
            Job.objects.filter(dataset_id=job.dataset_id, finished_at__isnull=False)
            .exclude(pk=job.pk)
            .select_related("model_version")
            .order_by("-pk")[:OTHERS_SHOWN]
        )
        page = reverse("admin:inference_job_comparison", args=[job.pk])
        links = format_html_join(
            ", ",
            '<a class="text-link" href="{}?with={}">job {} ({})</a>',
            ((page, other.pk, other.pk, other.model_version.version) for other in others),
        )
        return links or "-"


def _shown(found: Comparison, *, with_pictures: bool) -> dict[str, Any]:
    """What the page's template needs."""
    names = sorted(found.first_counts | found.second_counts)
    counts = [(name, found.first_counts[name], found.second_counts[name]) for name in names]
    page = reverse("admin:inference_job_comparison_picture", args=[found.first.pk])
    files = sorted(found.files, key=lambda file: -file.most_different_count)
    rows = [
        {
            "name": file.media_file.name,
            "tally": file.tally,
            "agreement": percent(file.tally.agreement),
            "frame_index": file.most_different_frame_index,
            "picture": f"{page}?{comparison.picture_query(found, file)}" if with_pictures else "",
            "differs": file.most_different_count > 0,
        }
        for file in files
    ]
    return {
        "found": found,
        "first_name": f"{found.first.model_version} (job {found.first.pk})",
        "second_name": f"{found.second.model_version} (job {found.second.pk})",
        "agreement": percent(found.tally.agreement),
        "class_agreement": percent(found.tally.class_agreement),
        "counts": counts,
        "files": rows,
        "pictures": [row for row in rows if row["picture"] and row["differs"]][:PICTURES_SHOWN],
    }


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "-" if share is None else f"{100 * share:.1f}%"
