"""Webhooks in /api/v1/."""

from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import selectors, webhooks
from accounts.authentication import SessionRequired
from accounts.models import EVENT_KINDS, User, Webhook
from odproject.core.api import StrictSerializer, validated
from odproject.core.listing import Pages, StrictFilters
from odproject.core.outbound import MAX_URL_LENGTH

TOLD_ONCE = {"Cache-Control": "no-store"}


class WebhookSerializer(serializers.ModelSerializer[Webhook]):
    """A webhook and how its deliveries go. The secret is told when it is made, and never again."""

    kinds = serializers.ListField(child=serializers.CharField(), read_only=True)
    active = serializers.SerializerMethodField()
    off_by_administrator = serializers.SerializerMethodField()
    backlog = serializers.IntegerField(
        read_only=True,
        help_text="How many events of the stream come after the last one that was delivered; where "
        "the webhook is off, also those that are not kept any more.",
    )

    class Meta:
        model = Webhook
        fields: tuple[str, ...] = (
            "id",
            "url",
            "kinds",
            "created_at",
            "active",
            "off_since",
            "off_reason",
            "off_by_administrator",
            "backlog",
            "last_attempt_at",
            "last_status",
            "last_error",
            "consecutive_failures",
            "next_attempt_at",
        )
        read_only_fields = fields
        extra_kwargs = {
            "last_status": {"help_text": "Of the last answer; null where there was none."},
            "last_error": {"help_text": "Why the last attempt failed; empty where it did not."},
        }

    def get_active(self, webhook: Webhook) -> bool:
        """Whether events are sent; where they are not, `off_reason` says why."""
        return webhook.off_since is None

    def get_off_by_administrator(self, webhook: Webhook) -> bool:
        """Whether only an administrator switches it on again."""
        return webhook.off_by_id is not None


class WebhookWithSecretSerializer(WebhookSerializer):
    """A webhook with its new secret."""

    class Meta(WebhookSerializer.Meta):
        fields = (*WebhookSerializer.Meta.fields, "secret")
        read_only_fields = fields


class KindsField(serializers.ListField):
    """Kinds of events."""

    child = serializers.ChoiceField(choices=EVENT_KINDS)

    def __init__(self, **options: Any) -> None:
        help_text = "What is sent: events of these kinds, or of all where none is named."
        super().__init__(max_length=len(EVENT_KINDS), help_text=help_text, **options)


class NewWebhookSerializer(StrictSerializer):
    """What a webhook needs."""

    url = serializers.CharField(
        max_length=MAX_URL_LENGTH,
        help_text="https, a public host, port 443 or from 1025; no user name, no fragment.",
    )
    kinds = KindsField(required=False)


class ChangeWebhookSerializer(StrictSerializer):
    """What may change of a webhook."""

    url = serializers.CharField(max_length=MAX_URL_LENGTH, required=False)
    kinds = KindsField(required=False)
    active = serializers.BooleanField(
        required=False, help_text="Switched on again, it goes on after the last delivered event."
    )
    from_now = serializers.BooleanField(
        required=False, help_text="Pass over the events that wait, for good."
    )


class WebhooksView(generics.ListAPIView[Webhook]):
    """The user's webhooks."""

    permission_classes = (SessionRequired,)
    serializer_class = WebhookSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = Webhook.objects.none()

    def get_queryset(self) -> QuerySet[Webhook]:
        """The user's own, oldest first."""
        return selectors.webhooks_of(user=cast(User, self.request.user)).order_by("pk")

    @extend_schema(request=NewWebhookSerializer, responses={201: WebhookWithSecretSerializer})
    def post(self, request: Request) -> Response:
        """Have the events of your stream POSTed to an address, from the next one on.

        Each event is a POST of what `/api/v1/events/` tells of it: `seq`, `kind`, `payload` and
        `created_at`, in JSON. The progress of a job is no event and is not sent. They come one by
        one in the order of `seq`, each after the one before was answered by 2xx in time (10 seconds
        by default); so an event may come twice, under the same `webhook-id`, and none is left out
        while the webhook is on. For one that is off nothing is kept longer than for
        `/api/v1/events/`.

        It is signed by the Standard Webhooks specification: `webhook-signature` holds `v1,` and
        the base64 of the HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`, under the
        bytes that the secret has in base64 behind `whsec_`; after a rotation there are two for a
        day, with a space between them.

        What is not taken is sent again after 5 seconds, then after pauses that double up to four
        hours. After three days without a success, or at once where the answer is 410, the webhook
        is switched off. Redirections are not followed.
        """
        user = cast(User, request.user)
        made = webhooks.create_webhook(user=user, **validated(NewWebhookSerializer, request))
        return Response(
            _with_secret(user, made.pk),
            status=201,
            headers={"Location": f"/api/v1/webhooks/{made.pk}/", **TOLD_ONCE},
        )


class WebhookView(APIView):
    """One webhook."""

    permission_classes = (SessionRequired,)

    @extend_schema(responses=WebhookSerializer)
    def get(self, request: Request, webhook_id: int) -> Response:
        """The webhook, and how its deliveries go."""
        return Response(_told(cast(User, request.user), webhook_id))

    @extend_schema(request=ChangeWebhookSerializer, responses=WebhookSerializer)
    def patch(self, request: Request, webhook_id: int) -> Response:
        """Change address or kinds, switch on or off, pass over what waits.

        What an administrator has switched off is not switched on here: 409, and nothing changes.
        """
        user = cast(User, request.user)
        keys = validated(ChangeWebhookSerializer, request)
        webhooks.change_webhook(
            webhook=selectors.webhook_by_id(user=user, webhook_id=webhook_id),
            url=keys.get("url"),
            kinds=keys.get("kinds"),
            is_active=keys.get("active"),
            from_now=keys.get("from_now", False),
        )
        return Response(_told(user, webhook_id))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, webhook_id: int) -> Response:
        """Send nothing more there."""
        user = cast(User, request.user)
        webhooks.delete_webhook(webhook=selectors.webhook_by_id(user=user, webhook_id=webhook_id))
        return Response(status=204)


class RotateSecretView(APIView):
    """Another secret."""

    permission_classes = (SessionRequired,)

    @extend_schema(request=None, responses=WebhookWithSecretSerializer)
    def post(self, request: Request, webhook_id: int) -> Response:
        """Make a new secret; for a day messages are signed with the former one too."""
        user = cast(User, request.user)
        webhooks.rotate_secret(webhook=selectors.webhook_by_id(user=user, webhook_id=webhook_id))
        return Response(_with_secret(user, webhook_id), headers=TOLD_ONCE)


class TestView(APIView):
    """A message to try the receiver with."""

    permission_classes = (SessionRequired,)

    @extend_schema(request=None, responses={202: WebhookSerializer})
    def post(self, request: Request, webhook_id: int) -> Response:
        """Send a message of the kind `webhook.test`, whose `seq` is null, within seconds.

        It is sent once, also where you have the webhook switched off, but not where an
        administrator has (409). What came of it is told by `last_attempt_at`, `last_status` and
        `last_error`; where it was taken, events that wait after a failure are sent at once.
        """
        user = cast(User, request.user)
        webhooks.request_test(webhook=selectors.webhook_by_id(user=user, webhook_id=webhook_id))
        return Response(_told(user, webhook_id), status=202)


def _told(user: User, webhook_id: int) -> dict[str, Any]:
    webhook = selectors.webhook_by_id(user=user, webhook_id=webhook_id)
    return dict(WebhookSerializer(webhook).data)


def _with_secret(user: User, webhook_id: int) -> dict[str, Any]:
    webhook = selectors.webhook_by_id(user=user, webhook_id=webhook_id)
    return dict(WebhookWithSecretSerializer(webhook).data)
