from django.urls import path

from deployments import views
from deployments.alias_views import alias_add, alias_remove

urlpatterns = [
    path("", views.deployments, name="deployments"),
    path("new/", views.new, name="deployment-new"),
    path("<str:name>/", views.deployment, name="deployment"),
    path("<str:name>/start/", views.start, name="deployment-start"),
    path("<str:name>/stop/", views.stop, name="deployment-stop"),
    path("<str:name>/delete/", views.delete, name="deployment-delete"),
    path("<str:name>/aliases/add/", alias_add, name="alias-add"),
    path("<str:name>/aliases/remove/", alias_remove, name="alias-remove"),
]
