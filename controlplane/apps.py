from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ControlplaneConfig(AppConfig):
    name = "controlplane"
    verbose_name = _("Control plane")

    def ready(self) -> None:
        from controlplane import checks, consumers, lifecycle  # noqa: F401  (checks registers itself)

        lifecycle.listeners.append(consumers.publish)
