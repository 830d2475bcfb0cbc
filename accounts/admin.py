"""Groups: the roles of administrators, and what each may do."""

from django.contrib import admin
from django.contrib.auth.models import Group
from django.http import HttpRequest

from odproject.core.admin import PortableAdmin

admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(PortableAdmin[Group]):
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
