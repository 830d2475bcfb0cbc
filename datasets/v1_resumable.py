"""Resumable uploads in /api/v1/: the protocol of tus 1.0.0, and JSON beside it."""

import base64
import re
from pathlib import PurePosixPath
from typing import Any, cast

from django.conf import settings
from django.db.models import QuerySet
from django.utils.http import http_date
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import exceptions, generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import answered_once
from datasets import selectors
from datasets.models import ResumableUpload
from datasets.resumable import (
    append_bytes,
    create_resumable_upload,
    finish_resumable_upload,
    give_up_resumable_upload,
)
from odproject.core.environ import LATER
from odproject.core.errors import DomainError, FieldError
from odproject.core.listing import Pages, StrictFilters
from odproject.core.schema import IDEMPOTENCY_KEY
from odproject.core.text import printable

TUS_VERSION = "1.0.0"
EXTENSIONS = "creation,expiration,termination"
OFFSET_STREAM = "application/offset+octet-stream"
UNNAMED = "upload"
PIECE_BYTES = 64 * 1024  # from here on bytes do not count as a request
_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_METADATA_KEY = re.compile(r"[!-+\--~]{1,200}", re.ASCII)  # printable, no space and no comma


def _header(name: str, description: str, **options: Any) -> OpenApiParameter:
    return OpenApiParameter(
        name, str, OpenApiParameter.HEADER, required=True, description=description, **options
    )


TUS_RESUMABLE = _header("Tus-Resumable", "The version of the protocol.", enum=[TUS_VERSION])
UPLOAD_LENGTH = _header("Upload-Length", "Bytes of the whole file.", pattern="^[0-9]{1,18}$")
UPLOAD_OFFSET = _header("Upload-Offset", "Bytes before these ones.", pattern="^[0-9]{1,18}$")
UPLOAD_METADATA = OpenApiParameter(
    "Upload-Metadata",
    str,
    OpenApiParameter.HEADER,
    description="Pairs of a key and its value in base64, separated by commas; `filename` is how "
    "the file will be called.",
)


class InvalidHeaderError(DomainError):
    """A header of the protocol is missing, or says what cannot be."""

    code = "invalid_header"
    title = "Invalid header"

    @classmethod
    def of(cls, name: str, detail: str) -> "InvalidHeaderError":
        """The refusal of one header."""
        return cls(f"{name}: {detail}", errors=(FieldError(name, cls.code, detail),))


class UnsupportedVersionError(DomainError):
    """The client speaks another version of the protocol, or does not say which."""

    status = 412
    code = "unsupported_tus_version"
    title = "Not this version of the protocol"


class ResumableUploadSerializer(serializers.ModelSerializer[ResumableUpload]):
    """A file that arrives piece by piece."""

    state = serializers.ChoiceField(choices=ResumableUpload.State.choices, read_only=True)
    offset_bytes = serializers.SerializerMethodField(help_text="So many have arrived.")
    upload_id = serializers.IntegerField(read_only=True, allow_null=True)
    upload_url = serializers.SerializerMethodField(
        help_text="Where its report is, once it was accepted."
    )

    class Meta:
        model = ResumableUpload
        fields = (
            "id",
            "dataset_id",
            "file_name",
            "state",
            "offset_bytes",
            "length_bytes",
            "expires_at",
            "upload_id",
            "upload_url",
            "created_at",
        )
        read_only_fields = fields

    def get_offset_bytes(self, found: ResumableUpload) -> int:
        """What its disk has, too."""
        return selectors.received_bytes(found)

    def get_upload_url(self, found: ResumableUpload) -> str | None:
        """The address of the report."""
        return None if found.upload_id is None else _report_address(found)


class TusView(APIView):
    """What every answer of the protocol has; questions by GET need no version."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse other versions with UnsupportedVersionError (412)."""
        super().initial(request, *args, **kwargs)
        spoken = request.headers.get("Tus-Resumable", "")
        if request.method not in {"GET", "OPTIONS"} and spoken != TUS_VERSION:
            raise UnsupportedVersionError(
                f"Tus-Resumable must be {TUS_VERSION}, not '{printable(spoken)}'."
            )

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """What the service can do of the protocol."""
        return Response(
            status=204,
            headers={
                "Tus-Version": TUS_VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Max-Size": str(settings.MAX_UPLOAD_BYTES),
            },
        )

    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        """Name the version, whatever the answer is."""
        response["Tus-Resumable"] = TUS_VERSION
        if response.status_code == UnsupportedVersionError.status:
            response["Tus-Version"] = TUS_VERSION
        return super().finalize_response(request, response, *args, **kwargs)


class ResumableUploadsView(TusView, generics.ListAPIView[ResumableUpload]):
    """Files that arrive piece by piece, by the protocol tus 1.0.0."""

    refusals = (412, 507)

    serializer_class = ResumableUploadSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = ResumableUpload.objects.none()

    def get_queryset(self) -> QuerySet[ResumableUpload]:
        """The unfinished ones of the user's dataset, newest first.

        Raises DatasetNotFoundError (404).
        """
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        user = cast(User, self.request.user)
        dataset = selectors.dataset_by_id(user=user, dataset_id=self.kwargs["dataset_id"])
        return selectors.unfinished_uploads(user=user).filter(dataset=dataset).order_by("-id")

    @extend_schema(
        parameters=[TUS_RESUMABLE, UPLOAD_LENGTH, UPLOAD_METADATA, IDEMPOTENCY_KEY],
        request=None,
        responses={201: ResumableUploadSerializer},
    )
    def post(self, request: Request, dataset_id: int) -> Response:
        """Begin a file of a known length; `Location` is where its bytes go by PATCH.

        Nothing is charged before the last byte has arrived, and an unfinished one is removed a day
        after its last byte. The promised length counts to the quota of stored bytes. OPTIONS tells
        what is supported of the protocol, HEAD at the `Location` how much has arrived.
        """
        length_bytes = _length(request)
        metadata = request.headers.get("Upload-Metadata", "")
        file_name = _file_name(metadata)

        def create() -> Response:
            created = create_resumable_upload(
                user=cast(User, request.user),
                dataset_id=dataset_id,
                length_bytes=length_bytes,
                file_name=file_name,
                metadata=metadata,
            )
            return Response(
                ResumableUploadSerializer(created).data,
                status=201,
                headers={
                    "Location": f"/api/v1/datasets/{dataset_id}/resumable-uploads/{created.pk}/",
                    "Upload-Expires": http_date(created.expires_at.timestamp()),
                },
            )

        said = {"length_bytes": length_bytes, "metadata": metadata}
        return answered_once(request, create, said=said)


class ResumableUploadView(TusView):
    """One file that arrives piece by piece."""

    refusals = (402, 412, 423, 507)

    def get_throttles(self) -> list[BaseThrottle]:
        """None for a piece: a large file is many requests, and none too many.

        A few bytes are no piece, or there were no limit for who sends nothing else. A request that
        is called again was let in before.
        """
        is_piece = self.request.method == "PATCH" and _body_bytes(self.request) >= PIECE_BYTES
        return [] if is_piece or _is_called_again(self.request) else super().get_throttles()

    @extend_schema(responses=ResumableUploadSerializer)
    def get(self, request: Request, dataset_id: int, resumable_upload_id: int) -> Response:
        """How far it is, and where its report is once it was accepted."""
        return Response(ResumableUploadSerializer(self._found(request)).data)

    def head(self, request: Request, dataset_id: int, resumable_upload_id: int) -> Response:
        """Where to go on: behind what has arrived, but a byte earlier where all of it has.

        The last byte of a file that was not accepted yet may come again, and has it tried again.
        """
        found = self._found(request)
        headers = {
            **_progress(found),
            "Upload-Offset": str(selectors.next_offset_bytes(found)),
            "Upload-Length": str(found.length_bytes),
            "Cache-Control": "no-store",
        }
        if found.metadata:
            headers["Upload-Metadata"] = found.metadata
        return Response(headers=headers)

    @extend_schema(
        parameters=[TUS_RESUMABLE, UPLOAD_OFFSET],
        request={OFFSET_STREAM: OpenApiTypes.BINARY},
        responses={204: OpenApiResponse(description="`Upload-Offset` tells how much has arrived.")},
    )
    def patch(self, request: Request, dataset_id: int, resumable_upload_id: int) -> Response:
        """Add bytes at the end; also those count that come before a connection breaks.

        With the last ones the file is taken in and charged as every upload, and `Location` is its
        report. If that is refused for want of tokens, of room or of a quota, the bytes stay, and a
        PATCH of nothing at their end tries again; they go if the file itself is at fault.
        """
        if (request.content_type or "").partition(";")[0].strip().lower() != OFFSET_STREAM:
            raise exceptions.UnsupportedMediaType(
                request.content_type or "", f"Bytes are sent as {OFFSET_STREAM}."
            )
        user = cast(User, request.user)
        if not _is_called_again(request):
            found = append_bytes(
                user=user,
                dataset_id=dataset_id,
                resumable_upload_id=resumable_upload_id,
                offset_bytes=_whole_number(request, "Upload-Offset"),
                length_bytes=_body_bytes(request),
                read=request._request.read,
            )
            if found.state != ResumableUpload.State.RECEIVED:
                return Response(status=204, headers=_progress(found))
            if LATER in request.META:
                # The thread is one of those that copy pieces, and inspecting takes minutes.
                request.META[LATER] = "upload"
                return Response(status=204)
        found = finish_resumable_upload(
            user=user, dataset_id=dataset_id, resumable_upload_id=resumable_upload_id
        )
        return Response(status=204, headers=_progress(found))

    @extend_schema(parameters=[TUS_RESUMABLE], responses={204: None})
    def delete(self, request: Request, dataset_id: int, resumable_upload_id: int) -> Response:
        """Give it up and forget what has arrived; 409 if it was accepted."""
        give_up_resumable_upload(
            user=cast(User, request.user),
            dataset_id=dataset_id,
            resumable_upload_id=resumable_upload_id,
        )
        return Response(status=204)

    def _found(self, request: Request) -> ResumableUpload:
        return selectors.resumable_upload_by_id(user=cast(User, request.user), **self.kwargs)


def _progress(found: ResumableUpload) -> dict[str, str]:
    """The headers of an upload that goes on, or has come to its end."""
    headers = {
        "Upload-Offset": str(found.offset_bytes),
        "Upload-Expires": http_date(found.expires_at.timestamp()),
    }
    return headers if found.upload_id is None else {**headers, "Location": _report_address(found)}


def _report_address(found: ResumableUpload) -> str:
    return f"/api/v1/datasets/{found.dataset_id}/uploads/{found.upload_id}/"


def _is_called_again(request: Request) -> bool:
    """Whether it asked for other threads when all bytes were there, and only ends now."""
    return bool(request.META.get(LATER))


def _body_bytes(request: Request) -> int:
    """How long the body is, which the server has in a file; also of one that announced nothing."""
    return int(request.META.get("CONTENT_LENGTH") or 0)


def _length(request: Request) -> int:
    """The length of the file that is to come; raises InvalidHeaderError (400)."""
    if "Upload-Defer-Length" in request.headers:
        detail = "A length that comes later is not supported; send Upload-Length at once."
        raise InvalidHeaderError.of("Upload-Defer-Length", detail)
    length_bytes = _whole_number(request, "Upload-Length")
    if not length_bytes:
        raise InvalidHeaderError.of("Upload-Length", "The file is empty.")
    return length_bytes


def _whole_number(request: Request, name: str) -> int:
    """A header that is a number of bytes; raises InvalidHeaderError (400)."""
    text = request.headers.get(name)
    if text is None:
        raise InvalidHeaderError.of(name, "The header is missing.")
    if not _WHOLE_NUMBER.fullmatch(text):
        raise InvalidHeaderError.of(name, "A whole number of at most 18 digits is needed.")
    return int(text)


def _file_name(metadata: str) -> str:
    """What the metadata call the file, without folders; raises InvalidHeaderError (400)."""
    longest = ResumableUpload._meta.get_field("metadata").max_length or 0
    if len(metadata) > longest:
        raise InvalidHeaderError.of("Upload-Metadata", f"At most {longest} characters are kept.")
    values: dict[str, bytes] = {}
    try:
        for pair in metadata.split(",") if metadata else ():
            key, _, value = pair.strip().partition(" ")
            if not _METADATA_KEY.fullmatch(key) or key in values:
                detail = "Each pair begins with a key of its own, in ASCII and without spaces."
                raise InvalidHeaderError.of("Upload-Metadata", detail)
            values[key] = base64.b64decode(value, validate=True)
        name = values.get("filename", b"").decode()
    except ValueError as error:
        detail = "Values must be base64, and that of filename UTF-8 in it."
        raise InvalidHeaderError.of("Upload-Metadata", detail) from error
    last = printable(PurePosixPath(name.replace("\\", "/")).name)[-255:]
    return UNNAMED if last in {"", ".."} else last
