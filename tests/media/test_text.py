"""Text as a medium: tokens of a vocabulary that is learnt of the data, lines of text as what is shown and written."""

import jax
import numpy as np
import pytest

from ldm_jax import build, media
from ldm_jax.data.latent_cache import latent_cache
from ldm_jax.data.pipeline import batches
from ldm_jax.data.texts import texts
from ldm_jax.data.tokenizer import TEXT_TOKENIZER, train_tokenizer
from tests.test_habits import config_of
from tests.tiny import random_model

LINES = ("a dog sleeps.", "the cat, too!", "does a cat sleep?", "a dog and the cat.")


@pytest.fixture
def section(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(LINES))
    (tmp_path / "work").mkdir()
    config = config_of("sentences")["data"]
    return config | {"source": "folder", "path": str(tmp_path), "image_size": 8, "vocab_size": 30}


@pytest.fixture
def medium(section, tmp_path):
    made = media.make_medium(section, tmp_path / "work")
    made.learn(texts(section["path"]), tmp_path / "work")
    return made


def test_rows_become_tokens_and_tokens_lines(section, medium, tmp_path):
    config = {"data": section}
    source = build.make_source(config, "train", ())
    transform = medium.transform()
    example = transform(source[0])
    assert example["image"].shape == transform.array_shape == (8, 1) and example["image"].dtype == np.float32
    assert example["image"][:, 0].tolist()[:1] == [2.0] and example["image"][5, 0] == 3.0  # begin, four tokens, end
    batch = next(batches(source, transform, 4, seed=0))["image"]
    assert sorted(medium.words(batch)) == sorted(LINES)
    cache = latent_cache(tmp_path / "cache", source, transform, lambda x: x * 2, {}, batch_size=4, dtype="float32")
    np.testing.assert_array_equal(cache[1]["moments"], 2 * transform(source[1])["image"])
    assert "text" not in cache.info.columns


def test_the_vocabulary_is_learnt_once_and_named_for_who_loads(section, medium, tmp_path):
    path = tmp_path / "work" / TEXT_TOKENIZER
    before = path.read_bytes()
    (tmp_path / "train.txt").write_text("other words")
    media.make_medium(section, tmp_path / "work").learn(texts(section["path"]), tmp_path / "work")
    assert path.read_bytes() == before
    elsewhere = media.make_medium(medium.settled())
    assert elsewhere.words(medium.transform().encode(LINES[1], "x")[None]) == [LINES[1]]
    with pytest.raises(ValueError, match="vocabulary of this model is not known"):
        media.make_medium(section).transform()


@pytest.fixture(scope="module")
def sentences():
    """A model of random weights, told a class by its number."""
    config = config_of("sentences")
    config["first_stage"] |= {"width": 16, "heads": 2, "embed_dim": 4}
    config["network"] |= {"in_channels": 4, "depth": 1, "hidden_size": 16, "num_heads": 2}
    return random_model(config)


def test_what_is_of_pictures_is_refused_for_sentences(sentences):
    """In words, before anything compiles: tiles gave scores for tokens, numbers of no token NaN."""
    ldm, key = sentences, jax.random.key(0)
    p, cond, tokens = ldm.params, ldm.embed(ldm.params, [0, 1]), np.full((2, 16, 1), 7, np.float32)
    with pytest.raises(ValueError, match="tile=8: sentences are drawn whole"):
        ldm.sample(p, key, cond, tile=8)
    for wrong in (160, -1, 0.5, np.nan):
        with pytest.raises(ValueError, match=f"tokens: {wrong:g} is none, they are whole numbers from 0 to 159"):
            ldm.encode(p, np.where(np.arange(16)[:, None] == 3, np.float32(wrong), tokens))
    for of_pictures in (
        lambda: ldm.image_to_image(p, key, tokens, cond),
        lambda: ldm.image_to_image(p, key, tokens / 160, cond),
        lambda: ldm.inpaint(p, key, tokens, np.ones((2, 16), np.float32), cond),
        lambda: ldm.outpaint(p, key, tokens, cond, right=8),
        lambda: ldm.edit(p, key, tokens, cond),
        lambda: ldm.invert(p, tokens, cond),
    ):
        with pytest.raises(ValueError, match="this model draws sentences: it can't start from one"):
            of_pictures()


def test_sentences_between_two_noises_keep_their_class(sentences):
    """Nothing lies between numbers of classes, and nothing has to where there is one."""
    p, key, noise = sentences.params, jax.random.key(0), sentences.noise(jax.random.key(1), 2)
    cond = sentences.embed(p, [0])
    between = sentences.interpolate(p, key, cond, 3, noise=noise, steps=2)
    for i in (0, 1):
        drawn = sentences.sample(p, key, cond, noise=noise[i : i + 1], steps=2)
        np.testing.assert_array_equal(between[2 * i], drawn[0])
    with pytest.raises(ValueError, match="classes are numbers to its network, with nothing between them"):
        sentences.interpolate(p, key, sentences.embed(p, [0, 1]), 3, noise=noise)


def test_a_tokenizer_of_ones_own_is_kept_in_the_working_directory(section, tmp_path):
    train_tokenizer(LINES, "wordpiece", 60).save(tmp_path / "own.json")
    own = section | {"tokenizer": str(tmp_path / "own.json"), "vocab_size": 60}
    medium = media.make_medium(own, tmp_path / "work")
    medium.check()
    medium.learn(texts(section["path"]), tmp_path / "work")
    (tmp_path / "own.json").unlink()
    assert media.make_medium(own, tmp_path / "work").transform().encode(LINES[0], "x").shape == (8, 1)


def test_the_vocabulary_is_that_of_the_first_stage(section, medium, tmp_path):
    """Whatever the texts: another number would be another word to it."""
    (tmp_path / "train.txt").write_text("the the the cat sleeps")  # which alone would be numbered otherwise
    fresh, first = media.make_medium(section, tmp_path / "new"), tmp_path / "work"
    fresh.learn(texts(section["path"]), tmp_path / "new", first)
    assert (tmp_path / "new" / TEXT_TOKENIZER).read_bytes() == (first / TEXT_TOKENIZER).read_bytes()
    fresh.learn(texts(section["path"]), tmp_path / "new", first)
    assert fresh.words(medium.transform().encode(LINES[2], "x")[None]) == [LINES[2]]

    other = media.make_medium(section, tmp_path / "other")
    other.learn(texts(section["path"]), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other/text_tokenizer.json numbers words otherwise than .*work/text_tokenizer.json"):
        other.learn(texts(section["path"]), tmp_path / "other", first)
    named = media.make_medium(section | {"tokenizer": str(tmp_path / "other" / TEXT_TOKENIZER)}, tmp_path / "named")
    with pytest.raises(ValueError, match="config.data.tokenizer='.*json' numbers words otherwise than"):
        named.learn(texts(section["path"]), tmp_path / "named", first)
    small = media.make_medium(section | {"vocab_size": 8}, tmp_path / "small")
    with pytest.raises(ValueError, match=r"config.data.vocab_size=8: .*work/text_tokenizer.json has \d+ tokens"):
        small.learn(texts(section["path"]), tmp_path / "small", first)
    with pytest.raises(FileNotFoundError, match="nowhere/text_tokenizer.json"):
        fresh.learn(texts(section["path"]), tmp_path / "empty", tmp_path / "nowhere")


def test_what_is_too_long_is_refused_by_name_or_cut_and_said(section, medium):
    long = section | {"image_size": 6}
    source = texts(section["path"])
    with pytest.raises(ValueError, match=r"train.txt, line 2: 5 tokens, and 4 fit \('the cat, too!'\).*too_long='cut'"):
        media.make_medium(long, medium.workdir).look(source)
    with pytest.raises(ValueError, match="line 4: 6 tokens"):
        media.make_medium(long, medium.workdir).transform()(source[3])
    cut = media.make_medium(long | {"too_long": "cut"}, medium.workdir)
    assert cut.look(source) == "3 of 4 texts are longer than 6 tokens and are cut"
    assert cut.words(cut.transform()(source[3])["image"][None]) == ["a dog and the"]
    assert medium.look(texts(section["path"])) == ""


@pytest.mark.parametrize(
    "change, said",
    [
        ({"too_long": "drop"}, "config.data.too_long"),
        ({"tokenizer": "letters"}, "config.data.tokenizer.*words"),
        ({"image_size": 2}, "image_size=2: begin and end alone"),
        ({"flip": True}, "of pictures"),
        ({"crop": "random"}, "of pictures"),
    ],
)
def test_fields_that_can_not_be_meant(section, change, said):
    with pytest.raises(ValueError, match=said):
        media.make_medium(section | change).check()


def test_a_tokenizer_that_does_not_fit_is_refused(section, tmp_path):
    train_tokenizer(LINES).save(tmp_path / "own.json")
    own = section | {"tokenizer": str(tmp_path / "own.json"), "vocab_size": 10}
    with pytest.raises(ValueError, match=r"config.data.vocab_size=10: .*has \d\d tokens"):
        media.make_medium(own).check()
    with pytest.raises(FileNotFoundError, match=r"config.data.tokenizer='.*gone.json': no such file"):
        media.make_medium(section | {"tokenizer": str(tmp_path / "gone.json")}).check()


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("data.image_size", 17, "image_size=.*17.*: must be a multiple of config.first_stage.latents=16"),
        ("data.medium", "image", "first_stage.kind='text' is of tokens"),
        ("data.source", "tfds", r"config.data.source \(of medium='text'\)"),
        ("first_stage.kind", "none", "first_stage.kind='none': numbers of words are no amounts"),
        ("first_stage.heads", 5, "width 64 must be divisible by heads 5"),
        ("first_stage_train.frozen", ("encoder",), "frozen=.*: of text all is trained"),
        ("network.dims", 2, "config.network.dims=2: must be 1"),
        ("network.in_channels", 15, "latents have 8 channels"),
    ],
)
def test_configs_that_can_not_work(field, value, said):
    config = config_of("sentences")
    *path, last = field.split(".")
    section = config
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ValueError, match=said):
        build.check(config)


def test_what_is_written(section, medium, tmp_path):
    arrays = np.stack([medium.transform().encode(line, "x") for line in LINES[:2]])
    assert medium.shown(arrays).shape[0] == 2 and medium.shown(arrays).min() < 0 < medium.shown(arrays).max()
    medium.save(tmp_path / "out", "grid", arrays, ["x", "y"], singly=True)
    assert (tmp_path / "out" / "sentences.txt").read_text() == f"{LINES[0]}\n{LINES[1]}\n"
    assert (tmp_path / "out" / "0001.txt").read_text() == f"{LINES[1]}\n"
    with pytest.raises(FileExistsError):
        medium.save(tmp_path / "out", "grid", arrays, ["x", "y"], singly=True)
