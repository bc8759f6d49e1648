"""Sounds as a medium: what config.data.sound may say, what is shown and written, and commands that are given sounds."""

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import api, build, media
from ldm_jax.build.check import check
from ldm_jax.cli import sample_command
from ldm_jax.data.sound import read_sound, wav_bytes
from ldm_jax.drawing.modes import draw
from ldm_jax.scoring.features import check as check_features
from tests.test_habits import config_of
from tests.tiny import CONFIG, random_model

DATA = {
    "medium": "sound", "source": "folder", "path": ".", "image_size": (16, 24), "crop": "center", "flip": False,
    "sound": {"rate": 8000, "window": 256, "hop": 64, "shortest": 0.05, "iterations": 8},
}  # fmt: skip


def tone(frequency, seconds, rate=8000, channels=1):
    return np.float32(0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate))[:, None].repeat(channels, 1)


def sound(**fields):
    return media.make_medium(DATA | {"sound": DATA["sound"] | fields})


def config(**data):
    found = config_of("spoken_digits")
    found["data"] |= build.with_lists(data)
    return found


def test_the_config_fits_and_what_does_not_is_said():
    check(config())
    for data, message in (
        ({"flip": True}, "config.data.flip=True: of pictures"),
        ({"short_side": 80}, "config.data.short_side=80: of pictures"),
        ({"source": "shapes"}, r"config.data.source \(of medium='sound'\)='shapes'"),
        ({"sound": {"hops": 64}}, "config.data.sound.hops: Setting has no such field. Did you mean 'hop'"),
        ({"sound": {"window": 300, "hop": 200}}, "config.data.sound: hop=200: at most half of window=300"),
        ({"sound": {"high": 9000.0}}, "config.data.sound: low=0, high=9000"),
        ({"sound": {"channels": 3}}, "config.data.sound: channels=3"),
        ({"sound": {"channels": 2}}, "in_channels=1: medium='sound' gives arrays of 2 channels"),
        ({"sound": {"iterations": 0}}, "config.data.sound.iterations=0"),
        ({"image_size": (4, 64, 64)}, "medium='sound' has 2 sides"),
    ):
        with pytest.raises(ValueError, match=message):
            check(config(**data))


def test_low_frequencies_are_shown_below_and_the_right_channel_under_the_left_one():
    mono, stereo = np.full((2, 16, 24, 1), -1, np.float32), np.full((1, 16, 24, 2), -1, np.float32)
    mono[:, 0], stereo[:, 0, :, 1] = 1, 1
    dark, light = media.sound.COLOURS[[0, -1]] / 127.5 - 1
    picture = sound().shown(mono)[1]
    assert picture.shape == (16, 24, 3)
    np.testing.assert_allclose(picture[-1, 5], light, atol=1e-6)
    np.testing.assert_allclose(picture[0, 5], dark, atol=1e-6)
    picture = sound(channels=2).shown(stereo)[0]
    assert picture.shape == (32, 24, 3)
    np.testing.assert_allclose(picture[[15, 31], 5], [dark, light], atol=1e-6)
    np.testing.assert_array_equal(sound().laid(np.eye(3)[:2])[0], [0, 1, 0])
    marked = np.zeros((32, 24))  # as stereo is shown: the left channel's top, the right one's lowest band
    marked[0, 3] = marked[31, 5] = 1
    laid = sound(channels=2).laid(marked)
    assert laid.shape == (16, 24) and laid[15, 3] == laid[0, 5] == 1 and laid.sum() == 2


def test_what_is_read_is_heard_again(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1000, 0.2, channels=2), 8000))
    medium = sound(channels=2, iterations=32)
    array = medium.read(tmp_path / "a.wav")
    assert array.shape == (16, 25, 2)  # 1600 samples: every frame that begins in them
    samples, rate = read_sound(medium.files_of(array)["wav"])
    assert samples.shape == (1600, 2) and rate == 8000
    spectrum = np.abs(np.fft.rfft(samples[:, 0]))
    assert abs(spectrum.argmax() * 5 - 1000) < 130  # a band is that wide
    np.testing.assert_allclose(np.sqrt(np.mean(samples**2)), 0.5 / np.sqrt(2), rtol=0.2)
    with pytest.raises(ValueError, match="a.wav has 2 channels, the model 1"):
        sound().read(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="a.wav has 8000 samples a second, the model 16000"):
        sound(rate=16000, channels=2).read(tmp_path / "a.wav")


@pytest.fixture(scope="module")
def model():
    """Random weights."""
    first_stage = CONFIG["first_stage"] | {"in_channels": 1, "out_ch": 1}
    network = CONFIG["network"] | {"attention_resolutions": [], "use_spatial_transformer": False, "context_dim": None}
    parts = {"data": DATA, "first_stage": first_stage, "network": network, "conditioner": {"kind": "none"}}
    return random_model(CONFIG | parts)


def test_sounds_are_drawn_written_and_started_from(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load_whole", lambda *_, **__: model)
    sample_command.main(["sample.py", "--workdir", str(tmp_path), "--num", "2", "--steps", "2", "--out", str(tmp_path / "out")])
    assert "2 sounds in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0000.png", "0000.wav", "0001.png", "0001.wav", "grid.png", "grid.txt",
    ]  # fmt: skip
    samples, rate = read_sound(tmp_path / "out" / "0001.wav")
    assert samples.shape == (24 * 64, 1) and rate == 8000
    assert Image.open(tmp_path / "out" / "0001.png").size == (24, 16)
    again = draw(model, {"num": 2, "steps": 2}).images
    np.testing.assert_allclose(build.make_medium(model.config).samples(again[1]), samples, atol=2**-14)

    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1000, 0.1), 8000))
    changed = draw(model, {"image": [str(tmp_path / "a.wav")], "strength": 0.5, "num": 1, "steps": 2}).images
    assert changed.shape == (1, 16, 13, 1)  # 800 samples
    mask = np.zeros((16, 13), np.uint8)
    mask[:4] = 255  # of the picture: the highest bands
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painted = draw(model, {"image": [str(tmp_path / "a.wav")], "mask": str(tmp_path / "mask.png"), "num": 1, "steps": 2}).images
    original = build.make_medium(model.config).read(tmp_path / "a.wav")
    np.testing.assert_array_equal(painted[0, :12], original[:12])
    assert np.abs(painted[0, 12:] - original[12:]).max() > 0.01


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"size": "32x24"}, "size 32 x 24: a sound has 16 bands, and any number of frames, such as 16x48"),
        ({"size": "8x24", "variations": 0.5}, "size 8 x 24: a sound has 16 bands"),
        ({"size": "32x48", "panorama": True}, "size 32 x 48: a sound has 16 bands"),
        ({"image": ["a.wav"], "outpaint": ["4", "0", "0", "8"]}, "size 20 x 21: a sound has 16 bands"),
    ],
)
def test_sounds_of_other_bands_are_refused_before_they_are_drawn(model, tmp_path, monkeypatch, flags, message):
    """No vocoder could write them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1000, 0.1), 8000))
    with pytest.raises(ValueError, match=message):
        draw(model, {"num": 1, **flags})


WAVEFORM = DATA | {"medium": "waveform", "image_size": (1536,)}


def test_waveforms_are_heard_as_they_are(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1000, 0.25), 8000))
    medium = media.make_medium(WAVEFORM)
    example = medium.transform()({"sound": str(tmp_path / "a.wav"), "name": "a.wav"})["image"]
    whole, _ = read_sound(tmp_path / "a.wav")
    np.testing.assert_array_equal(example, whole[232 : 232 + 1536])
    assert medium.read(tmp_path / "a.wav").shape == (2000, 1)
    np.testing.assert_allclose(read_sound(medium.files_of(example)["wav"])[0], example, atol=2**-15)
    shown = medium.shown(np.stack([example, 2 * example]))
    assert shown.shape == (2, 64, 24, 3)
    row = shown[0, :, 12].sum(-1).argmax()
    assert abs(medium.mel.middles[64 - row] - 1000) < 60  # low frequencies below
    assert medium.shown(example[None, :40]).shape == (1, 64, 1, 3)  # less than a frame
    with pytest.raises(ValueError, match="--mask is a picture"):
        medium.laid(np.zeros((64, 24)))


def test_waveforms_go_on_before_and_behind(tmp_path):
    parts = {"dims": 1, "kernel_size": 3, "in_channels": 1, "out_ch": 1}
    network = CONFIG["network"] | {"dims": 1, "attention_resolutions": []}
    network |= {"use_spatial_transformer": False, "context_dim": None}
    data = WAVEFORM | {"image_size": (256,)}
    changes = {"data": data, "first_stage": CONFIG["first_stage"] | parts, "network": network, "conditioner": {"kind": "none"}}
    ldm = random_model(CONFIG | changes)
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1000, 0.05), 8000))
    assert ldm.describe().startswith("tiny: 256 samples, takes nothing")
    assert "outpaint" in ldm.abilities and "inpaint" not in ldm.abilities  # no flag says which samples
    assert draw(ldm, {"panorama": True, "size": "600", "num": 1, "steps": 2}).images.shape == (1, 600, 1)
    known = build.make_medium(ldm.config).read(tmp_path / "a.wav")
    given = {"image": [str(tmp_path / "a.wav")], "num": 1, "steps": 2}
    drawn = draw(ldm, given | {"outpaint": ["16", "33"]}).images
    assert drawn.shape == (1, 16 + 400 + 33, 1) and np.abs(drawn[0, -33:] - known[-1]).max() > 0.01
    np.testing.assert_array_equal(drawn[0, 16:416], known)
    beyond = ldm.outpaint(ldm.params, jax.random.key(0), known[None], left=16, right=34, steps=2)
    assert beyond.shape == (1, 450, 1)
    np.testing.assert_array_equal(beyond[0, 16:416], known)
    with pytest.raises(ValueError, match="--outpaint 1,2,3,4: samples to add, BEFORE,BEHIND, or one number for all 2"):
        draw(ldm, given | {"outpaint": ["1", "2", "3", "4"]})
    with pytest.raises(ValueError, match="top=4, bottom=0: a waveform has only left and right"):
        ldm.outpaint(ldm.params, jax.random.key(0), known[None], top=4)
    with pytest.raises(ValueError, match=r"images of shape \(400, 1\): whole numbers of pixels around \[B, W, C\]"):
        ldm.outpaint(ldm.params, jax.random.key(0), known, right=4)


@pytest.mark.parametrize("channels", [1, 2])
def test_networks_that_judge_look_at_the_spectrogram_of_a_waveform(tmp_path, channels):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (1536, channels)).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(wav_bytes(samples, 8000))
    data = WAVEFORM | {"sound": WAVEFORM["sound"] | {"channels": channels}}
    medium, row = media.make_medium(data), {"sound": str(tmp_path / "a.wav"), "name": "a.wav"}
    seen = medium.seen(medium.transform()(row)["image"][None])
    looked_at = build.make_probe_transform({"data": data}, "validation")
    assert seen.shape == (1, *looked_at.array_shape) == (1, 64, 24, channels)
    np.testing.assert_allclose(seen[0], looked_at(row)["image"], atol=1e-6)
    assert seen.std() > 0.05


@pytest.mark.parametrize("name, axes", [("spoken_waveforms", 1), ("moving_shapes", 3), ("vessels", 3)])
def test_data_without_two_axes_are_not_measured_by_distances(name, axes):
    for features in ("auto", "contrastive", "classifier:somewhere"):
        with pytest.raises(ValueError, match=rf"networks look at two axes.* has {axes}, and is not measured by distances"):
            check_features(features, config_of(name))
    if axes == 3:
        with pytest.raises(ValueError, match="networks that judge look at two axes.* has 3"):
            build.make_probe_transform(config_of(name), "train")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data": {"image_size": [6145]}}, r"image_size=\[6145\]: a multiple of config.data.sound.hop=128"),
        ({"data": {"image_size": [64, 48]}}, "medium='waveform' has 1 sides"),
        ({"first_stage": {"dims": 2}}, "config.first_stage.dims=2: must be 1"),
        ({"first_stage_loss": {"stft_windows": [4]}}, "stft_windows: 4 must be a multiple of 4, from 8"),
        ({"first_stage_loss": {"stft_windows": [16384]}}, "stft_windows: 16384"),
        ({"first_stage_loss": {"stft_windows": []}}, r"stft_windows=\(\): spectra of no window, with stft_weight=0.1"),
        ({"first_stage_loss": {"stft_weight": -1.0}}, "config.first_stage_loss.stft_weight=-1.0: must be at least 0"),
        ({"first_stage_loss": {"perceptual_weight": 1.0, "perceptual_path": "random"}}, "LPIPS sees pictures"),
    ],
)
def test_waveforms_that_cannot_be(fields, message):
    found = config_of("spoken_waveforms")
    check_changed = {name: found[name] | change for name, change in fields.items()}
    with pytest.raises(ValueError, match=message):
        check(found | check_changed)


def test_spectra_are_of_waveforms():
    found = config_of("spoken_digits")
    found["first_stage_loss"] |= {"stft_weight": 0.1, "stft_windows": [64]}
    with pytest.raises(ValueError, match="stft_weight: spectra are of waveforms; set it to 0 with dims=2"):
        check(found)
