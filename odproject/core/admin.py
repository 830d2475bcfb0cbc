"""What the admin pages share: read-only lists, and a page that asks before it acts."""

from collections.abc import Callable
from typing import Any, TypeVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from odproject.core.errors import DomainError

ModelType = TypeVar("ModelType", bound=models.Model)


class ReadOnlyAdmin(admin.ModelAdmin[ModelType]):
    """Rows that people look at and services write."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds rows here."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Nobody changes rows here."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Nobody deletes rows here."""
        return False


def ask_and_act(
    *,
    site: AdminSite,
    request: HttpRequest,
    form_class: type[forms.Form],
    title: str,
    explanation: str,
    act: Callable[[dict[str, Any]], str],
    back_url: str,
    initial: dict[str, Any] | None = None,
) -> HttpResponse:
    """A page with a form; on a valid POST `act` makes its one service call and says what it did.

    A refusal by the service is shown above the form, which keeps what was typed.
    """
    form = form_class(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            messages.success(request, act(form.cleaned_data))
        except DomainError as error:
            form.add_error(None, error.detail)
        else:
            return HttpResponseRedirect(back_url)
    context = {
        **site.each_context(request),
        "title": title,
        "explanation": explanation,
        "form": form,
        "back_url": back_url,
    }
    return TemplateResponse(request, "admin/ask.html", context)
