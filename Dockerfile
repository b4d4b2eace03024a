# One image for web, worker and watch; docker-compose.yml says which is which.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 QUARTERDECK_VAR=/var/lib/quarterdeck STATIC_ROOT=/app/staticfiles
WORKDIR /app

COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

COPY manage.py ./
COPY controlplane controlplane
COPY nodes nodes
COPY deployments deployments
COPY templates templates
COPY static static
COPY locale locale

# The build needs no secret; these live in this layer's command alone.
RUN python -P controlplane/translations.py \
    && SECRET_KEY=build FIELD_KEY=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= python manage.py collectstatic --noinput \
    && useradd --system --home-dir /var/lib/quarterdeck --create-home quarterdeck

USER quarterdeck
EXPOSE 8000
CMD ["uvicorn", "controlplane.asgi:application", "--http", "deployments.gateway.http:BoundedHttp", "--timeout-keep-alive", "75", "--ws-per-message-deflate", "false", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", \
     "--no-server-header", "--timeout-graceful-shutdown", "20"]
