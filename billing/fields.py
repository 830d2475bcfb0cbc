"""Fields of serializers that take an amount of tokens."""

from decimal import Context, Decimal
from typing import Any

from rest_framework import serializers

from billing.ledger import TOP_UP_MAX_HUNDREDTHS
from billing.prices import HUNDREDTHS_PER_TOKEN


class TopUpAmountField(serializers.DecimalField):
    """More than 0 and at most 20000 tokens, down to a hundredth; 10.000 is 10, not finer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            max_digits=7,
            decimal_places=2,
            min_value=Decimal("0.01"),
            max_value=Decimal(TOP_UP_MAX_HUNDREDTHS) / HUNDREDTHS_PER_TOKEN,
            **kwargs,
        )

    def validate_precision(self, value: Decimal) -> Decimal:
        """The amount without zeros at its end; raises ValidationError for one that is too fine."""
        exactly = Context(prec=self.MAX_STRING_LENGTH)
        return super().validate_precision(exactly.normalize(value))
