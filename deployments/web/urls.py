from django.urls import path

from deployments.web import form_views, revision_views, views
from deployments.web.alias_views import alias_add, alias_remove

urlpatterns = [
    path("", views.deployments, name="deployments"),
    path("new/", form_views.new, name="deployment-new"),
    path("plan/", form_views.plan, name="deployment-plan"),
    path("flags/<str:name>/", form_views.flags, name="node-flags"),
    path("import/", revision_views.import_, name="deployment-import"),
    path("import/preview/", revision_views.preview, name="import-preview"),
    path("<str:name>/", views.deployment, name="deployment"),
    path("<str:name>/edit/", form_views.edit, name="deployment-edit"),
    path("<str:name>/history/", revision_views.history, name="deployment-history"),
    path("<str:name>/history/<int:number>/", revision_views.restore, name="deployment-restore"),
    path("<str:name>/commands/", form_views.commands, name="deployment-commands"),
    path("<str:name>/export/", revision_views.export, name="deployment-export"),
    path("<str:name>/start/", views.start, name="deployment-start"),
    path("<str:name>/restart/", views.restart, name="deployment-restart"),
    path("<str:name>/stop/", views.stop, name="deployment-stop"),
    path("<str:name>/delete/", views.delete, name="deployment-delete"),
    path("<str:name>/aliases/add/", alias_add, name="alias-add"),
    path("<str:name>/aliases/remove/", alias_remove, name="alias-remove"),
]
