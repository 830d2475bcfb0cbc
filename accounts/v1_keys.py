"""API keys in /api/v1/."""

from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import api_keys, selectors, services
from accounts.authentication import SessionRequired
from accounts.models import ApiKey, Session, User
from odproject.core.api import StrictSerializer, validated
from odproject.core.listing import Pages, StrictFilters
from odproject.core.text import readable

LONGEST_NAME = 60
MOST_REQUESTS_PER_MINUTE = 1_000_000


class ApiKeySerializer(serializers.ModelSerializer[ApiKey]):
    """An API key without its secret, which is told once."""

    is_living = serializers.BooleanField(
        read_only=True, help_text="Neither revoked nor expired: it opens what it is for."
    )
    requests_per_minute = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="null: as many as its user may send."
    )
    last_used_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="To the minute."
    )

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            "id",
            "name",
            "prefix",
            "is_living",
            "is_read_only",
            "requests_per_minute",
            "created_at",
            "expires_at",
            "last_used_at",
            "revoked_at",
        )
        read_only_fields = fields


class MadeApiKeySerializer(ApiKeySerializer):
    """An API key that was just made, with its text."""

    key = serializers.CharField(
        read_only=True, help_text="To be sent as `Authorization: Bearer <key>`; told only here."
    )

    class Meta(ApiKeySerializer.Meta):
        fields = (*ApiKeySerializer.Meta.fields, "key")
        read_only_fields = fields


class NameOfKeyField(serializers.CharField):
    """What a user knows a key by."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=LONGEST_NAME, validators=[readable], **options)


class RateField(serializers.IntegerField):
    """Requests a minute, at most what the user may send; null is as many."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            min_value=1, max_value=MOST_REQUESTS_PER_MINUTE, allow_null=True, **options
        )


class NewApiKeySerializer(StrictSerializer):
    """What a new key needs, and may have."""

    name = NameOfKeyField(help_text="Unique among your keys that are not revoked.")
    expires_at = serializers.DateTimeField(
        allow_null=True, default=None, help_text="null: when it is revoked."
    )
    is_read_only = serializers.BooleanField(
        default=False, help_text="GET, HEAD and OPTIONS only, and quotes and websocket tickets."
    )
    requests_per_minute = RateField(default=None)


class ChangeApiKeySerializer(StrictSerializer):
    """What may change of a key."""

    name = NameOfKeyField(required=False)
    is_read_only = serializers.BooleanField(required=False)
    requests_per_minute = RateField(required=False)


class ApiKeysView(generics.ListAPIView[ApiKey]):
    """The user's API keys."""

    permission_classes = (SessionRequired,)
    serializer_class = ApiKeySerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = ApiKey.objects.none()

    def get_queryset(self) -> QuerySet[ApiKey]:
        """Living ones first, then the newest."""
        return selectors.api_keys_of(user=cast(User, self.request.user))

    @extend_schema(request=NewApiKeySerializer, responses={201: MadeApiKeySerializer})
    def post(self, request: Request) -> Response:
        """Make a key for a program, which may do with it what you may with data, jobs and tokens.

        It makes no keys, ends no sessions and has no powers of administrators. A new password
        revokes all keys.
        """
        session = cast(Session, cast(Any, request.auth).session)
        keys = validated(NewApiKeySerializer, request)
        key, text = api_keys.create_api_key(session=session, **keys)
        made = selectors.api_key_by_id(user=session.user, key_id=key.pk)
        return Response(
            {**ApiKeySerializer(made).data, "key": text},
            status=201,
            headers={"Location": f"/api/v1/api-keys/{key.pk}/", "Cache-Control": "no-store"},
        )


class ApiKeyView(APIView):
    """One API key."""

    permission_classes = (SessionRequired,)

    @extend_schema(responses=ApiKeySerializer)
    def get(self, request: Request, key_id: int) -> Response:
        """The key without its secret."""
        key = selectors.api_key_by_id(user=cast(User, request.user), key_id=key_id)
        return Response(ApiKeySerializer(key).data)

    @extend_schema(request=ChangeApiKeySerializer, responses=ApiKeySerializer)
    def patch(self, request: Request, key_id: int) -> Response:
        """Change its name or what it may do; when it expires stays as it was made."""
        user = cast(User, request.user)
        changes = validated(ChangeApiKeySerializer, request)
        api_keys.change_api_key(user=user, key_id=key_id, changes=changes)
        return Response(ApiKeySerializer(selectors.api_key_by_id(user=user, key_id=key_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, key_id: int) -> Response:
        """Revoke the key, for ever; its websockets close. The list keeps it for 90 days."""
        user = cast(User, request.user)
        key = selectors.api_key_by_id(user=user, key_id=key_id)
        services.revoke_api_key(key_id=key.pk, by=user)
        return Response(status=204)
