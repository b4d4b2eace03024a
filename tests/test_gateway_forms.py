"""Forms (recordings to transcribe): the model is found wherever it stands, and no form costs more than a moment."""

from __future__ import annotations

import time

import pytest

from deployments.gateway.body import Ask, understand
from deployments.gateway.errors import ApiError

TYPE = b"multipart/form-data; boundary=----edge7"
END = b"------edge7--\r\n"
MEGABYTE = 1 << 20


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'------edge7\r\nContent-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value + b"\r\n"


RECORDING = part(b"file", b"\0\r\n\r\n--" * 100_000, b'; filename="a.wav"\r\nContent-Type: audio/wav')


@pytest.mark.parametrize("form", [
    part(b"model", b"whisper") + part(b"stream", b"True") + RECORDING,
    RECORDING + part(b"model", b"whisper", b"\r\nContent-Length: 7") + part(b"stream", b"1"),
    part(b"prompt", b'name="model"\r\n\r\nother\r\n') + part(b"stream", b"true") + part(b"model", b"whisper"),
])
def test_the_fields_of_a_form_are_found_before_and_after_a_recording(form: bytes) -> None:
    assert understand(form + END, TYPE) == Ask("whisper", stream=True, wants_usage=True)
    assert understand(form + END, TYPE.replace(b"----edge7", b'"----edge7"; charset=utf-8')).model == "whisper"


def test_a_field_given_twice_counts_as_the_model_server_counts_it() -> None:
    assert understand(part(b"model", b"first") + part(b"model", b"last") + END, TYPE).model == "last"


@pytest.mark.parametrize("form", [
    b"", END, part(b"models", b"m") + END, part(b"model", b"") + END, part(b"model", b"m" * 257) + END,
    part(b"model", b"m")[:-2], b'name="model"\r\n\r\nm\r\n',
])
def test_a_form_without_a_model_is_told_so(form: bytes) -> None:
    for content_type in (TYPE, b"multipart/form-data"):
        with pytest.raises(ApiError) as refused:
            understand(form, content_type)
        assert refused.value.code == "missing_model"


@pytest.mark.parametrize("piece", [
    b'name="model"\r\n', b'name="model"\r\na\r\n', b"------edge7", b"\r\n------edge7\r\n", b"------edge\r\n", b"-",
    b"\r\n------edge7\r\n" + b" name=" * 400, part(b"file", b"x"),
])
def test_no_form_takes_longer_than_a_moment(piece: bytes) -> None:
    hostile = piece * (2 * MEGABYTE // len(piece))
    for form in (hostile, b"------edge7\r\n" + hostile + b"\r\n" + END):
        began = time.process_time()
        with pytest.raises(ApiError):
            understand(form, TYPE)
        assert time.process_time() - began < 0.2
