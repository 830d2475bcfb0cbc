from django.urls import re_path

from billing import views

urlpatterns = [re_path(r"^token/?$", views.TokenView.as_view())]
