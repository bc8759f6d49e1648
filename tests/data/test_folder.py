"""Folders of images: the layouts that are understood, and every mistake said before anything starts."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import folder


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def metadata(root, rows):
    for row in rows:
        picture(root / row["file_name"])
    root.mkdir(exist_ok=True)
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_bare_files(tmp_path):
    for name in ("b.png", "a.jpg", ".hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = folder(tmp_path)
    assert [row["name"][-5:] for row in (source[i] for i in range(len(source)))] == ["a.jpg", "b.png"]
    assert source.info.columns == ("image",) and source.info.class_names is None


def test_class_folders_agree_between_splits(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "train/dog/deep/2.png", "val/dog/3.png"):
        picture(tmp_path / name)
    train, val = folder(tmp_path), folder(tmp_path, "validation")
    assert train.info.class_names == val.info.class_names == ("cat", "dog")
    assert [train[i]["label"] for i in range(3)] == [0, 1, 1] and [val[i]["label"] for i in range(1)] == [1]
    assert len(folder(tmp_path, "val")) == 1


def test_metadata_with_split_column(tmp_path):
    rows = [
        {
            "file_name": f"{i}.png",
            "caption": ["one", f"picture {i}"],
            "label": i % 2,
            "label_name": "ab"[i % 2],
            "split": "val" if i == 3 else "train",
        }
        for i in range(4)
    ]
    metadata(tmp_path, rows)
    source = folder(tmp_path, columns=("image", "caption", "label"))
    assert len(source) == 3 and len(folder(tmp_path, "validation")) == 1
    assert source[2]["caption"] == ("one", "picture 2") and source.info.class_names == ("a", "b")
    assert folder(tmp_path, columns=("image",)).info.columns == ("image",)


def test_metadata_in_split_folders_and_other_names(tmp_path):
    metadata(tmp_path / "train", [{"file_name": "a.png", "text": "hello", "kind": "x"}])
    metadata(tmp_path / "test", [{"file_name": "a.png", "text": "world", "kind": "y"}])
    names = {"caption": "text", "label": "kind"}
    train, test = (folder(tmp_path, split, names=names) for split in ("train", "test"))
    assert train[0]["caption"] == "hello" and test[0]["label"] == 1 and train.info.class_names == ("x", "y")


def test_parts_of_a_split(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{'ab'[i % 2]}/{i}.png")
    head, tail = folder(tmp_path, "train[:75%]"), folder(tmp_path, "train[75%:]")
    named = [{source[i]["name"] for i in range(len(source))} for source in (head, tail)]
    assert len(named[0]) == 15 and len(named[1]) == 5 and len(named[0] | named[1]) == 20
    assert len(folder(tmp_path, "train[2:6]")) == 4
    with pytest.raises(ValueError, match="half"):
        folder(tmp_path, "train[half]")


def test_boxes_and_maps(tmp_path):
    box = {"label": 2, "name": "car", "box": [0.1, 0.2, 0.5, 0.6]}
    rows = [{"file_name": f"{i}.png", "boxes": [box] * i, "label_map_file_name": "maps/m.png"} for i in range(3)]
    picture(tmp_path / "maps/m.png")
    metadata(tmp_path, rows)
    source = folder(tmp_path)
    assert source[0]["boxes"].shape == (0, 4) and source[2]["box_labels"].tolist() == [2, 2]
    assert source.info.box_names == ("0", "1", "car") and source[1]["label_map"].endswith("maps/m.png")
    for bad in ([0.5, 0.2, 0.1, 0.6], [0.1, 0.2, 0.5, 1.2]):
        metadata(tmp_path, [{"file_name": "0.png", "boxes": [{**box, "box": bad}]}])
        with pytest.raises(ValueError, match="0.png.*x0 < x1"):
            folder(tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match="no column 'label'; its rows have image, caption"):
        folder(tmp_path, columns=("image", "label"))
    with pytest.raises(ValueError, match="unknown column 'images'"):
        folder(tmp_path, columns=("images",))
    with pytest.raises(ValueError, match="no split 'test' but 'train'"):
        folder(tmp_path, "test")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files named in metadata.jsonl.*a.png"):
        folder(tmp_path)


def test_split_names_that_exist_are_listed(tmp_path):
    for name in ("train/1.png", "val/1.png"):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match="no split 'test' but 'train', 'validation'"):
        folder(tmp_path, "test")


@pytest.mark.parametrize("gap", [None, ""])
def test_captions_for_some(tmp_path, gap):
    metadata(tmp_path, [{"file_name": "a.png", "caption": "x"}, {"file_name": "b.png", "caption": gap}])
    with pytest.raises(ValueError, match="1 of 2 rows have a caption; the first without is b.png"):
        folder(tmp_path, columns=("image", "caption"))
    assert len(folder(tmp_path, columns=("image",))) == 2


def test_bad_rows(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{oops')
    with pytest.raises(ValueError, match="line 2: no JSON"):
        folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"caption": "a"}')
    with pytest.raises(ValueError, match="line 1: a row needs a file_name"):
        folder(tmp_path)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.csv")
    with pytest.raises(ValueError, match="only metadata.jsonl is read"):
        folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "caption": 3}])
    with pytest.raises(ValueError, match="a.png: a caption is text"):
        folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "split": "train"}, {"file_name": "b.png"}])
    with pytest.raises(ValueError, match="1 rows have no split, the first is b.png"):
        folder(tmp_path)


def test_labels_out_of_range(tmp_path):
    metadata(tmp_path, [{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": 5}])
    with pytest.raises(ValueError, match=r"b.png has label 5, outside the 2 classes \(cat, dog\)"):
        folder(tmp_path, class_names=["cat", "dog"])
    (tmp_path / "classes.json").write_text(json.dumps(list("abcdef")))
    assert folder(tmp_path, class_names=tmp_path / "classes.json").info.class_names == tuple("abcdef")
    metadata(tmp_path, [{"file_name": "a.png", "label": -1}])
    with pytest.raises(ValueError, match="label -1"):
        folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "label": 0.5}])
    with pytest.raises(ValueError, match="0.5"):
        folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": "cat"}])
    with pytest.raises(ValueError, match="both"):
        folder(tmp_path)


def test_images_beside_class_folders(tmp_path):
    picture(tmp_path / "cat/1.png")
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match="stray.png"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "counts", "columns"),
    [
        ("flowers5_128", {"train": 2934, "val": 736}, ("image", "caption", "label")),
        ("emoji_64", {"train": 3032, "val": 161}, ("image", "caption", "label")),
        ("camvid_256x192", {"train": 367, "val": 101, "test": 233}, ("image", "caption", "label_map", "boxes", "box_labels")),
        ("bccd_boxes_256x192", {"train": 205}, ("image", "caption", "boxes", "box_labels")),
    ],
)
def test_real_folders(data_dir, name, counts, columns):
    for split, count in counts.items():
        source = folder(data_dir / name, split)
        assert len(source) == count and source.info.columns == columns
    if name == "flowers5_128":
        assert source.info.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
