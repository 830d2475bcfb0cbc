"""Balance, ledger and statements of account in /api/v1/."""

import uuid
from datetime import datetime
from typing import Any, cast

from django.db.models import QuerySet
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from accounts.selectors import user_by_email
from billing import selectors, services, statements
from billing.fields import AlertThresholdField, TopUpAmountField
from billing.idempotency import answered_once
from billing.models import Transfer
from billing.prices import tokens
from odproject.core.api import StrictSerializer, validated
from odproject.core.listing import NewestFirst, Pages, StrictFilters
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


class AmountField(serializers.FloatField):
    """Hundredths, shown as tokens."""

    def to_representation(self, value: Any) -> Any:
        """The tokens."""
        return tokens(value)


class BalancesSerializer(serializers.Serializer[Any]):
    """The tokens at one moment."""

    available_tokens = AmountField(source="available_hundredths")
    held_tokens = AmountField(source="held_hundredths")


class MovedSerializer(serializers.Serializer[Any]):
    """What moved in a month, by kind, without a sign."""

    welcome_tokens = AmountField(source="welcome", help_text="Came in.")
    top_up_tokens = AmountField(source="top_up", help_text="Came in.")
    upload_tokens = AmountField(source="upload", help_text="Was spent.")
    hold_tokens = AmountField(source="hold", help_text="Went from available to held, for jobs.")
    capture_tokens = AmountField(source="capture", help_text="Was spent, of what was held.")
    release_tokens = AmountField(source="release", help_text="Went back from held to available.")


class StatementSerializer(serializers.Serializer[Any]):
    """A month, in UTC: opening, plus and minus what moved, is closing."""

    month = serializers.RegexField(r"^[0-9]{4}-[0-9]{2}$", help_text="As 2026-11.")
    is_final = serializers.BooleanField(
        help_text="From an hour after the month's end: nothing is added any more."
    )
    opening = BalancesSerializer()
    moved = MovedSerializer(source="moved_hundredths")
    closing = BalancesSerializer(help_text="At the month's end, or now.")
    movement_count = serializers.IntegerField()


class StatementsView(generics.ListAPIView[Any]):
    """The user's statements of account."""

    serializer_class = StatementSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = Transfer.objects.none()

    def get_queryset(self) -> list[datetime]:  # type: ignore[override]
        """The months since the user's first movement, of which each has a statement."""
        return statements.months_of(user=cast(User, self.request.user))

    def paginate_queryset(self, queryset: Any) -> Any:
        """The statements of a page, the newest first."""
        months = super().paginate_queryset(queryset)
        return statements.statements_of(user=cast(User, self.request.user), months=months or [])


class StatementView(APIView):
    """A statement of account."""

    @extend_schema(responses=StatementSerializer)
    def get(self, request: Request, month: str) -> Response:
        """What was there, came in, was spent and is held in a month, in UTC."""
        user = cast(User, request.user)
        begins_at = statements.month_named(user=user, name=month)
        (statement,) = statements.statements_of(user=user, months=[begins_at])
        return Response(StatementSerializer(statement).data)


class StatementCsvView(APIView):
    """A statement's movements."""

    refusals = (507,)

    @extend_schema(responses={(200, "text/csv"): OpenApiTypes.STR})
    def get(self, request: Request, month: str) -> FileResponse:
        """The movements of a month as CSV, oldest first, behind a line of what it opens with."""
        user = cast(User, request.user)
        begins_at = statements.month_named(user=user, name=month)
        return statements.statement_csv_response(request, user=user, begins_at=begins_at)
