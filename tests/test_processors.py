import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgen.data.audio import AudioProcessor, read_audio
from mmgen.data.image import ImageProcessor, read_image
from mmgen.data.processors import Processor, load_processors, save_processors
from mmgen.data.text import TextProcessor, train_tokenizer
from mmgen.data.vector import VectorProcessor
from mmgen.errors import UserError
from mmgen.modalities.kinds import PROCESSORS

TOKENIZER = train_tokenizer(["a red apple", "a green apple", "two pears"], vocab_size=270)


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    image.save(buffer := io.BytesIO(), form, **options)
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = 8000, subtype: str = "FLOAT") -> bytes:
    soundfile.write(buffer := io.BytesIO(), samples, rate, subtype, format="WAV")
    return buffer.getvalue()


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = zlib.compress(b"\0" * (width * bits // 8 * 3 + 1) * height) if width < 100 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(form: str) -> bytes:
    frames = [picture(), picture().rotate(180)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


BAD_PICTURES = {
    "truncated.jpg": (encoded(picture(size=(64, 64)), "JPEG")[:900], "a damaged or truncated image"),
    "truncated.png": (encoded(picture())[:-100], "a damaged or truncated image"),
    "empty.png": (b"", "got 0 bytes"),
    "notes.png": (b"just some words", "begins with b'just some wo'"),
    "huge.png": (png_header(50_000, 50_000), "2500000000 pixels.*at most 89478485"),
    "large.png": (png_header(10_000, 10_000), "100000000 pixels.*at most 89478485"),
    "moving.gif": (animation("GIF"), "an animation of 2 frames"),
    "moving.png": (animation("PNG"), "an animation of 2 frames"),
    "moving.webp": (animation("WEBP"), "an animation of 2 frames"),
    "print.jpg": (encoded(picture("CMYK"), "JPEG"), "a CMYK picture"),
    "deep.png": (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16))), "16 bits"),
    "deep_rgb.png": (png_header(4, 4, bits=16), "16 bits"),
    "float.tiff": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "16 bits or more a channel .mode F"),
    "lab.tiff": (encoded(Image.new("LAB", (4, 4)), "TIFF"), "mode LAB"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_each_bad_picture_has_its_own_line(name, tmp_path):
    content, message = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, str(tmp_path / name), {"bytes": content, "path": name}):
        with pytest.raises(UserError, match=f"{name}: .*{message}") as error:
            read_image(source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_image, lambda source: read_audio(source, 8000)])
def test_files_that_cannot_be_read_say_why(read, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gone\.png: got no such file"):
        read(tmp_path / "gone.png")
    with pytest.raises(UserError, match="got a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="a/b: got no such file"):
        read({"bytes": None, "path": "a/b"})

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"secret\.png: got no permission to read it.*chmod \+r"):
        read("secret.png")


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]), share=st.floats(0, 1), flip=st.booleans())
def test_a_damaged_picture_is_read_or_refused_but_never_crashes(form, share, flip):
    content = bytearray(encoded(picture(), form))
    at = int(share * (len(content) - 1))
    if flip:
        content[at] ^= 0xFF
    try:
        assert read_image(bytes(content if flip else content[:at])).mode == "RGB"
    except UserError as error:
        assert str(error).startswith("image bytes: ") and "\n" not in str(error)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_usable_modes_become_rgb(mode):
    image = picture(mode)
    assert read_image(encoded(image)).mode == read_image(image).mode == "RGB"


def test_transparent_parts_are_white_and_photographs_upright():
    assert read_image(encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = picture("P")
    assert read_image(encoded(palette, transparency=palette.getpixel((0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held on its side
    assert read_image(encoded(picture(size=(12, 9)), "JPEG", exif=rotated)).size == (9, 12)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 20), height=st.integers(1, 20), channels=st.sampled_from([1, 3]), mean=st.floats(0, 1))
def test_image_processor_pads_and_comes_back(width, height, channels, mean):
    side = max(width, height)
    processor = ImageProcessor(side, channels, mean=mean, std=0.5)
    image = picture("RGB" if channels == 3 else "L", (width, height))
    tensor = processor(image)
    assert tensor.shape == processor.shape and tensor.dtype == torch.float32
    left, top = (side - width) // 2, (side - height) // 2
    decoded = processor.decode(tensor)
    assert np.array_equal(decoded.crop((left, top, left + width, top + height)), image)
    outside = np.ones((side, side), bool)
    outside[top : top + height, left : left + width] = False
    assert (np.asarray(decoded)[outside] == 255).all()


def test_black_padding_is_black():
    processor = ImageProcessor(8, 3, mean=[0.5, 0.4, 0.3], std=[0.5, 0.5, 0.5], padding="black")
    torch.testing.assert_close(processor(picture(size=(8, 2)))[:, 0, 0], torch.tensor([-1.0, -0.8, -0.6]))


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text)) == text


def test_text_is_ended_and_cut():
    assert TOKENIZER("a red apple")[-1] == TOKENIZER.tokenizer.eos_token_id == 2
    cut = TextProcessor(TOKENIZER.tokenizer, max_length=3)("a red apple and more")
    assert len(cut) == 3 and cut[-1] == 2
    assert TextProcessor(TOKENIZER.tokenizer, eos=False)("a")[-1] != 2
    assert 2 not in TOKENIZER("the token <eos> by name")[:-1].tolist()
    assert TOKENIZER.decode(torch.cat([TOKENIZER("a red apple"), torch.tensor([0, 0, 50])])) == "a red apple"
    assert TOKENIZER("half \ud800 pair").shape[0] > 3


TONE = np.sin(2 * np.pi * 500 * np.arange(8000) / 8000).astype(np.float32)


def test_audio_is_mixed_down_and_resampled():
    stereo = np.stack([TONE, 0 * TONE], 1)
    torch.testing.assert_close(read_audio(wav(stereo), 8000), torch.from_numpy(TONE) / 2)
    resampled = read_audio({"bytes": wav(TONE), "path": "a.wav"}, 16000)
    expected = torch.sin(2 * torch.pi * 500 * torch.arange(16000) / 16000)
    torch.testing.assert_close(resampled[200:-200], expected[200:-200], atol=0.02, rtol=0)


def test_log_mel_is_in_decibels_of_full_scale():
    processor = AudioProcessor(rate=8000, n_fft=512, hop=128, mels=32, frames=40)
    loud, quiet, silent = (processor(wav(TONE * scale)) for scale in (1.0, 0.1, 0.0))
    assert loud.shape == (32, 40) and processor.seconds == 39 * 128 / 8000
    middle = slice(5, 35)
    torch.testing.assert_close(loud[:, middle].max().item(), 1.0, atol=0.03, rtol=0)
    torch.testing.assert_close((loud - quiet)[:, middle].max().item(), 20 / 80, atol=0.03, rtol=0)
    assert (silent == 0).all() and loud.min() >= 0
    spectrogram = torchaudio.transforms.MelSpectrogram(8000, 512, hop_length=128, n_mels=32, pad_mode="constant")
    power = spectrogram(torch.from_numpy(TONE[: processor.samples] * 0.1)) / 128**2
    expected = torchaudio.functional.amplitude_to_DB(power, 10, 1e-10, 0.0) / 80 + 1
    torch.testing.assert_close(quiet, expected.clamp(0, 1))


def test_audio_comes_back_from_its_spectrogram():
    processor = AudioProcessor(rate=8000, n_fft=512, hop=128, mels=64, frames=40)
    time = torch.arange(8000) / 8000
    chirp = 0.5 * torch.sin(2 * torch.pi * (300 + 400 * time) * time)
    tensor = processor(chirp)
    waveform = processor.decode(tensor)
    assert waveform.shape == (processor.samples,) and torch.equal(waveform, processor.decode(tensor))
    heard = tensor > 0.7  # within 24 dB of full scale
    assert (processor(waveform) - tensor)[heard].abs().mean() < 3 / 80  # dB
    assert processor.decode(torch.zeros(64, 40)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.wav: got 0 bytes"),
        (b"no sound at all", r"a\.wav: got a file that begins with b'no sound at '"),
        (wav(TONE)[:20], r"a\.wav: got a file that begins with"),
        (wav(TONE[:0]), r"a\.wav: got no samples, expected at least one"),
        (wav(np.where(np.arange(8000) < 3, np.nan, TONE)), r"a\.wav: got 3 NaN or infinite samples"),
    ],
    ids=["empty", "text", "cut", "no samples", "nan"],  # bytes of a wav as an id hold the second it was written
)
def test_each_bad_sound_has_its_own_line(content, message, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_audio(tmp_path / "a.wav", 8000)
    assert "\n" not in str(error.value)


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
def test_vectors_are_standardised_and_come_back(rows):
    processor = VectorProcessor.fit(rows)
    for row in rows:
        np.testing.assert_allclose(processor.decode(processor(row)), row, atol=1e-2)
    values = torch.stack([processor(row) for row in rows])
    assert values.mean(0).abs().max() < 1e-2 and (values.std(0, correction=0) < 1.01).all()


def test_processors_are_saved_with_the_model(tmp_path):
    processors = {
        "image": ImageProcessor(8, 1, mean=[0.5], std=[0.25], padding="black"),
        "caption": TextProcessor(TOKENIZER.tokenizer, eos=True, max_length=5),
        "speech": AudioProcessor(rate=8000, frames=20),
        "force": VectorProcessor([1.0, 2.0], [3.0, 4.0]),
    }
    save_processors(processors, tmp_path)
    again = load_processors(tmp_path, PROCESSORS)
    assert again.keys() == processors.keys() and all(isinstance(p, Processor) for p in again.values())
    values = {"image": picture(), "caption": "a red apple and a pear", "speech": torch.from_numpy(TONE), "force": [5, 6]}
    assert all(torch.equal(again[name](value), processors[name](value)) for name, value in values.items())
    assert {name: p for name, p in again.items() if name != "caption"} == {
        name: p for name, p in processors.items() if name != "caption"
    }
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".pkl", ".pt", ".bin")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageProcessor(0), "size: got 0"),
        (lambda: ImageProcessor(8, channels=2), "channels: got 2, expected 1 or 3"),
        (lambda: ImageProcessor(8, padding="grey"), "padding: got grey"),
        (lambda: ImageProcessor(8, mean=[0.5, 0.5]), r"mean: got \[0.5, 0.5\], expected one number or 3"),
        (lambda: TOKENIZER(" \n"), r"text: got ' \\n', expected at least one word"),
        (lambda: TOKENIZER(None), "text: got None, expected a string"),
        (lambda: TextProcessor.from_pretrained("/no/folder"), "tokenizer /no/folder: got .*folder or a Hub name"),
        (lambda: TextProcessor(TOKENIZER.tokenizer, max_length=1), "max_length: got 1"),
        (lambda: train_tokenizer([], 300), "texts: got none"),
        (lambda: train_tokenizer(["a"], 100), "vocab_size: got 100, expected a number >= 259"),
        (lambda: AudioProcessor(frames=1), "frames: got 1"),
        (lambda: AudioProcessor(hop=600), r"hop: got 600, expected at most n_fft \(512\)"),
        (lambda: AudioProcessor()(torch.zeros(2, 100)), r"audio: got samples of shape \(2, 100\)"),
        (lambda: VectorProcessor([1.0], [1.0])([float("nan")]), "vector: got nan at entry 0"),
        (lambda: VectorProcessor([1.0], [1.0])([1, 2]), "vector: got 2 numbers, expected 1"),
        (lambda: VectorProcessor([1.0], [1.0])("word"), "vector: got 'word', expected numbers joined"),
        (lambda: VectorProcessor([1.0], [1.0])([[1.0]]), r"vector: got shape \(1, 1\)"),
        (lambda: VectorProcessor([1.0], [0.0]), "std: got 0.0"),
        (lambda: VectorProcessor([1.0], []), "vector: got 1 mean and 0 stds"),
        (lambda: VectorProcessor.fit([]), "rows: got none"),
        (lambda: VectorProcessor.fit([[1.0], [1.0, 2.0]]), r"rows: got lengths \[1, 2\]"),
    ],
)
def test_wrong_settings_and_values_say_so(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"1,-2.5,3\n"),
        ("column.csv", b"\xef\xbb\xbf1\r\n-2.5\r\n\r\n3\r\n"),
        ("comma.csv", b"1,0;-2,5;3"),
        ("a.json", b"[1, -2.5, 3]"),
        ("a.NPY", None),
    ],
)
def test_a_vector_is_read_from_a_file(tmp_path, name, content):
    file = tmp_path / name
    if content is None:
        with file.open("wb") as place:
            np.save(place, np.array([[1, -2.5, 3]]))
    else:
        file.write_bytes(content)
    for value in (file, str(file), "1,-2.5,3", " [1, -2.5, 3]", [1, -2.5, 3]):
        assert VectorProcessor([0.0] * 3, [1.0] * 3)(value).tolist() == [1, -2.5, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x,y\n1,2", "a.csv: got could not convert string to float: 'x', expected one vector of numbers"),
        ("a.csv", b"1,,2", "a.csv: got could not convert"),
        ("a.csv", b"1,2\n3,4", r"vector .*a\.csv: got shape \(2, 2\)"),
        ("a.csv", b"\xff", "a.csv: got 'utf-8' codec"),
        ("a.csv", b"", r"vector .*a\.csv: got 0 numbers, expected 2; give 2 numbers, as the training data have"),
        ("a.json", b"[1]", r"vector .*a\.json: got 1 number, expected 2"),
        ("a.json", b'["x", 1]', r"vector .*a\.json: got \['x', 1\], expected a list of numbers; write it again"),
        ("a.json", b"{", "a.json: got Expecting"),
        ("a.json", b'{"a": 1}', r"vector .*a\.json: got {'a': 1}, expected a list of numbers"),
        ("a.npy", b"PK\x03\x04", "a.npy: got .*expected one vector"),
        ("a.npy", b"", "a.npy: got .*expected one vector"),
        ("b.npy", None, "b.npy: got no such file"),
        ("a.txt", b"1,2", "a.txt', expected numbers joined by commas, or a .npy, .csv or .json file"),
    ],
)
def test_a_file_that_holds_no_vector(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        VectorProcessor([0.0] * 2, [1.0] * 2)(str(tmp_path / name))


@pytest.mark.parametrize("kind", [">f4", "<f8", ">i2", "?", "float16"])
def test_a_vector_of_any_real_type_and_byte_order(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.array([1, 0], dtype=kind))
    assert VectorProcessor([0.0] * 2, [1.0] * 2)(tmp_path / "a.npy").tolist() == [1, 0]
    np.save(tmp_path / "one.npy", np.array([1], dtype=kind))
    assert VectorProcessor([0.0], [1.0])(tmp_path / "one.npy").tolist() == [1]


@pytest.mark.parametrize("kind", ["complex64", "U3", "M8[s]"])
def test_a_vector_of_no_real_numbers(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.array([1, 2]).astype(kind))
    with pytest.raises(UserError, match=r"vector .*a\.npy: got .*, expected a list of numbers; write it again"):
        VectorProcessor([0.0] * 2, [1.0] * 2)(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"vector: got torch\.complex64 numbers"):
        VectorProcessor([0.0] * 2, [1.0] * 2)(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("text", ["[1,2", "1,2]", "[", "[[1,2]", "1,2]]"])
def test_brackets_come_in_pairs(text):
    with pytest.raises(UserError, match=r"vector: got .*, expected numbers joined by commas"):
        VectorProcessor([0.0] * 2, [1.0] * 2)(text)
