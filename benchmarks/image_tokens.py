"""Sampling of picture codes with and without cache, against x-transformers; a training step against bare attention.

python -m benchmarks.image_tokens --json F --csv benchmarks/results/image_tokens.csv
Width 512, depth 8, a text of 32 tokens, 256 codes, fp32, one thread, processor time. The benchmark fails unless the codes
drawn with and without the cache are equal.
"""

import time
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

from benchmarks.interleave import race, ratio, report
from mmgen.modalities.layers.autoregressive import sample
from mmgen.modalities.layers.transformer import initialise
from mmgen.models.text_to_image import TextThenImage

DIM, DEPTH, HEADS, TEXT, SIDE, BATCH = 512, 8, 8, 32, 16, 4
WORDS, CODES, ROUNDS, UNCACHED_ROUNDS = 1024, 1024, 7, 1


class Bare(nn.Module):
    """Minimal causal transformer: learned positions, pre-norm, one fused attention in each layer."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(vocabulary, DIM), nn.Embedding(length, DIM)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.LayerNorm(DIM),
                           nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)])
            for _ in range(DEPTH)
        )  # fmt: skip
        self.norm = nn.LayerNorm(DIM)
        initialise(self, DEPTH)  # as ours: what attention weighs decides how fast it is on a processor

    def forward(self, ids: Tensor) -> Tensor:
        """Compute logits (b, t, v) of ids (b, t)."""
        b, t = ids.shape
        x = self.embed(ids) + self.places.weight[:t]
        for norm, qkv, project, mlp_norm, up, down in self.layers:
            q, k, v = qkv(norm(x)).view(b, t, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
            x = x + project(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, DIM))
            x = x + down(F.gelu(up(mlp_norm(x)), approximate="tanh"))
        return F.linear(self.norm(x), self.embed.weight)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One step of the next-token loss."""
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells, clock = SIDE * SIDE, time.process_time
    ours = TextThenImage(WORDS, CODES, TEXT, (SIDE, SIDE), DIM, DEPTH, HEADS).eval()
    layers = Decoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS, rotary_pos_emb=True, attn_flash=True)
    peer = AutoregressiveWrapper(TransformerWrapper(num_tokens=WORDS + CODES + 2, max_seq_len=512, attn_layers=layers)).eval()
    prompts = {b: torch.randint(WORDS, (b, 1 + TEXT)) for b in (1, BATCH)}

    def draw(b: int, cached: bool = True) -> Tensor:
        return sample(ours, prompts[b], cells, tokens=ours.codes, generator=generator(), cached=cached)

    drawn: dict[bool, Tensor] = {}
    slow = race({"uncached": lambda: drawn.update({False: draw(BATCH, cached=False)})}, UNCACHED_ROUNDS, False, clock)
    contenders = {
        "cached": lambda: drawn.update({True: draw(BATCH)}),
        "x-transformers, cached": lambda: peer.generate(prompts[BATCH], cells, cache_kv=True),
        "cached, one picture": lambda: draw(1),
        "x-transformers, one picture": lambda: peer.generate(prompts[1], cells, cache_kv=True),
    }
    seconds = race(contenders, ROUNDS, clock=clock) | slow
    if not torch.equal(drawn[True], drawn[False]):
        raise SystemExit("image_tokens: with and without a cache the pictures differ")
    ids = torch.randint(WORDS, (BATCH, 1 + TEXT + cells))
    steps = {}
    for name, model in (("training step", ours), ("training step, bare", Bare(WORDS + CODES + 2, 1 + TEXT + cells))):
        optimizer = torch.optim.AdamW(model.train().parameters())
        steps[name] = partial(train_step, model, optimizer, ids)
    seconds |= race(steps, ROUNDS, clock=clock)
    figures = {
        "ratio_cached": ratio(seconds, "uncached", "cached"),
        "ratio_x_transformers": ratio(seconds, "x-transformers, cached", "cached"),
        "ratio_x_transformers_batch_1": ratio(seconds, "x-transformers, one picture", "cached, one picture"),
        "train_step_ratio": ratio(seconds, "training step", "training step, bare"),
        "tokens_per_s": BATCH * cells / sorted(seconds["cached"])[ROUNDS // 2],
    }
    report("image_tokens", figures, seconds)
