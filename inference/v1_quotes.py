"""What a job would cost, before it is started, in /api/v1/."""

from typing import Any, cast

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.prices import tokens
from billing.selectors import balance_hundredths
from inference import submission
from inference.planning import JobPlan
from inference.serializers import DetectionOptionsSerializer
from inference.v1 import JobChoiceSerializer
from odproject.core.api import validated


class QuoteSerializer(serializers.Serializer[Any]):
    """What a job would look at and cost at most."""

    image_count = serializers.IntegerField()
    frame_count = serializers.IntegerField(help_text="Of videos; with a frame stride fewer.")
    quoted_tokens = serializers.FloatField(
        help_text="Held at submission. As `maximum_tokens` of a job it binds: a job that would "
        "cost more is not started."
    )
    available_tokens = serializers.FloatField(help_text="What can be spent now.")
    is_covered = serializers.BooleanField(help_text="Whether that suffices.")
    options = DetectionOptionsSerializer(help_text="Every one of them.")


class QuotesView(APIView):
    """The price of a job, without starting it."""

    only_reads = True

    @extend_schema(request=JobChoiceSerializer, responses=QuoteSerializer)
    def post(self, request: Request) -> Response:
        """What a job with these members would cost now; nothing is held or written."""
        user = cast(User, request.user)
        keys = validated(JobChoiceSerializer, request)
        plan = submission.quote_job(user=user, **keys)
        return Response(QuoteSerializer(quote_members(user, plan)).data)


def quote_members(user: User, plan: JobPlan) -> dict[str, Any]:
    """What a quote tells about a plan."""
    available_hundredths = balance_hundredths(user=user)
    return {
        "image_count": plan.image_count,
        "frame_count": plan.video_frame_count,
        "quoted_tokens": tokens(plan.quoted_hundredths),
        "available_tokens": tokens(available_hundredths),
        "is_covered": plan.quoted_hundredths <= available_hundredths,
        "options": plan.options.as_json(),
    }
