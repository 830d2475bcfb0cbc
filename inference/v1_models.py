"""Model versions in /api/v1/: which there are, and the way in for new weights."""

import json
from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import generics, serializers
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from inference import registry, selectors
from inference.models import ModelVersion
from inference.planning import default_options
from inference.registry import LONGEST_NAME, NAME_PATTERN
from odproject.core.api import validated
from odproject.core.listing import Pages, StrictFilters


@extend_schema_field({"type": "object", "additionalProperties": True})
class ObjectField(serializers.Field[Any, Any, Any, Any]):
    """A JSON object; a form has none, so there it is a JSON text."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """The object; raises ValidationError (400) for anything else."""
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except (ValueError, RecursionError):
                data = None
        if not isinstance(data, dict):
            raise serializers.ValidationError("This must be a JSON object.", code="invalid")
        return data

    def to_representation(self, value: Any) -> dict[str, Any]:
        """As it is."""
        return dict(value)


class ModelSerializer(serializers.ModelSerializer[ModelVersion]):
    """A model version to choose."""

    class_names = serializers.ListField(
        child=serializers.CharField(), read_only=True, help_text="By class id."
    )
    precisions = serializers.SerializerMethodField(help_text="Of its arithmetic, on offer now.")
    image_size = serializers.SerializerMethodField(
        help_text="Longer side of the network's input in pixels, unless a job sets it."
    )
    default_options = serializers.SerializerMethodField(
        help_text="Options of a detection where a job does not set them."
    )

    class Meta:
        model = ModelVersion
        fields: tuple[str, ...] = (
            "id",
            "model_id",
            "version",
            "class_names",
            "image_size",
            "format",
            "weights_sha256",
            "precisions",
            "default_options",
            "notes",
            "created_at",
        )
        read_only_fields = fields

    def get_image_size(self, version: ModelVersion) -> int:
        """By default."""
        return default_options(version).image_size

    def get_precisions(self, version: ModelVersion) -> list[str]:
        """In which a job would be run."""
        return selectors.offered_precisions(version, ready=self.context.get("ready_precisions"))

    def get_default_options(self, version: ModelVersion) -> dict[str, Any]:
        """Every one of them."""
        return default_options(version).as_json()


class ModelDetailSerializer(ModelSerializer):
    """A model version with its state and its test run."""

    test_figures = serializers.DictField(
        read_only=True,
        help_text="What it found in drawn streets, of how many vehicles, and how much was false.",
    )

    class Meta(ModelSerializer.Meta):
        fields = (
            *ModelSerializer.Meta.fields,
            "state",
            "weights_bytes",
            "tested_at",
            "test_error",
            "test_figures",
        )
        read_only_fields = fields


class UploadModelSerializer(serializers.Serializer[Any]):
    """New weights: an Ultralytics detection checkpoint (.pt) or an ONNX export of one."""

    file = serializers.FileField()
    version = serializers.RegexField(NAME_PATTERN, max_length=LONGEST_NAME)
    model_id = serializers.RegexField(NAME_PATTERN, max_length=LONGEST_NAME, default="YOLO8")
    notes = serializers.CharField(max_length=2000, allow_blank=True, default="")
    default_options = ObjectField(default=dict)


class MayUploadModels(BasePermission):
    """Administrators with the permission to add model versions."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Whether it is one; checkpoints are code, so nobody else may bring one."""
        user = cast(User, request.user)
        return bool(user.is_staff and user.has_perm("inference.add_modelversion"))


class ModelsView(generics.ListAPIView[ModelVersion]):
    """The models that a job may use."""

    serializer_class = ModelSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = ModelVersion.objects.filter(state=ModelVersion.State.ACTIVE).order_by("id")

    def get_serializer_context(self) -> dict[str, Any]:
        """One look at the workers for the whole page."""
        ready = selectors.ready_precisions()
        return {**super().get_serializer_context(), "ready_precisions": ready}

    def get_permissions(self) -> list[Any]:
        """Everybody reads; administrators upload."""
        if self.request is not None and self.request.method == "POST":
            return [IsAuthenticated(), MayUploadModels()]
        return [IsAuthenticated()]

    @extend_schema(
        request={"multipart/form-data": UploadModelSerializer},
        responses={201: ModelDetailSerializer},
    )
    def post(self, request: Request) -> Response:
        """Upload weights as a draft, which a worker tries out; for administrators."""
        keys = validated(UploadModelSerializer, request)
        version = registry.upload_model(
            actor=cast(User, request.user),
            model_id=keys["model_id"],
            version=keys["version"],
            content=keys["file"],
            default_options=keys["default_options"],
            notes=keys["notes"],
        )
        return Response(
            ModelDetailSerializer(version).data,
            status=201,
            headers={"Location": f"/api/v1/models/{version.pk}/"},
        )


class ModelView(APIView):
    """One model version."""

    @extend_schema(responses=ModelDetailSerializer)
    def get(self, request: Request, version_id: int) -> Response:
        """The version: one on offer, or any for administrators who may see them."""
        user = cast(User, request.user)
        versions: QuerySet[ModelVersion] = ModelVersion.objects.all()
        if not (user.is_staff and user.has_perm("inference.view_modelversion")):
            versions = versions.filter(state=ModelVersion.State.ACTIVE)
        found = versions.filter(pk=version_id).first()
        if found is None:
            raise registry.ModelNotFoundError(f"There is no model version {version_id}.")
        return Response(ModelDetailSerializer(found).data)
