"""Figures that lists show beside their rows."""

from typing import Any

from django.db.models import Aggregate, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce


def figure_of(rows: QuerySet[Any], *, owner: str, figure: Aggregate) -> Coalesce:
    """A figure of those `rows` whose `owner` a row is, in a question of its own; 0 without any.

    With a join the database would reckon it for all there are where a page shows fifty, and even
    to count them.
    """
    own = rows.filter(**{owner: OuterRef("pk")}).order_by().values(owner)
    return Coalesce(Subquery(own.annotate(figure=figure).values("figure")), 0)
