"""Asking a hub: which files a model has, and its config.json, before anything is downloaded.

Hugging Face's API is also what its mirrors speak. ModelScope's differs in the addresses and names of fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.hub.place import Access
from deployments.hub.source import Hub, HubModel, Listing, ModelFile, wanted

_SECONDS = 15
_LARGEST_ANSWER = 16 << 20
_MOST_REDIRECTS = 5
_T = TypeVar("_T")


def file_url(access: Access, model: HubModel, commit: str, path: str) -> str:
    """The address a file is downloaded from."""
    name, revision = quote(model.id), quote(commit, safe="")
    if model.hub is Hub.HUGGING_FACE:
        return f"{access.endpoint}/{name}/resolve/{revision}/{quote(path)}"
    return f"{access.endpoint}/api/v1/models/{name}/repo?Revision={revision}&FilePath={quote(path, safe='')}"


def listing(access: Access, model: HubModel, transport: httpx.BaseTransport | None = None) -> Listing:
    """The model's commit and files. Raises `Problem`: unknown, not allowed, hub away, nonsense answered."""
    name, revision = quote(model.id), quote(model.wanted_revision, safe="")
    if model.hub is Hub.HUGGING_FACE:
        url = f"{access.endpoint}/api/models/{name}/revision/{revision}?blobs=true"
    else:
        url = f"{access.endpoint}/api/v1/models/{name}/repo/files?Revision={revision}&Recursive=true"
    read = {Hub.HUGGING_FACE: _hugging_face, Hub.MODELSCOPE: _modelscope}[model.hub]
    return _understood(access, model, _get(access, model, url, transport), read)


def config(
    access: Access, model: HubModel, commit: str, transport: httpx.BaseTransport | None = None
) -> dict[str, Any]:
    """The model's config.json. Raises `Problem` as `listing` does."""
    answer = _get(access, model, file_url(access, model, commit, "config.json"), transport)
    return _understood(access, model, answer, _object)


def _understood(access: Access, model: HubModel, answer: bytes, read: Callable[[Any, HubModel], _T]) -> _T:
    try:
        return read(msgspec.json.decode(answer), model)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(
            _("%(endpoint)s answered something that is not %(hub)s's API.")
            % {"endpoint": access.endpoint, "hub": model.hub.label},
            _("Check the address of the hub or mirror on the Models page."),
        ) from error


def _object(answer: Any, model: HubModel) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise TypeError("not an object")
    return answer


def _hugging_face(answer: Any, model: HubModel) -> Listing:
    files = [
        ModelFile(str(entry["rfilename"]), int(entry.get("size") or 0), (entry.get("lfs") or {}).get("sha256", ""))
        for entry in answer["siblings"]
    ]
    return Listing(str(answer["sha"]), wanted(files))


def _modelscope(answer: Any, model: HubModel) -> Listing:
    entries = [entry for entry in answer["Data"]["Files"] if entry.get("Type") != "tree"]
    files = [ModelFile(str(entry["Path"]), int(entry["Size"]), entry.get("Sha256") or "") for entry in entries]
    # A branch has no commit of its own here; the newest of its files' is what changes when anything does.
    newest: dict[str, Any] = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
    return Listing(model.revision or str(newest.get("Revision") or model.wanted_revision), wanted(files))


def _get(access: Access, model: HubModel, url: str, transport: httpx.BaseTransport | None) -> bytes:
    try:
        # httpx drops Authorization where a redirect leads to another host.
        with (
            httpx.Client(
                timeout=_SECONDS, follow_redirects=True, max_redirects=_MOST_REDIRECTS, transport=transport
            ) as client,
            client.stream("GET", url, headers=access.headers) as answer,
        ):
            _check(access, model, answer.status_code)
            return _bounded(answer)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise Problem(
            _("%(hub)s cannot be reached at %(endpoint)s: %(why)s.")
            % {"hub": model.hub.label, "endpoint": access.endpoint, "why": str(error) or type(error).__name__},
            _("Set a mirror on the Models page, or copy the model to the nodes and give its path."),
        ) from error


def _bounded(answer: httpx.Response) -> bytes:
    data = bytearray()
    for piece in answer.iter_bytes():
        data += piece
        if len(data) > _LARGEST_ANSWER:
            raise httpx.DecodingError("more than 16 MiB")
    return bytes(data)


def _check(access: Access, model: HubModel, status: int) -> None:
    if status in (401, 403):
        said = _("%(hub)s does not let us read %(id)s: it is private or gated, or it does not exist.")
        todo = (_("Accept the model's terms on its page, and check the token on the Models page.") if access.token
                else _("Set a token that may read it on the Models page."))
    elif status == 404:
        said = _("%(hub)s has no model %(id)s.")
        todo = _("Check the spelling and the revision; a private model needs a token (Models page).")
    elif status >= 300:
        said = _("%(hub)s answered with status %(status)d for %(id)s.")
        todo = _("Try again later, or use a mirror (Models page).")
    else:
        return
    raise Problem(said % {"hub": model.hub.label, "id": model.id, "status": status}, todo)
