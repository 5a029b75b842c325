"""Episodes as HDF5 files: what is written is read, ours and the published layout; every damage has its own line."""

import sys

import numpy as np
import pytest

from mmgen.data.episode_file import FIELDS, REQUIRED, check_episode, read_episode, read_moment, write_episode
from mmgen.data.sources.peg_insertion import read_folder
from mmgen.errors import UserError

h5py = pytest.importorskip("h5py")


def episode(moments=5, size=16, readings=32, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"T": moments, "s": size, "R": readings}
    fields = {name: rng.normal(size=[sizes.get(n, n) for n in shape]) for name, shape in FIELDS.items()}
    fields["image"] = rng.integers(0, 256, fields["image"].shape).astype(np.uint8)
    fields["contact"] = fields["contact"] > 0
    return fields


@pytest.fixture
def published(tmp_path):
    """A file as the published ones: 50 readings, float64, contact as numbers, fields of its own, no attributes."""

    def write(name="triangle_real_1000_0.h5", **changes):
        path = tmp_path / name
        fields = episode(readings=50) | {"joint_pos": np.zeros((5, 7)), "ee_ori": np.zeros((5, 4))} | changes
        with h5py.File(path, "w") as file:
            for field, value in fields.items():
                if value is not None:
                    file[field] = value.astype(np.float64) if field == "contact" else value
        return path

    return write


def test_what_is_written_is_read(tmp_path):
    fields = episode()
    path = tmp_path / "e.h5"
    write_episode(path, fields, shape="round", seed=3)
    read = read_episode(path)
    assert read.keys() == fields.keys()
    for name, value in fields.items():
        assert (
            np.array_equal(read[name], value) if value.dtype != float else np.allclose(read[name], value, rtol=1e-3, atol=1e-3)
        )
    assert read["image"].dtype == np.uint8 and read["contact"].dtype == bool and read["optical_flow"].dtype == np.float16
    assert check_episode(path) == {"shape": "round", "seed": 3, "moments": 5, "size": 16, "readings": 32}
    assert [f.name for f in tmp_path.iterdir()] == ["e.h5"]
    assert read_episode(path, ["contact"]).keys() == {"contact"}


def test_a_moment_is_a_chunk(tmp_path):
    write_episode(tmp_path / "e.h5", episode(size=64))
    with h5py.File(tmp_path / "e.h5") as file:
        assert file["image"].chunks == (1, 64, 64, 3) and file["optical_flow"].chunks == (1, 64, 64, 2)


def test_only_the_required_fields_are_needed(tmp_path):
    write_episode(tmp_path / "e.h5", {name: value for name, value in episode().items() if name in REQUIRED})
    assert read_episode(tmp_path / "e.h5").keys() == set(REQUIRED)
    with pytest.raises(UserError, match=r"e\.h5: got no field ee_pos"):
        read_episode(tmp_path / "e.h5", ["ee_pos"])


def test_a_published_file(published):
    path = published()
    read = read_episode(path)
    assert read["contact"].dtype == bool and read["contact"].shape == (5, 50)
    assert np.array_equal(read["contact"], episode(readings=50)["contact"])
    assert np.array_equal(read["proprio"], episode(readings=50)["proprio"])  # as stored
    assert check_episode(path)["readings"] == 50


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field(published, name):
    path = published(**{name: None})
    for read in (read_episode, check_episode):
        with pytest.raises(
            UserError, match=rf"triangle_real_1000_0\.h5: got no field {name}, expected fields action"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "shape", "words"),
    [
        ("action", (5, 3), r"action: got shape \(5, 3\), expected \(5, 4\)"),
        ("proprio", (4, 8), r"proprio: got shape \(4, 8\), expected \(5, 8\)"),
        ("depth_data", (5, 16, 16), r"depth_data: got shape \(5, 16, 16\), expected \(5, 16, 16, 1\)"),
        ("optical_flow", (5, 16, 8, 2), r"optical_flow: got shape .*expected \(5, 16, 16, 2\)"),
        ("image", (5, 16, 12, 3), r"image: got shape \(5, 16, 12, 3\)"),
        ("ee_forces_continuous", (5, 40, 6), r"ee_forces_continuous: got shape \(5, 40, 6\), expected \(5, 50, 6\)"),
    ],
)
def test_a_wrong_shape(published, field, shape, words):
    path = published(**{field: np.zeros(shape)})
    for read in (read_episode, check_episode):
        with pytest.raises(UserError, match=words):
            read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["ee_forces_continuous", "action", "proprio", "optical_flow"])
def test_readings_that_are_not_finite(published, tmp_path, field, value):
    fields = episode(readings=50)
    fields[field][2, 1] = value
    with pytest.raises(UserError, match=rf"{field}: got {value} at \[2, 1.*finite"):
        read_episode(published(**{field: fields[field]}))
    with pytest.raises(UserError, match=rf"h5: {field}: got {value} at \[2, 1.*finite"):
        read_moment(published(**{field: fields[field]}), 2, [field])
    with pytest.raises(UserError, match=rf"{field}: got {value}"):
        write_episode(tmp_path / "new.h5", fields)
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_pictures_of_another_whole_type(published, dtype):
    image = episode(readings=50)["image"].astype(dtype)
    for read in (lambda path: read_episode(path)["image"][1], lambda path: read_moment(path, 1, ["image"])["image"]):
        found = read(published(image=image))
        assert found.dtype == np.uint8 and np.array_equal(found, image[1])
        with pytest.raises(UserError, match=r"h5: image: got 300, expected whole numbers from 0 to 255"):
            read(published(image=np.where(image == image[1].max(), dtype(300), image)))


def test_an_episode_of_one_moment(published, tmp_path):
    with pytest.raises(UserError, match=r"got 1 moments, expected at least 2"):
        check_episode(published(**episode(moments=1, readings=50)))
    with pytest.raises(UserError, match=r"got 1 moments"):
        write_episode(tmp_path / "new.h5", episode(moments=1))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no HDF5" + b])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "e.h5"
    write_episode(path, episode())
    path.write_bytes(damage(path.read_bytes()))
    for read in (read_episode, check_episode):
        with pytest.raises(UserError, match=r"e\.h5: got .*a whole HDF5 file; copy it again") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_changed_values_in_a_whole_file(tmp_path):
    path = tmp_path / "e.h5"
    write_episode(path, episode(size=64, seed=1) | {"image": np.zeros((5, 64, 64, 3), np.uint8)})
    with h5py.File(path) as file:
        start = file["image"].id.get_chunk_info(2)
    data = bytearray(path.read_bytes())
    data[start.byte_offset : start.byte_offset + start.size] = b"\xff" * start.size
    path.write_bytes(data)
    assert check_episode(path)["moments"] == 5  # the header is good
    with pytest.raises(UserError, match=r"e\.h5.*a whole HDF5 file"):
        read_episode(path)


def test_no_such_file_and_an_unknown_field(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.h5: got no such file"):
        read_episode(tmp_path / "nothing.h5")
    with pytest.raises(UserError, match=r"a folder|Is a directory|a whole HDF5 file"):
        read_episode(tmp_path)
    with pytest.raises(UserError, match=r"imag,.*did you mean 'image'"):
        write_episode(tmp_path / "e.h5", episode() | {"imag": np.zeros((5, 1))})
    with pytest.raises(UserError, match=r"depth,"):
        read_episode(tmp_path / "e.h5", ["depth"])


def test_a_moment_that_is_not_there(tmp_path):
    write_episode(tmp_path / "e.h5", episode())
    for t in (-1, 99):
        with pytest.raises(UserError, match=rf"e\.h5: got moment {t}, expected 0 to \d+; choose one that it has"):
            read_moment(tmp_path / "e.h5", t, ["image"])


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "e.h5"
    write_episode(path, episode(seed=1))
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(UserError, match=r"e\.h5: got No space left"):
        write_episode(path, episode(seed=2))
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["e.h5"]
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"none/e\.h5"):
        write_episode(tmp_path / "none" / "e.h5", episode())


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: read_episode(tmp_path / "e.h5"), lambda: write_episode(tmp_path / "e.h5", episode())):
        with pytest.raises(UserError, match=r"no h5py.*pip install 'mmgen\[robotics\]'"):
            call()


def test_a_folder_of_published_files(published, tmp_path):
    names = {published(f"triangle_real_{i}.h5").name for i in range(40)}
    rows = {
        split: [row["episode"].rpartition("/")[2] for row in read_folder(split, tmp_path)]
        for split in ("train", "validation", "test")
    }
    assert sorted(name for of in rows.values() for name in of) == sorted(names) and all(rows.values())
    assert all(row["shape"] == 2 for row in read_folder("train", tmp_path))
    published("triangle_real_7.h5", proprio=None)
    with pytest.raises(UserError, match=r"triangle_real_7\.h5: got no field proprio"):
        for split in rows:
            list(read_folder(split, tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: got no \.h5 file"):
        list(read_folder("train", tmp_path / "empty"))


@pytest.mark.parametrize(("name", "value"), [("image", np.float32), ("proprio", "S3")])
def test_a_field_of_another_type_is_named(tmp_path, name, value):
    path = tmp_path / "episode.h5"
    write_episode(path, episode())
    with h5py.File(path, "r+") as file:
        whole = file[name][()].astype(value)
        del file[name]
        file[name] = whole
    for read in (read_episode, check_episode):
        with pytest.raises(UserError, match=f"{name}: got"):
            read(path)


def test_changed_bytes_are_found(tmp_path):
    path = tmp_path / "episode.h5"
    write_episode(path, episode())
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content) // 2):
        content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_episode(path)
