from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class NodesConfig(AppConfig):
    name = "nodes"
    verbose_name = _("Nodes")

    def ready(self) -> None:
        # They register their steps, stories and receivers.
        from nodes import clusters, clusters_care, mesh, preparation, removal, wheelhouse  # noqa: F401
