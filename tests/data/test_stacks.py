"""Films and volumes from files, and the block of them that is learnt."""

import importlib.util
import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.fingerprint import contents, stamp
from ldm_jax.data.folder import folder
from ldm_jax.data.stack_transforms import FilmTransform, VolumeTransform, in_window
from ldm_jax.data.stacks import FILMS, VOLUMES, gif, read_film, read_volume
from ldm_jax.media.volume import Volume

RNG = np.random.default_rng(0)
FILM = RNG.integers(0, 256, (5, 12, 10, 3), np.uint8)
VOLUME = RNG.integers(0, 256, (5, 6, 7), np.uint8)


def frames_in(path, film=FILM, form="{}.png"):
    path.mkdir(parents=True)
    for i, frame in enumerate(film):
        Image.fromarray(frame).save(path / form.format(i))
    return path


def test_films_from_every_kind_of_file(tmp_path):
    np.save(tmp_path / "a.npy", FILM)
    np.savez(tmp_path / "b.npz", anything=FILM)
    np.save(tmp_path / "grey.npy", FILM[..., 0])
    np.testing.assert_array_equal(read_film(tmp_path / "a.npy", "a"), FILM)
    np.testing.assert_array_equal(read_film(str(tmp_path / "b.npz"), "b"), FILM)
    np.testing.assert_array_equal(read_film(tmp_path / "grey.npy", "grey"), FILM[..., :1].repeat(3, -1))
    flat = np.stack([np.full((8, 9, 3), (40 * i, 255 - 40 * i, 7), np.uint8) for i in range(5)])
    (tmp_path / "c.gif").write_bytes(gif(flat))
    np.testing.assert_array_equal(read_film(tmp_path / "c.gif", "c"), flat)  # one colour a frame: no palette loses any


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    twelve = np.concatenate([FILM, FILM, FILM])[:12]
    np.testing.assert_array_equal(read_film(frames_in(tmp_path / "a", twelve), "a"), twelve)  # 2.png before 10.png


def test_raised_numbers_in_names_are_letters(tmp_path):
    """"²" is a digit to Python, and no number."""
    frames = frames_in(tmp_path / "a", FILM[:3], "{}²1.png")
    np.testing.assert_array_equal(read_film(frames, "a"), FILM[:3])


def test_a_film_is_written_with_all_its_frames():
    """Also where one is like the one before; one colour a frame, so that no palette loses any."""
    film = np.stack([np.full((18, 20, 3), 60 * i, np.uint8) for i in (0, 0, 1, 2, 2, 2)])
    for frames in (film, film[:2]):
        with Image.open(io.BytesIO(gif(frames, 70))) as image:
            assert image.n_frames == len(frames) and image.info["loop"] == 0
            for i, frame in enumerate(frames):
                image.seek(i)
                assert image.info["duration"] == 70
                np.testing.assert_array_equal(image.convert("RGB"), frame)


def test_the_still_of_an_apng_is_no_frame(tmp_path):
    still, *frames = (Image.fromarray(frame) for frame in FILM)
    for name, default in (("a.apng", True), ("b.apng", False)):
        still.save(tmp_path / name, format="PNG", save_all=True, append_images=frames, default_image=default)
        np.testing.assert_array_equal(read_film(tmp_path / name, name), FILM[default:])


def test_folders_hold_films_as_files_and_as_folders(tmp_path):
    for kind, name in (("cat", "a"), ("cat", "b"), ("dog", "c")):
        frames_in(tmp_path / kind / name)
    np.save(tmp_path / "dog" / "d.npy", FILM)
    (tmp_path / "cat" / "README.txt").write_text("nothing")
    source = folder(tmp_path, columns=("film", "label"), kind=FILMS)
    assert source.info.class_names == ("cat", "dog") and not source.info.left_out
    names = [source[i]["name"].removeprefix(f"{tmp_path}/") for i in range(len(source))]
    assert sorted(names) == ["cat/a", "cat/b", "dog/c", "dog/d.npy"]
    assert all((read_film(source[i]["film"], "x") == FILM).all() for i in range(4))


def test_frames_beside_films_are_counted_not_lost_in_silence(tmp_path):
    np.save(tmp_path / "a.npy", FILM)
    Image.fromarray(FILM[0]).save(tmp_path / "cover.png")
    assert dict(folder(tmp_path, kind=FILMS).info.left_out) == {"pictures beside what is looked for": 1}


def test_a_captions_file_stands_beside_a_folder_of_frames(tmp_path):
    frames_in(tmp_path / "a")
    (tmp_path / "a.txt").write_text("a cat runs")
    frames_in(tmp_path / "v1.5")  # of a folder the whole name counts
    (tmp_path / "v1.5.txt").write_text("a dog runs")
    source = folder(tmp_path, columns=("film", "caption"), kind=FILMS)
    assert [row["caption"] for row in source] == ["a cat runs", "a dog runs"] and not source.info.left_out
    (tmp_path / "cat.txt").write_text("of no film")
    assert dict(folder(tmp_path, kind=FILMS).info.left_out) == {
        "tables and texts of other names than are read (cat.txt)": 1
    }


def test_a_changed_frame_changes_the_fingerprint(tmp_path):
    """Of contents and of what the file system says; a copy elsewhere has the same contents."""
    frames_in(tmp_path / "one" / "a")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (folder(tmp_path / name, kind=FILMS) for name in ("one", "two"))
    before = contents(one), stamp(one)
    assert contents(two) == before[0]
    Image.fromarray(FILM[1]).save(tmp_path / "one" / "a" / "0.png")
    assert contents(one) != before[0] and stamp(one) != before[1]


def test_films_that_cant_be_read_are_refused_by_name(tmp_path):
    np.save(tmp_path / "floats.npy", FILM.astype(np.float32))
    np.save(tmp_path / "flat.npy", FILM[0, :, :, 0])
    np.save(tmp_path / "picture.npy", FILM[0])
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=FILM, b=FILM)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("a.txt", "no array")
    (tmp_path / "other.npy").write_bytes(gif(FILM))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.gif").write_bytes(gif(FILM)[:40])
    (tmp_path / "empty").mkdir()
    mixed = frames_in(tmp_path / "mixed")
    Image.fromarray(FILM[0, :6]).save(mixed / "3.png")
    for name, message in (
        ("floats.npy", r"floats.npy holds float32\[5, 12, 10, 3\]: a film is uint8"),
        ("flat.npy", r"flat.npy holds uint8\[12, 10\]: a film is uint8"),
        ("picture.npy", r"picture.npy holds uint8\[12, 10, 3\], one picture: a film is"),
        ("objects.npy", "objects.npy can't be read as an array"),
        ("two.npz", "two.npz can't be read as an array: it holds 2 arrays"),
        ("text.npz", "text.npz can't be read as an array: a.txt in it is no array"),
        ("other.npy", "other.npy can't be read as an array: it is no .npy or .npz file"),
        ("cut.npy", "cut.npy can't be read"),
        ("cut.gif", "cut.gif can't be read"),
        ("empty", "empty is a folder without pictures"),
        ("mixed", "mixed: frame 3 is 10 x 6, those before 10 x 12; all frames must be of one size"),
    ):
        with pytest.raises(ValueError, match=message):
            read_film(tmp_path / name, name)
    for name in ("none.npy", "none.gif"):
        with pytest.raises(FileNotFoundError):
            read_film(tmp_path / name, name)


def test_video_files(tmp_path):
    """Without imageio one sentence says what to do; with it and a plugin, frames are read."""
    path = tmp_path / "a.mp4"
    if importlib.util.find_spec("imageio") is None:
        with pytest.raises(ValueError, match=r"a.mp4: reading .mp4 needs imageio \(pip install"):
            read_film(path, "a.mp4")
        return
    import imageio.v3 as imageio

    still = np.stack([np.full((32, 48, 3), 60 * i, np.uint8) for i in range(4)])
    try:
        imageio.imwrite(path, still, fps=4)
    except Exception as error:
        pytest.skip(f"imageio can't write mp4 here: {error}")
    found = read_film(path, "a.mp4")
    assert found.shape == still.shape and np.abs(found.astype(int) - still).max() < 12  # the codec's loss
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="a.mp4 can't be read as a film"):
        read_film(path, "a.mp4")


def test_a_block_of_a_film():
    long = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 8, 3), np.uint8)
    middle = FilmTransform((3, 6, 6))({"film": long, "name": "x"})["image"]
    assert middle.shape == (3, 6, 6, 3) and middle.dtype == np.float32
    np.testing.assert_array_equal(np.round((middle[:, 0, 0, 0] + 1) * 127.5), [3, 4, 5])
    every = FilmTransform((3, 6, 6), frame_step=2)({"film": long, "name": "x"})["image"]
    np.testing.assert_array_equal(np.round((every[:, 0, 0, 0] + 1) * 127.5), [2, 4, 6])
    random, firsts = FilmTransform((3, 6, 6), "random", frame_step=2), set()
    for seed in range(40):
        seen = np.round((random({"film": long, "name": "x"}, np.random.default_rng(seed))["image"][:, 0, 0, 0] + 1) * 127.5)
        assert (np.diff(seen) == 2).all()
        firsts.add(int(seen[0]))
    assert firsts == set(range(5))


def test_films_are_resized_as_pictures_are_and_mirrored_whole():
    transform = FilmTransform((2, 6, 5), flip=True)
    fitted = transform.fit({"film": FILM, "name": "x"})["film"]
    assert fitted.shape == (5, 6, 5, 3)
    np.testing.assert_array_equal(fitted[3], np.asarray(Image.fromarray(FILM[3]).resize((5, 6), Image.Resampling.BICUBIC)))
    plain = transform.view({"film": FILM})["film"]
    seen = [transform.view({"film": FILM}, np.random.default_rng(seed))["film"] for seed in range(8)]
    assert {bool((each == plain).all()) for each in seen} == {True, False}
    assert all((each == plain).all() or (each == plain[:, :, ::-1]).all() for each in seen)


def test_films_with_too_few_frames_are_refused_by_name():
    with pytest.raises(ValueError, match="cat.gif has 5 frames: 8 of config.data.image_size take 8"):
        FilmTransform((8, 6, 6))({"film": FILM, "name": "cat.gif"})
    with pytest.raises(ValueError, match="has 5 frames: 3 of config.data.image_size take 7 at frame_step=3"):
        FilmTransform((3, 6, 6), frame_step=3)({"film": FILM, "name": "cat.gif"})


def test_volumes(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME.astype(np.int16) - 100)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npy", "a"), VOLUME.astype(np.int16) - 100)
    slices = frames_in(tmp_path / "s", np.repeat(VOLUME[..., None], 3, -1))
    np.testing.assert_array_equal(read_volume(slices, "s"), VOLUME)
    assert [row["volume"].endswith(("a.npy", "s")) for row in folder(tmp_path, kind=VOLUMES)] == [True, True]
    block = VolumeTransform((3, 4, 5))({"volume": VOLUME, "name": "v"})["image"]
    assert block.shape == (3, 4, 5, 1)
    np.testing.assert_allclose(block[..., 0], VOLUME[1:4, 1:5, 1:6] / 127.5 - 1, atol=1e-6)
    windowed = in_window(np.float32([-1000, -100, 0, 100, 5000]), (-100, 100))
    np.testing.assert_allclose(windowed, [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(in_window(np.float64([-1, 0.5]), None), np.float32([-1, 0.5]))


def test_slices_of_sixteen_bits_share_one_scale(tmp_path):
    """Dark slices, whose numbers would fit into 8 bits, stay darker than the others; a window is of the stored numbers."""
    for i, value in enumerate((200, 300, 4000)):
        Image.fromarray(np.full((4, 5), value, np.uint16)).save(tmp_path / f"{i}.png")
    volume = read_volume(tmp_path, "scan")
    assert volume.dtype == np.uint16 and volume[:, 0, 0].tolist() == [200, 300, 4000]
    assert in_window(volume, (200, 400))[:, 0, 0].tolist() == [-1, 0, 1]
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"scan: 3.png and 0.png are not both of 8 bits or both of more"):
        read_volume(tmp_path, "scan")


def test_a_fitted_volume_stays_as_it_is():
    """What is kept in memory is seen as the file is."""
    transform = VolumeTransform((3, 4, 5), window=(0, 50))
    row = {"volume": VOLUME, "name": "v"}
    np.testing.assert_array_equal(transform(transform.fit(row))["image"], transform(row)["image"])


def test_numbers_that_say_nothing_are_refused_by_name():
    odd = VOLUME.astype(np.float32)
    odd[1, 1, 1:3] = np.nan, np.inf
    with pytest.raises(ValueError, match="v: 2 of 210 numbers are not finite"):
        VolumeTransform((3, 4, 5), (0, 255))({"volume": odd, "name": "v"})
    for window in ((-100, 0), (255, 300)):
        with pytest.raises(ValueError, match=r"v holds .* to .*, nothing inside of config.data.window="):
            VolumeTransform((3, 4, 5), window)({"volume": np.clip(VOLUME, 1, 254), "name": "v"})


def test_volumes_that_cant_be_read_are_refused_by_name():
    for volume, message in (
        (VOLUME[0], r"v holds uint8\[6, 7\]: a volume is numbers"),
        (VOLUME[:2], "v is 2 x 6 x 7 voxels: smaller than config.data.image_size, 3 x 4 x 5"),
        (VOLUME.astype(np.int16) - 7, "v holds int16 from -7 to 248: say which numbers are black and white"),
        (VOLUME.astype(np.complex64), "a volume is numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            VolumeTransform((3, 4, 5))({"volume": volume, "name": "v"})


@pytest.mark.parametrize("lowest", [-1000, 100_000])
def test_slices_below_zero_or_beyond_sixteen_bits_stay_what_they_are(tmp_path, lowest):
    """As Hounsfield units are stored: air is -1000, and below a window of soft tissue."""
    depth = np.arange(256, dtype=np.int32).reshape(16, 16) * 8 + lowest
    (tmp_path / "ct").mkdir()
    for i in range(3):
        Image.fromarray(depth + i).save(tmp_path / "ct" / f"{i}.tif")
    volume = read_volume(tmp_path / "ct", "ct")
    np.testing.assert_array_equal(volume, np.stack([depth, depth + 1, depth + 2]))
    assert in_window(volume, (lowest + 800, lowest + 1300))[0, 0, 0] == -1


def test_dark_frames_of_sixteen_bits_stay_dark_among_brighter_ones(tmp_path):
    """A fade-in, and eight bits in sixteen, of which all frames are."""
    levels = np.array([0, 60, 240, 300, 30000, 65535], np.uint16)
    for name, values in (("fade", levels), ("eight", levels[:3])):
        (tmp_path / name).mkdir()
        frames = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in values]
        for i, frame in enumerate(frames):
            frame.save(tmp_path / name / f"{i}.png")
        frames[0].save(tmp_path / f"{name}.apng", save_all=True, append_images=frames[1:], format="PNG")
    assert read_film(tmp_path / "fade", "fade")[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 116, 255]
    assert read_film(tmp_path / "fade.apng", "fade")[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 116, 255]
    assert read_film(tmp_path / "eight", "eight")[:, 0, 0, 0].tolist() == [0, 60, 240]


def test_however_films_and_arrays_are_damaged_the_error_names_them(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    whole = gif(frames)
    np.savez_compressed(tmp_path / "a.npz", frames)
    packed = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "b.npy", frames)
    head = (tmp_path / "b.npy").read_bytes().replace(b"}", b" ", 1)
    damaged = [("cut.gif", whole[:end]) for end in range(40, len(whole), 97)] + [("head.npy", head)]
    for _ in range(40):
        broken = np.frombuffer(packed, np.uint8).copy()
        broken[rng.integers(30, len(broken), 8)] = rng.integers(0, 256, 8)
        damaged.append(("broken.npz", broken.tobytes()))
    for name, content in damaged:
        (tmp_path / name).write_bytes(content)
        try:
            read_film(tmp_path / name, name)
        except ValueError as error:
            assert name in str(error)


@pytest.mark.parametrize("window", ((), (-200.0, 300.0)))
def test_a_volume_that_was_written_is_read_as_it_was(tmp_path, window):
    """`sample.py` writes it, and `--image` starts from it."""
    medium = Volume({"medium": "volume", "image_size": 4, "window": window, "crop": "center", "flip": False})
    drawn = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1)).astype(np.float32)
    drawn[0, 0, 0, 0] = 1.02  # decoders draw a little beyond
    (tmp_path / "0000.npy").write_bytes(medium.files_of(drawn)["npy"])
    np.testing.assert_allclose(medium.read(tmp_path / "0000.npy"), np.clip(drawn, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    "volume, window, said",
    [
        (VOLUME.astype(np.uint16) * 16, (), r"^40\d\d of 65535 is the most .* nearly black; .*window='\(0, 40\d\d\)'$"),
        (VOLUME / np.float32(255), (), r"^volumes hold 0.* to 1, and -1 is black, .*window='\(0.*, 1\)'$"),
        (VOLUME.astype(np.uint16) * 16, (0, 4095), "^$"),
        (VOLUME.astype(np.uint16) * 256, (), "^$"),
        (VOLUME / np.float32(127.5) - 1, (), "^$"),
        (VOLUME, (), "^$"),
    ],
)
def test_a_range_of_which_little_is_used_is_said(tmp_path, volume, window, said):
    np.save(tmp_path / "a.npy", volume)
    (tmp_path / "b.npy").write_bytes(b"broken")
    medium = Volume({"medium": "volume", "image_size": 4, "window": window, "crop": "center", "flip": False})
    assert re.search(said, medium.look(folder(tmp_path, kind=VOLUMES)))
