from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class NodesConfig(AppConfig):
    name = "nodes"
    verbose_name = _("Nodes")

    def ready(self) -> None:
        from nodes import mesh, preparation  # noqa: F401  (they register their steps and stories)
