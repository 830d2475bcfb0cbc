"""How lists are cut into pages, filtered and ordered in /api/v1/."""

from typing import Any

from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework import exceptions
from rest_framework.filters import OrderingFilter
from rest_framework.pagination import CursorPagination, PageNumberPagination
from rest_framework.request import Request
from rest_framework.views import APIView

PAGING_KEYS = {"page", "page_size", "cursor", "ordering"}


class Pages(PageNumberPagination):
    """`?page=2&page_size=50`: count, next, previous, results."""

    page_size = 25
    max_page_size = 200
    page_size_query_param = "page_size"


class NewestFirst(CursorPagination):
    """Pages by cursor for streams that only grow: nothing is skipped and nothing comes twice."""

    page_size = 50
    max_page_size = 500
    page_size_query_param = "page_size"
    ordering = "-id"


class StrictFilters(DjangoFilterBackend):
    """Filters by the fields that a view names, and refuses every other query parameter.

    An unknown parameter that is silently ignored answers with everything, which looks like an
    answer to the question.
    """

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> Any:
        """Raises ValidationError (400) for a parameter that is no filter of this list."""
        filterset_class = self.get_filterset_class(view, queryset)
        known = set(filterset_class.base_filters) if filterset_class else set()
        if unknown := set(request.query_params) - known - PAGING_KEYS:
            raise exceptions.ValidationError(
                {name: ["This list has no such filter."] for name in sorted(unknown)}
            )
        return super().filter_queryset(request, queryset, view)


class StrictOrdering(OrderingFilter):
    """`?ordering=-created_at`; an order that the view does not offer is refused."""

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
