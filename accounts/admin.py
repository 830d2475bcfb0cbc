"""Groups, which are the roles of administrators; their own passwords; API keys and webhooks."""

from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from django import forms
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.utils import timezone
from django.utils.safestring import SafeString

from accounts.api_keys import ApiKeyEndedError
from accounts.models import ApiKey, User, Webhook
from accounts.selectors import with_last_seq
from accounts.services import revoke_api_key, revoke_sessions
from accounts.webhooks import switch_off_webhook, switch_on_webhook
from odproject.core.admin import ActingAdmin, ObjectAction, ReadOnlyAdmin, ReasonForm, badge

admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(ActingAdmin[Group]):
    """Roles. Who can change them can have any permission, so only superusers can."""

    search_fields = ("name",)
    ordering = ("name",)
    filter_horizontal = ("permissions",)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Superusers only, whatever permissions somebody was given."""
        return request.user.is_superuser

    def has_view_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        """Superusers only."""
        return request.user.is_superuser

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Superusers only."""
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        """Superusers only."""
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        """Superusers only."""
        return request.user.is_superuser


def _explain_revocation(key: ApiKey) -> str:
    return (
        f"Programs of {key.user.email} that use the key {key.name} are refused from then on. "
        "A key that was revoked never comes back."
    )


def _revoke(actor: User, key: ApiKey, answers: dict[str, Any]) -> str:
    if not revoke_api_key(key_id=key.pk, by=actor):
        raise ApiKeyEndedError("The key was revoked before.")
    return f"The API key {key} of {key.user.email} was revoked."


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin[ApiKey]):
    """API keys of all users, to read and to revoke; what is kept of their secrets is not shown."""

    object_actions = (
        ObjectAction(
            name="revoke",
            title="Revoke",
            permission="accounts.change_apikey",
            form_class=forms.Form,
            explain=_explain_revocation,
            act=_revoke,
            is_fitting=lambda key: key.revoked_at is None,
            is_dangerous=True,
        ),
    )
    list_display = ("name", "user", "prefix", "state", "last_used_at", "created_at")
    list_filter = ("is_read_only",)
    search_fields = ("user__email", "name", "prefix")
    search_help_text = "Search by the user's e-mail address, the key's name or prefix"
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("user",)
    fields = (
        *list_display,
        *("is_read_only", "requests_per_minute", "expires_at", "revoked_at", "revoked_by"),
    )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """No question about the hash of a secret."""
        return not lookup.startswith("digest") and super().lookup_allowed(lookup, value, request)

    @admin.display
    def state(self, key: ApiKey) -> SafeString:
        """Whether somebody has revoked it, or its time is over."""
        if key.revoked_by_id is not None:
            return badge("revoked", "bad")
        is_over = key.expires_at is not None and key.expires_at <= timezone.now()
        return badge("expired") if is_over else badge("living", "good")


SHOWN_OF_PATH = 8  # letters


class SwitchOffForm(ReasonForm):
    """Why a webhook is switched off."""

    readers = "The owner of the webhook reads this."


def _switch_off(actor: User, webhook: Webhook, answers: dict[str, Any]) -> str:
    switch_off_webhook(actor=actor, webhook=webhook, reason=answers["reason"])
    return f"The webhook was switched off: {answers['reason']}"


def _switch_on(actor: User, webhook: Webhook, answers: dict[str, Any]) -> str:
    switch_on_webhook(webhook=webhook)
    return "The webhook was switched on again."


def _sees_addresses(request: HttpRequest) -> bool:
    return request.user.has_perm("accounts.change_webhook")


def beginning_of(url: str) -> str:
    """Scheme, host and the first letters of the path, behind which an address may hold secrets."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path[:SHOWN_OF_PATH]}"
    is_whole = len(parts.path) <= SHOWN_OF_PATH and not parts.query
    return shown if is_whole else f"{shown}…"


@admin.register(Webhook)
class WebhookAdmin(ReadOnlyAdmin[Webhook]):
    """Webhooks and how their deliveries go; their secrets are nobody's but their owners'.

    Who may not change webhooks sees, and finds, no more of an address than its beginning.
    """

    object_actions = (
        ObjectAction(
            name="switch-off",
            title="Switch the webhook off",
            permission="accounts.switch_off_webhook",
            form_class=SwitchOffForm,
            explain=lambda webhook: (
                f"Nothing more is sent to {beginning_of(webhook.url)} until an administrator "
                f"switches it on again; {webhook.user} cannot."
            ),
            act=_switch_off,
            is_fitting=lambda webhook: webhook.off_by_id is None,
            is_dangerous=True,
        ),
        ObjectAction(
            name="switch-on",
            title="Switch the webhook on again",
            permission="accounts.switch_off_webhook",
            form_class=forms.Form,
            explain=lambda webhook: (
                f"What has happened to {webhook.user} since the last delivery is sent to "
                f"{beginning_of(webhook.url)}, as far as it is kept."
            ),
            act=_switch_on,
            is_fitting=lambda webhook: webhook.off_by_id is not None,
        ),
    )
    list_display = (
        *("id", "user", "address", "status", "backlog", "consecutive_failures"),
        *("last_status", "last_attempt_at"),
    )
    search_help_text = "Search by the user's e-mail address or, if you may see it, the webhook's"
    ordering = ("-pk",)
    list_select_related = ("user",)
    fields = (
        *list_display[1:],
        *("kinds", "created_at", "last_error", "next_attempt_at"),
        *("off_since", "off_reason", "off_by"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Webhook]:
        """Webhooks with the number of their user's newest event."""
        return with_last_seq(super().get_queryset(request))

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """The columns, with as much of the address as is for who asks."""
        return self._with_address(self.list_display, request)

    def get_fields(self, request: HttpRequest, obj: Webhook | None = None) -> list[Any]:
        """What the page of a webhook shows, with as much of the address as is for who asks."""
        return self._with_address(self.fields, request)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Where a search looks: letter by letter it would tell an address."""
        return ("user__email", "url") if _sees_addresses(request) else ("user__email",)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """No question about a secret, which letter by letter would tell it."""
        is_told = "secret" not in lookup and ("url" not in lookup or _sees_addresses(request))
        return is_told and super().lookup_allowed(lookup, value, request)

    @staticmethod
    def _with_address(names: Sequence[Any], request: HttpRequest) -> list[Any]:
        shown = "url" if _sees_addresses(request) else "address"
        return [shown if name == "address" else name for name in names]

    @admin.display
    def address(self, webhook: Webhook) -> str:
        """The beginning of the address."""
        return beginning_of(webhook.url)

    @admin.display
    def status(self, webhook: Webhook) -> SafeString:
        """Whether it is on, and whether its last message was taken."""
        if webhook.off_since is not None:
            return badge("off", "bad")
        return badge("failing", "odd") if webhook.consecutive_failures else badge("on", "good")

    @admin.display
    def backlog(self, webhook: Webhook) -> int:
        """Events after the last one that was delivered."""
        return int(webhook.backlog)  # type: ignore[attr-defined]


def change_own_password(request: HttpRequest) -> HttpResponseBase:
    """The admin's own page, which also logs its user out of the API and the dashboard everywhere.

    Who has stolen a token of the old times is logged out with them.
    """
    with transaction.atomic():
        answer = admin.site.password_change(request)
        if request.method == "POST" and answer.status_code == 302:
            revoke_sessions(user=cast(User, request.user))
    return answer
