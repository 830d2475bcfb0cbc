"""Groups: the roles of administrators, and what each may do. And their own passwords."""

from typing import cast

from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase

from accounts.models import User
from accounts.services import revoke_sessions
from odproject.core.admin import ActingAdmin

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


def change_own_password(request: HttpRequest) -> HttpResponseBase:
    """The admin's own page, which also logs its user out of the API and the dashboard everywhere.

    Who has stolen a token of the old times is logged out with them.
    """
    with transaction.atomic():
        answer = admin.site.password_change(request)
        if request.method == "POST" and answer.status_code == 302:
            revoke_sessions(user=cast(User, request.user))
    return answer
