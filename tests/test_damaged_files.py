"""Damaged sounds and pictures: refused wherever they are cut, in training and by `mmgen data check`; whole ones are read."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from mmgen.data.audio import AudioProcessor, decode_audio, read_audio
from mmgen.data.image import read_image
from mmgen.data.sources.columns import check_value
from mmgen.errors import UserError

RATE = 16000
TONE = (np.sin(np.arange(RATE) / 9) / 2 + np.random.default_rng(0).normal(0, 0.01, RATE)).astype(np.float32)  # one second
SPEC = {"kind": "audio", "rate": RATE, "unit": "amplitude", "range": [-1, 1]}
FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAVEX", "PCM_16"), ("AIFF", "PCM_16"),
    ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AU", "PCM_16"), ("W64", "PCM_16"),
    ("RF64", "PCM_16"), ("CAF", "PCM_16"),
]  # fmt: skip


def sound(samples, form="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form, subtype=subtype)
    return file.getvalue()


def checked(content):
    """What `mmgen data check` says of a sound."""
    try:
        return check_value(SPEC, {"bytes": content, "path": None})
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
@pytest.mark.parametrize("length", [RATE, RATE - 1, 7001])
def test_whole_sounds_are_read(form, subtype, length):
    content = sound(TONE[:length], form, subtype)
    assert checked(content) is None and len(read_audio(content, RATE)) >= length - 1


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.85])
def test_cut_sounds_are_refused(form, subtype, share):
    content = sound(TONE, form, subtype)
    content = content[: int(share * len(content))]
    with pytest.raises(
        UserError, match=r"audio bytes: got (a file that|a damaged sound|a sound cut short|no samples)"
    ) as error:
        read_audio(content, RATE)
    assert "\n" not in str(error.value) and str(error.value) == checked(content)


@pytest.mark.parametrize("share", [0.9, 0.98, 0.999])
@pytest.mark.parametrize(("form", "subtype"), [format for format in FORMATS if format[0] != "MP3"])
def test_a_little_missing_is_missing_too(form, subtype, share):
    content = sound(TONE, form, subtype)
    with pytest.raises(UserError):
        decode_audio("a", content[: int(share * len(content))])


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_stream_that_does_not_state_its_length_is_whole(length):
    content = bytearray(sound(TONE))
    data = content.find(b"data")
    content[4:8] = content[data + 4 : data + 8] = struct.pack("<I", length)
    assert len(read_audio(bytes(content), RATE)) == RATE


def test_what_follows_the_samples_does_not_matter():
    for more in (b"junk", b"LIST\x04\0\0\0abcd"):
        assert len(read_audio(sound(TONE) + more, RATE)) == RATE


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.where(np.arange(RATE) == 5, np.nan, TONE), "1 NaN or infinite sample,"),
        (np.where(np.arange(RATE) < 9, -np.inf, TONE), "9 NaN or infinite samples,"),
        (TONE[:0], "no samples"),
        (TONE * 32768, "samples up to 1"),
        (TONE / 2 + 300, "samples up to 300"),
    ],
)
def test_samples_that_cannot_be_heard_are_refused(samples, message):
    content = sound(samples, subtype="FLOAT")
    with pytest.raises(UserError, match=f"audio bytes: got {message}"):
        AudioProcessor()(content)
    assert checked(content) is not None


@pytest.mark.parametrize("form", ["AVR", "SVX", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "IRCAM", "NIST", "VOC", "WVE", "SDS"])
def test_containers_that_do_not_tell_where_they_are_cut_are_refused_by_name(form):
    content = sound(TONE, form, "ALAW" if form == "WVE" else "PCM_16")
    with pytest.raises(UserError, match=rf"got a {form} file, expected one of WAV, .*; convert it to WAV or FLAC"):
        read_audio(content, RATE)
    assert "convert it" in checked(content)


@pytest.mark.parametrize("rate", [1, 999, 384_001, 2**31 - 1])
def test_a_rate_that_no_recorder_has_is_refused(rate):
    content = bytearray(sound(TONE))
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(UserError, match=f"got {rate} Hz, expected 1000 to 384000 Hz"):
        read_audio(bytes(content), RATE)
    assert f"got {rate} Hz" in checked(bytes(content))


@pytest.mark.parametrize("rate", [1009, 22_051, 44_101, 192_001, 383_999])
@pytest.mark.parametrize("wanted", [7, 16_000, 44_100])
def test_an_odd_rate_is_resampled_in_little_memory(monkeypatch, rate, wanted):
    given, kernel = [], torchaudio.functional.functional._get_sinc_resample_kernel

    def measured(*arguments, **settings):
        found = kernel(*arguments, **settings)
        given.append(found[0].numel())
        return found

    monkeypatch.setattr(torchaudio.functional.functional, "_get_sinc_resample_kernel", measured)
    file, seconds = io.BytesIO(), 0.5
    wave = np.sin(2 * np.pi * 400 * np.arange(int(seconds * rate)) / rate).astype(np.float32) / 2
    soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    heard = read_audio(file.getvalue(), wanted)
    assert max(given, default=0) < 2**25 and len(heard) == pytest.approx(seconds * wanted, rel=1e-3, abs=2)
    if wanted > 1000:
        crossings = ((heard[:-1] < 0) & (heard[1:] >= 0)).sum().item()
        assert crossings == pytest.approx(400 * seconds, abs=2)


def test_check_holds_samples_to_the_cards_range():
    assert checked(sound(TONE * 2.5, subtype="FLOAT")) == (
        f"samples {TONE.min() * 2.5:g}..{TONE.max() * 2.5:g}",
        "samples -1..1",
    )
    assert len(read_audio(sound(TONE * 2.5, subtype="FLOAT"), RATE)) == RATE  # no more than 12 dB above full scale
    assert checked(sound(np.sign(TONE) * 0.999, "OGG", "VORBIS")) is None  # overshoots, decoded


@given(st.integers(0, 2**32), st.sampled_from(FORMATS))
def test_no_damage_of_a_sound_is_a_traceback(seed, format):
    random, content = np.random.default_rng(seed), bytearray(sound(TONE[:2000], *format))
    for place in random.integers(len(content), size=random.integers(1, 20)):
        content[min(place, random.integers(1, len(content)))] = random.integers(256)
    try:
        read_audio(bytes(content), RATE)
    except UserError as error:
        assert "\n" not in str(error)
    checked(bytes(content))


PICTURES = ["SGI", "XBM", "PNG", "JPEG", "TIFF", "BMP", "PCX", "ICO", "TGA", "PPM", "WEBP", "GIF", "JPEG2000", "DDS"]


@given(st.integers(0, 2**32), st.sampled_from(PICTURES + (["AVIF"] if features.check("avif") else [])))
def test_no_damage_of_a_picture_is_a_traceback(seed, form):
    random, file = np.random.default_rng(seed), io.BytesIO()
    try:
        Image.effect_noise((24, 20), 60).convert("1" if form == "XBM" else "L" if form == "SGI" else "RGB").save(file, form)
    except (KeyError, OSError):  # a build without this encoder
        return
    content = bytearray(file.getvalue())
    if random.random() < 0.5:
        content = content[: random.integers(1, len(content))]
    for place in random.integers(len(content), size=random.integers(0, 20)):
        content[place] = random.integers(256)
    spec = {"kind": "image", "shape": [None, None, None], "unit": "sRGB", "range": [0, 255]}
    for read in (read_image, lambda value: check_value(spec, value)):
        try:
            read({"bytes": bytes(content), "path": "a.bin"})
        except UserError as error:
            assert str(error).startswith("a.bin: got") and "\n" not in str(error)


@pytest.mark.parametrize(
    "kind", [RuntimeError, ValueError, KeyError, AttributeError, ZeroDivisionError, Image.DecompressionBombError]
)
@pytest.mark.parametrize("moment", ["open", "convert"])
def test_whatever_a_decoder_raises_is_a_damaged_picture(monkeypatch, kind, moment):
    def fail(*arguments, **settings):
        raise kind("nonsense at byte 7")

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    monkeypatch.setattr(Image if moment == "open" else Image.Image, moment, fail)
    spec = {"kind": "image", "shape": [4, 4, 3], "unit": "sRGB", "range": [0, 255]}
    with pytest.raises(UserError, match=r"a.avif: got .*nonsense at byte 7"):
        check_value(spec, {"bytes": file.getvalue(), "path": "a.avif"})
