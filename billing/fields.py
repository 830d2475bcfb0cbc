"""Fields of serializers that take an amount of tokens."""

from decimal import Context, Decimal
from typing import Any

from rest_framework import serializers

from billing.ledger import ALERT_MAX_HUNDREDTHS, TOP_UP_MAX_HUNDREDTHS
from billing.prices import HUNDREDTHS_PER_TOKEN


class TokensField(serializers.DecimalField):
    """More than 0 and at most so many tokens, down to a hundredth; 10.000 is 10, not finer."""

    def __init__(self, *, max_hundredths: int, **kwargs: Any) -> None:
        super().__init__(
            max_digits=len(str(max_hundredths)),
            decimal_places=2,
            min_value=Decimal("0.01"),
            max_value=Decimal(max_hundredths) / HUNDREDTHS_PER_TOKEN,
            **kwargs,
        )

    def validate_precision(self, value: Decimal) -> Decimal:
        """The amount without zeros at its end; raises ValidationError for one that is too fine."""
        exactly = Context(prec=self.MAX_STRING_LENGTH)
        return super().validate_precision(exactly.normalize(value))


class TopUpAmountField(TokensField):
    """What an administrator may add at once: at most 20000 tokens."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_hundredths=TOP_UP_MAX_HUNDREDTHS, **kwargs)


class AlertThresholdField(TokensField):
    """Below which balance a user wants to be told: at most 1000000 tokens, or null for never."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_hundredths=ALERT_MAX_HUNDREDTHS, allow_null=True, **kwargs)
