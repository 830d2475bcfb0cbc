"""The OpenAPI document of /api/v1/: what drf-spectacular finds, and our errors."""

from collections.abc import Callable
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="A request sent again under its key, within a day, takes effect once and gets the "
    "first answer again. 409 while the first one is at work, 422 for another request.",
    pattern="^[!-~]{1,200}$",
)
Endpoint = tuple[str, str, str, Callable[..., Any]]


class FieldErrorSerializer(serializers.Serializer[Any]):
    """Why one field was refused."""

    field = serializers.CharField()
    code = serializers.CharField()
    detail = serializers.CharField()


class ProblemSerializer(serializers.Serializer[Any]):
    """An RFC 9457 problem document."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField(help_text="Stable; programs decide by it.")
    name = serializers.CharField(help_text="The error's name in the original API.")
    message = serializers.CharField(help_text="The detail, for clients of the original API.")
    errors = FieldErrorSerializer(many=True, required=False)  # type: ignore[assignment]


def only_v1(endpoints: list[Endpoint], **_: Any) -> list[Endpoint]:
    """Leave out the original API, whose contract is a document of its own.

    Our routes answer with and without their trailing slash; the document names them with it.
    """
    return [
        (path.replace("/?", "/"), regex, method, callback)
        for path, regex, method, callback in endpoints
        if path.startswith("/api/v1/")
    ]


class Schema(AutoSchema):
    """Every operation may answer with a problem document."""

    def get_operation_id(self) -> str:
        """The path in words, with the method: jobs_abort_create."""
        return str(super().get_operation_id())

    def get_tags(self) -> list[str]:
        """Operations are grouped by their resource."""
        return [self.path.split("/")[3]]

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        responses = super()._get_response_bodies(direction)
        refusals = {"default": "A refusal, or a fault of the service."}
        for status, description in refusals.items():
            responses.setdefault(
                status,
                self._get_response_for_code(
                    ProblemSerializer, status, media_types=["application/problem+json"]
                )
                | {"description": description},
            )
        return dict(responses)


class BearerScheme(OpenApiAuthenticationExtension):
    """The button in Swagger that takes an access token."""

    target_class = "accounts.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        """A JSON web token in the Authorization header."""
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
