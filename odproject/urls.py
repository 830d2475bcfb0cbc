"""Every route of the service but the probes (`odproject.health`)."""

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from accounts.admin import change_own_password
from odproject import pages
from odproject.core.api import only_read

admin.site.site_header = admin.site.site_title = "odproject administration"

urlpatterns = [
    path("", pages.home, name="home"),
    path("admin", admin.site.admin_view(admin.site.index)),
    path("admin/password_change/", admin.site.admin_view(change_own_password, cacheable=True)),
    path("admin/", admin.site.urls),
    re_path(r"^api/schema/?$", only_read(SpectacularAPIView.as_view()), name="schema"),
    re_path(r"^api/docs/?$", only_read(SpectacularSwaggerView.as_view(url_name="schema"))),
    path("", include("accounts.urls")),
    path("", include("billing.urls")),
    path("", include("datasets.urls")),
    path("", include("inference.urls")),
]

handler400 = "odproject.core.api.bad_request"
handler403 = "odproject.pages.permission_denied"
handler404 = "odproject.pages.page_not_found"
handler500 = "odproject.core.api.server_error"
