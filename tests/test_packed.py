"""Packed linear layers: the same products and gradients, on frozen weights alone, only while they are asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmgen.conditioning.language_model import load_language_model
from mmgen.modalities.frozen import freeze
from mmgen.modalities.layers.packed import packed
from mmgen.modalities.precision import native_bfloat16

bfloat16 = pytest.mark.skipif(not native_bfloat16("cpu"), reason="a processor that does not compute in bfloat16")
mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")


def products(run) -> int:
    """How many packed products ``run`` takes."""
    with torch.profiler.profile() as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key in ("mkl::_mkl_linear", "mkldnn::_linear_pointwise"))


@given(rows=st.lists(st.sampled_from([1, 2, 3, 4, 8, 64, 70]), min_size=1, max_size=8), bias=st.booleans(), deep=st.booleans())
def test_products_and_gradients_are_the_layers_own(rows, bias, deep):
    layer = nn.Linear(12, 7, bias=bias).requires_grad_(False)
    with packed(layer):
        for n in rows:
            x = torch.randn(n, 1, 12) if deep else torch.randn(n, 12)
            x.requires_grad_()
            y = layer(x)
            weights = torch.randn_like(y)
            (gradient,) = torch.autograd.grad((y * weights).sum(), x)
            torch.testing.assert_close(y.detach(), nn.functional.linear(x, layer.weight, layer.bias).detach())
            torch.testing.assert_close(gradient, weights @ layer.weight)


@bfloat16
@given(rows=st.lists(st.sampled_from([1, 2, 5, 64, 300]), min_size=1, max_size=4), bias=st.booleans(), deep=st.booleans())
def test_in_bfloat16_too_for_any_number_of_rows(rows, bias, deep):
    layer = nn.Linear(40, 24, bias=bias).requires_grad_(False).to(torch.bfloat16)
    with packed(layer):
        for n in rows:
            x = torch.randn((n, 1, 40) if deep else (n, 40), dtype=torch.bfloat16, requires_grad=True)
            outputs = []
            assert products(lambda x=x, outputs=outputs: outputs.append(layer(x))) == 1
            weights = torch.randn_like(outputs[0])
            (gradient,) = torch.autograd.grad((outputs[0] * weights).sum(), x)
            torch.testing.assert_close(outputs[0].detach(), nn.functional.linear(x, layer.weight, layer.bias).detach())
            torch.testing.assert_close(gradient, weights @ layer.weight)
        assert layer(torch.zeros(0, 40, dtype=torch.bfloat16)).shape == (0, 24)


def test_bfloat16_that_the_processor_does_not_compute_in_is_left_alone(monkeypatch):
    monkeypatch.setattr("mmgen.modalities.layers.packed.native_bfloat16", lambda device: False)
    layer = nn.Linear(4, 3).requires_grad_(False).to(torch.bfloat16)
    with packed(layer):
        assert "forward" not in vars(layer)


@bfloat16
def test_a_bfloat16_layer_refuses_other_inputs_as_ever():
    layer = nn.Linear(4, 3).requires_grad_(False).to(torch.bfloat16)
    with packed(layer):
        for x in (torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.bfloat16)):
            with pytest.raises(RuntimeError):
                layer(x)


@bfloat16
@pytest.mark.parametrize("bias", [torch.randn(48)[::2], torch.randn(1).expand(24)], ids=["strided", "expanded"])
def test_a_bias_that_does_not_lie_dense_in_memory(bias):
    layer = nn.Linear(40, 24).requires_grad_(False).to(torch.bfloat16)
    layer.bias = nn.Parameter(bias.to(torch.bfloat16), requires_grad=False)
    x = torch.randn(2, 40, dtype=torch.bfloat16)
    own = layer(x)
    with packed(layer):
        torch.testing.assert_close(layer(x), own)


def test_layers_without_outputs_and_of_two_dtypes_are_left_alone():
    mixed, empty = nn.Linear(4, 3).requires_grad_(False).to(torch.bfloat16), nn.Linear(4, 0).requires_grad_(False)
    mixed.bias = nn.Parameter(torch.zeros(3), requires_grad=False)
    with packed(nn.Sequential(mixed, empty)):
        assert not any("forward" in vars(layer) for layer in (mixed, empty))


@mkl
def test_a_gradient_that_comes_after_another_product():
    layer = nn.Linear(5, 4).requires_grad_(False)
    with packed(layer):
        x = torch.randn(4, 5, requires_grad=True)
        layer(x), (y := layer(x)), layer(torch.randn(3, 5)), layer(torch.randn(3, 5))
        before = dict(layer.forward.matrices)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], layer.weight.sum(0).expand(4, -1))
        assert layer.forward.matrices.keys() == before.keys()  # nothing was packed for it


@mkl
def test_from_the_second_time_on_it_is_packed_and_other_row_counts_begin_anew():
    layer = nn.Linear(6, 6).requires_grad_(False)
    for rows, expected in (((3, 3, 3), 2), ((4, 3, 4), 0), ((2, 2, 2), 0), ((65, 65), 0), ((8, 100, 8), 1)):
        with packed(layer):
            assert products(lambda rows=rows: [layer(torch.zeros(n, 6)) for n in rows]) == expected


@mkl
def test_trained_other_dtypes_and_autocast_are_left_alone():
    trained, bias, half = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float16).requires_grad_(False)
    bias.weight.requires_grad_(False)
    with packed(nn.Sequential(trained, bias, half)):
        assert not any("forward" in vars(layer) for layer in (trained, bias, half))
    frozen = freeze(nn.Linear(4, 4))
    with packed(frozen), torch.autocast("cpu", torch.bfloat16):
        assert products(lambda: [frozen(torch.zeros(3, 4)) for _ in range(3)]) == 0
        assert frozen(torch.zeros(3, 4)).dtype == torch.bfloat16


def test_it_ends_with_its_block_whatever_happens_and_may_be_asked_for_twice():
    layer = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(KeyError), packed(nn.Sequential(layer, layer)):
        with packed(nn.Sequential(layer)):
            pass
        assert "forward" in vars(layer)
        raise KeyError
    assert "forward" not in vars(layer)


def test_inputs_of_another_width_are_refused_as_ever():
    layer = nn.Linear(4, 3).requires_grad_(False)
    with packed(layer):
        layer(torch.zeros(3, 4))
        for width in (2, 5):
            with pytest.raises(RuntimeError, match="cannot be multiplied"):
                layer(torch.zeros(3, width))


@mkl
def test_a_language_model_says_the_same_and_stays_as_it_is():
    model, _ = load_language_model("tiny", "fp32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(3, 15).reshape(3, 4)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    with packed(model):
        assert products(lambda: torch.testing.assert_close(model.generate(ids, **options), plain)) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
