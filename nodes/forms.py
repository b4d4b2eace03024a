"""The form that registers a node. Each message says what is wrong with the field and what to type instead."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm, SecretArea
from controlplane.secrets import Secret
from nodes.models import Node
from nodes.registration import Login

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?")
#: Words that are pages beside a node's own.
RESERVED = frozenset({"new", "approve"})


class NodeForm(DeckForm):
    """Where the server is and how to sign in to it. `login` gives the answer once the form is valid."""

    name = forms.CharField(
        label=_("Name"),
        max_length=63,
        widget=forms.TextInput(attrs={"placeholder": "gpu-1"}),
        help_text=_("Shown everywhere in Quarterdeck."),
    )
    address = forms.CharField(label=_("Address"), max_length=255, help_text=_("Host name or IP address."))
    port = forms.IntegerField(
        label=_("SSH port"),
        initial=22,
        min_value=1,
        max_value=65535,
        error_messages={
            "min_value": _("A port is a number from 1 to 65535."),
            "max_value": _("A port is a number from 1 to 65535."),
            "invalid": _("A port is a number from 1 to 65535."),
        },
    )
    user = forms.CharField(label=_("User"), max_length=64)
    method = forms.ChoiceField(
        label=_("Sign in with"),
        choices=[("password", _("Password")), ("key", _("Private key"))],
        initial="password",
        widget=forms.RadioSelect,
    )
    password = forms.CharField(
        label=_("Password"),
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_("Used once, to install Quarterdeck's own key. Then forgotten."),
    )
    private_key = forms.CharField(
        label=_("Private key"),
        required=False,
        max_length=20000,
        widget=SecretArea(attrs={"rows": 6, "class": "mono", "spellcheck": "false", "autocomplete": "off"}),
        help_text=_("The whole text of the file, for example ~/.ssh/id_ed25519. Used once, then forgotten."),
    )
    passphrase = forms.CharField(
        label=_("Passphrase"),
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_("Leave it empty if the key has none."),
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise ValidationError(
                _("A name has letters, digits and hyphens only, with a letter or digit at both ends.")
            )
        if Node.objects.filter(name=name).exists():
            said = _("A node named %(name)s exists already. Choose another name.")
            raise ValidationError(said % {"name": name})
        return name

    def clean_address(self) -> str:
        address: str = self.cleaned_data["address"].strip("[]")
        if not _ADDRESS.fullmatch(address):
            raise ValidationError(
                _("This is not a host name or IP address. Type only the address here, without user and port.")
            )
        return address

    def clean_user(self) -> str:
        user: str = self.cleaned_data["user"]
        if not _USER.fullmatch(user):
            raise ValidationError(_("This is not the name of a Linux user. Type it as in ssh user@host."))
        return user

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        field = "password" if data.get("method") == "password" else "private_key"
        if not data.get(field):
            missing = {
                "password": _("Type the password, or choose Private key above."),
                "private_key": _("Paste the private key, or choose Password above."),
            }
            self.add_error(field, missing[field])
        return data

    def login(self) -> Login:
        """The answers as the registration story takes them; only the secrets of the chosen way."""
        data = self.cleaned_data
        by_key = data["method"] == "key"
        return Login(
            name=data["name"],
            address=data["address"],
            port=data["port"],
            user=data["user"],
            password=Secret("" if by_key else data["password"]),
            private_key=Secret(data["private_key"] if by_key else ""),
            passphrase=Secret(data["passphrase"] if by_key else ""),
        )
