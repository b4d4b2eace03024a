"""Settings of ``manage.py gateway``: the models, and nothing else of the applications.

Pages, stories, tasks and SSH, imported only to lie there, were a third of the process's memory.
"""

from controlplane.settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "controlplane.apps.Checked",
    "nodes.apps.Models",
    "deployments.apps.Models",
]
MIDDLEWARE = []
TEMPLATES = []
