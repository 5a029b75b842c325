import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributions import Categorical, Independent, kl_divergence
from torch.nn import functional as F

from mmgen.errors import UserError
from mmgen.latents.discrete import VectorQuantizer, annealed, gumbel_softmax, kl_to_uniform, reinforce, straight_through


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_gumbel_softmax_is_that_of_torch(temperature, hard):
    logits = torch.randn(5, 3, 7, generator=seeded())
    torch.manual_seed(0)
    ours = gumbel_softmax(logits, temperature, hard)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, F.gumbel_softmax(logits, temperature, hard))


def test_straight_through_is_exactly_one_hot_with_the_gradient_of_the_relaxed_draw():
    logits, weights = torch.randn(6, 4, generator=seeded(), requires_grad=True), torch.randn(6, 4, generator=seeded(1))
    soft, hard = (gumbel_softmax(logits, 0.7, hard, seeded(2)) for hard in (False, True))
    assert torch.equal(hard, F.one_hot(soft.argmax(-1), 4).float())
    gradients = [torch.autograd.grad((value * weights).sum(), logits)[0] for value in (soft, hard)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0] != 0).all()


def test_draws_have_the_frequencies_of_the_categorical_and_sharpen_as_it_cools():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(20000, 4)
    hard = gumbel_softmax(logits, 0.5, True, seeded())
    torch.testing.assert_close(hard.mean(0), logits[0].softmax(0), atol=0.015, rtol=0)
    largest = [gumbel_softmax(logits, t, generator=seeded()).amax(-1).mean().item() for t in (5.0, 1.0, 0.05)]
    assert largest == sorted(largest) and largest[2] > 0.98


def test_a_generator_repeats_a_draw_and_half_precision_is_widened():
    logits = torch.zeros(3, 5)
    assert torch.equal(gumbel_softmax(logits, 1.0, generator=seeded(3)), gumbel_softmax(logits, 1.0, generator=seeded(3)))
    assert not torch.equal(gumbel_softmax(logits, 1.0, generator=seeded(3)), gumbel_softmax(logits, 1.0, generator=seeded(4)))
    assert gumbel_softmax(logits.bfloat16(), 1.0).dtype == torch.float32


@given(st.integers(0, 300), st.sampled_from(["cosine", "exponential"]))
def test_a_temperature_depends_on_the_step_alone_and_does_not_compound(step, shape):
    value = annealed(step, 200, 1.0, 0.5, shape)
    for earlier in range(0, step, 10):  # what was asked before does not matter
        annealed(earlier, 200, 1.0, 0.5, shape)
    assert annealed(step, 200, 1.0, 0.5, shape) == value
    assert 0.5 <= value <= 1.0 and value >= annealed(step + 1, 200, 1.0, 0.5, shape)
    if shape == "exponential":
        rate = math.log(2) / 200
        assert value == pytest.approx(max(math.exp(-rate * step), 0.5))  # one factor of the start, not a product of many


def test_a_temperature_starts_ends_and_passes_the_middle():
    assert annealed(0, 10, 2.0, 0.5) == 2.0 and annealed(10, 10, 2.0, 0.5) == annealed(99, 10, 2.0, 0.5) == 0.5
    assert annealed(5, 10, 2.0, 0.5) == pytest.approx(1.25)
    assert annealed(5, 10, 2.0, 0.5, "exponential") == pytest.approx(1.0)
    assert annealed(5, 10, 0.5, 2.0, "exponential") == pytest.approx(1.0)  # the other way, too


def test_kl_to_uniform_is_summed_over_positions_and_averaged_over_the_batch():
    logits = torch.randn(3, 2, 2, 3, generator=seeded(), dtype=torch.float64)
    q = Independent(Categorical(logits=logits), 2)
    uniform = Independent(Categorical(logits=torch.zeros_like(logits)), 2)
    torch.testing.assert_close(kl_to_uniform(logits), kl_divergence(q, uniform).mean())
    torch.testing.assert_close(kl_to_uniform(logits.repeat(2, 1, 1, 1)), kl_to_uniform(logits))
    torch.testing.assert_close(kl_to_uniform(logits.repeat(1, 2, 1, 1)), 2 * kl_to_uniform(logits))
    assert kl_to_uniform(torch.full((2, 5, 6), 3.0)).item() == pytest.approx(0, abs=1e-5)
    assert torch.autograd.gradcheck(kl_to_uniform, logits.requires_grad_())


def quantizer(codes: int = 5, dim: int = 2, **options) -> VectorQuantizer:
    """One whose codes are in place."""
    torch.manual_seed(0)
    module = VectorQuantizer(codes, dim, **{"revive": 0.0, **options}).double()
    module.counts.fill_(1.0)
    module.sums.copy_(module.codebook)
    return module


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_a_vector_becomes_its_nearest_code():
    module, z = quantizer().eval(), vectors(3, 4, 2)
    out = module(z)
    distances = (z[..., None, :] - module.codebook).square().sum(-1)  # (3, 4, 5)
    assert torch.equal(out.ids, distances.argmin(-1)) and torch.equal(out.z, module.codebook[out.ids])
    assert torch.equal(module.embed(out.ids), out.z)
    torch.testing.assert_close(out.commitment, 0.25 * distances.amin(-1).sum() / 3)
    torch.testing.assert_close(module(z.repeat(2, 1, 1)).commitment, out.commitment)
    shares = torch.bincount(out.ids.flatten(), minlength=5) / 12
    torch.testing.assert_close(out.perplexity.item(), math.exp(sum(-p * math.log(p) for p in shares.tolist() if p)))
    assert out.usage.item() == pytest.approx((shares > 0).double().mean().item())


def test_perplexity_and_usage_at_their_ends():
    module = quantizer(codes=4).eval()
    alike, single = module(module.codebook[None]), module(module.codebook[:1].expand(1, 9, 2))
    assert alike.perplexity.item() == pytest.approx(4) and alike.usage.item() == 1
    assert single.perplexity.item() == pytest.approx(1) and single.usage.item() == 0.25


@pytest.mark.parametrize("training", [False, True])
def test_the_gradient_goes_straight_through(training):
    module, z, weights = quantizer().train(training), vectors(3, 4, 2).requires_grad_(), vectors(3, 4, 2, seed=1)
    codes = module.codebook.clone()
    out = module(z)
    torch.testing.assert_close(torch.autograd.grad((out.z * weights).sum(), z, retain_graph=True)[0], weights)
    expected = 2 * 0.25 * (z - codes[out.ids]) / 3
    torch.testing.assert_close(torch.autograd.grad(out.commitment, z)[0], expected.detach())
    assert list(module.parameters()) == []


def test_codes_follow_the_moving_averages():
    module, decay, smoothing = quantizer(decay=0.8, smoothing=0.01), 0.8, 0.01
    codes = module.codebook.tolist()
    counts, sums = [1.0] * 5, [list(code) for code in codes]
    for step in range(4):
        z = vectors(2, 6, 2, seed=step)
        module(z)
        members = [[] for _ in codes]
        for x in z.reshape(-1, 2).tolist():
            members[min(range(5), key=lambda i: sum((a - b) ** 2 for a, b in zip(x, codes[i])))].append(x)
        for i, inside in enumerate(members):
            counts[i] = decay * counts[i] + (1 - decay) * len(inside)
            sums[i] = [decay * s + (1 - decay) * sum(x[d] for x in inside) for d, s in enumerate(sums[i])]
        total = sum(counts)
        smoothed = [(n + smoothing) / (total + 5 * smoothing) * total for n in counts]
        codes = [[s / n for s in row] for row, n in zip(sums, smoothed)]
        torch.testing.assert_close(module.codebook, torch.tensor(codes, dtype=torch.float64))
        torch.testing.assert_close(module.counts, torch.tensor(counts, dtype=torch.float64))


def test_without_memory_codes_are_the_means_of_their_vectors():
    module = quantizer(decay=0.0, smoothing=1e-12)
    z = vectors(1, 200, 2)
    ids = module(z).ids[0]
    torch.testing.assert_close(module.codebook, torch.stack([z[0][ids == i].mean(0) for i in range(5)]))


def test_nothing_moves_in_eval_mode_and_all_of_it_is_saved(tmp_path):
    module = quantizer()
    module(vectors(2, 6, 2))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.eval()(vectors(2, 6, 2, seed=1))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    save_file(module.state_dict(), tmp_path / "codes.safetensors")
    again = VectorQuantizer(5, 2, revive=0.0).double()
    again.load_state_dict(load_file(tmp_path / "codes.safetensors"))
    outs = [part.train()(vectors(2, 6, 2, seed=2)).z for part in (module, again)]
    assert torch.equal(*outs) and torch.equal(module.codebook, again.codebook)  # goes on as if never stopped


def test_the_first_batch_gives_the_first_codes():
    torch.manual_seed(0)
    module, z = VectorQuantizer(6, 2, smoothing=1e-12), 100 + vectors(1, 6, 2).float()
    out = module(z)
    assert out.usage.item() == 1 and torch.equal(out.z, z)  # each vector is a code of its own
    torch.testing.assert_close(module.codebook.sort(0).values, z[0].sort(0).values)
    few = VectorQuantizer(6, 2)
    few(z[:, :2])
    assert torch.cdist(few.codebook, z[0, :2]).min(1).values.max() < 1e-3


def test_a_dead_code_moves_to_a_vector_of_the_batch_and_a_living_one_stays():
    module, z = quantizer(codes=3, decay=0.9, revive=0.01), vectors(1, 40, 2)
    with torch.no_grad():
        module.codebook.copy_(torch.tensor([[0.0, 0.0], [0.1, 0.1], [1e3, 1e3]]))
        module.sums.copy_(module.codebook)
    steps = 0
    while module.codebook[2].norm() > 100:
        module(z)
        steps += 1
        assert steps < 60
    assert steps > 5  # 0.9^steps of its use is left: not at once
    assert 2 in module(z).ids and module.counts.min() > 0
    still = quantizer(codes=3, decay=0.5, revive=0.0)
    still.codebook[2] = still.sums[2] = 1e3
    for _ in range(20):
        still(z)
    assert still.codebook[2].norm() > 100


def test_codes_find_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    module = VectorQuantizer(8, 2, decay=0.9, revive=0.05)
    for step in range(100):
        z = centres[torch.randint(4, (1, 64), generator=seeded(step))] + 0.1 * vectors(1, 64, 2, seed=step).float()
        out = module(z)
    assert torch.cdist(centres, module.codebook).min(1).values.max() < 0.2 and out.commitment / 64 < 0.25 * 0.02


def test_half_precision_around_it_still_tells_near_codes_apart():
    module = quantizer(codes=2).float().eval()
    module.codebook.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.001]]))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(torch.tensor([[[1.0, 1.0], [1.0, 1.001]]]))
    assert out.ids.tolist() == [[0, 1]] and out.z.dtype == torch.float32


RUN = """
import sys
import torch
from torch import distributed as dist
from mmgen.latents.discrete import VectorQuantizer

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(rank)  # a process draws its own vectors: the first one's count for both
start, batches = (torch.load(f"{folder}/{name}.pt", weights_only=True) for name in ("start", f"z{rank}"))
for name in ("fresh", "going"):
    module = VectorQuantizer(4, 2, decay=0.5, revive=0.2).double()
    if name == "going":
        module.load_state_dict(start)
    perplexity = torch.stack([module(z).perplexity for z in batches])
    torch.save({**module.state_dict(), "perplexity": perplexity}, f"{folder}/{name}{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_keep_the_codes_of_one(tmp_path):
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    one = quantizer(codes=4, decay=0.5)
    z = vectors(3, 2, 10, 2)  # (steps, b, t, d): an item to the first process, a few vectors of the other to the second
    torch.save(one.state_dict(), tmp_path / "start.pt")
    torch.save([step[:1] for step in z], tmp_path / "z0.pt")
    torch.save([step[1:, :3] for step in z], tmp_path / "z1.pt")
    command, environment = [sys.executable, str(tmp_path / "run.py")], {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for run in runs:
        _, error = run.communicate(timeout=120)
        assert run.returncode == 0, error[-3000:]
    ends = {n: torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("fresh0", "fresh1", "going0", "going1")}
    for name in ("fresh", "going"):
        assert all(torch.equal(value, ends[f"{name}1"][key]) for key, value in ends[f"{name}0"].items())
    perplexity = [one(torch.cat([step[0], step[1, :3]])[None]).perplexity for step in z]
    torch.testing.assert_close(ends["going0"], {**one.state_dict(), "perplexity": torch.stack(perplexity)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gumbel_softmax(torch.zeros(1, 2), 0.0), r"temperature: got 0\.0"),
        (lambda: annealed(-1, 10), "step: got -1"),
        (lambda: annealed(1, 0), "steps: got 0"),
        (lambda: annealed(1, 10, end=0), "end: got 0"),
        (lambda: annealed(1, 10, start=-2.0), r"start: got -2\.0"),
        (lambda: annealed(1, 10, shape="cosin"), "shape: got cosin"),
        (lambda: VectorQuantizer(0, 2), "codes: got 0"),
        (lambda: VectorQuantizer(4, 0), "dim: got 0"),
        (lambda: VectorQuantizer(4, 2, decay=1.0), r"decay: got 1\.0"),
        (lambda: VectorQuantizer(4, 2, revive=-0.1), r"revive: got -0\.1"),
        (lambda: VectorQuantizer(4, 2, smoothing=0.0), r"smoothing: got 0\.0"),
        (lambda: VectorQuantizer(4, 2, commitment=-1), "commitment: got -1"),
        (lambda: VectorQuantizer(4, 2)(torch.zeros(1, 3)), r"z: got \(1, 3\), expected \(b, \.\.\., 2\)"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()


# gradients through draws


@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.lists(st.floats(-5, 5), min_size=16, max_size=16),
    st.floats(-5, 5),
)
def test_reinforce_is_unbiased_whatever_the_baseline(values, rewards, baseline):
    """Two draws in a row from one categorical: the mean over all 16 outcomes is the exact gradient of the expected reward."""
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(0)
    log_q = (log_p[:, None] + log_p).flatten()  # (16,) of every pair
    reward = torch.tensor(rewards, dtype=torch.float64)
    exact = torch.autograd.grad(-(log_q.exp() * reward).sum(), logits, retain_graph=True)[0]
    found = torch.zeros_like(exact)
    for z in range(16):
        policy, error = reinforce(log_q[z : z + 1], reward[z : z + 1], torch.full((1,), baseline, dtype=torch.float64))
        found += log_q[z].exp().detach() * torch.autograd.grad(policy, logits, retain_graph=True)[0]
        assert error.item() == pytest.approx((rewards[z] - baseline) ** 2)
        assert not error.requires_grad
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=1e-9)


def test_a_learned_baseline_lowers_the_variance():
    torch.manual_seed(0)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([10.0, 11.0, 12.0], dtype=torch.float64)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        z = torch.randint(3, (32,))
        error = reinforce(logits.log_softmax(0)[z], reward[z], b.expand(32))[1]
        with torch.no_grad():
            b -= 0.05 * torch.autograd.grad(error, b)[0]
    assert b.item() == pytest.approx(11.0, abs=0.3)

    def spread(baseline):
        found = []
        for z in range(3):
            one = torch.tensor([z])
            policy, _ = reinforce(logits.log_softmax(0)[one], reward[one], baseline)
            found.append(torch.autograd.grad(policy, logits)[0])
        return torch.stack(found).var(0).sum()

    assert spread(b.detach()[None]) < 0.05 * spread(None)


def test_the_baseline_is_trained_and_the_policy_is_not_by_its_error():
    logits, b = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
    policy, error = reinforce(logits.log_softmax(0)[torch.tensor([0, 2])], torch.tensor([1.0, 3.0]), b)
    assert torch.autograd.grad(error, b, retain_graph=True)[0].tolist() == [-1.0, -3.0]
    assert torch.autograd.grad(error, logits, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(policy, b, allow_unused=True)[0] is None


def test_reinforce_of_other_shapes():
    with pytest.raises(UserError, match=r"got shapes \(2,\), \(3,\), \(3,\), expected one shape"):
        reinforce(torch.zeros(2), torch.zeros(3))


def test_straight_through_is_what_was_drawn_with_the_gradient_of_its_probabilities():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.randint(5, (2, 3)), torch.randn(2, 3, 5, dtype=torch.float64)
    found = straight_through(logits, ids)
    assert torch.equal(found, torch.nn.functional.one_hot(ids, 5).double())
    (through,) = torch.autograd.grad((found * weights).sum(), logits, retain_graph=True)
    (soft,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(through, soft)
