"""Fluency of texts: log-probability and perplexity under a language model that generated none of them."""

import math
import statistics
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.ranking import ROWS, text_log_prob
from mmgen.data.batch import collate
from mmgen.data.text import tokens_of


class Reader:
    """A language model in float32 that scores texts of other models, with a cache.

    Args:
        name: language model, see `mmgen.conditioning.language_model.load_language_model`.

    >>> reader = Reader("tiny")
    >>> [(mean < 0, count) for mean, count in reader.log_probs(["ab", ""], ["x", "x"])]
    [(True, 2), (False, 0)]
    """

    def __init__(self, name: str) -> None:
        model, self.tokenizer = load_language_model(name, "fp32")
        self.model = model.to(processes.device())  # type: ignore[arg-type]
        self._known: dict[tuple[str, str, bool], tuple[float, int]] = {}

    @torch.no_grad()
    def log_probs(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None, end: bool = False
    ) -> list[tuple[float, int]]:
        """The mean of log p(x_t | x_<t) over the tokens of each text, and the number of tokens.

        Args:
            texts: n texts.
            prompts: prompt of each text, read but not scored. None: each text begins a document.
            end: score the end-of-document token too.

        Returns:
            (nats per token, tokens) of each text; 0.0 and 0 for an empty text.
        """
        keys = [(prompt, text, end) for prompt, text in zip(prompts or [""] * len(texts), texts)]
        self._read([key for key in dict.fromkeys(keys) if key not in self._known])
        return [self._known[key] for key in keys]

    def perplexity(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> float:
        """exp of -log p per token, averaged over distinct texts; empty texts are ignored."""
        different = dict.fromkeys(zip(texts, prompts or [""] * len(texts)))
        found = self.log_probs([text for text, _ in different], [prompt for _, prompt in different])
        return math.exp(statistics.fmean(-mean for mean, count in found if count))

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """-log2 p(texts) over their bytes in UTF-8: comparable between tokenizers, and with the ratio of a compressor."""
        nats = -sum(mean * count for mean, count in self.log_probs(texts))
        return nats / (math.log(2) * sum(len(text.encode()) for text in texts))

    def _read(self, keys: Sequence[tuple[str, str, bool]]) -> None:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows: list[tuple[int, list[int]]] = []  # tokens of the prompt, and all tokens
        for prompt, text, end in keys:
            before = tokens_of(self.tokenizer, prompt).input_ids if prompt else []
            if bos is not None and before[:1] != [bos]:
                before = [bos, *before]
            before = before or [eos]
            after = [*tokens_of(self.tokenizer, text, add_special_tokens=False).input_ids, *[eos] * end]
            rows.append((len(before), [*before, *after]))
            self._known[prompt, text, end] = (0.0, len(after))
        # batches of equal start positions and similar lengths
        order = sorted(
            (i for i, (start, ids) in enumerate(rows) if len(ids) > start), key=lambda i: (rows[i][0], len(rows[i][1]))
        )
        batches: list[list[int]] = []
        for i in order:
            if not batches or len(batches[-1]) == ROWS or rows[batches[-1][0]][0] != rows[i][0]:
                batches.append([])
            batches[-1].append(i)
        for some in tqdm(batches, desc="perplexity", unit="batch", leave=False, dynamic_ncols=True):
            batch = collate([{"text": torch.tensor(rows[i][1])} for i in some], ["text"]).to(self.model.device)
            _, means = text_log_prob(self.model, batch["text"], batch.masks["text"], rows[some[0]][0])
            for i, mean in zip(some, means.tolist()):
                self._known[keys[i]] = (mean, self._known[keys[i]][1])
