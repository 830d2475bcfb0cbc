"""What the admin pages share: their base classes, and actions that ask before they act.

They have the looks of django-unfold, which this module, two templates and a stylesheet know of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from django import forms
from django.contrib import messages
from django.contrib.admin.views.main import ERROR_FLAG
from django.core.exceptions import PermissionDenied
from django.db import DataError, models, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.enums import ActionVariant
from unfold.widgets import INPUT_CLASSES, TEXTAREA_CLASSES

from odproject.core.errors import DomainError

if TYPE_CHECKING:  # django-unfold's are these with its looks, and have no types
    from django.contrib.admin import ModelAdmin, TabularInline
else:
    from unfold.admin import ModelAdmin, TabularInline

FormType = TypeVar("FormType", bound=forms.BaseForm)
ModelType = TypeVar("ModelType", bound=models.Model)
ParentType = TypeVar("ParentType", bound=models.Model)
BYTES_PER_UNIT = 1000.0


def list_link(name: str, text: str, **filters: Any) -> SafeString:
    """A link to a list of the admin, filtered."""
    return _link(f"{reverse(f'admin:{name}_changelist')}?{urlencode(filters)}", text)


def object_link(name: str, pk: int, text: str) -> SafeString:
    """A link to the page of an object of the admin."""
    return _link(reverse(f"admin:{name}_change", args=[pk]), text)


def _link(url: str, text: str) -> SafeString:
    return format_html('<a class="text-link" href="{}">{}</a>', url, text)


@dataclass(frozen=True)
class ObjectAction(Generic[ModelType]):
    """What an administrator does to one object, once a page has asked and was answered.

    `act(actor, object, answers)` makes one service call and tells in a sentence what it did; the
    sentence is also kept in the object's history. A DomainError is shown above the form.
    `is_fitting` says whether a button is worth showing now; the service decides.
    """

    name: str
    title: str
    permission: str
    form_class: type[forms.Form]
    explain: Callable[[ModelType], str]
    act: Callable[[Any, ModelType, dict[str, Any]], str]
    is_fitting: Callable[[ModelType], bool] = lambda _: True
    is_dangerous: bool = False


class ActingAdmin(ModelAdmin[ModelType]):
    """A model's pages, with `object_actions` as buttons of an object and as actions of the list."""

    object_actions: ClassVar[tuple[ObjectAction[Any], ...]] = ()
    list_per_page = 50
    list_fullwidth = True  # lists need their width

    def get_urls(self) -> list[URLPattern]:
        """The asking pages of the actions, beside the usual ones."""
        view = self.admin_site.admin_view
        return [
            *(
                path(
                    f"<int:object_id>/{action.name}/",
                    view(partial(self._ask_and_act, action=action)),
                    name=self._url_name(action),
                )
                for action in self.object_actions
            ),
            *super().get_urls(),
        ]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """The actions that the administrator may take; each on one object of the list."""
        found = super().get_actions(request)
        for action in self._allowed(request):
            chosen: Any = partial(_go_and_ask, action=action)
            found[action.name] = (chosen, action.name, f"{action.title}…")
        return found

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list; where a filter of the address can be no value of its column, the whole one.

        That is what Django does with other filters that make no sense; of these it learns only
        when it asks: text with a zero byte, a year beyond all years.
        """
        try:
            return super().changelist_view(request, extra_context)
        except (DataError, OverflowError):
            if ERROR_FLAG in request.GET:
                raise  # it is not for a filter
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """An object's page with the buttons of the actions that fit its state."""
        buttons: list[dict[str, Any]] = []
        shown = self.get_object(request, object_id) if object_id else None
        for action in self._allowed(request) if shown is not None else ():
            if shown is not None and action.is_fitting(shown):
                url = self._action_url(action, shown.pk)
                buttons.append({"title": action.title, "url": url, "variant": _variant(action)})
        context = {
            "object_actions": buttons,
            # One way to save is enough for the few things that are saved here.
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
            **(extra_context or {}),
        }
        return super().changeform_view(request, object_id, form_url, context)

    def _allowed(self, request: HttpRequest) -> list[ObjectAction[Any]]:
        return [one for one in self.object_actions if request.user.has_perm(one.permission)]

    def _url_name(self, action: ObjectAction[Any]) -> str:
        options = self.model._meta
        return f"{options.app_label}_{options.model_name}_{action.name.replace('-', '_')}"

    def _action_url(self, action: ObjectAction[Any], object_id: int) -> str:
        return reverse(f"admin:{self._url_name(action)}", args=[object_id])

    def _ask_and_act(
        self, request: HttpRequest, object_id: int, *, action: ObjectAction[Any]
    ) -> HttpResponse:
        """The page that asks; a valid answer makes the action's one service call."""
        if not request.user.has_perm(action.permission) or not self.has_view_permission(request):
            raise PermissionDenied
        one = get_object_or_404(self.get_queryset(request), pk=object_id)
        options = self.model._meta
        back_url = reverse(
            f"admin:{options.app_label}_{options.model_name}_change", args=[object_id]
        )
        form = action.form_class(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            try:
                with transaction.atomic():  # nothing is done without a record of who did it
                    done = action.act(request.user, one, form.cleaned_data)
                    self.log_change(request, one, done)
            except DomainError as error:
                form.add_error(None, error.detail)
            else:
                messages.success(request, done)
                return HttpResponseRedirect(back_url)
        context = {
            **self.admin_site.each_context(request),
            "title": action.title,
            "subtitle": str(one),
            "explanation": action.explain(one),
            "form": dressed(form),
            "back_url": back_url,
            "opts": options,
            "original": one,
            "danger": action.is_dangerous,
        }
        return TemplateResponse(request, "admin/ask.html", context)


class ReadOnlyAdmin(ActingAdmin[ModelType]):
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


class ReadOnlyInline(TabularInline[ModelType, ParentType]):
    """Rows of an object's page, to read."""

    extra = 0
    max_num = 0
    can_delete = False
    hide_title = True  # django-unfold: the columns tell what the line above each would repeat

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds rows here."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes rows here."""
        return False


class ReasonForm(forms.Form):
    """Why; nobody acts on what is another's without saying so.

    `readers` says beside the field who will read it.
    """

    readers: ClassVar[str] = ""
    reason = forms.CharField(
        max_length=200, widget=forms.Textarea(attrs={"rows": 3, "maxlength": 200})
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = self.readers


def badge(text: str, tone: str = "") -> SafeString:
    """A word on a coloured ground; the tone is good, bad, busy, odd or nothing."""
    return format_html('<span class="od-badge {}">{}</span>', tone, text)


def readable_bytes(size_bytes: int) -> str:
    """A size as people read it, in powers of 1000."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < BYTES_PER_UNIT:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= BYTES_PER_UNIT
    return f"{size:.1f} TB"


def _go_and_ask(
    model_admin: ActingAdmin[Any],
    request: HttpRequest,
    chosen: QuerySet[Any],
    *,
    action: ObjectAction[Any],
) -> HttpResponse | None:
    """The action of a list: go to the page that asks, for the one object that was chosen."""
    object_ids = list(chosen.values_list("pk", flat=True)[:2])
    if len(object_ids) != 1:
        messages.warning(request, f"{action.title}: choose exactly one.")
        return None
    return HttpResponseRedirect(model_admin._action_url(action, object_ids[0]))


def _variant(action: ObjectAction[Any]) -> Any:
    """The colour of a button, as django-unfold names it."""
    return ActionVariant.DANGER if action.is_dangerous else ActionVariant.DEFAULT


def dressed(form: FormType) -> FormType:
    """The form with the looks of django-unfold."""
    for field in form.fields.values():
        is_long = isinstance(field.widget, forms.Textarea)
        field.widget.attrs["class"] = " ".join(TEXTAREA_CLASSES if is_long else INPUT_CLASSES)
    return form
