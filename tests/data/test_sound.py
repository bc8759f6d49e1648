"""Sounds: files read and refused, spectrograms in closed form, the vocoder, and rows that become arrays."""

import io
import struct

import numpy as np
import pytest
from scipy.io import wavfile

from ldm_jax.data.folder import folder
from ldm_jax.data.pipeline import batches, in_memory
from ldm_jax.data.sound import SOUNDS, Mel, SoundTransform, files, griffin_lim, read_sound, resampled, wav_bytes
from ldm_jax.data.sound.mel import TOP_DB, hann, istft, stft, to_hertz, to_mel
from ldm_jax.data.source import describe

RATE = 16000
rng = np.random.default_rng(0)


def sine(frequency, seconds=0.512, rate=RATE, amplitude=0.5):
    return np.float32(amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate + 0.3))[:, None]


def wav(samples, rate=RATE):
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


# Files


def test_wav_of_every_depth_holds_the_same_sound():
    wanted = np.concatenate([sine(300), sine(500)], 1)
    depths = {
        np.uint8: np.round(wanted * 128 + 128), np.int16: np.round(wanted * 2**15), np.int32: np.round(wanted * 2.0**31),
        np.float32: wanted, np.float64: wanted,
    }  # fmt: skip
    for kind, stored in depths.items():
        samples, rate = read_sound(wav(stored.astype(kind)))
        assert samples.dtype == np.float32 and rate == RATE
        np.testing.assert_allclose(samples, wanted, atol=1 / 128 if kind is np.uint8 else 2**-15)
    again, rate = read_sound(wav_bytes(wanted, 8000))
    assert rate == 8000
    np.testing.assert_allclose(again, wanted, atol=2**-15)
    assert read_sound(wav_bytes(np.float32([[2.0], [-2.0]]), 8000))[0].ravel().tolist() == [32767 / 32768, -32767 / 32768]


def test_wav_of_24_bits():
    value = 0x123456
    data = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 3, 3, 24)
    sound = value.to_bytes(3, "little") + (-value).to_bytes(3, "little", signed=True)
    whole = b"WAVEfmt " + struct.pack("<I", 16) + data + b"data" + struct.pack("<I", 6) + sound
    samples, _ = read_sound(b"RIFF" + struct.pack("<I", len(whole)) + whole)
    np.testing.assert_allclose(samples[:, 0], [value / 2**23, -value / 2**23], rtol=1e-6)


@pytest.mark.parametrize("riff, data", [(2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000), (0, 0), (0, None)])
def test_wav_written_into_a_pipe(riff, data):
    """Its sizes were not known when they were written; a last sample that isn't whole is left out."""
    whole = bytearray(wav(np.int16(sine(300) * 2**15)))
    wanted, _ = read_sound(bytes(whole))
    struct.pack_into("<I", whole, 4, riff)
    if data is not None:
        struct.pack_into("<I", whole, 40, data)
    np.testing.assert_array_equal(read_sound(bytes(whole))[0], wanted)
    if data:
        np.testing.assert_array_equal(read_sound(bytes(whole[:-1]))[0], wanted[:-1])


def test_what_is_no_sound_is_refused_by_name(tmp_path):
    whole = wav(np.int16(sine(300) * 2**15))
    for data, message in (
        (whole[: len(whole) // 2], "x.wav cannot be read as a sound"),
        (whole[:30], "x.wav cannot be read as a sound"),
        (b"RIFF", "x.wav cannot be read as a sound"),
        (b"", "x.wav cannot be read as a sound"),
        (b"<html>no sound</html>", "x.wav cannot be read as a sound"),
        (wav(np.zeros((0, 1), np.int16)), "holds no samples"),
        (wav(np.float32([0.0, np.nan])), "not finite"),
        (whole[:22] + b"\0\0" + whole[24:], "it says that it has no channels"),
        (wav(np.zeros((3, 2), np.int16))[:-2].replace(b"data\x0c", b"data\x0a"), "its last sample lacks channels"),
        (wav(np.int16([0, 1]), 2_000_000), "it says that it has 2000000 samples a second"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sound(data, "x.wav")
    with pytest.raises(FileNotFoundError, match="gone.wav: no such file"):
        read_sound(tmp_path / "gone.wav", "gone.wav")


def test_flac_with_soundfile_and_a_hint_without(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra sound: pip install ldm_jax[sound]")
    soundfile.write(tmp_path / "a.flac", sine(300), RATE)
    np.testing.assert_allclose(read_sound(tmp_path / "a.flac")[0], sine(300), atol=2**-15)
    soundfile.write(tmp_path / "fine.flac", sine(300), RATE, subtype="PCM_24")
    np.testing.assert_allclose(read_sound(tmp_path / "fine.flac")[0], sine(300), atol=2**-23)
    (tmp_path / "fine.flac").unlink()
    with pytest.raises(ValueError, match=r"x.wav cannot be read as a sound: Format not recognised\.$"):
        read_sound(b"\x89PNG\r\n\x1a\n", "x.wav")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="nor in subfolders$"):
        folder(tmp_path / "none", kind=SOUNDS)
    assert describe(folder(tmp_path, kind=SOUNDS)) == "1 sound"
    monkeypatch.setattr(files, "has_soundfile", lambda: False)
    with pytest.raises(ValueError, match="it is no WAV file. FLAC, Ogg and MP3 need soundfile"):
        read_sound(tmp_path / "a.flac")
    message = r"no sounds \(.wav, .wave\).*1 sound files that are not read \(.flac\)\. FLAC, Ogg and"
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, kind=SOUNDS)


def test_resampling_keeps_tones_and_lets_none_through_that_cannot_be():
    half = resampled(sine(300, rate=2 * RATE), 2 * RATE, RATE)
    assert half.shape == sine(300).shape
    np.testing.assert_allclose(half[500:-500], sine(300)[500:-500], atol=2e-3)
    assert np.abs(resampled(sine(12000, rate=2 * RATE), 2 * RATE, RATE)[500:-500]).max() < 2e-3
    assert resampled(sine(300, rate=22050), 22050, RATE).shape[0] == 8193  # of 11290 samples


# Spectrograms


@pytest.mark.parametrize("scale", ("slaney", "htk"))
def test_mel_scales(scale):
    hertz = np.linspace(0, 12000, 400)
    np.testing.assert_allclose(to_hertz(to_mel(hertz, scale), scale), hertz, atol=1e-8)
    assert (np.diff(to_mel(hertz, scale)) > 0).all()
    if scale == "htk":  # 1000 mel is 1000 Hz, by definition up to its rounded constants
        assert to_mel(1000, scale) == pytest.approx(1000, abs=0.02)
    else:
        assert to_mel([0, 200, 1000, 6400], scale) == pytest.approx([0, 3, 15, 42])


def test_stft_is_the_transform_of_each_windowed_piece_and_istft_its_inverse():
    x = rng.standard_normal((2, 1024)).astype(np.float32)
    spectrum = stft(x, 256, 64)
    assert spectrum.shape == (2, 129, 16)
    piece = np.pad(x[1], 96)[5 * 64 : 5 * 64 + 256]  # column 5 begins 96 samples before sample 5 * 64
    direct = np.array([(piece * hann(256) * np.exp(-2j * np.pi * k * np.arange(256) / 256)).sum() for k in (0, 3, 128)])
    np.testing.assert_allclose(spectrum[1, [0, 3, 128], 5], direct, atol=1e-4)
    np.testing.assert_allclose(istft(spectrum, 256, 64), x, atol=1e-4)


@pytest.mark.parametrize("scale", ("slaney", "htk"))
def test_a_sine_lands_in_its_band(scale):
    mel = Mel(RATE, 40, 1024, 256, scale=scale)
    for band in (3, 20, 38):
        power = mel.power(sine(mel.middles[band + 1])[:, 0])[:, 16]
        assert power.argmax() == band
    at_bin = sine(64 * RATE / 1024, amplitude=1.0)[:, 0]  # bin 64: 1 there, a quarter in each neighbour
    total = mel.power(at_bin)[:, 16].sum()
    assert total == pytest.approx(1.5, rel=1e-3)


def test_bands_add_up_and_energies_add():
    mel = Mel(RATE, 40, 1024, 256)
    bins = np.arange(513) * RATE / 1024
    inside = (bins >= mel.middles[1]) & (bins <= mel.middles[-2])
    np.testing.assert_allclose(mel.filters[:, inside].sum(0), 1, atol=1e-5)
    low, high = sine(500)[:, 0], sine(3000)[:, 0]
    both, apart = mel.power(low + high), mel.power(low) + mel.power(high)
    np.testing.assert_allclose(both[:, 2:-2], apart[:, 2:-2], atol=1e-6)  # at the ends a sine is no sine
    np.testing.assert_allclose(mel.power(2 * low), 4 * mel.power(low), rtol=1e-5)


def test_no_sound_exceeds_the_top_and_levels_come_back():
    mel = Mel(RATE, 16, 512, 128)
    square = np.sign(sine(440))[:, 0]
    for loud in (square, np.ones(8192, np.float32), rng.choice([-1, 1], 8192).astype(np.float32)):
        assert mel.power(loud).sum(0).max() <= 3 + 1e-3
        assert mel.scaled(mel.power(loud)).max() <= 1
    power = np.float32(10.0 ** rng.uniform(-7.9, 0, (16, 8)))
    np.testing.assert_allclose(mel.unscaled(mel.scaled(power)), power, rtol=1e-4)
    assert (mel.scaled(np.zeros(3)) == -1).all() and (mel.unscaled(np.float32([-1, -2])) == 0).all()
    one = mel.scaled(np.float32(1))
    assert one == pytest.approx(2 * 80 / (80 + TOP_DB) - 1)  # a sine of amplitude 1 lies TOP_DB below the top


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"scale": "bark"}, "scale='bark'"),
        ({"hop": 600}, "at most half of window"),
        ({"low": 9000.0}, "0 <= low < high <= rate / 2"),
        ({"high": 9000.0}, "0 <= low < high <= rate / 2"),
        ({"floor_db": 0.0}, "floor_db=0"),
        ({"mels": 400}, "bands lie between two frequencies"),
        ({"mels": 0}, "at least 1"),
    ],
)
def test_spectrograms_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Mel(**fields)


@pytest.mark.parametrize("scale", ("slaney", "htk"))
def test_librosa_sees_the_same(scale):
    librosa = pytest.importorskip("librosa", reason="compares with librosa where it is installed")
    mel = Mel(22050, 40, 1024, 256, 60.0, 8000.0, scale)
    htk = {"htk": scale == "htk", "norm": None, "fmin": 60.0, "fmax": 8000.0, "n_mels": 40}
    np.testing.assert_allclose(mel.filters, librosa.filters.mel(sr=22050, n_fft=1024, **htk), atol=1e-6)
    x = rng.standard_normal(8192).astype(np.float32)
    padded = np.pad(x, (384, 384))
    found = librosa.feature.melspectrogram(y=padded, sr=22050, n_fft=1024, hop_length=256, center=False, **htk)
    np.testing.assert_allclose(mel.power(x) * (hann(1024).sum() / 2) ** 2, found, rtol=1e-3, atol=1e-5 * found.max())


# The vocoder


def convergence(samples, magnitude, window, hop):
    return np.linalg.norm(np.abs(stft(samples, window, hop)) - magnitude) / np.linalg.norm(magnitude)


def test_magnitudes_of_bands_come_back_as_bands():
    mel = Mel(RATE, 64, 1024, 256)
    sound = (sine(440) + 0.5 * sine(1200))[:, 0] * np.hanning(8192)
    array = mel.scaled(mel.power(sound.astype(np.float32)))
    magnitude = mel.magnitude(array)
    assert (magnitude >= 0).all()
    again = mel.scaled(mel.filters @ (magnitude / (hann(1024).sum() / 2)) ** 2)
    loud = array > 0
    assert np.abs(again - array)[loud].max() * (80 + TOP_DB) / 2 < 1  # decibels


def test_griffin_lim_gets_nearer_and_momentum_sooner():
    sound = np.float32(sum(sine(f, amplitude=0.2)[:, 0] for f in (220, 440, 660)) * np.hanning(8192))
    magnitude = np.abs(stft(sound, 512, 128))
    plain, fast = (
        [convergence(griffin_lim(magnitude, 512, 128, n, momentum), magnitude, 512, 128) for n in (0, 8, 48)]
        for momentum in (0.0, 0.99)
    )
    assert fast[0] > fast[1] > fast[2] and plain[0] > plain[1] > plain[2]
    assert fast[2] < 0.6 * plain[2] and fast[2] < 0.05
    np.testing.assert_array_equal(griffin_lim(magnitude, 512, 128, 4), griffin_lim(magnitude, 512, 128, 4))


def test_a_sine_is_heard_again():
    mel = Mel(RATE, 64, 1024, 256)
    heard = griffin_lim(mel.magnitude(mel.scaled(mel.power(sine(1000)[:, 0]))), 1024, 256)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(spectrum.argmax() * RATE / len(heard) - 1000) < 60  # half a band, which is all that the spectrogram says
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.2)


# Rows


@pytest.fixture
def place(tmp_path):
    """Two classes of two sounds, at a higher rate, with captions beside some."""
    for i, name in enumerate(("low", "high")):
        (tmp_path / name).mkdir()
        for j in range(2):
            (tmp_path / name / f"{j}.wav").write_bytes(wav_bytes(sine(300 * (1 + i) + 20 * j, 0.3, 22050), 22050))
            (tmp_path / name / f"{j}.txt").write_text(f"a {name} tone")
    return tmp_path


def transform(**fields):
    return SoundTransform(Mel(RATE, 32, 512, 128), 24, **fields)


def test_a_folder_of_sounds_is_read_like_one_of_images(place):
    source = folder(place, "train", ("sound", "label", "caption"), kind=SOUNDS)
    assert describe(source) == "4 sounds, 2 classes (high, low), 4 captions"
    kept = in_memory(source, transform().fit)
    assert kept[0]["sound"].dtype == np.float32 and kept[0]["sound"].shape == (4800, 1)
    batch, same = (next(batches(s, transform(crop="random"), 4, seed=3)) for s in (source, kept))
    assert batch["image"].shape == (4, 32, 24, 1) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["image"], same["image"])
    band = Mel(RATE, 32, 512, 128).power(sine(310)[:3072, 0])[:, 12].argmax()
    low = batch["image"][batch["label"] == 1]
    assert (np.abs(low[:, :, 12, 0].argmax(1) - band) <= 1).all()


def test_windows_of_long_sounds_and_silence_around_short_ones():
    row = {"sound": sine(500, 0.4), "name": "x"}
    whole = transform().view(row)["sound"]
    np.testing.assert_array_equal(whole, row["sound"][(6400 - 3072) // 2 :][:3072])
    starts = {float(transform(crop="random").view(row, np.random.default_rng(i))["sound"][0, 0]) for i in range(8)}
    assert len(starts) > 4
    short = {"sound": sine(500, 0.1), "name": "x"}
    padded = transform().view(short)["sound"]
    np.testing.assert_array_equal(padded[736 : 736 + 1600], short["sound"])
    assert not padded[:736].any() and not padded[736 + 1600 :].any()
    assert (transform()(short)["image"][:, 0] == -1).all()


@pytest.mark.parametrize(
    "fields, samples, rate, message",
    [
        ({}, sine(300, rate=8000), 8000, "x.wav has 8000 samples a second, the model 16000: nothing above 4000 Hz"),
        ({}, np.repeat(sine(300), 2, 1), RATE, "x.wav has 2 channels, the model 1: set config.data.sound.mix=True"),
        ({"channels": 2}, sine(300), RATE, "x.wav has 1 channels, the model 2: set config.data.sound.mix=True"),
        ({"channels": 2, "mix": True}, np.repeat(sine(300), 6, 1), RATE, "x.wav has 6 channels, the model 2: leave it out"),
        ({"shortest": 0.2}, sine(300, 0.1), RATE, "x.wav lasts 0.100 s: shorter than config.data.sound.shortest=0.2 s"),
        ({}, np.zeros((8000, 1)), RATE, "x.wav is silent: no sample reaches -80 dB"),
        ({}, np.full((8000, 1), 0.5), RATE, "x.wav is silent"),  # a constant is not heard
    ],
)
def test_sounds_that_do_not_fit_are_refused_by_name(tmp_path, fields, samples, rate, message):
    (tmp_path / "x.wav").write_bytes(wav_bytes(samples, rate))
    with pytest.raises(ValueError, match=message):
        transform(**fields).fit({"sound": str(tmp_path / "x.wav"), "name": "x.wav"})


def test_a_sound_whose_middle_is_silent_is_not_learnt_as_silence(tmp_path):
    """Its beginning is heard, but not in the middle that a centre crop sees."""
    (tmp_path / "x.wav").write_bytes(wav_bytes(np.concatenate([sine(300), np.zeros((3 * RATE, 1), np.float32)]), RATE))
    row = {"sound": str(tmp_path / "x.wav"), "name": "x.wav"}
    with pytest.raises(ValueError, match="x.wav lasts .* s in its middle are silent: .* config.data.crop=random"):
        transform().fit(row)
    assert len(transform(crop="random").fit(row)["sound"]) == len(sine(300)) + 3 * RATE


def test_samples_that_no_file_can_hold():
    """16 bits taken for [-1, 1] would be noise at full scale."""
    for samples, said in ((np.arange(-9, 9, dtype=np.int16), "samples are int16"), (np.float32([0, np.nan]), "are not finite")):
        with pytest.raises(ValueError, match=said):
            wav_bytes(samples, RATE)


def test_whole_numbers_stored_as_floating_point_ones_are_not_cut_to_squares(tmp_path):
    (tmp_path / "x.wav").write_bytes(wav(sine(300) * np.float32(2**15)))
    with pytest.raises(ValueError, match=r"x.wav reaches 16382.4, and samples lie in \[-1, 1\]"):
        transform().fit({"sound": str(tmp_path / "x.wav"), "name": "x.wav"})
    (tmp_path / "x.wav").write_bytes(wav(sine(300) * np.float32(2.5)))  # 1.25: a loud mix
    assert np.abs(transform().fit({"sound": str(tmp_path / "x.wav"), "name": "x.wav"})["sound"]).max() == 1


def test_what_is_asked_for_is_mixed_and_taken():
    left, right = sine(300), sine(500)
    mono = transform(mix=True).brought(np.concatenate([left, right], 1), RATE, "x")
    np.testing.assert_allclose(mono, (left + right) / 2, atol=1e-6)
    stereo = transform(mix=True, channels=2).brought(left, RATE, "x")
    np.testing.assert_array_equal(stereo, np.concatenate([left, left], 1))
    assert transform(channels=2)({"sound": stereo, "name": "x"})["image"].shape == (32, 24, 2)
    assert transform(upsample=True).brought(sine(300, rate=8000), 8000, "x").shape == (8192, 1)
