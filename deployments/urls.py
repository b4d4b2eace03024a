from django.urls import path

from deployments import views

urlpatterns = [
    path("", views.deployments, name="deployments"),
    path("new/", views.new, name="deployment-new"),
    path("<str:name>/", views.deployment, name="deployment"),
    path("<str:name>/start/", views.start, name="deployment-start"),
    path("<str:name>/stop/", views.stop, name="deployment-stop"),
    path("<str:name>/delete/", views.delete, name="deployment-delete"),
]
