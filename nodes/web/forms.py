"""The form that registers servers. Each message says what is wrong with the field and what to type instead."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm, SecretArea
from controlplane.secrets import Secret
from nodes.access import AUTO, NO_ROOT, WITH_PASSWORD
from nodes.candidates import SignIn
from nodes.hostlist import Bad, Row, parse
from nodes.models import Node
from nodes.names import is_address, is_label, is_name, is_user, why_no_address
from nodes.registration import Login

_PORT = _("A port is a number from 1 to 65535.")
_OFF = {"autocomplete": "off"}
#: The jump host is one that is typed, not a node.
OTHER = "other"
#: Characters of a pasted list.
LONGEST_LIST = 60_000


def understood(hosts: str, user: str, port: int) -> list[Row | Bad]:
    """A list as it would be registered now, beside the nodes there are."""
    nodes = Node.objects.filter(kind=Node.Kind.SSH).values_list("user", "address", "port", "name")
    known = {(user, address, port): name for user, address, port, name in nodes}
    return parse(hosts[:LONGEST_LIST], user, port, {*Node.objects.values_list("name", flat=True)}, known)


class NodeForm(DeckForm):
    """Where the servers are and how to sign in to them. `rows` and `sign_in` give the answers once it is valid."""

    count = forms.ChoiceField(
        label=_("How many"),
        choices=[("one", _("One server")), ("many", _("Several"))],
        initial="one",
        required=False,
        widget=forms.RadioSelect,
    )
    name = forms.CharField(
        label=_("Name"),
        required=False,
        max_length=63,
        widget=forms.TextInput(attrs={"placeholder": "gpu-1"}),
        help_text=_("Shown everywhere in Quarterdeck."),
    )
    address = forms.CharField(
        label=_("Address"), required=False, max_length=255, help_text=_("Host name or IP address."))
    hosts = forms.CharField(
        label=_("Servers, one a line"),
        required=False,
        max_length=LONGEST_LIST,
        widget=forms.Textarea(attrs={"rows": 7, "class": "mono", "spellcheck": "false",
                                     "placeholder": "root@te[1-4]\n172.18.81.[126-129]\nops@atlas.lab:2222"}),
        help_text=_("user@host:port, with ranges such as te[1-4] or 172.18.81.[126-129]. "
                    "A name of your own goes before it: gpu-1 = root@10.0.0.7"),
    )
    port = forms.IntegerField(
        label=_("SSH port"),
        initial=22,
        min_value=1,
        max_value=65535,
        error_messages={"min_value": _PORT, "max_value": _PORT, "invalid": _PORT},
    )
    user = forms.CharField(label=_("User"), required=False, max_length=64)
    method = forms.ChoiceField(
        label=_("Sign in with"),
        choices=[("password", _("Password")), ("key", _("Private key")), ("there", _("Key already there"))],
        initial="password",
        widget=forms.RadioSelect,
    )
    password = forms.CharField(
        label=_("Password"),
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput(attrs=_OFF),
        help_text=_("Used once, to install Quarterdeck's own key. Then forgotten."),
    )
    private_key = forms.CharField(
        label=_("Private key"),
        required=False,
        max_length=20000,
        widget=SecretArea(attrs={"rows": 6, "class": "mono", "spellcheck": "false", **_OFF}),
        help_text=_("The whole text of the file, for example ~/.ssh/id_ed25519. Used once, then forgotten."),
    )
    passphrase = forms.CharField(
        label=_("Passphrase"),
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput(attrs=_OFF),
        help_text=_("Leave it empty if the key has none."),
    )
    root = forms.ChoiceField(
        label=_("Root"),
        required=False,
        initial=AUTO,
        choices=[
            (AUTO, _("find out: root, or sudo without a password")),
            (WITH_PASSWORD, _("sudo with a password, which is kept")),
            (NO_ROOT, _("none: only what a user may do")),
        ],
        help_text=_("Base packages, the host's name and /etc/hosts need root. Without it these steps are left out."),
    )
    sudo_password = forms.CharField(
        label=_("Password for sudo"),
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput(attrs=_OFF),
        help_text=_("Kept, encrypted, as long as the node is registered. Empty: the password above."),
    )
    jump = forms.ChoiceField(label=_("Jump host"), required=False)
    bastion = forms.CharField(
        label=_("Address of the jump host"),
        required=False,
        max_length=400,
        widget=forms.TextInput(attrs={"placeholder": "ops@bastion.lab:22"}),
        help_text=_("Signed in to with the same password or key; its own host key is approved first."),
    )
    labels = forms.CharField(
        label=_("Labels"),
        required=False,
        max_length=400,
        widget=forms.TextInput(attrs={"placeholder": "a10 rack-3"}),
        help_text=_("Short words, for finding the servers later."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nodes = Node.objects.filter(kind=Node.Kind.SSH).values_list("name", flat=True)
        choices = [("", _("none")), *((f"node:{name}", name) for name in nodes), (OTHER, _("another, typed below"))]
        self.fields["jump"].choices = choices  # type: ignore[attr-defined]

    @property
    def many(self) -> bool:
        return self.data.get("count") == "many"

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if self.many:
            return ""
        if not is_name(name):
            raise ValidationError(
                _("A name has letters, digits and hyphens only, with a letter or digit at both ends.")
            )
        if Node.objects.filter(name=name).exists():
            said = _("A node named %(name)s exists already. Choose another name.")
            raise ValidationError(said % {"name": name})
        return name

    def clean_address(self) -> str:
        address: str = self.cleaned_data["address"].strip("[]")
        if self.many:
            return ""
        if not address or not is_address(address):
            said = _("This is not a host name or IP address. Type only the address here, without user and port.")
            raise ValidationError(why_no_address(address) if address.replace(".", "").isdigit() else said)
        return address

    def clean_hosts(self) -> str:
        hosts: str = self.cleaned_data["hosts"]
        if self.many and not hosts.strip():
            raise ValidationError(_("Type at least one server, like root@te1 or te[1-4]."))
        return hosts

    def clean_user(self) -> str:
        user: str = self.cleaned_data["user"]
        if not (self.many and not user) and not is_user(user):
            raise ValidationError(_("This is not the name of a Linux user. Type it as in ssh user@host."))
        return user

    def clean_labels(self) -> str:
        words = self.cleaned_data["labels"].lower().replace(",", " ").split()
        if len(words) > 16 or not all(is_label(word) for word in words):
            raise ValidationError(_("Labels are at most 16 words of letters, digits, dots and hyphens, "
                                    "32 characters each."))
        return " ".join(dict.fromkeys(words))

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        missing = {
            "password": ("password", _("Type the password, or choose Private key above.")),
            "key": ("private_key", _("Paste the private key, or choose Password above.")),
        }
        field, said = missing.get(data.get("method", ""), ("", ""))
        if field and not data.get(field):
            self.add_error(field, said)
        if data.get("root") == WITH_PASSWORD and not self._sudo_password(data):
            self.add_error("sudo_password", _("Type the password that sudo asks for."))
        if data.get("jump") == OTHER and "bastion" in data and not isinstance(self._bastion(data), Row):
            self.add_error("bastion", _("Type it like user@host or user@host:port."))
        if self.many and not self.errors and not any(isinstance(row, Row) for row in self.rows()):
            self.add_error("hosts", _("No entry of the list can be a server; the reasons stand beside it."))
        return data

    @staticmethod
    def _sudo_password(data: dict[str, Any]) -> str:
        typed: str = data.get("sudo_password") or (data.get("password", "") if data["method"] == "password" else "")
        return typed

    @staticmethod
    def _bastion(data: dict[str, Any]) -> Row | Bad | None:
        found = parse(data["bastion"], data.get("user", ""), taken={*Node.objects.values_list("name", flat=True)})
        return found[0] if len(found) == 1 else None

    def rows(self) -> list[Row | Bad]:
        """The servers, each judged on its own."""
        data = self.cleaned_data
        if not self.many:
            return [Row(1, "", data["name"], data["user"], data["address"], data["port"])]
        return understood(self.data.get("hosts", ""), data.get("user", ""), data.get("port") or 22)

    def sign_in(self) -> SignIn:
        """How to sign in; only the secrets of the chosen way."""
        data = self.cleaned_data
        way, root = data["method"], data["root"] or AUTO
        return SignIn(
            password=Secret(data["password"] if way == "password" else ""),
            private_key=Secret(data["private_key"] if way == "key" else ""),
            passphrase=Secret(data["passphrase"] if way == "key" else ""),
            agent=way == "there",
            root=root,
            sudo_password=Secret(self._sudo_password(data) if root == WITH_PASSWORD else ""),
        )

    def login(self) -> Login:
        """The one server of the form, as `registration.register` takes it."""
        data, sign_in = self.cleaned_data, self.sign_in()
        return Login(data["name"], data["address"], data["port"], data["user"], labels=tuple(data["labels"].split()),
                     **sign_in.fields)

    def way(self) -> dict[str, Any]:
        """The jump host, as `batches.begin` takes it."""
        jump = self.cleaned_data["jump"]
        if jump == OTHER:
            typed = self._bastion(self.cleaned_data)
            assert isinstance(typed, Row)  # else the form is not valid
            node = Node.objects.filter(user=typed.user, address=typed.address, port=typed.port).first()
            return {"jump": node} if node else {"bastion": typed}
        return {"jump": Node.objects.get(name=jump.removeprefix("node:"))} if jump else {}

    def typed(self) -> dict[str, Any]:
        """Everything but the secrets, for filling the form in again."""
        secret = ("password", "private_key", "passphrase", "sudo_password")
        return {name: value for name, value in self.cleaned_data.items() if name not in secret}
