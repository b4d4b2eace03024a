"""Every sentence that people read exists in Chinese, with the same blanks to fill in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import polib
import pytest
from django.conf import settings

from controlplane.translations import compile_catalogs

ROOT = Path(settings.BASE_DIR)
CATALOG = ROOT / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.po"
BLANKS = re.compile(r"%\(\w+\)[-\d.]*[a-z]|(?<!%)%[-\d.]*[srd]|\{\w+\}")
EXTRACT = "makemessages -l zh_Hans --no-obsolete --add-location file --no-wrap"


def entries() -> list[polib.POEntry]:
    return [entry for entry in polib.pofile(str(CATALOG)) if not entry.obsolete]


def translation(entry: polib.POEntry) -> str:
    return str(entry.msgstr_plural.get(0, "") if entry.msgid_plural else entry.msgstr)


def test_every_sentence_is_translated_and_none_is_a_guess() -> None:
    assert [entry.msgid for entry in entries() if not translation(entry)] == []
    assert [entry.msgid for entry in entries() if entry.fuzzy] == []


def test_a_translation_fills_in_the_same_blanks() -> None:
    wrong = [
        entry.msgid
        for entry in entries()
        if sorted(BLANKS.findall(entry.msgid_plural or entry.msgid)) != sorted(BLANKS.findall(translation(entry)))
    ]
    assert wrong == []


def test_the_catalogue_compiles(tmp_path: Path) -> None:
    folder = tmp_path / "zh_Hans" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    (compiled,) = compile_catalogs(tmp_path)
    assert compiled.stat().st_size > 10_000


@pytest.mark.skipif(not shutil.which("xgettext"), reason="xgettext is not installed (apt-get install gettext)")
def test_every_sentence_of_the_code_is_in_the_catalogue(tmp_path: Path) -> None:
    for part in ("controlplane", "nodes", "deployments", "templates"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "locale").mkdir()
    command = [sys.executable, "-m", "django", *EXTRACT.split()]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    extracted = polib.pofile(str(tmp_path / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.po"))
    known = {(entry.msgctxt, entry.msgid) for entry in entries()}
    said = {(entry.msgctxt, entry.msgid) for entry in extracted}
    assert said - known == set(), f"run manage.py {EXTRACT} and translate what is new"
    assert known - said == set(), f"run manage.py {EXTRACT}: these are not said any more"
