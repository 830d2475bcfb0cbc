"""Balance and ledger in /api/v1/."""

import uuid
from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from accounts.selectors import user_by_email
from billing import selectors, services
from billing.fields import AlertThresholdField, TopUpAmountField
from billing.idempotency import answered_once
from billing.models import Transfer
from billing.prices import tokens
from odproject.core.api import StrictSerializer, validated
from odproject.core.listing import NewestFirst, StrictFilters
from odproject.core.schema import IDEMPOTENCY_KEY


class BalanceSerializer(serializers.Serializer[Any]):
    """Tokens of a user."""

    available_tokens = serializers.FloatField(help_text="What can be spent now.")
    held_tokens = serializers.FloatField(help_text="Set aside for jobs that have not ended.")
    alert_below_tokens = serializers.FloatField(
        allow_null=True,
        help_text="Falling below it appends an event `balance.low`; null: that is never told.",
    )


class ChangeBalanceSerializer(StrictSerializer):
    """What may be said about a balance."""

    alert_below_tokens = AlertThresholdField()


class PricesSerializer(serializers.Serializer[Any]):
    """The current price list, in tokens."""

    upload_image_tokens = serializers.FloatField()
    upload_frame_tokens = serializers.FloatField()
    inference_image_tokens = serializers.FloatField()
    inference_frame_tokens = serializers.FloatField()


class MovementSerializer(serializers.ModelSerializer[Transfer]):
    """A transfer as its user sees it: what it added to or took from the tokens to spend."""

    amount_tokens = serializers.SerializerMethodField(
        help_text="Positive: added to the available tokens; negative: taken; 0: was held before."
    )
    moved_tokens = serializers.SerializerMethodField(help_text="The amount without its sign.")

    class Meta:
        model = Transfer
        fields = (
            "id",
            "kind",
            "amount_tokens",
            "moved_tokens",
            "job_id",
            "upload_id",
            "reason",
            "created_at",
        )
        read_only_fields = fields

    def get_amount_tokens(self, transfer: Transfer) -> float:
        """The change of what can be spent."""
        return tokens(selectors.available_change_hundredths(transfer))

    def get_moved_tokens(self, transfer: Transfer) -> float:
        """How much moved between the user's accounts and the system's."""
        return tokens(transfer.amount_hundredths)


class TopUpSerializer(serializers.Serializer[Any]):
    """What a top-up needs."""

    email = serializers.CharField(max_length=254, help_text="Whose balance.")
    amount_tokens = TopUpAmountField()
    reason = serializers.CharField(
        max_length=200, allow_blank=True, default="", help_text="The user reads it."
    )


class TopUpsView(APIView):
    """Tokens that administrators give."""

    @extend_schema(
        parameters=[IDEMPOTENCY_KEY], request=TopUpSerializer, responses={201: MovementSerializer}
    )
    def post(self, request: Request) -> Response:
        """Add tokens to somebody's balance, recorded with the administrator's name."""
        actor = cast(User, request.user)
        services.require_administrator(actor=actor)  # a refusal tells nothing about the keys
        keys = validated(TopUpSerializer, request)

        def top_up() -> Response:
            transfer, _ = services.top_up_tokens(
                actor=actor,
                user=user_by_email(email=keys["email"]),
                amount_tokens=keys["amount_tokens"],
                reason=keys["reason"],
                key=uuid.uuid4().hex,
            )
            return Response(MovementSerializer(transfer).data, status=201)

        return answered_once(request, top_up)


class BalanceView(APIView):
    """The user's tokens."""

    @extend_schema(responses=BalanceSerializer)
    def get(self, request: Request) -> Response:
        """How many tokens do I have?"""
        return self._balance(cast(User, request.user))

    @extend_schema(request=ChangeBalanceSerializer, responses=BalanceSerializer)
    def patch(self, request: Request) -> Response:
        """Set below how many tokens to spend you are told, by an event and the websocket."""
        user = cast(User, request.user)
        services.set_low_balance_alert(user=user, **validated(ChangeBalanceSerializer, request))
        return self._balance(user)

    def _balance(self, user: User) -> Response:
        accounts = selectors.user_accounts(user=user)
        threshold_hundredths = accounts.available.alert_below_hundredths
        return Response(
            {
                "available_tokens": tokens(accounts.available.balance_hundredths or 0),
                "held_tokens": tokens(accounts.held.balance_hundredths or 0),
                "alert_below_tokens": (
                    None if threshold_hundredths is None else tokens(threshold_hundredths)
                ),
            }
        )


class PricesView(APIView):
    """What things cost."""

    @extend_schema(responses=PricesSerializer)
    def get(self, request: Request) -> Response:
        """The current price list."""
        prices = selectors.current_prices()
        return Response(
            {
                name.replace("_hundredths", "_tokens"): tokens(value)
                for name, value in vars(prices).items()
            }
        )


class LedgerView(generics.ListAPIView[Transfer]):
    """The user's movements of tokens."""

    serializer_class = MovementSerializer
    pagination_class = NewestFirst
    filter_backends = (StrictFilters,)
    filterset_fields = {
        "kind": ["exact"],
        "job_id": ["exact"],
        "created_at": ["gte", "lt"],
    }
    queryset = Transfer.objects.none()

    def get_queryset(self) -> QuerySet[Transfer]:
        """Transfers from or to the user's accounts, newest first."""
        return selectors.transfers_of(user=cast(User, self.request.user))
