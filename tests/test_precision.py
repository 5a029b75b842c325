"""dtype: what `auto` is, one warning where bfloat16 is emulated, and runs that are the same whichever dtype runs them."""

import os
import subprocess
import sys

import pytest
import torch
from commands import here
from PIL import Image
from tiny import tiny_models

import mmgen
from mmgen.conditioning.language_model import load_language_model
from mmgen.errors import UserError
from mmgen.modalities import precision
from mmgen.modalities.precision import resolve_dtype

CAPPED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ACCELERATE_USE_CPU": "1"}


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(precision, "native_bfloat16", lambda device=None: False)
    monkeypatch.setattr(precision, "slowdown_of_bfloat16", lambda: 24.2)
    precision.warn_of_emulated_bfloat16.cache_clear()
    yield
    precision.warn_of_emulated_bfloat16.cache_clear()


@pytest.mark.parametrize("flag", precision.NATIVE_FLAGS)
def test_bfloat16_is_native_where_a_flag_says_so_and_onednn_may_use_it(monkeypatch, flag):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, allowed, native in [({flag: True}, True, True), ({flag: True}, False, False), ({flag: False}, True, False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        monkeypatch.setattr(precision, "onednn_has_bfloat16", lambda allowed=allowed: allowed)
        assert precision.native_bfloat16.__wrapped__() is native and precision.native_bfloat16.__wrapped__("cpu") is native


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_where_it_is_native(monkeypatch, native):
    monkeypatch.setattr(precision, "native_bfloat16", lambda device=None: native)
    assert resolve_dtype("auto") == (torch.bfloat16 if native else torch.float32)
    assert load_language_model("tiny")[0].dtype == resolve_dtype("auto")


def test_a_processor_of_avx2_computes_in_float32():
    code = "from mmgen.modalities.precision import resolve_dtype; print(resolve_dtype('auto'))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | CAPPED, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.float32"


def test_emulated_bfloat16_that_is_asked_for_warns_once_with_its_factor(emulated, caplog):
    assert [resolve_dtype(name) for name in ("bf16", "bf16", "fp32")] == [torch.bfloat16, torch.bfloat16, torch.float32]
    (said,) = caplog.messages
    assert "24 times slower than float32" in said and "set dtype=auto" in said


def test_an_unknown_dtype_names_the_nearest():
    with pytest.raises(UserError, match=r"dtype: got fp23, .*did you mean 'fp32'"):
        resolve_dtype("fp23")


@pytest.mark.parametrize("name", ["captioner", "psa_captioner", "answerer", "aligned", "class_language_model"])
def test_a_model_loads_in_another_dtype(name, tmp_path):
    model = tiny_models()[name].model()
    model.save_pretrained(tmp_path)
    for dtype in ("bf16", "fp16", "fp32"):
        loaded = mmgen.load(tmp_path, dtype=dtype)
        frozen = next(p for p in loaded.parameters() if not p.requires_grad and p.is_floating_point())
        assert frozen.dtype == precision.DTYPES[dtype]
        assert all(torch.equal(value, loaded.own_state()[key]) for key, value in model.own_state().items())


def test_buffers_keep_their_precision():
    model, _ = load_language_model("tiny", "bf16")
    assert model.dtype == torch.bfloat16 and model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_run_is_the_same_in_any_dtype(tmp_path):
    smoke = ("train", "captioning", "--config", "smoke", "fit.steps=2", "fit_words.steps=2")
    assert here(*smoke, "--out", tmp_path / "a").returncode == 0
    other = here(*smoke, "model.dtype=bf16", f"words.from={tmp_path / 'a'}", "--out", tmp_path / "b")
    assert other.returncode == 0, other.stderr[-2000:]
    assert here(*smoke, "model.dtype=bf16", "--out", tmp_path / "a", "--resume").returncode == 0
    done = here("evaluate", tmp_path / "a", "dtype=bf16")
    assert done.returncode == 0, done.stderr[-2000:]
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    wrong = here("evaluate", tmp_path / "a", "dtype=bf61")
    assert wrong.returncode == 2 and "bf61" in wrong.stderr
    assert here("evaluate", tmp_path / "a", "fit.steps=3").returncode == 2
    for verb, *rest in (("generate", "--to", "text"), ("ask", "--question", "what?")):
        done = here(verb, tmp_path / "a", *rest, "--image", picture, "dtype=bf16")
        assert done.returncode == 0, done.stderr[-2000:]
    refused = here("ask", tmp_path / "a", "--image", picture, "--question", "what?", "beams=2")
    assert refused.returncode == 2 and "beams=2" in refused.stderr


def test_a_recipe_without_a_language_model_takes_no_dtype(tmp_path):
    assert here("train", "judge", "--config", "smoke", "fit.steps=2", "--out", tmp_path / "run").returncode == 0
    done = here("evaluate", tmp_path / "run", "dtype=fp32")
    assert done.returncode == 2 and "option of judge: got dtype" in done.stderr
