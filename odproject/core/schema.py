"""The OpenAPI document of /api/v1/: what drf-spectacular finds, and our errors."""

from collections.abc import Callable
from typing import Any

from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.pagination import PageNumberPagination
from rest_framework.permissions import AllowAny

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="A request sent again under its key, within a day, takes effect once and gets the "
    "first answer again. 409 while the first one is at work, 422 for another request.",
    pattern="^[!-~]{1,200}$",
)
# What a file of a dataset or of a job is sent as.
MEDIA = {
    (200, media_type): OpenApiTypes.BINARY
    for media_type in ("image/*", "video/*", "application/octet-stream")
}
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


# Every refusal that an operation may answer, and when it does. An operation names those of its
# own in its view's `refusals`, or `refusals_of_reads` where the view writes too; the others follow
# from what it is.
REFUSALS = {
    400: "The request is not valid, or makes no sense here.",
    401: "No token, or one that is not valid any more.",
    402: "The balance does not cover it.",
    403: "Not for you, or the dataset is blocked.",
    404: "There is none, or it is somebody else's.",
    409: "It does not fit the state that it meets: a name is taken, a quota is full, a job ended.",
    412: "Not this version of the protocol; `Tus-Version` names the one that is spoken.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    416: "The range lies outside the file.",
    422: "A file that cannot be accepted, or an idempotency key that was used for another request.",
    423: "Another request is at work on it; `Retry-After` says when to come again.",
    429: "Too often; `Retry-After` says when to come again.",
    503: "The service cannot do it now; try again.",
    507: "There is no room to store it.",
}
OF_EVERY_OPERATION = (400, 429, 503)
OF_USERS_ONLY = (401,)
OF_WHAT_IS_NAMED_BY_A_NUMBER = (404,)
OF_WRITES = (401, 409, 413, 415)
OF_WRITES_OF_USERS = (403, 404, 422)


class Schema(AutoSchema):
    """Operations with all that they answer."""

    def get_operation_id(self) -> str:
        """The path in words, with the method: jobs_abort_create."""
        return str(super().get_operation_id())

    def get_tags(self) -> list[str]:
        """Operations are grouped by their resource."""
        return [self.path.split("/")[3]]

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        responses = dict(super()._get_response_bodies(direction))
        if getattr(self.view, "answers_ranges", False):
            responses["206"] = {**responses["200"], "description": "The range that was asked for."}
        for status in self._refusals():
            responses[str(status)] = self._get_response_for_code(
                ProblemSerializer, str(status), media_types=["application/problem+json"]
            ) | {"description": REFUSALS[status]}
        for code, response in responses.items():
            response["headers"] = {**response.get("headers", {}), **_headers(int(code))}
        return dict(sorted(responses.items()))

    def _refusals(self) -> set[int]:
        for_users = AllowAny not in self.view.permission_classes
        writes = self.method not in {"GET", "HEAD"}
        # A view's own refusals are those of what it does, which is to write if it can.
        has_pages = self._is_list_view() and isinstance(
            getattr(self.view, "paginator", None), PageNumberPagination
        )
        is_read_beside_writes = not writes and _can_write(self.view)
        own = "refusals_of_reads" if is_read_beside_writes else "refusals"
        return {
            *OF_EVERY_OPERATION,
            *(OF_USERS_ONLY if for_users else ()),
            *(OF_WHAT_IS_NAMED_BY_A_NUMBER if "{" in self.path or has_pages else ()),
            *(OF_WRITES if writes else ()),
            *(OF_WRITES_OF_USERS if writes and for_users else ()),
            *(
                status
                for one in self.view.permission_classes
                for status in getattr(one, "refuses", ())
            ),
            *((416,) if getattr(self.view, "answers_ranges", False) else ()),
            *getattr(self.view, own, ()),
        }


def _can_write(view: Any) -> bool:
    return any(hasattr(view, method) for method in ("post", "patch", "put", "delete"))


def _headers(status: int) -> dict[str, Any]:
    """The headers that an answer of this status always has."""
    headers = {"X-Request-ID": {"schema": {"type": "string"}, "required": True}}
    if status == 429:
        headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 1}, "required": True}
    return headers


class StrictMembers(OpenApiSerializerExtension):
    """Says of a serializer that refuses other members that it does."""

    target_class = "odproject.core.api.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """The usual schema, closed."""
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        return {**schema, "additionalProperties": False}


class BearerScheme(OpenApiAuthenticationExtension):
    """The button in Swagger that takes an access token or an API key."""

    target_class = "accounts.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        """A JSON web token or an API key in the Authorization header."""
        told = "An access token, or an API key (`odk_...`, see api-keys)."
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": told}
