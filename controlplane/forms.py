"""What all forms share: the look of the fields, and secrets that are never written back into a page."""

from __future__ import annotations

from typing import Any

from django import forms

from controlplane.problems import Problem

_PLAIN = (forms.CheckboxInput, forms.RadioSelect)


class DeckForm(forms.Form):
    """A form whose fields wear the class ``input`` and whose problems stand above its fields."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problem: Problem | None = None
        for field in self.fields.values():
            if not isinstance(field.widget, _PLAIN):
                kind = f"input {field.widget.attrs.get('class', '')}".strip()
                field.widget.attrs["class"] = kind


class SecretArea(forms.Textarea):
    """A text area that takes a secret and never shows it again."""

    def format_value(self, value: Any) -> str:
        return ""
