"""Settings: everything comes from the environment, and the embedded default needs none of it.

Without REDIS_URL the bundled Valkey is used, without DATABASE_URL an SQLite file; both live under ``var/``
(QUARTERDECK_VAR). Nonsense is refused here with one sentence, not later with a traceback.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _

BASE_DIR = Path(__file__).resolve().parent.parent
VAR_DIR = Path(os.environ.get("QUARTERDECK_VAR") or BASE_DIR / "var")


def flag(name: str, default: bool) -> bool:
    """A yes-or-no variable. Raises `ImproperlyConfigured` for anything else."""
    text = os.environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    if text == "":
        return default
    raise ImproperlyConfigured(f"{name} must be 1 or 0, not {text!r}")


def number(name: str, default: int) -> int:
    """A whole number from the environment. Raises `ImproperlyConfigured` for anything else."""
    text = os.environ.get(name, "").strip()
    if text.isdecimal():
        return int(text)
    if text == "":
        return default
    raise ImproperlyConfigured(f"{name} must be a whole number, not {text!r}")


def words(name: str, default: str) -> list[str]:
    return [word.strip() for word in (os.environ.get(name) or default).split(",") if word.strip()]


def kept_secret(env: str, filename: str, make: Any) -> str:
    """A secret from the environment, or one made once and kept in ``var/`` with mode 0600."""
    if os.environ.get(env):
        return os.environ[env]
    path = VAR_DIR / filename
    if not path.exists():
        VAR_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written beside (mode 0600) and then linked: it is there whole or not at all, and the first one stays.
        with tempfile.NamedTemporaryFile("w", dir=VAR_DIR, prefix=f".{filename}.") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text()


def _field_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


DEBUG = flag("DEBUG", False)
SECRET_KEY = kept_secret("SECRET_KEY", "secret.key", lambda: secrets.token_urlsafe(64))
FIELD_KEY = kept_secret("FIELD_KEY", "field.key", _field_key)
METRICS_TOKEN = kept_secret("METRICS_TOKEN", "metrics.token", lambda: secrets.token_urlsafe(32))
ALLOWED_HOSTS = words("ALLOWED_HOSTS", "*")
CSRF_TRUSTED_ORIGINS = words("CSRF_TRUSTED_ORIGINS", "")

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "channels",
    "controlplane",
    "nodes",
    "deployments",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "controlplane.middleware.SecurityHeaders",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "controlplane.middleware.UserTimeZone",
    "controlplane.middleware.ProblemPages",
]

ROOT_URLCONF = "controlplane.urls"
ASGI_APPLICATION = "controlplane.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["controlplane.templatetags.deck", "django.templatetags.i18n", "django.templatetags.static"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": dj_database_url.parse(
        os.environ.get("DATABASE_URL") or f"sqlite:///{VAR_DIR / 'quarterdeck.sqlite3'}", conn_max_age=60
    )
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Several processes share the file: WAL lets readers go on while one writes, and IMMEDIATE takes the write lock
    # at the start of a transaction, so that a busy moment is a short wait and never "database is locked".
    DATABASES["default"]["CONN_MAX_AGE"] = 0
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / f"test-{os.getpid()}.sqlite3")}  # tests with threads share it
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The bundled Valkey listens on a Unix socket: no port to collide, and the directory's mode guards it.
REDIS_URL = os.environ.get("REDIS_URL") or f"unix://{VAR_DIR / 'valkey.sock'}"
EMBEDDED_VALKEY = not os.environ.get("REDIS_URL")

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_TIME_LIMIT = 120
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 300}

CHANNEL_LAYERS = {
    "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [REDIS_URL]}}
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "sign-in"

# HTTPS=1 when a proxy in front terminates TLS and sets X-Forwarded-Proto; the embedded default is plain HTTP on
# loopback, where "secure" cookies would keep everybody out.
HTTPS = flag("HTTPS", False)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31536000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

# Mail that alerts are sent by; without EMAIL_HOST none is.
EMAIL_HOST = os.environ.get("EMAIL_HOST", "")
EMAIL_PORT = number("EMAIL_PORT", 587)
EMAIL_HOST_USER = os.environ.get("EMAIL_USER", "")
EMAIL_HOST_PASSWORD = os.environ.get("EMAIL_PASSWORD", "")
EMAIL_USE_TLS = flag("EMAIL_TLS", True)
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = os.environ.get("EMAIL_FROM", "quarterdeck@localhost")

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("zh-hans", _("Simplified Chinese"))]
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_I18N = True
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = os.environ.get("STATIC_ROOT") or None  # where collectstatic gathers; embedded serves from static/ itself
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL") or "INFO"},
    "loggers": {"paramiko": {"level": "CRITICAL"}, "httpx": {"level": "WARNING"},
                # a line for each look at an unfinished run, once a second, would drown what matters
                "celery.worker.strategy": {"level": "WARNING"}, "celery.app.trace": {"level": "WARNING"}},
}

# --- Quarterdeck's own -----------------------------------------------------------------------------------------

#: Where Quarterdeck keeps its things on the local node; SSH nodes use ~/.quarterdeck of the user it signs in as.
LOCAL_NODE_ROOT = os.environ.get("QUARTERDECK_NODE_ROOT") or str(VAR_DIR / "node")
#: Bytes of a job's log kept in its stream; older bytes are read from the node or the archive.
LOG_STREAM_BYTES = number("LOG_STREAM_BYTES", 32 * 1024 * 1024)
#: Bytes of a running job's log file kept on its node; the beginning of a longer one is let go of. 0: all.
LOG_FILE_BYTES = number("LOG_FILE_BYTES", 1 << 30)
#: Bytes of an ended job's log kept in the database, its end where it is longer.
LOG_ARCHIVE_BYTES = number("LOG_ARCHIVE_BYTES", 64 << 20)
#: Days after which an ended job's directory on its node and its archived log are removed.
LOG_DAYS = number("LOG_DAYS", 30)
#: Seconds of samples kept in a node's metrics stream, one sample a second.
METRICS_STREAM_SAMPLES = number("METRICS_STREAM_SAMPLES", 3600)
#: PyTorch's CPU wheels where the package index does not offer them; a mirror may take its place.
TORCH_CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
#: The package index nodes install from; empty: whatever pip on the node is configured for.
PIP_INDEX = os.environ.get("PIP_INDEX", "")
#: An index asked besides it.
PIP_EXTRA_INDEX = os.environ.get("PIP_EXTRA_INDEX", "")
#: Wheels for nodes without a network are kept here (``manage.py wheels`` fetches them) and pushed over SFTP.
WHEELHOUSE = Path(os.environ.get("QUARTERDECK_WHEELHOUSE") or VAR_DIR / "wheels")
#: Miniconda's or Miniforge's installer, a URL or a path on the nodes, where a node is prepared with conda.
CONDA_INSTALLER = os.environ.get("CONDA_INSTALLER", "")
#: Where models are downloaded from unless the Models page names a mirror.
HF_ENDPOINT = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
MODELSCOPE_ENDPOINT = os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
#: Seconds until what ended by itself, a model server or Ray, is started again the first time; doubled with each time.
RESTART_DELAY = max(1, number("RESTART_DELAY", 10))
#: The first of the block of 400 ports that Ray and vLLM use on a node.
PORT_BASE = number("PORT_BASE", 20600)
