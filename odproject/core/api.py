"""What every view shares: strict JSON, one renderer of errors, keys from body or query."""

import codecs
import functools
import io
import ipaddress
import logging
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.core.exceptions import (
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFieldsSent,
    TooManyFilesSent,
)
from django.db import DatabaseError, InterfaceError
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse, QueryDict
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions, serializers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import DataAndFiles, FormParser, JSONParser, MultiPartParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from odproject.core.errors import DomainError, FieldError
from odproject.core.sqlstates import is_away
from odproject.core.text import printable

logger = logging.getLogger(__name__)
PROBLEM_CONTENT_TYPE = "application/problem+json"

# (name, code, title) of a refusal that comes from the framework rather than from our services.
FRAMEWORK_ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("BadRequestError", "bad_request", "Bad request"),
    401: ("UnauthorizedError", "unauthorized", "Unauthorized"),
    403: ("ForbiddenError", "forbidden", "Forbidden"),
    404: ("NotFoundError", "not_found", "Not found"),
    405: ("MethodNotAllowedError", "method_not_allowed", "Method not allowed"),
    406: ("NotAcceptableError", "not_acceptable", "Not acceptable"),
    413: ("PayloadTooLargeError", "payload_too_large", "Payload too large"),
    415: ("UnsupportedMediaTypeError", "unsupported_media_type", "Unsupported media type"),
    416: ("RangeNotSatisfiableError", "range_not_satisfiable", "Range not satisfiable"),
    429: ("TooManyRequestsError", "too_many_requests", "Too many requests"),
    500: ("InternalServerError", "internal_error", "Internal server error"),
    503: ("ServiceUnavailableError", "service_unavailable", "Service unavailable"),
}


_ENCODINGS_OF_FORMS = frozenset(("utf-8", "iso8859-1", "ascii"))
_REPLACED = "\N{REPLACEMENT CHARACTER}"
# For programs that send a file without its name, which makes it a field like the others.
_NAMED_FILE = "A file is sent as a part with a filename."


class StrictJSONParser(JSONParser):
    """JSON whose top level is an object, refused with 400 whatever else it is."""

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Parse an object; raises ParseError on anything else, too deep a nesting included."""
        try:
            parsed = super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise exceptions.ParseError("The JSON document is nested too deeply.") from error
        if not isinstance(parsed, dict):
            raise exceptions.ParseError("The JSON document must be an object.")
        return parsed


class StrictFormParser(FormParser):
    """A form in UTF-8, or the charset that it declares; other bytes are refused with 400.

    They would be replaced: two passwords that differ in such a byte would be one.
    """

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Parse a form; raises ParseError."""
        body = stream.read()
        encoding = _encoding_of_form(parser_context)
        try:
            unquote_to_bytes(body).decode(encoding)
        except UnicodeDecodeError as error:
            raise exceptions.ParseError(f"The fields of the form must be {encoding}.") from error
        return super().parse(io.BytesIO(body), media_type, parser_context)


class StrictMultiPartParser(MultiPartParser):
    """A form with files, whose fields are in its charset; names of files may be anything."""

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> "DataAndFiles[Any, Any]":
        """Parse a form; raises ParseError."""
        encoding = _encoding_of_form(parser_context)
        parsed = super().parse(stream, media_type, parser_context)
        # Django has replaced what it could not read.
        texts = (text for key, values in parsed.data.lists() for text in (key, *values))
        if any(_REPLACED in text for text in texts):
            detail = f"The fields of the form must be {encoding}. {_NAMED_FILE}"
            raise exceptions.ParseError(detail)
        return parsed


def _encoding_of_form(parser_context: Mapping[str, Any] | None) -> str:
    """What a form says it is written in, UTF-8 if nothing; raises ParseError for what is odd."""
    declared = str((parser_context or {}).get("encoding") or settings.DEFAULT_CHARSET)
    encoding = codecs.lookup(declared).name  # Django has passed over one that nobody knows
    if encoding not in _ENCODINGS_OF_FORMS:
        raise exceptions.ParseError(f"Forms are UTF-8 or ISO-8859-1, not {declared}.")
    return encoding


class LenientNegotiation(DefaultContentNegotiation):
    """Answers in the view's first format where the client asks for one that it does not have.

    The original API never looked at `Accept` or at a query parameter `format`: whoever fetches
    the zip with `Accept: application/zip` gets the zip, and a browser's text/html gets JSON.
    """

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """The renderer to use and the media type that it writes."""
        known = list(renderers)
        try:
            return super().select_renderer(request, known, format_suffix)
        except (exceptions.NotAcceptable, Http404):
            return known[0], str(known[0].media_type)


def problem(
    *,
    status: int,
    code: str,
    title: str,
    name: str,
    detail: str,
    errors: tuple[FieldError, ...] = (),
) -> dict[str, Any]:
    """An RFC 9457 problem document with the members `name` and `message` of the original API."""
    document: dict[str, Any] = {
        "type": f"urn:odproject:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "name": name,
        "message": detail,
    }
    if errors:
        document["errors"] = [
            {"field": error.field, "code": error.code, "detail": error.detail} for error in errors
        ]
    return document


def domain_problem(error: DomainError, request: Any = None) -> dict[str, Any]:
    """The problem document of a refusal by one of our services.

    Fields have the names of the request's own API: services say `model_version`, which the
    original API's clients know as `modelVersion`.
    """
    is_v1 = request is None or request.path.startswith("/api/v1/")
    errors = tuple(
        one if is_v1 else replace(one, field=_in_camel_case(one.field)) for one in error.errors
    )
    document = problem(
        status=error.status,
        code=error.code,
        title=error.title,
        name=error.name,
        detail=error.detail,
        errors=errors,
    )
    return {**error.members, **document}


def _in_camel_case(field: str) -> str:
    return re.sub(r"_([a-z])", lambda letter: letter[1].upper(), field)


def framework_problem(status: int, detail: str = "", **members: Any) -> dict[str, Any]:
    """The problem document of a refusal by the framework."""
    name, code, title = FRAMEWORK_ERRORS.get(status, FRAMEWORK_ERRORS[400])
    members = {"name": name, "code": code, "title": title, **members}
    return problem(status=status, detail=detail or f"{title}.", **members)


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Render whatever a view raised; None lets an unexpected error become a logged 500."""
    document = _document_of(error, context)
    if document is None:
        return None
    return Response(
        document,
        status=document["status"],
        headers=_headers_of(error),
        content_type=PROBLEM_CONTENT_TYPE,
    )


def _document_of(error: Exception, context: Mapping[str, Any]) -> dict[str, Any] | None:
    document = None
    match error:
        case DomainError():
            document = domain_problem(error, context.get("request"))
        case exceptions.ValidationError():
            document = _validation_problem(error)
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            document = framework_problem(401, _authentication_detail(error))
        case exceptions.APIException():
            document = framework_problem(error.status_code, str(error.detail))
        case Http404():
            document = framework_problem(404)
        case PermissionDenied():
            document = framework_problem(403)
        case RequestDataTooBig():
            detail = f"The fields of the request are too large. {_NAMED_FILE}"
            document = framework_problem(413, detail)
        case TooManyFieldsSent() | TooManyFilesSent():
            document = framework_problem(400, "The request has too many fields or files.")
        case SuspiciousOperation():
            document = framework_problem(400, str(error))
        case DatabaseError() | InterfaceError() if is_away(error):
            logger.error("The database did not answer: %s", error)
            document = framework_problem(503, _away_detail(context.get("request")))
    return document


def _headers_of(error: Exception) -> dict[str, str]:
    match error:
        case DomainError() if error.retry_after_seconds is not None:
            return {"Retry-After": str(error.retry_after_seconds)}
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return {"WWW-Authenticate": "Bearer"}
        case exceptions.Throttled():
            return {"Retry-After": str(max(1, math.ceil(getattr(error, "wait", None) or 1)))}
        case DatabaseError() | InterfaceError() if is_away(error):
            return {"Retry-After": "2"}
    return {}


def _validation_problem(error: exceptions.ValidationError) -> dict[str, Any]:
    errors = tuple(_field_errors(error.get_full_details()))
    return framework_problem(
        400,
        " ".join(f"{e.field}: {e.detail}" for e in errors),
        errors=errors,
        name="ValidationError",
        code="validation_error",
        title="The request is not valid",
    )


def _away_detail(request: Any) -> str:
    """What a client should know when the database went away: a lost answer may hide a success."""
    if request is not None and request.method in {"GET", "HEAD", "OPTIONS"}:
        return "The database does not answer; please try again."
    return (
        "The database does not answer. Whether the request took effect is not certain: "
        "look before you repeat it."
    )


def _authentication_detail(error: exceptions.APIException) -> str:
    detail: Any = error.detail
    if isinstance(detail, dict):  # simplejwt wraps its sentence
        detail = detail.get("detail", "")
    return str(detail) or "Authentication credentials were not provided."


def _field_errors(details: Any, path: str = "") -> list[FieldError]:
    """Flatten REST framework's nested details into one entry per reason."""
    if isinstance(details, dict):
        message = details.get("message")
        if isinstance(message, str):  # else it is the name of a field
            code = str(details.get("code") or "invalid")
            return [FieldError(path or "non_field_errors", code, str(message))]
        return [
            found
            for key, value in details.items()
            for found in _field_errors(value, f"{path}.{key}" if path else str(key))
        ]
    return [found for value in details for found in _field_errors(value, path)]


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses members that it does not know: one that was misspelled would be none."""

    def to_internal_value(self, data: Any) -> Any:
        """The members as values; raises ValidationError."""
        if unknown := sorted(set(data) - set(self.fields)):
            raise serializers.ValidationError({printable(unknown[0]): ["There is no such member."]})
        return super().to_internal_value(data)


SerializerType = TypeVar("SerializerType", bound=serializers.Serializer[Any])


def request_keys(request: Request, *, lists: Collection[str] = ()) -> dict[str, Any]:
    """The keys of a request: from its body and, where a browser cannot send one, its query.

    The body wins where both name a key. Of a key that a form repeats the last one wins, but for
    those that are `lists`, which have no other way to come by a form.
    """
    body = request.data
    keys = {key: body[key] for key in body} if isinstance(body, Mapping) else {}
    if isinstance(body, QueryDict):
        keys |= {key: body.getlist(key) for key in lists if key in body}
    if request.method in {"GET", "HEAD", "DELETE"}:
        keys = {**request.query_params.dict(), **keys}
    return keys


def validated(serializer_class: type[SerializerType], request: Request) -> dict[str, Any]:
    """The request's keys as the serializer understands them; raises ValidationError (400)."""
    serializer = serializer_class()
    serializer.initial_data = request_keys(request, lists=_lists(serializer))
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def validated_query(serializer_class: type[SerializerType], request: Request) -> dict[str, Any]:
    """The parameters of a question as the serializer understands them; lists are repeated.

    Raises ValidationError (400), also for one that it does not know: ignored it would look like an
    answer.
    """
    query = request.query_params
    serializer = serializer_class()
    if unknown := sorted(set(query) - set(serializer.fields)):
        raise serializers.ValidationError({unknown[0]: ["There is no such parameter."]})
    repeated = {name: query.getlist(name) for name in _lists(serializer) if name in query}
    serializer.initial_data = query.dict() | repeated
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def _lists(serializer: serializers.Serializer[Any]) -> list[str]:
    fields = serializer.fields.items()
    return [name for name, field in fields if isinstance(field, serializers.ListField)]


def client_address(request: Request | HttpRequest) -> str:
    """The network address that a request comes from; of IPv6 the network, which one owner has.

    `X-Forwarded-For` counts only as far as our own proxies wrote it (OD_NUM_PROXIES): what
    stands before was written by the client, who may write anything.
    """
    address = request.META.get("REMOTE_ADDR", "")
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
    if settings.NUM_PROXIES and forwarded:
        hops = forwarded.split(",")
        address = _without_port(hops[-min(settings.NUM_PROXIES, len(hops))].strip())
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return str(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _without_port(address: str) -> str:
    """The address alone, where a proxy writes the port that it was connected from behind it."""
    found = re.fullmatch(r"\[(.+)\](?::\d+)?|([0-9.]+):\d+", address)
    return address if found is None else found[1] or found[2]


def plain_problem(status: int) -> JsonResponse:
    """A refusal that says what every refusal of its status says."""
    return _problem_response(framework_problem(status), {})


def _problem_response(document: dict[str, Any], headers: dict[str, str]) -> JsonResponse:
    return JsonResponse(
        document, status=document["status"], headers=headers, content_type=PROBLEM_CONTENT_TYPE
    )


def only_read(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Have a view answer GET and HEAD only; every other method gets a problem document (405)."""

    @functools.wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method in {"GET", "HEAD"}:
            return view(request, *args, **kwargs)
        refusal = plain_problem(405)
        refusal["Allow"] = "GET, HEAD"
        return refusal

    return csrf_exempt(answer)  # a method that is not there needs no token to be told so


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler400, as a problem document."""
    return plain_problem(400)


def permission_denied(request: HttpRequest, exception: Exception) -> JsonResponse:
    """A request that is not for its asker, as a problem document."""
    return plain_problem(403)


def page_not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """An address at which there is nothing, as a problem document."""
    return plain_problem(404)


def server_error(request: HttpRequest) -> JsonResponse:
    """Django's handler500, as a problem document without a word of what happened inside.

    A database that is away is a 503 here too: the admin's pages are no views of REST framework.
    """
    match sys.exc_info()[1]:  # Django asks while it handles it
        case DatabaseError() | InterfaceError() as error if is_away(error):
            document = framework_problem(503, _away_detail(request))
            return _problem_response(document, _headers_of(error))
    return plain_problem(500)
