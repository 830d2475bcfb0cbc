"""GET and PATCH /token."""

import uuid
from typing import Any, cast

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from accounts.selectors import user_by_email
from billing import selectors, services
from billing.fields import TopUpAmountField
from billing.idempotency import answered_once
from billing.prices import tokens
from odproject.core.api import validated


class TopUpSerializer(serializers.Serializer[Any]):
    """Keys of PATCH /token."""

    topUpUserEmail = serializers.CharField(max_length=254)  # noqa: N815
    topUpAmount = TopUpAmountField()  # noqa: N815


class TokenView(APIView):
    """The balance, and its top-up by an administrator."""

    def get(self, request: Request) -> Response:
        """What the user can spend."""
        user = cast(User, request.user)
        return Response({"tokenBalance": tokens(selectors.balance_hundredths(user=user))})

    def patch(self, request: Request) -> Response:
        """Add tokens to somebody's balance."""
        actor = cast(User, request.user)
        services.require_administrator(actor=actor)  # a refusal tells nothing about the keys
        keys = validated(TopUpSerializer, request)

        def top_up() -> Response:
            user = user_by_email(email=keys["topUpUserEmail"])
            services.top_up_tokens(
                actor=actor,
                user=user,
                amount_tokens=keys["topUpAmount"],
                reason="",
                key=uuid.uuid4().hex,
            )
            balance_hundredths = selectors.balance_hundredths(user=user)
            return Response({"updatedTokenBalance": tokens(balance_hundredths)})

        return answered_once(request, top_up)
