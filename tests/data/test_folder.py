"""Folders of images: the layouts that are understood, and every mistake said before anything starts."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import folder
from ldm_jax.data.pipeline import in_memory
from ldm_jax.data.source import describe
from ldm_jax.data.transform import Transform
from ldm_jax.data.walk import FileKind, find_files


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


def test_a_class_is_the_same_however_its_accents_are_stored(tmp_path):
    """macOS hands names out decomposed; a keyboard composes them."""
    whole, apart = (unicodedata.normalize(form, "rosé") for form in ("NFC", "NFD"))
    assert whole != apart
    for name in (f"train/{apart}/1.png", f"val/{whole}/2.png", "train/zinnia/3.png"):
        picture(tmp_path / "folders" / name)
    metadata(tmp_path / "table", [{"file_name": f"{i}.png", "label": name} for i, name in enumerate((apart, whole, "zinnia"))])
    train, val, table = folder(tmp_path / "folders"), folder(tmp_path / "folders", "val"), folder(tmp_path / "table")
    assert train.info.class_names == val.info.class_names == table.info.class_names == (whole, "zinnia")
    assert [train[i]["label"] for i in range(2)] == [0, 1] and val[0]["label"] == 0
    assert [table[i]["label"] for i in range(3)] == [0, 0, 1]
    assert folder(tmp_path / "table", class_names=["zinnia", apart]).info.class_names == ("zinnia", whole)


def test_a_table_of_numbers_beside_class_folders_is_said_with_one_of_each(tmp_path):
    picture(tmp_path / "train/cat/1.png")
    metadata(tmp_path / "val", [{"file_name": "dog/2.png", "label": 1}])
    with pytest.raises(ValueError, match="'cat' of .*cat/1.png and 1 of .*dog/2.png"):
        folder(tmp_path)


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
    for place in ("", "train"):
        picture(tmp_path / "bare" / place / "a.png")
        (tmp_path / "bare" / place / "metadata.csv").write_text("file_name,caption\n")
        with pytest.raises(ValueError, match=f"{place}/metadata.csv has no rows, so it names no images"):
            folder(tmp_path / "bare")
        (tmp_path / "bare" / place / "metadata.csv").unlink()
        (tmp_path / "bare" / place / "a.png").unlink()
    metadata(tmp_path, [{"file_name": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match="no column 'label'; its rows have image, caption"):
        folder(tmp_path, columns=("image", "label"))
    metadata(tmp_path / "as_hf", [{"file_name": "a.png", "text": "x", "split": "train"}])
    with pytest.raises(ValueError, match="no column 'caption'; its rows have image. They say text .*caption_column=text$"):
        folder(tmp_path / "as_hf", columns=("image", "caption"))
    metadata(tmp_path / "more", [{"file_name": "a.png", "text": "x", "author": "y"}])
    with pytest.raises(ValueError, match="They say author, text besides: .*caption_column=NAME$"):
        folder(tmp_path / "more", columns=("image", "caption"))
    assert folder(tmp_path / "as_hf", columns=("image", "caption"), names={"caption": "text"})[0]["caption"] == "x"
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
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match="only metadata.jsonl and metadata.csv are read"):
        folder(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
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
    with pytest.raises(ValueError, match="found 0 of a.png and 'cat' of b.png"):
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


def names_of(source):
    root = source.info.name
    return [source[i]["name"].removeprefix(f"{root}/") for i in range(len(source))]


def test_a_class_named_like_a_split_is_refused(tmp_path):
    for name in ("airplane", "bus", "train"):
        picture(tmp_path / name / "1.png")
    for columns in (("image",), ("image", "label"), None):
        with pytest.raises(ValueError, match="'train' may be a split or a class, since there is 'airplane', 'bus' beside it"):
            folder(tmp_path, columns=columns)
    (tmp_path / "again/train").mkdir(parents=True)
    for name in ("airplane", "bus", "train"):
        (tmp_path / name).rename(tmp_path / "again/train" / name)
    assert folder(tmp_path / "again").info.class_names == ("airplane", "bus", "train")  # as the refusal advises
    picture(tmp_path / "photos/prod/1.png")
    picture(tmp_path / "photos/dev/1.png")
    with pytest.raises(ValueError, match="'dev' may be a split or a class, since there is 'prod'"):
        folder(tmp_path / "photos")


def test_splits_beside_folders_without_images(tmp_path):
    for name in ("Train/cat/1.png", "val/cat/2.png", "banner.png"):
        picture(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/readme.txt").write_text("words")
    source = folder(tmp_path)
    assert source.info.class_names == ("cat",) and names_of(source) == ["Train/cat/1.png"]
    assert dict(source.info.left_out) == {"images outside of the split folders": 1}


def test_splits_with_metadata_are_splits_whatever_is_beside_them(tmp_path):
    metadata(tmp_path / "train", [{"file_name": "a.png", "label_map_file_name": "../maps/a.png"}])
    picture(tmp_path / "maps/a.png")
    picture(tmp_path / "extra/b.png")
    picture(tmp_path / "train/unnamed.png")
    source = folder(tmp_path)
    assert len(source) == 1 and dict(source.info.left_out) == {"images that metadata.jsonl does not name": 2}


@pytest.mark.parametrize("below", ["", "cat/", "cat/deep/"])
def test_hidden_and_system_folders_are_passed_by(tmp_path, below):
    kept = ["cat/1.png", "cat/deep/2.png", "dog/3.png"]
    for name in kept:
        picture(tmp_path / name)
    hidden = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".thumbnails", ".git/x")
    for name in hidden:
        picture(tmp_path / below / name / "0.png")
    picture(tmp_path / below / "._1.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / below / name).write_bytes(b"x")
    source = folder(tmp_path)
    assert source.info.class_names == ("cat", "dog") and names_of(source) == kept
    assert dict(source.info.left_out) == {"hidden or system folders": 7, "hidden files": 1}
    assert "3 images, 2 classes (cat, dog); left out: 7 hidden or system folders" in describe(source)


@pytest.mark.parametrize("kept", [["1.png", "2.png"], ["cat/1.png", "dog/2.png"], ["train/cat/1.png", "train/dog/2.png"]])
@pytest.mark.parametrize("run", ["run", "runs/a", "run/inner/again"])
def test_what_a_training_drew_is_not_learnt_from(tmp_path, kept, run):
    """A working directory inside the folder of pictures: the second start sees what the first one saw."""
    for name in kept:
        picture(tmp_path / name)
    before = names_of(folder(tmp_path))
    picture(tmp_path / run / "diffusion" / "images" / "samples_0000600.png")
    for name in ("config.json", "versions.json"):
        (tmp_path / run / name).write_text("{}")
    source = folder(tmp_path)
    assert names_of(source) == before == kept
    assert dict(source.info.left_out)["working directories of trainings"] == 1


@pytest.mark.parametrize("single", ("png", "webp"))
def test_the_picture_of_all_pictures_is_none_of_them(tmp_path, single):
    """What `sample.py` writes: pictures, and all of them in one, with what each is."""
    names = [f"{i:04d}.{single}" for i in range(3)]
    for name in (*names, "grid.png"):
        picture(tmp_path / name)
    assert len(folder(tmp_path)) == 4  # without its text it may be anything
    (tmp_path / "grid.txt").write_text("a circle\na star\na ring\n")
    source = folder(tmp_path)
    assert names_of(source) == names and source.info.columns == ("image",)
    assert dict(source.info.left_out) == {"pictures of all pictures together, as sample.py writes them": 1}


def test_a_hidden_root_is_no_obstacle(tmp_path):
    picture(tmp_path / ".cache/1.png")
    assert len(folder(tmp_path / ".cache")) == 1


def test_links(tmp_path):
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    for name in ("a/1.png", "z/2.png"):
        picture(root / name)
    picture(outside / "3.png")
    picture(tmp_path / "4.png")
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "a/further_up").symlink_to(tmp_path, target_is_directory=True)
    (root / "b").symlink_to(root / "z", target_is_directory=True)
    (root / "c").symlink_to(outside, target_is_directory=True)
    (root / "z/5.png").symlink_to(tmp_path / "4.png")
    (root / "z/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = folder(root)
    assert names_of(source) == ["a/1.png", "c/3.png", "z/2.png", "z/5.png"]
    assert source.info.class_names == ("a", "c", "z")
    left = dict(source.info.left_out)
    assert left.pop("links to folders that are read already, or hold this one") == 3 and left.pop("broken links") == 1
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    assert names_of(folder(tmp_path / "alias")) == names_of(source)


def test_every_suffix_that_can_be_opened(tmp_path):
    known = [".jpg", ".JPG", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".TIFF", ".ppm", ".tga", ".ico"]
    for suffix in known:
        picture(tmp_path / f"x{suffix}")
    for name in ("a.heic", "b.svg", "c.eps"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "bare").write_bytes((tmp_path / "x.png").read_bytes())
    for name in ("notes.txt", "LICENSE"):
        (tmp_path / name).write_text("words")
    source = folder(tmp_path)
    assert sorted(names_of(source)) == sorted(f"x{suffix}" for suffix in known)
    assert dict(source.info.left_out) == {
        "image files that are not read (.eps, .heic, .svg, no suffix)": 4,
        "tables and texts of other names than are read (notes.txt)": 1,
    }
    (tmp_path / "only").mkdir()
    (tmp_path / "a.heic").rename(tmp_path / "only/a.heic")
    with pytest.raises(ValueError, match="holds no images .*passed by: 1 image files that are not read .*heic"):
        folder(tmp_path / "only")


def test_class_folders_without_images_are_said(tmp_path):
    picture(tmp_path / "cat/deep/1.png")
    picture(tmp_path / "dog/1.png")
    (tmp_path / "bird").mkdir()
    assert dict(folder(tmp_path).info.left_out) == {"class folders without images ('bird')": 1}


def test_description_counts(tmp_path):
    metadata(tmp_path, [{"file_name": f"{i}.png", "caption": ["x"] * (i + 1), "label": i} for i in range(3)])
    assert describe(folder(tmp_path)) == "3 images, 3 classes (0, 1, 2), 6 captions"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_metadata_as_editors_save_them(tmp_path, encoding, newline):
    metadata(tmp_path, [{"file_name": "a.png"}])
    line = json.dumps({"file_name": "a.png", "caption": "Blüte \u2028 ñ"}, ensure_ascii=False)
    if encoding == "latin-1":
        line = line.replace("\u2028", "")
    (tmp_path / "metadata.jsonl").write_bytes((newline + line + newline).encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(ValueError, match="metadata.jsonl, line 2: the byte 0xfc is not UTF-8 .*save the file as UTF-8"):
            folder(tmp_path)
    elif encoding == "utf-16-le":
        with pytest.raises(ValueError, match="metadata.jsonl, line [123]: a zero byte"):
            folder(tmp_path)
    else:
        assert folder(tmp_path)[0]["caption"] == "Blüte \u2028 ñ"


def test_class_names_from_files(tmp_path):
    metadata(tmp_path, [{"file_name": "a.png", "label": "rosé"}])
    (tmp_path / "classes.json").write_bytes("\ufeff".encode() + json.dumps(["daisy", "rosé"]).encode())
    (tmp_path / "classes.txt").write_bytes("daisy\r\nrosé\r\n".encode("utf-16"))
    for name in ("classes.json", "classes.txt"):
        source = folder(tmp_path, class_names=tmp_path / name)
        assert source.info.class_names == ("daisy", "rosé") and source[0]["label"] == 1
    for text, words in (
        ('{"a": 1}', "list of names"),
        ("", "no JSON"),
        ('["a", "a"]', "'a' occurs twice"),
        ("[" * 99999, "no JSON"),
    ):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(ValueError, match=f"classes.json.*{words}"):
            folder(tmp_path, class_names=tmp_path / "classes.json")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"label": 10**12}, "label 1000000000000: classes are numbered"),
        ({"label_map_file_name": 3}, "label_map_file_name is 3, not the name of a file"),
        ({"boxes": {"label": 1}}, "boxes are a list"),
        ({"boxes": [{"label": 0, "box": 5}]}, "a box is"),
        ({"boxes": [{"label": 0, "box": ["0", 0, 1, 1]}]}, "a box is"),
    ],
)
def test_odd_values_in_rows(tmp_path, row, words):
    metadata(tmp_path, [{"file_name": "a.png", **row}])
    with pytest.raises(ValueError, match=words):
        folder(tmp_path)


def test_unreadable_images_are_counted_in_the_description(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{'ab'[i % 2]}/{i}.png")
    (tmp_path / "a/2.png").write_bytes(b"no image")
    kept = in_memory(folder(tmp_path), Transform(8).fit, on_error="skip")
    assert describe(kept) == "2 images, 2 classes (a, b); left out: 1 images that can't be read"


def test_damaged_metadata_end_in_errors(tmp_path):
    """Rows with values exchanged or bytes changed: read, or refused with a ValueError or a FileNotFoundError."""
    picture(tmp_path / "m.png")
    box = {"label": 1, "name": "car", "box": [0.1, 0.2, 0.5, 0.6]}
    row = {"file_name": "a.png", "caption": ["x", "é"], "label": 0, "label_name": "q", "boxes": [box], "split": "train"}
    row["label_map_file_name"] = "m.png"
    metadata(tmp_path, [row, row | {"boxes": [], "label": 1}])
    lines = (tmp_path / "metadata.jsonl").read_bytes().splitlines()
    odd = [None, True, -1, 0, 1.5, "", "x", [], {}, [1], {"a": 1}, 10**30, float("inf"), float("nan"), "\ud800", [[]]]
    rng, read = np.random.default_rng(0), 0
    for number in range(1500):
        if number % 2:
            rows = [json.loads(line) for line in lines]
            for _ in range(rng.integers(1, 3)):
                changed = rows[rng.integers(2)]
                if rng.random() < 0.3 and isinstance(changed["boxes"], list) and changed["boxes"] == [box]:
                    changed = changed["boxes"][0]
                changed[list(changed)[rng.integers(len(changed))]] = odd[rng.integers(len(odd))]
            data = "\n".join(map(json.dumps, rows)).encode()
        else:
            data = bytearray(b"\n".join(lines))
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (tmp_path / "metadata.jsonl").write_bytes(data)
        try:
            source = folder(tmp_path)
            read += len([source[i] for i in range(len(source))]) > 0
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error) or "a.png" in str(error) or "file_name" in str(error), error
    assert read > 100


def test_metadata_as_csv(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    text = 'file_name,text,label,split\r\na.png,"a cat, asleep",2,train\r\nb.png,12,0,train\r\nc.png,"two\r\nlines",2,val\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-16"))
    source = folder(tmp_path, names={"caption": "text"})
    assert [source[i]["caption"] for i in range(2)] == ["a cat, asleep", "12"] and source[0]["label"] == 2
    assert source.info.class_names == ("0", "1", "2") and len(folder(tmp_path, "validation")) == 1


@pytest.mark.parametrize("between", [";", "\t"])
def test_csv_as_spreadsheets_of_other_countries_save_it(tmp_path, between):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    rows = (["file_name", '"text"', "label"], ["a.png", f'"a cat{between} asleep, here"', "1"], ["b.png", "of, two", "0"])
    (tmp_path / "metadata.csv").write_bytes("\r\n".join(between.join(row) for row in rows).encode("utf-8-sig"))
    source = folder(tmp_path, names={"caption": "text"})
    assert [source[i]["caption"] for i in range(2)] == [f"a cat{between} asleep, here", "of, two"]
    assert [source[i]["label"] for i in range(2)] == [1, 0]
    (tmp_path / "metadata.csv").write_text(f"file_name{between}text\na.png{between}a{between}b\n")
    with pytest.raises(ValueError, match="line 2: 3 cells for 2 columns"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,caption\na.png,x", "line 1: the first line names the columns"),
        ("file_name,file_name\na.png,x", "line 1: the first line names the columns, each once"),
        ("", "line 1: the first line names"),
        ("file_name,caption\na.png,a cat, asleep", "line 2: 3 cells for 2 columns; text with ',' in it goes into quotes"),
        ("file_name,caption\n,x", "line 2: a row needs a file_name"),
        ('file_name,caption\na.png,"x', "line 2: unexpected end of data"),
        ("file_name,caption\na.png,x\nb.png,", "1 of 2 rows have a caption; the first without is b.png"),
    ],
)
def test_mistakes_in_csv(tmp_path, text, words):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        folder(tmp_path)


def test_captions_in_text_files_beside_the_images(tmp_path):
    for name in ("cats/1.png", "cats/2.jpg", "dogs/1.png"):
        picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"of {name}\n\nasleep \n", encoding="utf-8")
    (tmp_path / "README.txt").write_text("no caption")
    source = folder(tmp_path)
    assert [source[i]["caption"] for i in range(3)] == [f"of {n} asleep" for n in ("cats/1.png", "cats/2.jpg", "dogs/1.png")]
    assert source.info.class_names == ("cats", "dogs") and source.info.captions == 3
    (tmp_path / "dogs" / "1.txt").rename(tmp_path / "dogs" / "1.TXT")
    if not (tmp_path / "cats" / "1.TXT").exists():  # where names of capitals are names of their own
        (tmp_path / "cats" / "1.TXT").write_text("another file")
    assert [folder(tmp_path)[i]["caption"] for i in (0, 2)] == ["of cats/1.png asleep", "of dogs/1.png asleep"]
    (tmp_path / "dogs" / "1.TXT").unlink()
    with pytest.raises(ValueError, match="2 of 3 rows have a caption; the first without is dogs/1.png"):
        folder(tmp_path, columns=("image", "caption"))
    assert folder(tmp_path, columns=("image", "label")).info.columns == ("image", "label")


@pytest.mark.parametrize("name", ["captions.txt", "labels.csv", "annotations.json", "train.tsv", "Images/captions.token.txt"])
def test_captions_under_a_name_that_is_not_read_are_not_passed_by_in_silence(tmp_path, name):
    for i in range(3):
        picture(tmp_path / f"Images/{i}.png")
        (tmp_path / f"Images/{i}.txt").write_text("a cat")
    for other in ("README.txt", "LICENSE.txt"):
        (tmp_path / other).write_text("words")
    assert folder(tmp_path).info.left_out == ()
    (tmp_path / name).write_text("0.png,a cat")
    assert dict(folder(tmp_path).info.left_out) == {
        f"tables and texts of other names than are read ({name.split('/')[-1]})": 1
    }


def test_blanks_behind_separators_and_negative_numbers_in_tables(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name, caption, label\na.png, "one, two", 1\nb.png, three, 0\n')
    source = folder(tmp_path)
    assert [(source[i]["caption"], source[i]["label"]) for i in range(2)] == [("one, two", 1), ("three", 0)]
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,-1\nb.png,1\n")
    with pytest.raises(ValueError, match="label -1, outside"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "second, message",
    [
        ({"caption": "  \t"}, "1 of 2 rows have a caption; the first without is b.png"),
        ({"caption": ["x", " "]}, "a caption is text"),
        ({"caption": "half \ud83d of one"}, "half of a character"),
        ({"caption": "x", "label": 0, "label_name": "dog"}, "label 0 is called '(dog|cat)' and '(dog|cat)'"),
        ({"caption": "x", "split": 0}, "line 2: split is 0"),
    ],
)
def test_rows_that_say_nothing_or_contradict(tmp_path, second, message):
    split = {"split": "train"} if "split" in second else {}
    first = {"file_name": "a.png", "caption": "x", "label": 0, "label_name": "cat"} | split
    metadata(tmp_path, [first, {"file_name": "b.png", "label": 0} | second])
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


@pytest.mark.parametrize(
    "stored, named, message",
    [
        ("a.png", "A.PNG", "There is 'a.png'$"),
        ("a.png", " a.png", "There is 'a.png'$"),
        ("e\u0301.png", "\u00e9.png", "another Unicode form"),
        ("a.png", "sub\\a.png", "parted by /"),
        ("a.png", "b.png", "b.png$"),
    ],
)
def test_names_that_are_nearly_there(tmp_path, stored, named, message):
    picture(tmp_path / stored)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": named}))
    with pytest.raises(FileNotFoundError, match=message):
        folder(tmp_path)


def test_splits_inside_of_a_folder_or_of_classes_are_no_classes(tmp_path):
    for name in ("ds/train/x/1.png", "ds/val/x/2.png"):
        picture(tmp_path / "one" / name)
    with pytest.raises(ValueError, match=r"lie in 'train', 'val', which may be splits.*/one/ds$"):
        folder(tmp_path / "one")
    assert len(folder(tmp_path / "one" / "ds")) == 1
    for name in ("cat/train/1.png", "cat/test/2.png", "dog/train/3.png"):
        picture(tmp_path / "two" / name)
    with pytest.raises(ValueError, match="Put splits above the classes: .*two/test/cat"):
        folder(tmp_path / "two")


def test_links_to_themselves_and_folders_called_as_captions(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "a.txt").mkdir()
    source = folder(tmp_path)
    assert len(source) == 1 and source.info.columns == ("image",) and dict(source.info.left_out) == {"broken links": 1}


def test_tables_and_captions_that_nobody_reads_are_said(tmp_path):
    for name in ("x/a.png", "y/b.png"):
        picture(tmp_path / name)
    (tmp_path / "x" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "q"}')
    (tmp_path / "y" / "b.caption").write_text("q")
    left = dict(folder(tmp_path).info.left_out)
    assert left == {
        "tables in folders where none is looked for ('x')": 1,
        "tables and texts of other names than are read (b.caption)": 1,
    }


def test_a_name_that_stands_twice_in_a_row_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a cat", "caption": "a dog"}\n')
    with pytest.raises(ValueError, match="metadata.jsonl, line 1: no JSON: the name 'caption' stands there twice"):
        folder(tmp_path)


def table(root, head, *rows):
    """metadata.csv, and the pictures that it names."""
    for row in rows:
        picture(root / row.split(",")[0].strip())
    (root / "metadata.csv").write_text("\n".join([head, *rows]))


@pytest.mark.parametrize("above", ["", "./", "pictures/", "archive/pictures/"])
@pytest.mark.parametrize("held, split", [("test", "test"), ("Val", "validation"), ("dev", "validation")])
def test_folders_that_a_table_in_the_root_names_are_splits(tmp_path, above, held, split):
    rows = [f"{above}{name}/{i}.png,picture {i}" for name in ("train", held) for i in range(3)]
    table(tmp_path, "file_name,caption", *rows)
    train, other = folder(tmp_path), folder(tmp_path, split)
    assert names_of(train) == [row.split(",")[0].removeprefix("./") for row in rows[:3]]
    assert names_of(other) == [row.split(",")[0].removeprefix("./") for row in rows[3:]]
    assert train.info.left_out == ()


@pytest.mark.parametrize("other", ["car/1.png", "1.png"])
def test_folders_of_a_table_that_may_be_splits_or_classes_are_refused(tmp_path, other):
    table(tmp_path, "file_name,label", "train/0.png,a", f"{other},b")
    with pytest.raises(ValueError, match=f"metadata.csv: the folder 'train' may be a split or a class, .* {other}. Add a"):
        folder(tmp_path)
    table(tmp_path, "file_name,label,split", "train/0.png,a,val", f"{other},b,train")  # as the refusal advises
    assert names_of(folder(tmp_path)) == [other] and names_of(folder(tmp_path, "val")) == ["train/0.png"]
    table(tmp_path, "file_name,label", "bus/0.png,a", f"{other},b")
    assert len(folder(tmp_path)) == 2


def test_a_split_that_contradicts_its_folder_is_refused(tmp_path):
    table(tmp_path / "train", "file_name,split", "0.png,train", "1.png,", "2.png,val")
    with pytest.raises(ValueError, match="train/metadata.csv: 2.png has the split 'val' and lies in train. Remove the column"):
        folder(tmp_path)
    table(tmp_path / "train", "file_name,split", "0.png,training", "1.png,")
    table(tmp_path / "val", "file_name,split", "0.png,validation")
    assert len(folder(tmp_path)) == 2 and len(folder(tmp_path, "val")) == 1


@pytest.mark.parametrize("beside", [(), ("archive/0.png",), ("archive/dataset/0.png", "more/0.png")])
def test_splits_at_any_depth_are_no_classes(tmp_path, beside):
    for name in ("archive/dataset/train/cat/1.png", "archive/dataset/test/cat/2.png", *beside):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"'archive/dataset' lie in 'test', 'train', .* holds them, .*/archive/dataset$"):
        folder(tmp_path)


def test_classes_with_a_folder_named_like_a_split_somewhere_are_classes(tmp_path):
    for name in ("toys/train/1.png", "toys/2.png", "food/3.png"):
        picture(tmp_path / name)
    assert folder(tmp_path).info.class_names == ("food", "toys")


def test_blanks_at_the_end_of_cells(tmp_path):
    rows = "0.png,cat,train", "1.png,cat ,train ", "2.png ,dog,\ttrain", "3.png,dog,val "
    table(tmp_path, "file_name ,label ,split ", *rows)
    (tmp_path / "metadata.csv").write_text((tmp_path / "metadata.csv").read_text() + "\n , , \n")
    source = folder(tmp_path)
    assert names_of(source) == ["0.png", "1.png", "2.png"] and source.info.class_names == ("cat", "dog")
    assert names_of(folder(tmp_path, "val")) == ["3.png"]
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": f"{i}.png", "label": "cat "[: 3 + i], "split": "train "[: 5 + i]} for i in range(3)]
    metadata(tmp_path, rows)
    assert len(folder(tmp_path)) == 3 and folder(tmp_path).info.class_names == ("cat",)


def test_rows_of_splits_that_nobody_asks_for_are_said(tmp_path):
    table(tmp_path, "file_name,split", *(f"{i}.png,{('train', 'train_extra', 'val', 'fold1')[i % 4]}" for i in range(11)))
    assert dict(folder(tmp_path).info.left_out) == {"rows of the splits 'fold1', 'train_extra'": 5}
    assert dict(folder(tmp_path, "fold1").info.left_out) == {"rows of the split 'train_extra'": 3}


@pytest.mark.parametrize("column", ["label", "class", "species"])
@pytest.mark.parametrize("written", ["{}", "{}.0", "{}.", "{} "])
def test_whole_numbers_among_labels_however_they_are_written(tmp_path, column, written):
    table(tmp_path, f"file_name,{column}", *(f"{i}.png,{written.format(i)}" for i in range(11)))
    source = folder(tmp_path, columns=("image", "label"), names={"label": column})
    assert source.info.class_names == tuple(map(str, range(11)))
    assert {row["name"][-5:]: row["label"] for row in (source[i] for i in range(11))}["2.png"] == 2


def test_whole_numbers_among_labels_of_json(tmp_path):
    metadata(tmp_path, [{"file_name": f"{i}.png", "label": i if i % 2 else float(i)} for i in range(11)])
    source = folder(tmp_path)
    assert source.info.class_names == tuple(map(str, range(11))) and [source[i]["label"] for i in range(11)] == list(range(11))
    metadata(tmp_path, [{"file_name": f"{i}.png", "label": f"{i}.0"} for i in range(11)])  # text is meant as text
    assert folder(tmp_path).info.class_names[:3] == ("0.0", "1.0", "10.0")


def test_text_files_beside_images_are_captions_only_where_a_table_has_none(tmp_path):
    for split, head in (("train", "file_name,text"), ("val", "file_name,label")):
        table(tmp_path / split, head, "0.png,a bird", "1.png,a cat")
        for i in range(2):
            (tmp_path / split / f"{i}.txt").write_text("of a text file")
    with pytest.raises(ValueError, match="train: there is no column 'caption'; .* They say text besides"):
        folder(tmp_path, columns=("image", "caption"))
    assert folder(tmp_path, columns=("image", "caption"), names={"caption": "text"})[0]["caption"] == "a bird"
    assert folder(tmp_path, "val", ("image", "caption"))[1]["caption"] == "of a text file"
    table(tmp_path / "train", "file_name,caption", "0.png,a bird", "1.png,")
    with pytest.raises(ValueError, match="1 of 2 rows have a caption; the first without is 1.png"):
        folder(tmp_path, columns=("image", "caption"))


def test_boxes_in_text_files_beside_images_are_no_captions(tmp_path):
    for i in range(6):
        picture(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"0 0.5 0.25 0.{i} .2\n1 -1e-05 0.1 0.2 1\n" * (i % 3))
    assert folder(tmp_path).info.columns == ("image",)
    (tmp_path / "5.txt").write_text("a bird")  # numbers may be captions among others
    for i in (0, 3):
        (tmp_path / f"{i}.txt").write_text("7")
    for split in ("train", "train[:1]", "train[1:]"):
        assert folder(tmp_path, split).info.columns == ("image", "caption")


def test_what_lacks_a_column_is_named_with_its_split(tmp_path):
    for name in ("train/cat/1.png", "val/1.png"):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match="/val: there is no column 'label'; its rows have image"):
        folder(tmp_path, "validation", ("image", "label"))
    table(tmp_path / "one", "file_name,caption,split", "0.png,a,train", "1.png,,val")
    with pytest.raises(ValueError, match="/one, split 'val': there is no column 'caption'"):
        folder(tmp_path / "one", "val", ("image", "caption"))


def test_a_file_of_two_splits_is_said(tmp_path):
    """Rows held out may ask after a picture of the training (retrieval), so it is no mistake by itself."""
    rows = [{"file_name": f"{i}.png", "label": "a", "split": "train"} for i in range(3)]
    metadata(tmp_path, [*rows, {"file_name": "./1.png", "label": "a", "split": "validation"}])
    said = "1 image of 'train' is in 'validation' too (1.png)"
    assert folder(tmp_path).info.remarks == (said,) and describe(folder(tmp_path)).endswith(f"; {said}")
    metadata(tmp_path, [*rows, {"file_name": "1.png", "label": "a", "split": "few"}])  # a part of the others, for a trial
    assert not folder(tmp_path).info.remarks and len(folder(tmp_path, "few")) == 1


def test_two_spellings_of_a_name_stay_in_one_part(tmp_path):
    metadata(tmp_path, [{"file_name": f"{dot}{i}.png"} for i in range(20) for dot in ("", "./", ".//./")])
    trained, held_out = ({(tmp_path / row["name"]).resolve() for row in folder(tmp_path, part)}
                         for part in ("train[:70%]", "train[70%:]"))  # fmt: skip
    assert len(trained | held_out) == 20 and not trained & held_out


def test_blank_labels_of_another_split_are_no_class(tmp_path):
    said = {"train": ("cat", "dog"), "test": ("", " ")}
    rows = [{"file_name": f"{split}{i}.png", "label": label, "split": split}
            for split, labels in said.items() for i, label in enumerate(labels)]  # fmt: skip
    metadata(tmp_path, rows)
    source = folder(tmp_path)
    assert source.info.class_names == ("cat", "dog") and [source[i]["label"] for i in range(2)] == [0, 1]
    for row, label in zip(rows, (0, 1, "", None)):
        row["label"] = label
    metadata(tmp_path, rows)
    assert folder(tmp_path).info.class_names == ("0", "1")


def test_boxes_of_one_label_have_one_name(tmp_path):
    box = [0.1, 0.1, 0.5, 0.5]
    boxes = {f"{name}.png": [{"label": 1, "name": name, "box": box}] for name in "ab"}
    metadata(tmp_path, [{"file_name": name, "boxes": found} for name, found in boxes.items()])
    with pytest.raises(ValueError, match="boxes of label 1 are called 'b' and 'a', the first in b.png"):
        folder(tmp_path)


def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    try:
        picture(tmp_path / os.fsdecode(b"caf\xe9") / "1.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ValueError, match=r"the class 'caf\\udce9' is not written in UTF-8"):
        folder(tmp_path)


def test_what_is_not_read_for_its_name_is_counted(tmp_path):
    picture(tmp_path / unicodedata.normalize("NFD", "rosé") / "1.png")
    picture(tmp_path / "daisy" / "1.png")
    assert not folder(tmp_path).info.left_out
    (tmp_path / "metadata.CSV").write_text("file_name,caption\ndaisy/1.png,a daisy\n")
    assert folder(tmp_path).info.left_out == (("tables and texts of other names than are read (metadata.CSV)", 1),)


def test_a_table_of_captions_is_none_of_the_tables_that_are_looked_for(tmp_path):
    kind = FileKind("series", "series", "series", lambda: frozenset({".csv"}), frozenset(), "text/csv")
    (tmp_path / "a").mkdir()
    for name in ("a/1.csv", "a/metadata.csv"):
        (tmp_path / name).write_text("file_name,caption\n1.csv,one\n")
    assert find_files(tmp_path, kind).files == {"a": ["1.csv"]}
    (tmp_path / "a" / "metadata.csv").rename(tmp_path / "metadata.csv")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/1.csv,one\n")
    source = folder(tmp_path, kind=kind)
    assert source[0]["caption"] == "one" and not source.info.left_out
