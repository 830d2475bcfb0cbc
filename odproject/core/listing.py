"""How lists are cut into pages, filtered and ordered in /api/v1/."""

from datetime import UTC, datetime
from typing import Any

import django_filters
from django import forms
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import QuerySet
from django_filters.fields import IsoDateTimeField
from django_filters.rest_framework import DjangoFilterBackend, FilterSet
from rest_framework import exceptions
from rest_framework.filters import OrderingFilter
from rest_framework.pagination import CursorPagination, PageNumberPagination
from rest_framework.request import Request
from rest_framework.views import APIView

LARGEST_PAGE = 10**9
LARGEST_ID = 2**63 - 1


def query_integer(request: Request, name: str, *, default: int, largest: int) -> int:
    """A whole number from 1 to `largest` in a query parameter.

    Raises ValidationError (400) for anything else: a list that silently takes another size than
    was asked for looks like the whole answer.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    # The length comes first: Python refuses to read a number of thousands of digits.
    if text.isascii() and text.isdigit() and len(text) <= len(str(largest)):
        number = int(text)
        if 1 <= number <= largest:
            return number
    raise exceptions.ValidationError({name: [f"A whole number from 1 to {largest} is needed."]})


def _bounded(parameters: list[dict[str, Any]], bounds: dict[str, int]) -> list[dict[str, Any]]:
    """OpenAPI parameters that tell from 1 to which number each of `bounds` goes."""
    for parameter in parameters:
        if parameter["name"] in bounds:
            parameter["schema"] |= {"minimum": 1, "maximum": bounds[parameter["name"]]}
    return parameters


class Pages(PageNumberPagination):
    """`?page=2&page_size=50`: count, next, previous, results."""

    page_size = 25
    max_page_size = 200
    page_size_query_param = "page_size"

    def get_page_size(self, request: Request) -> int:
        """How many results a page has; raises ValidationError (400)."""
        return query_integer(
            request, "page_size", default=self.page_size, largest=self.max_page_size
        )

    def get_page_number(self, request: Request, paginator: Any) -> int:
        """Which page is asked for; raises ValidationError (400)."""
        return query_integer(request, "page", default=1, largest=LARGEST_PAGE)

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Both parameters, with their bounds."""
        bounds = {"page": LARGEST_PAGE, "page_size": self.max_page_size}
        return _bounded(super().get_schema_operation_parameters(view), bounds)


class NewestFirst(CursorPagination):
    """Pages by cursor for streams that only grow: nothing is skipped and nothing comes twice."""

    page_size = 50
    max_page_size = 500
    page_size_query_param = "page_size"
    ordering = "-id"

    def get_page_size(self, request: Request) -> int:
        """How many results a page has; raises ValidationError (400)."""
        return query_integer(
            request, "page_size", default=self.page_size, largest=self.max_page_size
        )

    def decode_cursor(self, request: Request) -> Any:
        """The place to go on from; raises ValidationError (400) for a cursor we never made."""
        try:
            cursor = super().decode_cursor(request)
        except exceptions.NotFound:
            cursor = None
            made_by_us = False
        else:
            position = str(0 if cursor is None or cursor.position is None else cursor.position)
            made_by_us = position.isascii() and position.isdigit() and len(position) < 19
        if not made_by_us:
            raise exceptions.ValidationError({"cursor": ["Take cursors from next and previous."]})
        return cursor

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Cursor and size, which has bounds."""
        bounds = {"page_size": self.max_page_size}
        return _bounded(super().get_schema_operation_parameters(view), bounds)


class WholeNumberFilter(django_filters.NumberFilter):
    """A number as the database keeps it: whole, not negative, of 63 bits at most."""

    field_class = forms.IntegerField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"min_value": 0, **kwargs})

    def get_max_validator(self) -> MaxValueValidator:
        """What is larger is refused, as no row has it."""
        return MaxValueValidator(LARGEST_ID)


class _MomentField(IsoDateTimeField):
    """A time in UTC: PostgreSQL refuses offsets of 16 hours and more, which Python knows."""

    def clean(self, value: Any) -> Any:
        """The moment; raises ValidationError for one that no calendar has."""
        moment = super().clean(value)
        if not isinstance(moment, datetime):
            return moment
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise forms.ValidationError("Enter a valid date/time.", code="invalid") from error


class MomentFilter(django_filters.IsoDateTimeFilter):
    """A moment in ISO 8601."""

    field_class = _MomentField


class ChoiceInFilter(django_filters.BaseInFilter, django_filters.ChoiceFilter):
    """Several of the choices, separated by commas; another word among them is refused."""


_WHOLE_NUMBERS = (
    models.AutoField,
    models.IntegerField,
    models.BigIntegerField,
    models.PositiveIntegerField,
    models.PositiveBigIntegerField,
)


class StrictFilterSet(FilterSet):
    """Filters that refuse what no row can hold."""

    FILTER_DEFAULTS = {
        **FilterSet.FILTER_DEFAULTS,
        **{kind: {"filter_class": WholeNumberFilter} for kind in _WHOLE_NUMBERS},
        models.DateTimeField: {"filter_class": MomentFilter},
    }


class StrictFilters(DjangoFilterBackend):
    """Filters by the fields that a view names, and refuses every other query parameter.

    An unknown parameter that is silently ignored answers with everything, which looks like an
    answer to the question.
    """

    filterset_base = StrictFilterSet

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> Any:
        """Raises ValidationError (400) for a parameter that is no filter of this list."""
        filterset_class = self.get_filterset_class(view, queryset)
        known = set(filterset_class.base_filters) if filterset_class else set()
        for other in (*view.filter_backends, view.pagination_class):
            if other and not issubclass(other, StrictFilters):
                keys = other().get_schema_operation_parameters(view)
                known |= {parameter["name"] for parameter in keys}
        if unknown := set(request.query_params) - known:
            raise exceptions.ValidationError(
                {name: ["This list has no such filter."] for name in sorted(unknown)}
            )
        return super().filter_queryset(request, queryset, view)


class StrictOrdering(OrderingFilter):
    """`?ordering=-created_at`; an order that the view does not offer is refused.

    Rows that are equal in it come by their id, so that no page repeats or skips one.
    """

    def get_ordering(
        self, request: Request, queryset: QuerySet[Any], view: APIView
    ) -> list[str] | None:
        """The fields to order by; raises ValidationError (400)."""
        ordering = list(super().get_ordering(request, queryset, view) or ())
        if ordering and not {"id", "-id", "pk", "-pk"} & set(ordering):
            ordering.append("id")
        return ordering or None

    def remove_invalid_fields(
        self, queryset: QuerySet[Any], fields: Any, view: APIView, request: Request
    ) -> list[str]:
        """Raises ValidationError (400) for a field that cannot be ordered by."""
        wanted = [str(field) for field in fields]
        valid = super().remove_invalid_fields(queryset, wanted, view, request)
        if unknown := [field for field in wanted if field not in valid]:
            raise exceptions.ValidationError(
                {"ordering": [f"This list cannot be ordered by {', '.join(unknown)}."]}
            )
        return list(valid)
