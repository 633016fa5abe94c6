"""The join string: whole or refused, and a secret."""

import pytest

from shared.errors import InvalidRequest
from shared.join import JoinString, parse

JOIN = JoinString("hub.example.org:8443", b"\x00authority", bytes(range(256)), b"the key's bytes\xff")


def test_what_is_written_is_read() -> None:
    assert parse(JOIN.text()) == JOIN


def test_it_is_one_word() -> None:
    assert JOIN.text().startswith("sendense1.")
    assert not set(JOIN.text()) & set(" \t\n=+/'\"$")


def test_blanks_and_line_ends_around_it_do_no_harm() -> None:
    assert parse(f"  {JOIN.text()}\r\n") == JOIN


def test_an_address_with_colons_and_dots_survives() -> None:
    join = JoinString("[2001:db8::1]:8443", b"ca", b"certificate", b"key")
    assert parse(join.text()).address == "[2001:db8::1]:8443"


@pytest.mark.parametrize("text", ["", "  ", "hello", "a.b.c.d.e.f", "sendense2" + JOIN.text()[9:]])
def test_something_else_is_refused_with_the_way_to_make_one(text: str) -> None:
    with pytest.raises(InvalidRequest, match="sendense agent invite"):
        parse(text)


def test_a_string_cut_off_anywhere_is_refused() -> None:
    text = JOIN.text()
    for length in range(len(text)):
        with pytest.raises(InvalidRequest):
            parse(text[:length])


def test_a_string_with_one_wrong_letter_is_refused() -> None:
    text = JOIN.text()
    for index in range(len(text)):
        wrong = "A" if text[index] != "A" else "B"
        with pytest.raises(InvalidRequest):
            parse(text[:index] + wrong + text[index + 1 :])


def test_letters_of_other_alphabets_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        parse(JOIN.text()[:-1] + "é")


def test_no_error_repeats_it() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(JOIN.text()[:-1])
    assert not any(part in raised.value.message for part in JOIN.text().split(".")[1:])


def test_printing_it_shows_the_address_alone() -> None:
    assert f"{JOIN} {JOIN!r}" == "JoinString(address='hub.example.org:8443') JoinString(address='hub.example.org:8443')"
