"""Configuration: typed, strict at every level, errors that say where."""

from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.config import ConfigError, Section, Settings, load, read_secret


class Inner(Section):
    """[outer.inner]."""

    depth: int = Field(default=3, ge=1)


class Outer(Section):
    """[outer]."""

    name: str = "nobody"
    path: Path = Path("/nowhere")
    inner: Inner = Inner()


class Example(Settings):
    """Made for this test."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_TEST_")

    top: int = 1
    outer: Outer = Outer()


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "test.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_without_a_file_defaults_hold() -> None:
    assert load(Example, None) == Example(top=1, outer=Outer())


def test_the_file_is_over_the_defaults(tmp_path: Path) -> None:
    settings = load(Example, written(tmp_path, 'top = 2\n[outer]\nname = "web"\n[outer.inner]\ndepth = 5\n'))
    assert (settings.top, settings.outer.name, settings.outer.inner.depth) == (2, "web", 5)


def test_the_environment_is_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_TEST_OUTER__NAME", "db")
    monkeypatch.setenv("SENDENSE_TEST_TOP", "7")
    settings = load(Example, written(tmp_path, 'top = 2\n[outer]\nname = "web"\npath = "/srv"\n'))
    assert (settings.top, settings.outer.name) == (7, "db")
    assert settings.outer.path == Path("/srv"), "what the environment does not name stays the file's"


def test_the_environment_reaches_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_TEST_OUTER__INNER__DEPTH", "9")
    assert load(Example, None).outer.inner.depth == 9


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("tpo = 2", "tpo"),
        ("[otuer]", "otuer"),
        ("[outer]\nnmae = 'x'", "outer.nmae"),
        ("[outer.inner]\ndetph = 1", "outer.inner.detph"),
        ("[outer]\ninner = 3", "outer.inner"),
        ("top = 'many'", "top"),
        ("[outer.inner]\ndepth = 0", "outer.inner.depth"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_place(tmp_path: Path, text: str, where: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(Example, path)
    assert str(path) in raised.value.message
    assert f"  {where}: " in raised.value.message


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(Example, written(tmp_path, "tpo = 2\n[outer]\nnmae = 'x'\n"))
    assert "tpo" in raised.value.message
    assert "outer.nmae" in raised.value.message


def test_an_unknown_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_TEST_OUTER__NMAE", "x")
    with pytest.raises(ConfigError, match=r"outer\.nmae"):
        load(Example, None)


def test_a_table_in_the_environment_that_is_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_TEST_OUTER", "web")
    with pytest.raises(ConfigError, match="outer"):
        load(Example, None)


def test_a_value_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    """It might be a secret in the wrong place."""
    with pytest.raises(ConfigError) as raised:
        load(Example, written(tmp_path, "top = 'hunter2'\npassword = 'hunter2'\n"))
    assert "hunter2" not in raised.value.message


@pytest.mark.parametrize("text", [b"top = ", b"\xff\xfe\x00"])
def test_a_file_that_is_no_toml_is_refused_by_its_name(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"test\.toml is not TOML"):
        load(Example, written(tmp_path, text))


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load(Example, tmp_path / "absent.toml")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(Example, None).top = 2
    with pytest.raises(ValueError, match="frozen"):
        load(Example, None).outer.name = "x"


def secret(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = written(folder, text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_secret_is_its_file_less_the_line_end(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret(tmp_path, " pass word\n", mode)) == " pass word"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_secret_that_is_open_to_others_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=r"test\.toml is open to everybody .*: `chmod o= /.*test\.toml`$"):
        read_secret(secret(tmp_path, "hunter2", mode))


def test_a_missing_secret_is_refused_by_its_files_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: No such file"):
        read_secret(tmp_path / "absent")


def test_a_secret_that_is_no_text_is_refused_without_being_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test\.toml is not text$"):
        read_secret(secret(tmp_path, b"\xff\xfehunter2"))
