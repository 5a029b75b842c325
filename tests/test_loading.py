"""Loading a model: what is asked for is what is downloaded and built."""

import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionNotFoundError

import mmgen
from mmgen.errors import UserError
from mmgen.models import base
from mmgen.models.classifier import Classifier
from mmgen.models.vae import VAE
from tests.tiny import tiny_models

ASKED = {"revision": "v1", "cache_dir": "/c", "token": "hf_x", "force_download": True, "local_files_only": True}


@pytest.fixture
def saved(tmp_path):
    tiny_models()["classifier"].model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch, saved):
    """The Hub, which notes what it is asked for."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(saved)

    monkeypatch.setattr(base, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_a_download_is_told_all_that_was_asked(hub, load):
    assert load("user/m", **ASKED).name == "classifier"
    assert hub == [("user/m", ASKED)]
    load("user/m")
    assert hub[1][1]["revision"] is None and not hub[1][1]["force_download"]


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_a_misspelt_override_names_the_nearest(hub, load, saved):
    for place in ("user/m", str(saved)):
        with pytest.raises(UserError, match=r"override of classifier: got clases, .*did you mean 'classes'\?"):
            load(place, clases=3)
        with pytest.raises(UserError, match=r"override of classifier: got revison, expected a known name"):
            load(place, revison="v1")


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_an_override_takes_the_place_of_what_was_saved(load, saved):
    settings = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert settings.get("class_names") is None
    assert load(saved, class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    with pytest.raises(UserError, match="differing tensors"):  # it is built with it, and the weights are of another
        load(saved, classes=4)


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_a_folder_has_no_revisions(load, saved):
    with pytest.raises(UserError, match=f"revision: got 'v1' of the folder {saved}, expected one of a Hub name"):
        load(saved, revision="v1")


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_a_revision_that_is_not_there_is_named(load, monkeypatch):
    def missing(name, **options):
        raise OSError("404 Client Error.\nRevision Not Found")

    monkeypatch.setattr(base, "snapshot_download", missing)
    with pytest.raises(UserError, match=r"model user/m at v9: got 404 Client Error\., expected a folder or a Hub name"):
        load("user/m", revision="v9")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(), "got OSError, expected a folder or a Hub name; check the name"),
        (OfflineModeIsEnabled("offline"), "got offline, .*; check the network and HF_HUB_OFFLINE, or give a folder"),
        (LocalEntryNotFoundError("not kept"), "got not kept, .*; check the network and HF_HUB_OFFLINE, or give a folder"),
        (RevisionNotFoundError.__new__(RevisionNotFoundError), "got RevisionNotFoundError, .*; check the revision"),
    ],
)
def test_a_failed_download_says_what_to_check(monkeypatch, error, message):
    def fail(name, **options):
        raise error

    monkeypatch.setattr(base, "snapshot_download", fail)
    with pytest.raises(UserError, match=message):
        mmgen.load("user/m")


def test_an_override_that_the_model_refuses_is_named(saved):
    with pytest.raises(UserError, match=r"override of classifier: classes='four': got .*; correct it, or leave it out"):
        mmgen.load(saved, classes="four")


@pytest.mark.parametrize("load", [mmgen.load, Classifier.from_pretrained])
def test_a_damaged_config(load, saved):
    (saved / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: got .*, expected a JSON object"):
        load(saved)


@pytest.mark.parametrize("place", ["runs/x", "Läufe/ä", "a b/c", "./user/m", "/no/folder", "~/m", "user", "a/b/c"])
def test_what_can_be_no_hub_name_is_a_folder_that_is_not_there(hub, place):
    with pytest.raises(UserError, match="got no such folder, expected a run folder or a Hub name"):
        mmgen.load(place)
    assert not hub


def test_the_class_is_that_of_the_config(saved):
    with pytest.raises(UserError, match=r"got classifier, expected vae; use mmgen.load"):
        VAE.from_pretrained(saved)
