from django.urls import path

from nodes.web import cluster_views as views

urlpatterns = [
    path("", views.all_clusters, name="clusters"),
    path("new/", views.new, name="cluster-new"),
    path("<str:name>/", views.cluster, name="cluster"),
    path("<str:name>/start/", views.start, name="cluster-start"),
    path("<str:name>/stop/", views.stop, name="cluster-stop"),
    path("<str:name>/edit/", views.edit, name="cluster-edit"),
    path("<str:name>/join/", views.join, name="cluster-join"),
    path("<str:name>/leave/", views.leave, name="cluster-leave"),
    path("<str:name>/clear/", views.clear, name="cluster-clear"),
    path("<str:name>/delete/", views.delete, name="cluster-delete"),
]
