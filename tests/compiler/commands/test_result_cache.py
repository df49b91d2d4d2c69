"""Where results are kept, and that what is kept comes back as it was or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp.compiler.commands.result_cache import ResultCache, cache_folder, key_of


def test_the_folder_is_the_one_given_or_none() -> None:
    assert cache_folder("here") == Path("here")
    assert cache_folder("none") is None


@pytest.mark.parametrize("said", ["", "relative/folder"])
def test_an_xdg_folder_that_is_empty_or_relative_counts_as_unset(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", said)
    assert cache_folder(None) == tmp_path / ".cache" / "onnxcomp"


def test_an_absolute_xdg_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "onnxcomp"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder(None) is None
    store = ResultCache(None)
    store.write("k", {})
    assert store.read("k") is None and store.notes == []


def test_what_is_kept_comes_back_under_its_own_key_alone(tmp_path: Path) -> None:
    key, other = key_of({"a": 1, "b": [0.1]}), key_of({"a": 2, "b": [0.1]})
    assert key == key_of({"b": [0.1], "a": 1}) != other
    store = ResultCache(tmp_path / "new" / "folder")
    document = {"x": 0.1 + 0.2, "text": "Größe", "none": None}
    store.write(key, document)
    assert store.read(key) == document
    assert store.read(other) is None and store.notes == []
    files = list((tmp_path / "new" / "folder").iterdir())
    assert files == [store.path(key)], "nothing temporary stays"


def test_a_file_under_the_key_of_another_is_no_result(tmp_path: Path) -> None:
    store = ResultCache(tmp_path)
    store.write("first", {"x": 1})
    (tmp_path / "first.json").rename(tmp_path / "second.json")
    assert store.read("second") is None
    assert store.notes == [f"the cached result {tmp_path / 'second.json'} is damaged and was ignored"]


def test_a_folder_in_place_of_a_file_is_told_and_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "key.json").mkdir()
    store = ResultCache(tmp_path)
    assert store.read("key") is None
    store.write("key", {})
    assert len(store.notes) == 2


def test_a_place_that_cannot_be_read_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ResultCache(tmp_path / "file")
    assert store.read("k") is None
    (note,) = store.notes
    assert note.endswith(" cannot be read (Not a directory) and was ignored")
