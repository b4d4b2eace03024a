"""Every address of the pages; the gateway's ``/v1`` is dispatched before Django, in `controlplane.asgi`."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LogoutView
from django.urls import include, path

from controlplane import views
from deployments.alerts import views as alert_views
from deployments.hub.views import hub, models
from deployments.telemetry.exposition import metrics
from deployments.web.key_views import key_edit, key_revoke, keys
from deployments.web.overview import overview, try_demo
from deployments.web.usage_views import usage, usage_csv
from nodes.telemetry.views import recent, series
from nodes.web.log_views import job_log

urlpatterns = [
    path("", overview, name="overview"),
    path("try-demo/", try_demo, name="try-demo"),
    path("sign-in/", views.SignIn.as_view(), name="sign-in"),
    path("sign-out/", login_not_required(LogoutView.as_view()), name="sign-out"),
    path("language/", views.language, name="language"),
    path("nodes/", include("nodes.web.urls")),
    path("clusters/", include("nodes.web.cluster_urls")),
    path("deployments/", include("deployments.web.urls")),
    path("playground/", include("deployments.playground.urls")),
    path("models/", models, name="models"),
    path("models/hub/<str:name>/", hub, name="model-hub"),
    path("api/", include("controlplane.rest")),
    path("keys/", keys, name="keys"),
    path("keys/<int:pk>/", key_edit, name="key-edit"),
    path("keys/<int:pk>/revoke/", key_revoke, name="key-revoke"),
    path("usage/", usage, name="usage"),
    path("usage/usage.csv", usage_csv, name="usage-csv"),
    path("metrics", metrics, name="metrics"),
    path("alerts/", alert_views.alerts, name="alerts"),
    path("alerts/bell/", alert_views.bell, name="alert-bell"),
    path("alerts/settings/", alert_views.settings, name="alert-settings"),
    path("alerts/test/", alert_views.test, name="alert-test"),
    path("telemetry/", recent, name="telemetry-recent"),
    path("telemetry/<slug:kind>/<int:number>/", series, name="telemetry"),
    path("jobs/<uuid:job_id>/log", job_log, name="job-log"),
]
