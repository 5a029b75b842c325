"""Log-probabilities of alternatives of sentences under a frozen language model, each common beginning read once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mmgen.conditioning.language_model import context_length, load_language_model
from mmgen.data.text import tokens_of

TOKENS = 1024  # tokens of a forward pass, padding included
ROWS = 256  # logits computed together: they are large


class SentenceReader(nn.Module):
    """log p of whole sentences under a frozen language model.

    The alternatives of a sentence form a tree of tokens. A node attends to its ancestors only and has its depth as its
    position, so that one forward pass over the tree gives every alternative the log-probability that it has alone.

    Args:
        language_model: see `mmgen.conditioning.language_model.load_language_model`.
        dtype: arithmetic of the language model.

    >>> reader = SentenceReader("tiny", "fp32")
    >>> together, [alone] = reader.log_probs([["good tea", "good soup", ""], ["good soup"]])
    >>> together[2].item(), bool((together[1] - alone).abs() < 1e-4)
    (0.0, True)
    """

    def __init__(self, language_model: str, dtype: str = "auto") -> None:
        super().__init__()
        self.model, tokenizer = load_language_model(language_model, dtype)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer

    @torch.no_grad()
    def log_probs(self, groups: Sequence[Sequence[str]]) -> list[Tensor]:
        """log p of each alternative of each sentence, in nats, a tensor (alternatives,) per sentence; 0 for an empty text.

        Of a text longer than the context, the beginning counts.
        """
        texts, limit = [text for group in groups for text in group], context_length(self.model)
        room = None if limit is None else limit - 1
        ids = iter(tokens_of(self.tokenizer, texts, add_special_tokens=False)["input_ids"] if texts else [])
        trees = [Tree([next(ids)[:room] for _ in group]) for group in groups]
        found: list[Tensor] = [torch.zeros(len(group)) for group in groups]
        for some in _batches([len(tree.tokens) for tree in trees]):
            each = self._token_log_probs([trees[i] for i in some])  # (b, nodes)
            for i, log_p in zip(some, each):
                found[i] = torch.tensor([log_p[path].sum().item() for path in trees[i].paths])
        return found

    @torch.no_grad()
    def word_vectors(self, words: Sequence[str]) -> Tensor:
        """The mean input embedding of the tokens of each word, as written after a space, (words, d) float32."""
        table = self.model.get_input_embeddings().get_parameter("weight").float().cpu()
        ids = tokens_of(self.tokenizer, [f" {word}" for word in words], add_special_tokens=False)["input_ids"]
        return torch.stack([table[some].mean(0) for some in ids])

    def _token_log_probs(self, trees: Sequence["Tree"]) -> Tensor:
        """log p(token | ancestors) of each node, (b, nodes); 0 for the root and for padding."""
        device, longest = self.model.device, max(len(tree.tokens) for tree in trees)
        begin = self.tokenizer.bos_token_id
        begin = self.tokenizer.eos_token_id if begin is None else begin
        ids = torch.full((len(trees), longest), begin)
        depth, parent = torch.zeros_like(ids), torch.full_like(ids, -1)
        sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)  # node x ancestor or self
        for b, tree in enumerate(trees):
            n = len(tree.tokens)
            ids[b, 1:n] = torch.tensor(tree.tokens[1:], dtype=torch.long)
            parent[b, :n] = torch.tensor(tree.parents)
            for i in range(1, n):  # parents come before their children
                sees[b, i] |= sees[b, tree.parents[i]]
            depth[b, :n] = sees[b, :n].sum(1) - 1
        hidden = self.model.get_decoder()(
            input_ids=ids.to(device),
            attention_mask=sees[:, None].to(device),
            position_ids=depth.to(device),
            use_cache=False,
        ).last_hidden_state  # (b, nodes, d)
        row, node = (parent >= 0).nonzero(as_tuple=True)
        at = row * longest + parent[row, node]  # of the parent of each node
        places, of = at.unique(return_inverse=True)
        hidden, word, head = hidden.flatten(0, 1)[places.to(device)], ids[row, node], self.model.get_output_embeddings()
        log_p = torch.zeros(len(row))
        for start in range(0, len(places), ROWS):
            logits = head(hidden[start : start + ROWS])  # (rows, v)
            total = torch.cat([some.float().logsumexp(1) for some in logits.split(8)])  # eight rows stay in a cache
            here = ((of >= start) & (of < start + ROWS)).nonzero().squeeze(1)
            one = (of[here] - start).to(device)
            log_p[here] = (logits[one, word[here].to(device)].float() - total[one]).cpu()
        each = torch.zeros(len(trees), longest)
        each[row, node] = log_p
        return each


class Tree:
    """Sequences of tokens as a tree: nodes after their parents, the root first, and the nodes of each sequence.

    >>> tree = Tree([[5, 6], [5, 7]])
    >>> tree.tokens, tree.parents, tree.paths
    ([-1, 5, 6, 7], [-1, 0, 1, 1], [[1, 2], [1, 3]])
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.tokens, self.parents = [-1], [-1]
        self.paths: list[list[int]] = []
        nodes: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node, path = 0, []
            for token in sequence:
                key = node, token
                if key not in nodes:
                    nodes[key] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(node)
                node = nodes[key]
                path.append(node)
            self.paths.append(path)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of trees of similar sizes, at most `TOKENS` together; a larger tree is alone.

    >>> list(_batches([3, 900, 4, 500]))
    [[0, 2], [3], [1]]
    """
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if some and (len(some) + 1) * lengths[i] > TOKENS:
            yield some
            some = []
        some.append(i)
    if some:
        yield some
