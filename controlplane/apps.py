from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class Checked(AppConfig):
    """The models and the checks of the configuration: what the gateway alone needs."""

    default = False
    name = "controlplane"
    verbose_name = _("Control plane")

    def ready(self) -> None:
        from controlplane import checks  # noqa: F401  (it registers itself)


class ControlplaneConfig(Checked):
    default = True

    def ready(self) -> None:
        super().ready()
        # Celery's application has to be there before a task is sent.
        from controlplane import celery, consumers, lifecycle  # noqa: F401

        lifecycle.listeners.append(consumers.publish)
