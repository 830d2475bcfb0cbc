"""The pages of model versions: upload, test run, offering and retirement."""

import json
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.files.storage import default_storage
from django.core.validators import RegexValidator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.models import User
from inference import registry
from inference.models import ModelVersion
from odproject.core.admin import (
    ActingAdmin,
    ObjectAction,
    badge,
    dressed,
    readable_bytes,
)
from odproject.core.errors import DomainError
from odproject.core.files import drawn_picture_response
from odproject.core.passes import give_upload_pass

DEEPEST_OPTIONS = 20
STATE_TONES = {"draft": "odd", "tested": "busy", "active": "good"}
NAME = RegexValidator(registry.NAME_PATTERN, "Letters, digits, dots, dashes and underscores.")
State = ModelVersion.State


def _activate(actor: User, version: ModelVersion, answers: dict[str, Any]) -> str:
    registry.activate_model(version_id=version.pk)
    return f"{version.version} is offered to users."


def _retire(actor: User, version: ModelVersion, answers: dict[str, Any]) -> str:
    registry.retire_model(version_id=version.pk)
    return f"{version.version} is retired."


def _test(actor: User, version: ModelVersion, answers: dict[str, Any]) -> str:
    registry.request_test(version_id=version.pk)
    return f"{version.version} waits for its test run."


MODEL_ACTIONS = (
    ObjectAction[ModelVersion](
        name="activate",
        title="Offer to users",
        permission="inference.change_modelversion",
        form_class=forms.Form,
        explain=lambda version: (
            f"Users may choose {version.version} from now on, without a restart."
        ),
        act=_activate,
        is_fitting=lambda version: version.state in (State.TESTED, State.RETIRED),
    ),
    ObjectAction[ModelVersion](
        name="retire",
        title="Retire",
        permission="inference.change_modelversion",
        form_class=forms.Form,
        explain=lambda version: (
            f"{version.version} takes no new jobs from now on. Those that were submitted with it "
            "run on with its weights. It can be offered again."
        ),
        act=_retire,
        is_fitting=lambda version: version.state in (State.ACTIVE, State.TESTED),
        is_dangerous=True,
    ),
    ObjectAction[ModelVersion](
        name="test",
        title="Test again",
        permission="inference.change_modelversion",
        form_class=forms.Form,
        explain=lambda version: f"A worker tries {version.version} out on drawn streets.",
        act=_test,
        is_fitting=lambda version: version.state == State.DRAFT and not version.test_requested_at,
    ),
)


class _ShallowDecoder(json.JSONDecoder):
    """Takes a document that is nested too deeply for one that is not JSON."""

    def decode(self, s: str, *args: Any, **options: Any) -> Any:
        """As its base; raises JSONDecodeError also for what no page could show again."""
        try:
            parsed = super().decode(s, *args, **options)
        except RecursionError as error:
            raise json.JSONDecodeError("Nested too deeply", s, 0) from error
        if not _is_shallow(parsed):
            raise json.JSONDecodeError("Nested too deeply", s, 0)
        return parsed


def _is_shallow(document: Any) -> bool:
    """Whether nothing lies below so many levels; without recursion."""
    level = [document]
    for _ in range(DEEPEST_OPTIONS):
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [
            child for one in nested for child in (one.values() if isinstance(one, dict) else one)
        ]
    return not level


class OptionsField(forms.JSONField):
    """A JSON document that is not nested deeply."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "decoder": _ShallowDecoder})


class UploadForm(forms.Form):
    """New weights."""

    file = forms.FileField(
        label="Weights",
        help_text="An Ultralytics YOLOv8 detection checkpoint (.pt), or an ONNX export of one.",
    )
    version = forms.CharField(
        max_length=registry.LONGEST_NAME,
        validators=[NAME],
        help_text="What users choose; never used twice.",
    )
    model_id = forms.CharField(
        max_length=registry.LONGEST_NAME,
        validators=[NAME],
        initial="YOLO8",
        help_text="The family it belongs to.",
    )
    default_options = OptionsField(
        required=False,
        initial=dict,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text='How it is used unless a job says otherwise, such as {"image_size": 1024}.',
    )
    notes = forms.CharField(
        max_length=2000, required=False, widget=forms.Textarea(attrs={"rows": 3})
    )


class VersionForm(forms.ModelForm[ModelVersion]):
    """What may change about a version."""

    class Meta:
        model = ModelVersion
        fields = ("notes", "default_options")
        field_classes = {"default_options": OptionsField}

    def clean_default_options(self) -> dict[str, Any]:
        """Options that make sense."""
        raw = self.cleaned_data["default_options"] or {}
        if not isinstance(raw, dict):
            raise ValidationError("This must be an object, such as {}.")
        try:
            registry.check_default_options(raw, image_size=self.instance.image_size)
        except registry.InvalidDefaultsError as error:
            raise ValidationError(error.detail) from error
        return raw


@admin.register(ModelVersion)
class ModelVersionAdmin(ActingAdmin[ModelVersion]):
    """Model versions from their upload to their retirement."""

    form = VersionForm
    object_actions = MODEL_ACTIONS
    list_display = (
        "version",
        "model_id",
        "coloured_state",
        "classes",
        "format",
        "size",
        "created_at",
    )
    list_filter = ("state", "format")
    search_fields = ("version", "weights_sha256", "notes")
    search_help_text = "Search by version, digest of the weights or notes"
    ordering = ("pk",)
    list_select_related = ("uploaded_by",)
    readonly_fields = (
        "model_id",
        "version",
        "coloured_state",
        "classes",
        "image_size",
        "format",
        "size",
        "weights_sha256",
        "offered_precisions",
        "uploaded",
        "created_at",
        "test_result",
        "picture",
    )
    fieldsets = (
        (None, {"fields": ("version", "model_id", "coloured_state", "notes", "default_options")}),
        (
            "Weights",
            {
                "fields": (
                    "classes",
                    "image_size",
                    "format",
                    "offered_precisions",
                    "size",
                    "weights_sha256",
                    "uploaded",
                    "created_at",
                )
            },
        ),
        ("Test run on drawn streets", {"fields": ("test_result", "picture")}),
    )

    def has_delete_permission(self, request: HttpRequest, obj: ModelVersion | None = None) -> bool:
        """Jobs refer to model versions; one can be retired instead."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """The pictures of test runs beside the usual pages."""
        address = path(
            "<int:version_id>/picture/",
            self.admin_site.admin_view(self.picture_view),
            name="inference_modelversion_picture",
        )
        return [address, *super().get_urls()]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The upload, which one service call makes."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = UploadForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            try:
                version = _upload(request, form.cleaned_data)
            except DomainError as error:
                form.add_error(None, error.detail)
            else:
                self.log_addition(request, version, "Uploaded the weights.")
                messages.success(request, f"{version.version} waits for its test run.")
                return HttpResponseRedirect(
                    reverse("admin:inference_modelversion_change", args=[version.pk])
                )
        context = {
            **self.admin_site.each_context(request),
            "title": "Upload a model",
            "explanation": "The weights become a draft, which a worker tries out on drawn streets. "
            "Then you may offer it to users.",
            "form": dressed(form),
            "back_url": reverse("admin:inference_modelversion_changelist"),
            "opts": self.model._meta,
        }
        page = TemplateResponse(request, "admin/ask.html", context)
        give_upload_pass(page, path=request.path)
        return page

    def save_model(self, request: HttpRequest, obj: ModelVersion, form: Any, change: bool) -> None:
        """Change it by the service."""
        registry.change_model_version(
            version_id=obj.pk,
            notes=form.cleaned_data["notes"],
            default_options=form.cleaned_data["default_options"],
        )

    def picture_view(self, request: HttpRequest, version_id: int) -> HttpResponse:
        """The drawn street with what the version found in it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        stored_name = str(get_object_or_404(ModelVersion, pk=version_id).test_picture.name or "")
        if not stored_name or not default_storage.exists(stored_name):
            raise Http404("This version has no picture.")
        with default_storage.open(stored_name) as content:
            return drawn_picture_response(content.read())

    @admin.display(description="State", ordering="state")
    def coloured_state(self, version: ModelVersion) -> SafeString:
        """The state in its colour."""
        return badge(version.state, STATE_TONES.get(version.state, ""))

    @admin.display
    def classes(self, version: ModelVersion) -> str:
        """What it tells apart."""
        return ", ".join(version.class_names) or "-"

    @admin.display(ordering="weights_bytes")
    def size(self, version: ModelVersion) -> str:
        """Of its weights."""
        return readable_bytes(version.weights_bytes)

    @admin.display(description="Precisions")
    def offered_precisions(self, version: ModelVersion) -> str:
        """Of its arithmetic."""
        return ", ".join(version.precisions) or "-"

    @admin.display(description="Uploaded by")
    def uploaded(self, version: ModelVersion) -> str:
        """Who brought it."""
        return version.uploaded_by.email if version.uploaded_by else "came with the package"

    @admin.display(description="Result")
    def test_result(self, version: ModelVersion) -> str:
        """How the test run went."""
        if version.test_requested_at:
            return "waits for a worker" if not version.test_lease_expires_at else "under way"
        if version.test_error:
            return f"failed: {version.test_error}"
        if not version.test_figures:
            return "not tested here"
        figures = version.test_figures
        found = ", ".join(f"{count} {name}" for name, count in figures["by_class"].items())
        return (
            f"found {figures['found']} of {figures['vehicles']} vehicles, {figures['false']} false "
            f"({found or 'nothing'}), {figures['milliseconds_per_picture']} ms a picture"
        )

    @admin.display
    def picture(self, version: ModelVersion) -> SafeString | str:
        """The first street."""
        if not version.test_picture:
            return "-"
        url = reverse("admin:inference_modelversion_picture", args=[version.pk])
        return format_html('<img class="od-picture" src="{}" alt="Detections">', url)


def _upload(request: HttpRequest, answers: dict[str, Any]) -> ModelVersion:
    options = answers["default_options"] or {}
    if not isinstance(options, dict):
        raise registry.InvalidDefaultsError("The default options must be an object, such as {}.")
    actor = request.user
    assert isinstance(actor, User)
    return registry.upload_model(
        actor=actor,
        model_id=answers["model_id"],
        version=answers["version"],
        content=answers["file"],
        default_options=options,
        notes=answers["notes"],
    )
