"""Data bases from folders, queries of every kind, and CLIP as an embedder."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import ldm_jax
from configs import retrieval_small
from ldm_jax import build, experiment, models, retrieval, weights
from ldm_jax.cli.retrieval import main
from ldm_jax.data.folder import folder
from ldm_jax.retrieval import query
from ldm_jax.retrieval.database import NeighboursOf, load_database

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


class MeanColour:
    """An embedder without weights."""

    size = (8, 8)

    def __call__(self, images):
        mean = images.mean((1, 2)) + 1
        return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(np.float32)

    def words(self, texts):
        return self(np.stack([np.broadcast_to(np.float32(COLOURS[text]) / 127.5 - 1, (8, 8, 3)) for text in texts]))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of classes by colour, with a train and a validation split."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.integers(-25, 25, 3) + colour, 0, 255) * np.ones((10, 12, 1))
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def database(pictures, tmp_path_factory):
    sources = [folder(pictures, split) for split in ("train", "validation")]
    out = tmp_path_factory.mktemp("db") / "db"
    retrieval.build(sources[0], MeanColour(), out, queries=sources[1:], root=str(pictures), k=4)
    return out


def test_pictures_that_cannot_be_read_are_left_out_where_that_is_asked_for(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    broken = tmp_path / "pictures" / "train" / "green" / "2.png"
    broken.write_bytes(b"no picture")
    found = []
    for place in (pictures, tmp_path / "pictures"):
        out = tmp_path / f"of {place.name} in {place.parent.name}"
        found.append(retrieval.build(folder(place, "train"), MeanColour(), out, root=str(place), k=4, on_error="skip"))
    whole, rest = found
    kept = [i for i, name in enumerate(whole.names) if name != "train/green/2.png"]
    assert len(kept) == 17 and rest.names == tuple(whole.names[i] for i in kept)
    np.testing.assert_array_equal(rest.vectors, whole.vectors[kept])
    np.testing.assert_array_equal(rest.labels, whole.labels[kept])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        retrieval.build(folder(tmp_path / "pictures", "train"), MeanColour(), tmp_path / "raises", k=4)


def test_neighbours_of_training_and_validation_pictures(pictures, database):
    made = load_database(database)
    assert made.members == 18 and len(made.names) == 24 and made.class_names == ("blue", "green", "red")
    task = NeighboursOf(str(database), 4, str(pictures))
    for source in (folder(pictures, split) for split in ("train", "validation")):
        for row in (source[i] for i in range(len(source))):
            vectors = task(row)["neighbours"]
            found = [made.names[int((made.vectors[:18] @ v).argmax())] for v in vectors]
            assert all(f"/{row['name'].split('/')[-2]}/" in name for name in found)
            assert row["name"].removeprefix(f"{pictures}/") not in found


def test_every_kind_of_query(database):
    embedder, made = MeanColour(), load_database(database)

    def colours(**asked):
        rows = retrieval.find(database, embedder=embedder, **asked)
        np.testing.assert_array_equal(retrieval.condition(database, embedder=embedder, **asked), made.vectors[rows])
        return [made.names[row].split("/")[1] for row in rows]

    image = np.broadcast_to(np.float32(COLOURS["green"]) / 127.5 - 1, (20, 30, 3))
    assert colours(image=image, k=5) == ["green"] * 5
    assert colours(text="blue", k=3) == ["blue"] * 3
    assert colours(label="red", k=6) == ["red"] * 6
    alone = [colours(seed=seed, k=3) for seed in range(8)]
    assert all(len(set(found)) == 1 for found in alone) and len({found[0] for found in alone}) > 1
    with pytest.raises(ValueError, match="only one of them"):
        colours(text="blue", label="red")
    with pytest.raises(ValueError, match="name the embedder"):
        retrieval.condition(database, text="blue")


def test_the_commands(pictures, tmp_path, monkeypatch, capsys):
    for module in (retrieval, query):
        monkeypatch.setattr(module, "load_embedder", lambda path: MeanColour())
    query._embedder.cache_clear()
    out = str(tmp_path / "db")
    build = ["build", "--data", str(pictures), "--embedder", str(tmp_path / "judge"), "--out", out, "-k", "3"]
    assert main(build) == 0
    assert "18 pictures, vectors of 3 numbers" in capsys.readouterr().out
    assert load_database(out).names[0].startswith("train/")
    few = [*build[:5], "--out", str(tmp_path / "few"), "-k", "20"]
    assert main(few) == 0 and "17 neighbours each" in capsys.readouterr().out  # there are no more
    assert main(build) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["find", "--database", out, "--text", "red", "-k", "2"]) == 0
    assert [line.split("/")[1] for line in capsys.readouterr().out.split()] == ["red"] * 2
    picture = str(pictures / "val" / "green" / "0.png")
    assert main(["find", "--database", out, "--image", picture, "-k", "1"]) == 0
    assert "train/green/" in capsys.readouterr().out
    query._embedder.cache_clear()


def test_another_data_set_asks(pictures, tmp_path, monkeypatch):
    """Style swap in training: the data base is one folder, the pictures that ask are another's, with the same names inside."""
    for module in (retrieval, query):
        monkeypatch.setattr(module, "load_embedder", lambda path: MeanColour())
    other = shutil.copytree(pictures, tmp_path / "other")
    out = str(tmp_path / "db")
    assert main(["build", "--data", str(pictures), "--embedder", "x", "--out", out, "--queries", str(other)]) == 0
    made = load_database(out)
    assert made.members == 18 and len(made.names) == 24 + 24
    row = folder(other, "train")[0]
    nearest = NeighboursOf(out, 1, "")(row)["neighbours"]
    np.testing.assert_allclose(nearest @ MeanColour()(np.float32(Image.open(row["image"]))[None] / 127.5 - 1)[0], 1, atol=1e-3)


def test_a_picture_that_several_rows_name_is_there_once(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    rows = [(i, split, said) for i, split in enumerate(("train", "train", "train", "val")) for said in ("one", "another")]
    for i, colour in enumerate([*COLOURS.values(), (90, 90, 200)]):
        Image.new("RGB", (8, 8), colour).save(root / f"{i}.png")

    def write(label="0", more=""):
        lines = [f"{i}.png,{said},{split},{label if said == 'another' else 0}" for i, split, said in rows]
        (root / "metadata.csv").write_text("\n".join(["file_name,caption,split,label", *lines]) + more)
        return [folder(root, split, ("image", "label")) for split in ("train", "val")]

    sources = write(more="\n0.png,asks too,val,0")
    made = retrieval.build(sources[0], MeanColour(), tmp_path / "db", queries=sources[1:], root=str(root), k=2)
    assert made.names == ("0.png", "1.png", "2.png", "3.png") and made.members == 3 and made.labels.tolist() == [0] * 4
    assert np.load(tmp_path / "db" / "neighbours.npy").shape == (4, 2)
    vectors = NeighboursOf(str(tmp_path / "db"), 2, str(root))(sources[0][1])["neighbours"]
    assert (np.abs(vectors - made.vectors[0]).max(1) > 0.1).all()  # not the picture itself
    again = retrieval.build(sources[0], MeanColour(), tmp_path / "again", queries=sources[:1], root=str(root), k=2)
    assert again.names == made.names[:3]

    def never(images):
        raise AssertionError("refused before")

    never.size = (8, 8)
    with pytest.raises(ValueError, match="0.png has two rows of different labels, 0 and 1"):
        retrieval.build(write(label="1")[0], never, tmp_path / "new")
    one, other = [{"name": "0.png", "image": "0.png"}], [{"name": f"{root}/0.png", "image": "0.png"}]
    with pytest.raises(ValueError, match="two pictures would be called 0.png: 0.png and .*/0.png; rename one"):
        retrieval.build(one, never, tmp_path / "new", queries=[other], root=str(root))


def test_what_is_no_embedder(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a probe"):
        retrieval.load_embedder(tmp_path)
    (tmp_path / "judge.json").write_text('{"kind": "classifier"}')
    with pytest.raises(ValueError, match="is a classifier"):
        retrieval.load_embedder(tmp_path)


@pytest.fixture(scope="module")
def clip_folder(fixtures_dir, tmp_path_factory):
    """Both reference towers as transformers saves a CLIPModel."""
    to, towers = tmp_path_factory.mktemp("clip"), ("C6_clip_vision", "C4_clip_text_sd1")
    tensors = {k: v for name in towers for k, v in load_file(fixtures_dir / name / "weights.safetensors").items()}
    save_file({**tensors, "logit_scale": np.full((), 4.6, np.float32)}, to / "model.safetensors")
    vision, text = (json.loads((fixtures_dir / name / "config.json").read_text())["args"] for name in towers)
    both = {"vision_config": vision, "text_config": text, "projection_dim": vision["projection_dim"]}
    (to / "config.json").write_text(json.dumps(both))
    return to


@pytest.mark.parity
def test_clip_towers_from_a_folder(clip_folder, fixtures_dir):
    clip = retrieval.load_embedder(clip_folder)
    image, text = (dict(np.load(fixtures_dir / name / "io.npz")) for name in ("C6_clip_vision", "C4_clip_text_sd1"))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    mean, std = (
        np.asarray(x, np.float32) for x in (models.conditioners.clip.MEAN, models.conditioners.clip.STD)
    )
    pictures = (image["pixel_values"].transpose(0, 2, 3, 1) * std + mean) * 2 - 1
    look = jax.jit(lambda x: clip.image.apply({"params": clip.image_params}, models.clip_normalize(x)).embeds)
    np.testing.assert_allclose(look(pictures), image["image_embeds"], atol=2e-5 * np.abs(image["image_embeds"]).max())
    inside = np.abs(pictures).max((1, 2, 3)) <= 1  # values beyond [-1, 1] are no pictures, and are clipped
    np.testing.assert_allclose(clip(pictures)[inside], unit(image["image_embeds"])[inside], atol=2e-5)
    *_, height, width = image["pixel_values"].shape
    assert clip.size == (height, width)
    assert clip(np.zeros((1, height + 16, width + 8, 3))).shape == (1, image["image_embeds"].shape[1])
    with pytest.raises(ValueError, match="query with pictures"):
        clip.words(["a word"])


@pytest.mark.parity
def test_clip_text_tower_from_a_folder(clip_folder, fixtures_dir):
    fields, params = weights.read_clip(clip_folder)["text"]
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)
    io = dict(np.load(fixtures_dir / "C4_clip_text_sd1" / "io.npz"))
    embeds = jax.jit(lambda ids: models.CLIPText(**fields).apply({"params": params}, ids).embeds)(io["ids"])
    np.testing.assert_allclose(embeds, io["text_embeds"], atol=2e-5 * np.abs(io["text_embeds"]).max())


@pytest.mark.slow
def test_a_model_trains_on_neighbours_and_draws_by_them(pictures, database, tmp_path):
    """The whole way, small: the task in training, the condition in drawing; another data base without training anew."""
    config = retrieval_small.get_config()
    config.data.update(dict(source="folder", path=str(pictures), image_size=16))
    config.first_stage.update(dict(kind="none", path=""))
    config.latents.scale, config.latents.standardise = 1.0, False
    network = dict(
        in_channels=3, out_channels=3, model_channels=8, channel_mult=(1,), attention_resolutions=(1,), context_dim=3
    )
    config.network.update(network | dict(num_head_channels=4, norm_num_groups=4))
    config.conditioner.database = str(database)
    config.diffusion_train.update(dict(steps=2, batch_size=8, warmup_steps=1, optimizer="adamw"))
    config.sampling.steps = 2
    config.evaluation.batch_size = 8
    config.log.validation_images = 6
    experiment.run(config.to_dict(), tmp_path / "run")
    ldm = ldm_jax.load(tmp_path / "run")
    assert "neighbours" in ldm.describe()
    drawn = []
    for label in ("red", "blue"):
        cond = ldm.embed(ldm.params, [retrieval.condition(database, label=label, k=4)] * 2)
        drawn.append(ldm.sample(ldm.params, jax.random.key(0), cond))
    assert drawn[0].shape == (2, 16, 16, 3) and not np.allclose(drawn[0], drawn[1])
    assert len(list((tmp_path / "run" / "evaluation" / "0000").iterdir())) > 1
    with pytest.raises(ValueError, match=r"\[k, 3\]"):
        ldm.embed(ldm.params, [np.zeros((4, 5), np.float32)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("conditioner.database", "", "database is empty"),
        ("network.context_dim", 64, "have 3 numbers"),
        ("conditioner.neighbours", 9, "knows 4"),
    ],
)
def test_configs_that_do_not_fit_their_data_base(database, field, value, message):
    config = retrieval_small.get_config()
    config.conditioner.database, config.network.context_dim = str(database), 3
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        build.check(config.to_dict())
