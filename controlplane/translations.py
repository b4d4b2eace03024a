"""Compiles the translators' files to what gettext reads. bin/setup runs this file."""

from __future__ import annotations

from pathlib import Path

import polib

LOCALE = Path(__file__).resolve().parent.parent / "locale"


def compile_catalogs(locale: Path = LOCALE) -> list[Path]:
    """Write the .mo beside every .po below ``locale``; a reader never sees half a file."""
    written = []
    for source in sorted(locale.glob("*/LC_MESSAGES/*.po")):
        target, draft = source.with_suffix(".mo"), source.with_suffix(".mo.new")
        polib.pofile(str(source)).save_as_mofile(str(draft))
        draft.replace(target)
        written.append(target)
    return written


if __name__ == "__main__":
    compile_catalogs()
