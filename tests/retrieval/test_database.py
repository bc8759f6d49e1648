"""Search against brute force, and data bases on disk."""

import sys

import numpy as np
import pytest

from ldm_jax.retrieval import database as neighbours
from ldm_jax.retrieval.database import Database, NeighboursOf, load_database, neighbours_of_rows, of_class, relative, search


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(np.random.default_rng(0).normal(size=(60, 8)))
NAMES = tuple(f"train/{i}.png" for i in range(60))


def database(members=50, **options):
    return Database(NAMES, VECTORS, members, **options)


@pytest.mark.parametrize("chunk", [2**24, 7 * 12])
def test_search_is_exact_in_any_parts(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    monkeypatch.setattr(neighbours, "_SIDE", 12 if chunk < 100 else 2**16)
    queries = unit(np.random.default_rng(1).normal(size=(9, 8)))
    rows, products = search(database(), queries, 5)
    expected = queries @ VECTORS[:50].T
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(products, -np.sort(-expected, axis=1)[:, :5], rtol=1e-5)


def test_neighbours_leave_the_picture_itself_out_and_are_members():
    found = neighbours_of_rows(database(), 4)
    products = VECTORS @ VECTORS[:50].T
    products[np.arange(50), np.arange(50)] = -np.inf
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1)[:, :4])
    assert found.max() < 50 and found.shape == (60, 4)


def test_equal_pictures_are_neighbours_but_none_is_its_own():
    vectors = np.repeat(VECTORS[:3], 4, 0)
    found = neighbours_of_rows(Database(NAMES[:12], vectors, 12), 3)
    assert not (found == np.arange(12)[:, None]).any()
    np.testing.assert_array_equal(found // 4, np.arange(12)[:, None] // 4 * np.ones((1, 3)))


def test_a_data_base_comes_back_from_disk_and_serves_a_task(tmp_path):
    made = database(labels=np.arange(60) % 3, class_names=("a", "b", "c"), made_by={"embedder": "x"})
    table = neighbours_of_rows(made, 4)
    made.save(tmp_path / "db", table)
    again = load_database(tmp_path / "db")
    np.testing.assert_array_equal(again.vectors, VECTORS)
    np.testing.assert_array_equal(again.labels, made.labels)
    for name in ("names", "members", "class_names", "made_by"):
        assert getattr(again, name) == getattr(made, name)
    task = NeighboursOf(str(tmp_path / "db"), 2, "/data/")
    found = task({"name": "/data/train/55.png"})["neighbours"]  # a query, not a member
    np.testing.assert_array_equal(found, VECTORS[table[55, :2]])
    with pytest.raises(ValueError, match="train/70.png is not in the data base"):
        task({"name": "/data/train/70.png"})
    with pytest.raises(ValueError, match="knows 4"):
        NeighboursOf(str(tmp_path / "db"), 5)({"name": "train/1.png"})
    with pytest.raises(ValueError, match="not empty"):
        made.save(tmp_path / "db", table)
    with pytest.raises(FileNotFoundError, match="no data base"):
        load_database(tmp_path)


def test_names_lose_their_folder_and_nothing_else():
    assert relative("/data/x/train/1.png", "/data/x/") == relative("/data/x/train/1.png", "/data/x") == "train/1.png"
    assert relative("/data/xy/1.png", "/data/x") == "/data/xy/1.png"
    assert relative("shapes train, number 3", "") == "shapes train, number 3"


def test_members_of_a_class():
    made = database(labels=np.arange(60) % 3, class_names=("a", "b", "c"))
    rows = of_class(made, "b", 10, np.random.default_rng(0))
    assert len(set(rows)) == 10 and (rows % 3 == 1).all() and rows.max() < 50
    assert len(of_class(made, 1, 40, np.random.default_rng(0))) == 40  # more than there are: some twice
    accents = database(labels=np.arange(60) % 2, class_names=("a", "caf\u00e9"))
    assert (of_class(accents, "cafe\u0301", 5, np.random.default_rng(0)) % 2 == 1).all()
    unnamed = database(labels=np.arange(60) % 3)
    assert (of_class(unnamed, "2", 5, np.random.default_rng(0)) % 3 == 2).all()
    for label, there, said in (("d", made, "class 'd'"), ("\u00b2", made, "unknown"), ("7", unnamed, "unknown class '7'")):
        with pytest.raises(ValueError, match=said):
            of_class(there, label, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="numbered 0 to 2"):
        of_class(made, "3", 2, np.random.default_rng(0))
    numbered = database(labels=np.arange(60) % 3, class_names=("1", "7", "9"))  # "2" is none of them, not the third
    with pytest.raises(ValueError, match="unknown class '2'"):
        of_class(numbered, "2", 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no classes"):
        of_class(database(), "a", 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=51), "k=51: the data base has 50"),
        (dict(queries=np.zeros((1, 7))), "another embedder"),
        (dict(index="annoy"), "choose exact, faiss, scann"),
    ],
)
def test_searches_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        search(database(), **{"queries": VECTORS[:1], "k": 3, **change})


@pytest.mark.parametrize("package", ["faiss", "scann"])
def test_optional_indices_say_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="pip install"):
        search(database(), VECTORS[:1], 3, index=package)


@pytest.mark.parametrize("package", ["faiss", "scann"])
def test_optional_indices_find_the_same(package):
    pytest.importorskip(package)
    rows, products = search(database(), VECTORS[:5], 3, index=package)
    expected, values = search(database(), VECTORS[:5], 3)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(products, values, rtol=1e-5)


@pytest.mark.parametrize("change", [dict(names=NAMES[:3]), dict(members=0), dict(names=("a",) * 60)])
def test_data_bases_that_make_no_sense(change):
    with pytest.raises(ValueError, match="names|twice"):
        Database(**{"names": NAMES, "vectors": VECTORS, "members": 5, **change})


@pytest.mark.parametrize("part", ["database.json", "vectors.npy", "neighbours.npy"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_damaged_files_are_named(tmp_path, part, damage):
    database().save(tmp_path / "base", neighbours_of_rows(database(), 4))
    file = tmp_path / "base" / part
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 90}[damage])
    with pytest.raises(ValueError, match=f"{part}.*build the data base again"):
        NeighboursOf(str(tmp_path / "base"), 4)
        load_database(tmp_path / "base")
