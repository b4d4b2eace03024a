"""The form of a key: its name, its end, and what it may do."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm
from deployments.gateway import routes
from deployments.models import ApiKey, Deployment, KeyLimits

MOST = 2_000_000_000  # what the database's integers hold


def _limit(label: Any, help_text: Any = "") -> forms.IntegerField:
    said = _("A limit is a number from 1 to 2,000,000,000; empty is no limit.")
    field = forms.IntegerField(label=label, required=False, min_value=1, max_value=MOST, help_text=help_text,
                               error_messages={"invalid": said, "min_value": said, "max_value": said})
    field.widget.attrs.update(placeholder=_("no limit"), inputmode="numeric")
    return field


class KeyForm(DeckForm):
    """Of a new key, or of ``key`` as it is."""

    name = forms.CharField(
        label=_("Name"),
        max_length=80,
        error_messages={"required": _("Give the key a name.")},
        help_text=_("What uses it, for example batch-jobs: what stops when you revoke it."),
    )
    expires = forms.DateField(
        label=_("Last day"),
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        help_text=_("After it requests are refused. Empty: until it is revoked."),
    )
    requests_per_minute = _limit(_("Requests a minute"))
    tokens_per_minute = _limit(_("Tokens a minute"))
    tokens_per_day = _limit(_("Tokens a day"), _("Of prompts and answers; a day is UTC's."))
    concurrent = _limit(_("Requests at once"))
    only_models = forms.MultipleChoiceField(
        label=_("Only these models"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        error_messages={"invalid_choice": _("There is no deployment %(value)s. Choose others.")},
    )

    controls = forms.BooleanField(
        label=_("May also control Quarterdeck"),
        required=False,
        help_text=_("The REST API at /api takes it, with your role. Leave it off for programs that only send prompts."),
    )

    LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent", "only_models")

    def __init__(self, data: Any = None, key: ApiKey | None = None) -> None:
        limits = KeyLimits.objects.filter(key=key).first() if key else None
        known = {name: getattr(limits, name) for name in self.LIMITS} if limits else {}
        if key:
            known |= {"name": key.name, "expires": _last_day(key.expires_at), "controls": key.controls}
        super().__init__(data, initial=known)
        self.fields["expires"].widget.attrs["min"] = timezone.localdate().isoformat()
        self.fields["only_models"].choices = _models(known.get("only_models", []))  # type: ignore[attr-defined]

    def clean_expires(self) -> date | None:
        day: date | None = self.cleaned_data["expires"]
        if day and day < timezone.localdate() and day != self.initial.get("expires"):
            raise forms.ValidationError(_("This day is over. Choose today or a later one."))
        return day

    @property
    def expires_at(self) -> datetime | None:
        """The end of the last day, in the reader's time zone."""
        day = self.cleaned_data["expires"]
        return timezone.make_aware(datetime.combine(day + timedelta(days=1), time.min)) if day else None

    def keep(self, key: ApiKey) -> None:
        """Give ``key`` the form's name, end and limits. Gateways keep to them at once."""
        controls = self.cleaned_data["controls"]
        ApiKey.objects.filter(pk=key.pk).update(
            name=self.cleaned_data["name"], expires_at=self.expires_at, controls=controls
        )
        values = {name: self.cleaned_data[name] for name in self.LIMITS}
        if any(values.values()):
            KeyLimits.objects.update_or_create(key=key, defaults=values)
        else:
            KeyLimits.objects.filter(key=key).delete()
        routes.poke()


def _last_day(expires_at: datetime | None) -> date | None:
    return timezone.localdate(expires_at - timedelta(seconds=1)) if expires_at else None


def _models(chosen: list[str]) -> list[tuple[str, str]]:
    """Every deployment's name, and the chosen ones that are no deployment any more."""
    names = Deployment.objects.values_list("name", flat=True)
    return [(name, name) for name in sorted({*names, *chosen})]
