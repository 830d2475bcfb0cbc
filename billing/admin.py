"""Users with their balance and top-up, the ledger, and the price lists.

The page of users stands here rather than in accounts, because it shows tokens and accounts never
calls up.
"""

import uuid
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db.models import Case, CharField, F, OuterRef, QuerySet, Subquery, When
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from accounts.models import User
from accounts.services import Access, change_access
from billing import ledger, services
from billing.models import Account, Hold, Price, Transfer
from billing.prices import (
    HUNDREDTHS_PER_TOKEN,
    PriceList,
    hundredths,
    readable_tokens,
    tokens,
    tokens_text,
)
from billing.selectors import balance_hundredths, current_prices
from billing.statements import month_name, month_named, months_of, statement_csv_response
from odproject.core.admin import (
    ActingAdmin,
    ObjectAction,
    ReadOnlyAdmin,
    ReasonForm,
    badge,
    dressed,
    list_link,
    object_link,
)
from odproject.core.errors import ConflictError, DomainError

KIND_TONES = {
    Transfer.Kind.WELCOME: "good",
    Transfer.Kind.TOP_UP: "good",
    Transfer.Kind.HOLD: "odd",
    Transfer.Kind.CAPTURE: "bad",
    Transfer.Kind.UPLOAD: "bad",
    Transfer.Kind.RELEASE: "busy",
}
ACCESS_FIELDS = ("is_active", "is_staff", "is_superuser", "groups")


class TopUpForm(ReasonForm):
    """How much, and why; the hidden key makes a form sent twice count once."""

    field_order = ("amount", "reason", "key")
    amount = forms.DecimalField(
        min_value=Decimal("0.01"),
        max_value=Decimal(ledger.TOP_UP_MAX_HUNDREDTHS) / HUNDREDTHS_PER_TOKEN,
        decimal_places=2,
        label="Tokens to add",
        help_text=f"More than 0, at most {tokens_text(ledger.TOP_UP_MAX_HUNDREDTHS)}.",
    )
    key = forms.CharField(widget=forms.HiddenInput, max_length=64, initial=lambda: uuid.uuid4().hex)

    readers = "The user reads it, and the ledger keeps it for ever."


class FormSentBeforeError(ConflictError):
    """The form of a top-up was sent before: by a double click, or from a page gone back to."""

    code = "form_sent_before"
    title = "The form was sent before"


def _explain_top_up(user: User) -> str:
    balance = readable_tokens(balance_hundredths(user=user))
    return f"{user.email} can spend {balance} tokens now. A top-up cannot be taken back."


def _top_up(actor: User, user: User, answers: dict[str, Any]) -> str:
    try:
        _, is_new = services.top_up_tokens(
            actor=actor,
            user=user,
            amount_tokens=answers["amount"],
            reason=answers["reason"],
            key=answers["key"],
        )
    except ledger.IdempotencyConflictError:
        is_new = False
    if not is_new:
        raise FormSentBeforeError(
            "This form was sent before, and its tokens were added then. Open it anew to add more."
        )
    return f"{answers['amount']:,.2f} tokens were added to the balance of {user.email}."


@admin.register(User)
class UserAdmin(ActingAdmin[User]):
    """Users with balance and top-up."""

    object_actions = (
        ObjectAction(
            name="top-up",
            title="Top up tokens",
            permission="billing.top_up",
            form_class=TopUpForm,
            explain=_explain_top_up,
            act=_top_up,
        ),
    )
    list_display = ("email", "balance", "held", "role", "is_active", "created_at")
    list_filter = ("is_staff", "is_active", "groups")
    search_fields = ("email",)
    search_help_text = "Search by e-mail address"
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    filter_horizontal = ("groups",)
    fieldsets = (
        (None, {"fields": ("email", "balance", "held", "created_at", "last_login")}),
        ("Access", {"fields": ACCESS_FIELDS}),
    )
    readonly_fields = (
        *("email", "balance", "held", "created_at", "last_login"),
        *("datasets", "jobs", "movements", "statements", "keys"),
    )

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Who it is, what the user may do, and the ways to what the user has."""
        seen = {
            "datasets": "datasets.view_dataset",
            "jobs": "inference.view_job",
            "movements": "billing.view_transfer",
            "statements": "billing.view_transfer",
            "keys": "accounts.view_apikey",
        }
        ways = [name for name, permission in seen.items() if request.user.has_perm(permission)]
        return [*self.fieldsets, ("More", {"fields": ways})]

    def get_urls(self) -> list[URLPattern]:
        """The statements of a user beside the usual pages."""
        view = self.admin_site.admin_view(self.statement_view)
        own = path("<int:user_id>/statements/<month>/", view, name="accounts_user_statement")
        return [own, *super().get_urls()]

    def statement_view(self, request: HttpRequest, user_id: int, month: str) -> HttpResponseBase:
        """A month of a user as CSV, for those who may see the ledger."""
        if not (
            request.user.has_perm("billing.view_transfer") and self.has_view_permission(request)
        ):
            raise PermissionDenied
        user = get_object_or_404(self.get_queryset(request), pk=user_id, available__isnull=False)
        try:
            begins_at = month_named(user=user, name=month)
            return statement_csv_response(request, user=user, begins_at=begins_at)
        except DomainError as error:
            messages.error(request, error.detail)
            return HttpResponseRedirect(reverse("admin:accounts_user_change", args=[user_id]))

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """No question about the hash of a password, which letter by letter would tell it."""
        return not lookup.startswith("password") and super().lookup_allowed(lookup, value, request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Users with both balances, in one query, and their groups in another."""
        accounts = Account.objects.filter(user=OuterRef("pk")).values("balance_hundredths")
        return (
            super()
            .get_queryset(request)
            .annotate(
                available=Subquery(accounts.filter(purpose=Account.Purpose.AVAILABLE)),
                on_hold=Subquery(accounts.filter(purpose=Account.Purpose.HELD)),
            )
            .prefetch_related("groups")
        )

    @admin.display(description="Balance (tokens)", ordering="available")
    def balance(self, user: User) -> str:
        """What the user can spend; the welcome grant comes with the first use."""
        available = user.available  # type: ignore[attr-defined]
        return readable_tokens(ledger.WELCOME_HUNDREDTHS if available is None else available)

    @admin.display(description="Held for jobs (tokens)", ordering="on_hold")
    def held(self, user: User) -> str:
        """What is set aside for unfinished jobs."""
        return readable_tokens(user.on_hold or 0)  # type: ignore[attr-defined]

    @admin.display
    def datasets(self, user: User) -> SafeString:
        """The way to the user's datasets."""
        return list_link("datasets_dataset", f"Datasets of {user.email}", user=user.pk)

    @admin.display
    def jobs(self, user: User) -> SafeString:
        """The way to the user's jobs."""
        return list_link("inference_job", f"Jobs of {user.email}", user=user.pk)

    @admin.display
    def movements(self, user: User) -> SafeString:
        """The way to the user's movements of tokens."""
        return list_link("billing_transfer", f"Movements of {user.email}", user_email=user.email)

    @admin.display(description="Statements (CSV)")
    def statements(self, user: User) -> SafeString | str:
        """The movements of each month as a file; none before the first use, which opens it all."""
        if user.available is None:  # type: ignore[attr-defined]
            return "-"
        months = map(month_name, months_of(user=user))
        ways = ((reverse("admin:accounts_user_statement", args=[user.pk, m]), m) for m in months)
        return format_html_join(" ", '<a class="text-link" href="{}">{}</a>', ways)

    @admin.display(description="API keys")
    def keys(self, user: User) -> SafeString:
        """The way to the user's API keys."""
        return list_link("accounts_apikey", f"API keys of {user.email}", user=user.pk)

    @admin.display(description="Role")
    def role(self, user: User) -> str:
        """What an administrator is for."""
        if not user.is_staff:
            return "user"
        if user.is_superuser:
            return "superuser"
        return ", ".join(group.name for group in user.groups.all()) or "administrator, no role"

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Users register themselves."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """The ledger refers to users for ever; an account can be made inactive instead."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Only superusers decide who may do what, and nobody decides it for themselves."""
        return bool(request.user.is_superuser) and (obj is None or obj.pk != request.user.pk)

    def save_model(
        self, request: HttpRequest, obj: User, form: ModelForm[User], change: bool
    ) -> None:
        """What the form changes is access, by the service that also logs people out."""
        answers = form.cleaned_data
        groups: QuerySet[Group] = answers["groups"]
        change_access(
            actor=request.user,  # type: ignore[arg-type]
            user=obj,
            access=Access(
                is_active=answers["is_active"],
                is_staff=answers["is_staff"],
                is_superuser=answers["is_superuser"],
                group_ids=frozenset(group.pk for group in groups),
            ),
        )

    def save_related(self, *args: Any, **kwargs: Any) -> None:
        """Groups are part of the access that was saved."""


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin[Transfer]):
    """The ledger, to read."""

    list_display = (
        "created_at",
        "user",
        "kind_of_movement",
        "tokens",
        "movement",
        "job_number",
        "administrator",
        "reason",
    )
    list_filter = ("kind",)
    search_fields = ("source__user__email", "destination__user__email", "=job_id")
    search_help_text = "Search by the user's e-mail address or a job's number"
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("source__user", "destination__user", "actor")

    def get_fields(self, request: HttpRequest, obj: Transfer | None = None) -> Any:
        """What the list tells and more, with the ways to what the administrator may see."""
        pages = {
            "user": ("user_page", "accounts.view_user"),
            "job_number": ("job_page", "inference.view_job"),
        }
        shown = list(self.list_display)
        for name, (page, permission) in pages.items():
            if request.user.has_perm(permission):
                shown[shown.index(name)] = page
        return (*shown, "upload_id", "idempotency_key")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Transfer]:
        """Transfers with the address of the user whose tokens moved."""
        whose = Case(
            When(source__user__isnull=False, then=F("source__user__email")),
            default=F("destination__user__email"),
            output_field=CharField(),
        )
        return super().get_queryset(request).annotate(user_email=whose)

    @admin.display(ordering="user_email")
    def user(self, transfer: Transfer) -> str:
        """Whose tokens moved."""
        return str(transfer.user_email)  # type: ignore[attr-defined]

    @admin.display(description="User")
    def user_page(self, transfer: Transfer) -> SafeString | str:
        """Whose tokens moved, and the way there."""
        user = transfer.source.user or transfer.destination.user
        return "-" if user is None else object_link("accounts_user", user.pk, user.email)

    @admin.display(description="Kind", ordering="kind")
    def kind_of_movement(self, transfer: Transfer) -> SafeString:
        """What the transfer was for."""
        return badge(transfer.get_kind_display(), KIND_TONES[Transfer.Kind(transfer.kind)])

    @admin.display(ordering="amount_hundredths")
    def tokens(self, transfer: Transfer) -> str:
        """The amount."""
        return readable_tokens(transfer.amount_hundredths)

    @admin.display(description="From and to")
    def movement(self, transfer: Transfer) -> str:
        """Between which accounts."""
        return f"{transfer.source.purpose} → {transfer.destination.purpose}"

    @admin.display(description="Job", ordering="job_id")
    def job_number(self, transfer: Transfer) -> str:
        """The job's number."""
        return str(transfer.job_id or "-")

    @admin.display(description="Job")
    def job_page(self, transfer: Transfer) -> SafeString | str:
        """The way to the job."""
        job_id = transfer.job_id
        return object_link("inference_job", job_id, f"job {job_id}") if job_id else "-"

    @admin.display(description="By", ordering="actor__email")
    def administrator(self, transfer: Transfer) -> str:
        """Who topped up."""
        return transfer.actor.email if transfer.actor else "-"


@admin.register(Hold)
class HoldAdmin(ReadOnlyAdmin[Hold]):
    """Holds, to read."""

    list_display = ("created_at", "user", "about", "coloured_state", "amount", "captured")
    list_filter = ("state",)
    search_fields = ("user__email", "idempotency_key")
    search_help_text = "Search by the user's e-mail address, or as job:12"
    ordering = ("-pk",)
    list_select_related = ("user",)
    fields = (*list_display, "settled_at")

    @admin.display(description="For", ordering="idempotency_key")
    def about(self, hold: Hold) -> str:
        """The job."""
        return hold.idempotency_key.replace(":", " ")

    @admin.display(description="State", ordering="state")
    def coloured_state(self, hold: Hold) -> SafeString:
        """Open or settled."""
        return badge(hold.state, "busy" if hold.state == Hold.State.OPEN else "")

    @admin.display(description="Held (tokens)", ordering="amount_hundredths")
    def amount(self, hold: Hold) -> str:
        """Tokens held."""
        return readable_tokens(hold.amount_hundredths)

    @admin.display(description="Captured (tokens)", ordering="captured_hundredths")
    def captured(self, hold: Hold) -> str:
        """Tokens captured at settlement."""
        return readable_tokens(hold.captured_hundredths)


def _price_field(label: str) -> forms.DecimalField:
    return forms.DecimalField(
        label=label,
        min_value=Decimal(0),
        max_value=Decimal(10_000),
        decimal_places=2,
        help_text="Tokens, to the hundredth.",
    )


class PriceForm(forms.ModelForm[Price]):
    """A price list in tokens, which is how people think of prices."""

    upload_image = _price_field("Uploading an image")
    upload_frame = _price_field("Uploading a video frame")
    inference_image = _price_field("Detection in an image")
    inference_frame = _price_field("Detection in a video frame")

    class Meta:
        model = Price
        fields: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dressed(self)

    def price_list(self) -> PriceList:
        """The answers as a value."""
        return PriceList(
            **{f"{name}_hundredths": hundredths(self.cleaned_data[name]) for name in self.fields}
        )


@admin.register(Price)
class PriceAdmin(ReadOnlyAdmin[Price]):
    """Price lists; a new one replaces the old one for what is quoted from then on."""

    form = PriceForm
    list_display = (
        "created_at",
        "upload_image",
        "upload_frame",
        "inference_image",
        "inference_frame",
        "counts_now",
    )
    ordering = ("-pk",)

    def get_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        """Four prices to fill in; and, of a list that exists, since when it counts."""
        return self.list_display if obj is not None else tuple(PriceForm.base_fields)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """A new list begins as the one that counts now."""
        return {
            name.removesuffix("_hundredths"): f"{tokens(value):.2f}"
            for name, value in asdict(current_prices()).items()
        }

    def get_readonly_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        """A list that exists is history."""
        return self.list_display if obj is not None else ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Prices change by adding a list, if the administrator's role allows it."""
        return request.user.has_perm("billing.add_price")

    def save_model(self, request: HttpRequest, obj: Price, form: PriceForm, change: bool) -> None:
        """Publish the list."""
        obj.pk = services.publish_prices(prices=form.price_list()).pk

    @admin.display(description="Upload: image")
    def upload_image(self, price: Price) -> str:
        """Tokens."""
        return readable_tokens(price.upload_image_hundredths)

    @admin.display(description="Upload: video frame")
    def upload_frame(self, price: Price) -> str:
        """Tokens."""
        return readable_tokens(price.upload_frame_hundredths)

    @admin.display(description="Detection: image")
    def inference_image(self, price: Price) -> str:
        """Tokens."""
        return readable_tokens(price.inference_image_hundredths)

    @admin.display(description="Detection: video frame")
    def inference_frame(self, price: Price) -> str:
        """Tokens."""
        return readable_tokens(price.inference_frame_hundredths)

    @admin.display(description="Counts now", boolean=True)
    def counts_now(self, price: Price) -> bool:
        """The newest list counts."""
        return not Price.objects.filter(pk__gt=price.pk).exists()
