"""Every route of the service."""

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from odproject import health, pages

admin.site.site_header = admin.site.site_title = "odproject administration"
# The lists of jobs and transfers need the width that the side bar would take.
admin.site.enable_nav_sidebar = False

urlpatterns = [
    path("", pages.home, name="home"),
    path("admin/", admin.site.urls),
    re_path(r"^livez/?$", health.livez),
    re_path(r"^readyz/?$", health.readyz),
    re_path(r"^api/schema/?$", SpectacularAPIView.as_view(), name="schema"),
    re_path(r"^api/docs/?$", SpectacularSwaggerView.as_view(url_name="schema")),
    path("", include("accounts.urls")),
    path("", include("billing.urls")),
    path("", include("datasets.urls")),
    path("", include("inference.urls")),
]

handler400 = "odproject.core.api.bad_request"
handler403 = "odproject.core.api.permission_denied"
handler404 = "odproject.core.api.page_not_found"
handler500 = "odproject.core.api.server_error"
