"""Users, sessions and events in /api/v1/."""

from typing import Any, cast

from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param
from rest_framework.views import APIView

from accounts import services
from accounts.authentication import SessionRequired
from accounts.models import Event, User
from accounts.presence import Presence
from accounts.selectors import oldest_event_seq
from accounts.serializers import EventSerializer, NewEmailField
from odproject.core.api import client_address, validated
from odproject.core.listing import Pages, StrictFilters, StrictFilterSet, WholeNumberFilter


class UserSerializer(serializers.ModelSerializer[User]):
    """A user as the user sees it."""

    class Meta:
        model = User
        fields = ("id", "email", "is_staff", "created_at")
        read_only_fields = fields


class NewUserSerializer(serializers.Serializer[Any]):
    """What a registration needs."""

    email = NewEmailField()
    password = serializers.CharField(max_length=1024, trim_whitespace=False, write_only=True)


class CredentialsSerializer(serializers.Serializer[Any]):
    """What a log-in needs."""

    email = serializers.CharField(max_length=254)
    password = serializers.CharField(max_length=1024, trim_whitespace=False, write_only=True)


class TokensSerializer(serializers.Serializer[Any]):
    """The tokens of a session: a short one to work with, a long one to get the next pair."""

    access = serializers.CharField(read_only=True)
    refresh = serializers.CharField(read_only=True)


class RefreshSerializer(serializers.Serializer[Any]):
    """A refresh token."""

    refresh = serializers.CharField(max_length=4096)


class TicketSerializer(serializers.Serializer[Any]):
    """A single-use pass for `ws://.../?ticket=`."""

    ticket = serializers.CharField(read_only=True)


class UsersView(APIView):
    """Registration."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(request=NewUserSerializer, responses={201: UserSerializer}, auth=[])
    def post(self, request: Request) -> Response:
        """Register a user, who owns 1000 tokens from the first use on."""
        keys = validated(NewUserSerializer, request)
        user = services.register_user(
            email=keys["email"],
            password=keys["password"],
            confirm_password=keys["password"],
            client_address=client_address(request),
        )
        return Response(UserSerializer(user).data, status=201)


class MeView(APIView):
    """The user who asks."""

    @extend_schema(responses=UserSerializer)
    def get(self, request: Request) -> Response:
        """Who am I?"""
        return Response(UserSerializer(cast(User, request.user)).data)


class TokensView(APIView):
    """Log-in."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(request=CredentialsSerializer, responses={201: TokensSerializer}, auth=[])
    def post(self, request: Request) -> Response:
        """Begin a session; its access token lasts 15 minutes, its refresh token 7 days."""
        tokens = services.log_in(
            **validated(CredentialsSerializer, request),
            client_address=client_address(request),
            access_lifetime=settings.V1_ACCESS_TOKEN_LIFETIME,
        )
        return Response(TokensSerializer(tokens).data, status=201)


class RefreshView(APIView):
    """The next pair of tokens."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(request=RefreshSerializer, responses={201: TokensSerializer}, auth=[])
    def post(self, request: Request) -> Response:
        """Exchange a refresh token, once; used again, it ends the whole session."""
        tokens = services.refresh_session(
            raw_refresh_token=validated(RefreshSerializer, request)["refresh"],
            access_lifetime=settings.V1_ACCESS_TOKEN_LIFETIME,
        )
        return Response(TokensSerializer(tokens).data, status=201)


class RevocationView(APIView):
    """Log-out."""

    permission_classes = (SessionRequired,)

    @extend_schema(request=None, responses={204: None})
    def post(self, request: Request) -> Response:
        """End this session: all its tokens and websockets."""
        services.revoke_session(session_id=cast(Presence, request.auth).by.pk)
        return Response(status=204)


class EventFilters(StrictFilterSet):
    """What the stream can be narrowed by."""

    since = WholeNumberFilter("seq", "gt", help_text="The number of the last event that you know.")

    class Meta:
        model = Event
        fields = {"seq": ["gt"], "kind": ["exact"]}


class EventPages(Pages):
    """Pages of a stream that tell where it begins."""

    def get_paginated_response(self, data: Any) -> Response:
        """A page, and the number of the oldest event as it is after the page was read."""
        answer = super().get_paginated_response(data)
        user = cast(User, cast(Request, self.request).user)
        answer.data["oldest_seq"] = oldest_event_seq(user_id=user.pk)
        return answer

    def get_next_link(self) -> str | None:
        """Where the events after the last one of this page are, by its number.

        Pages are counted from where the stream begins, so what is forgotten there meanwhile would
        have the next one begin too late.
        """
        link, events = super().get_next_link(), list(self.page or ())
        if link is None or not events:
            return None
        return replace_query_param(remove_query_param(link, "page"), "since", events[-1].seq)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """How such a page looks."""
        page = super().get_paginated_response_schema(schema)
        page["properties"]["oldest_seq"] = {
            "type": "integer",
            "description": "Events before this one are kept no more. Who knows the stream less far "
            "than to the one before it has missed some.",
        }
        page["required"].append("oldest_seq")
        return page


class EventsView(generics.ListAPIView[Event]):
    """The user's event stream."""

    serializer_class = EventSerializer
    pagination_class = EventPages
    filter_backends = (StrictFilters,)
    filterset_class = EventFilters
    queryset = Event.objects.none()

    def get_queryset(self) -> QuerySet[Event]:
        """The user's own events of some weeks, oldest first; `since` gives what is new."""
        return Event.objects.filter(user=cast(User, self.request.user)).order_by("seq")


class WebsocketTicketsView(APIView):
    """Passes for browsers, which cannot send a header when they open a websocket."""

    only_reads = True  # a socket tells, takes no orders, and ends with who asked for its ticket

    @extend_schema(request=None, responses={201: TicketSerializer})
    def post(self, request: Request) -> Response:
        """A ticket that opens one websocket within 30 seconds."""
        ticket = services.issue_websocket_ticket(presence=cast(Presence, request.auth))
        return Response(TicketSerializer({"ticket": ticket}).data, status=201)
