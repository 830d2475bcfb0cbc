"""Users with their balance and top-up, the ledger, and the price list.

The page of users stands here rather than in accounts, because it shows tokens and accounts never
calls up.
"""

import uuid
from decimal import Decimal
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse

from accounts.models import User
from billing import ledger, services
from billing.models import Account, Hold, Price, Transfer
from billing.prices import tokens
from billing.selectors import balance_hundredths
from odproject.core.admin import ReadOnlyAdmin, ask_and_act


class TopUpForm(forms.Form):
    """How much, and why; the hidden key makes a form sent twice count once."""

    amount = forms.DecimalField(
        min_value=Decimal("0.01"),
        max_value=Decimal(20_000),
        decimal_places=2,
        help_text="Tokens to add, up to 20000.",
    )
    reason = forms.CharField(max_length=200, help_text="Kept in the ledger with your name.")
    key = forms.CharField(widget=forms.HiddenInput, max_length=64)


@admin.register(User)
class UserAdmin(admin.ModelAdmin[User]):
    """Users with balance and top-up."""

    list_display = ("email", "balance", "is_staff", "is_active", "created_at")
    list_filter = ("is_staff", "is_active")
    search_fields = ("email",)
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    fields = ("email", "balance", "held", "is_active", "is_staff", "created_at", "last_login")
    readonly_fields = ("email", "balance", "held", "created_at", "last_login")

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Users with both balances, in one query."""
        accounts = Account.objects.filter(user=OuterRef("pk")).values("balance_hundredths")
        return (
            super()
            .get_queryset(request)
            .annotate(
                available=Subquery(accounts.filter(purpose=Account.Purpose.AVAILABLE)),
                on_hold=Subquery(accounts.filter(purpose=Account.Purpose.HELD)),
            )
        )

    @admin.display(description="Balance (tokens)", ordering="available")
    def balance(self, user: User) -> str:
        """What the user can spend; the welcome grant comes with the first use."""
        available = user.available  # type: ignore[attr-defined]
        return f"{tokens(ledger.WELCOME_HUNDREDTHS if available is None else available):,.2f}"

    @admin.display(description="Held for jobs (tokens)", ordering="on_hold")
    def held(self, user: User) -> str:
        """What is set aside for unfinished jobs."""
        return f"{tokens(user.on_hold or 0):,.2f}"  # type: ignore[attr-defined]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Users register themselves."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """The ledger refers to users for ever; an account can be made inactive instead."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """The top-up page beside the usual ones."""
        top_up = path(
            "<int:user_id>/top-up/",
            self.admin_site.admin_view(self.top_up_view),
            name="accounts_user_top_up",
        )
        return [top_up, *super().get_urls()]

    def top_up_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Ask for amount and reason, then top up."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        user = get_object_or_404(User, pk=user_id)
        balance = tokens(balance_hundredths(user=user))

        def act(answers: dict[str, Any]) -> str:
            services.top_up_tokens(
                actor=cast(User, request.user),
                user=user,
                amount_tokens=answers["amount"],
                reason=answers["reason"],
                key=answers["key"],
            )
            return f"{answers['amount']} tokens were added to the balance of {user.email}."

        return ask_and_act(
            site=self.admin_site,
            request=request,
            form_class=TopUpForm,
            title="Top up tokens",
            explanation=f"{user.email} has {balance:,.2f} tokens.",
            act=act,
            back_url=reverse("admin:accounts_user_change", args=[user_id]),
            initial={"key": uuid.uuid4().hex},
        )


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin[Transfer]):
    """The ledger, to read."""

    list_display = ("created_at", "kind", "tokens", "source", "destination", "job_id", "actor")
    list_filter = ("kind",)
    search_fields = ("source__user__email", "destination__user__email", "=job_id", "reason")
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("source__user", "destination__user", "actor")
    list_per_page = 50

    @admin.display(ordering="amount_hundredths")
    def tokens(self, transfer: Transfer) -> str:
        """The amount."""
        return f"{tokens(transfer.amount_hundredths):,.2f}"


@admin.register(Hold)
class HoldAdmin(ReadOnlyAdmin[Hold]):
    """Holds, to read."""

    list_display = ("created_at", "user", "idempotency_key", "state", "amount", "captured")
    list_filter = ("state",)
    search_fields = ("user__email", "idempotency_key")
    ordering = ("-pk",)
    list_select_related = ("user",)

    @admin.display(ordering="amount_hundredths")
    def amount(self, hold: Hold) -> str:
        """Tokens held."""
        return f"{tokens(hold.amount_hundredths):,.2f}"

    @admin.display(ordering="captured_hundredths")
    def captured(self, hold: Hold) -> str:
        """Tokens captured at settlement."""
        return f"{tokens(hold.captured_hundredths):,.2f}"


@admin.register(Price)
class PriceAdmin(ReadOnlyAdmin[Price]):
    """Price lists; a new one replaces the old one for what is quoted from then on."""

    list_display = (
        "created_at",
        "upload_image_hundredths",
        "upload_frame_hundredths",
        "inference_image_hundredths",
        "inference_frame_hundredths",
    )
    exclude = ("created_at",)
    ordering = ("-pk",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Prices change by adding a list, if the administrator's role allows it."""
        return admin.ModelAdmin.has_add_permission(self, request)
