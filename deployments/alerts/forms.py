"""The settings of alerts, as an admin fills them in."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.validators import validate_email
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm
from controlplane.problems import Problem
from deployments.alerts import delivery
from deployments.alerts.models import AlertSettings
from deployments.alerts.rules import RULES, Rule


class AlertForm(DeckForm):
    """Where to send, and by which rules. Secrets that are left empty stay as they are."""

    webhook_url = forms.CharField(
        label=_("Webhook"), required=False, max_length=2000,
        help_text=_("Gets a JSON document by POST. Kept encrypted and not shown again; empty: as it is."),
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}))
    webhook_secret = forms.CharField(
        label=_("Secret of the webhook"), required=False, max_length=200,
        help_text=_("Signs what is sent: HMAC-SHA256 of the body, in X-Quarterdeck-Signature. Empty: as it is."),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}))
    no_webhook = forms.BooleanField(label=_("Send to no webhook any more"), required=False)
    emails = forms.CharField(
        label=_("E-mail"), required=False, max_length=2000, help_text=_("Addresses, separated by commas."))

    def __init__(self, *args: Any, settings: AlertSettings, **kwargs: Any) -> None:
        self.settings = settings
        super().__init__(*args, initial={"emails": settings.emails, **self._rules_now()}, **kwargs)
        for rule in RULES.values():
            self._add_rule(rule)

    def _add_rule(self, rule: Rule) -> None:
        numbers = {"hold": (_("for seconds"), 0, 86_400), "threshold": (_("from percent on"), 10, 100)}
        self.fields[f"{rule.kind}-on"] = forms.BooleanField(label=str(rule.title), required=False)
        for name, (label, least, most) in numbers.items():
            if getattr(rule, name) is not None:
                look = forms.NumberInput(attrs={"class": "input"})
                self.fields[f"{rule.kind}-{name}"] = forms.IntegerField(
                    label=label, min_value=least, max_value=most, widget=look)

    def _rules_now(self) -> dict[str, Any]:
        rules = [self.settings.rule(kind) for kind in RULES]
        return {f"{rule.kind}-{name}": getattr(rule, name) for rule in rules for name in ("on", "hold", "threshold")}

    def rules(self) -> list[list[forms.BoundField]]:
        """The fields of each rule, for the template."""
        return [[self[name] for name in self.fields if name.startswith(f"{kind}-")] for kind in RULES]

    def clean_webhook_url(self) -> str:
        url = str(self.cleaned_data["webhook_url"]).strip()
        if url:
            try:
                delivery.refuse_address(url)
            except Problem as problem:
                raise forms.ValidationError(str(problem)) from problem
        return url

    def clean_emails(self) -> str:
        addresses = [one.strip() for one in self.cleaned_data["emails"].split(",") if one.strip()]
        for one in addresses:
            validate_email(one)
        return ", ".join(addresses)

    def save(self) -> None:
        data, settings = self.cleaned_data, self.settings
        for name in ("webhook_url", "webhook_secret"):
            if data["no_webhook"]:
                setattr(settings, name, "")
            elif data[name]:
                setattr(settings, name, data[name])
        settings.emails = data["emails"]
        settings.rules = {
            kind: {name: data.get(f"{kind}-{name}") for name in ("on", "hold", "threshold")} for kind in RULES
        }
        settings.pk = settings.pk or 1
        settings.save()
