from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest

from ppl.errors import ResultError
from ppl.results.storage import load, save


def assert_same(left, right):
    if isinstance(left, dict):
        assert isinstance(right, dict)
        assert list(left) == list(right)
        for name in left:
            assert_same(left[name], right[name])
    else:
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.tobytes() == right.tobytes()


def everything():
    rng = np.random.default_rng(0)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return {
        "plain": rng.normal(size=(3, 4)),
        "numbers": {
            **{t: np.arange(5).astype(t) for t in ("i1", "u2", "i8", "f2", "f4", ">f8", "c8")},
            "complex": np.array([complex(1, np.nan), complex(-np.inf, -0.0)]),
            "bool": np.array([True, False]),
            "scalar": np.array(-0.0),
            "nan": np.array([np.nan, -np.inf, np.inf]),
            "text": np.array(["a", "ü", ""]),
            "date": np.array(["2020-01-01"], dtype="M8[D]"),
        },
        "extended": {
            **{
                name: np.linspace(-2, 2, 6).reshape(2, 3).astype(getattr(ml_dtypes, name))
                for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
            },
            "0-d": np.array(1.5, dtype=ml_dtypes.bfloat16),
        },
        "shapes": {
            "empty": np.zeros((0, 3)),
            "no columns": np.zeros((4, 0, 2), np.int32),
            "transposed": np.asfortranarray(rng.normal(size=(3, 4))).T,
            "strided": rng.normal(size=(6, 6))[::2, 1::3],
        },
        "names": {
            name: np.array(k)
            for k, name in enumerate(
                ["", "a", "a/b", "a%2Fb", "a.npy", "..", ".", "/", "ä ö", "a\\b", "x[0]", "A", "\n"]
            )
        },
        "a": {"b": np.array(1)},
        "nothing": {},
    }


def test_round_trip_is_exact(tmp_path):
    metadata = {"seed": 3, "rate": 0.1, "names": ["a", None, True], "nested": {"x/y": float("inf")}}
    save(tmp_path / "run.npz", everything(), metadata)
    arrays, read = load(tmp_path / "run.npz")
    assert read == metadata
    assert_same(everything(), arrays)


def test_numbers_come_back_as_arrays(tmp_path):
    save(tmp_path / "x", {"float": 0.1, "int": np.int8(3), "list": [1, 2]})  # pyright: ignore
    arrays, metadata = load(tmp_path / "x")
    assert metadata == {}
    assert_same(
        arrays, {"float": np.array(0.1), "int": np.array(3, np.int8), "list": np.array([1, 2])}
    )


def test_file_is_a_plain_npz_without_pickles(tmp_path):
    path = tmp_path / "run.npz"
    save(path, {"draws": {"mu": np.arange(3.0)}}, {"a": 1})
    with np.load(path, allow_pickle=False) as file:
        assert file["draws/mu"].tolist() == [0, 1, 2]
    with pytest.raises(ResultError, match="pickle"):
        save(path, {"x": np.array([object()])})
    with pytest.raises(ResultError, match="dtype"):
        save(path, {"x": np.zeros(2, dtype=[("a", "f4")])})


def test_equal_contents_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        save(tmp_path / name, everything(), {"seed": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"a": [np.float32(1)]}, r"float32 in metadata\['a'\]\[0\]"),
        ({"a": {1: 2}}, r"the key 1 in metadata\['a'\]"),
        ({"a": {"b": {3}}}, r"a set in metadata\['a'\]\['b'\]"),
    ],
)
def test_metadata_that_json_would_change_are_refused(tmp_path, metadata, where):
    with pytest.raises(ResultError, match=where):
        save(tmp_path / "x", {}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_names_must_be_strings(tmp_path):
    with pytest.raises(ResultError, match="the name 3"):
        save(tmp_path / "x", {3: np.zeros(2)})  # pyright: ignore[reportArgumentType]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    save(path, {"x": np.zeros(3)}, {"version": "old"})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"x": np.ones(3)}, {"version": "new"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path):
    save(tmp_path / "real", {"x": np.zeros(1)})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", {"x": np.ones(1)})
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real")[0]["x"] == 1


def test_foreign_files_are_named_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "list.npz", "w") as archive:
        archive.writestr("manifest.json", "[1, 2]")
    with zipfile.ZipFile(tmp_path / "format.npz", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": "other", "version": 1}))
    for name in ("text", "other.npz", "list.npz", "format.npz"):
        with pytest.raises(ResultError, match=name):
            load(tmp_path / name)


def test_newer_formats_say_update(tmp_path):
    with zipfile.ZipFile(tmp_path / "new", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": "ppl.results", "version": 99}))
    with pytest.raises(ResultError, match=r"version 99.*git pull"):
        load(tmp_path / "new")


def test_every_damaged_byte_is_noticed_or_harmless(tmp_path):
    arrays = {"x": np.arange(4.0), "b": {"y": np.array(True)}}
    save(tmp_path / "good", arrays, {"k": 1})
    good = (tmp_path / "good").read_bytes()
    noticed = 0
    damaged = [good[:k] for k in range(0, len(good), 7)]
    damaged += [good[:k] + bytes([good[k] ^ 0x41]) + good[k + 1 :] for k in range(len(good))]
    for content in damaged:
        (tmp_path / "bad").write_bytes(content)
        try:
            read, metadata = load(tmp_path / "bad")
        except ResultError as error:
            noticed += "could not read" in str(error) or "version" in str(error)
        else:  # a date or a flag that nobody reads
            assert metadata == {"k": 1}
            assert_same(read, arrays)
    assert noticed > 0.7 * len(damaged)
