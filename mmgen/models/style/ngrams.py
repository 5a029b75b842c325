"""Statistics of words: n-gram language models per style, words seen between others, and word vectors."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from mmgen.errors import UserError

BEGIN, END, UNKNOWN = 1, 2, 3  # <bos>, <eos>, <unk> of mmgen.data.text.train_word_tokenizer
DISCOUNT = 0.75


def framed(sentences: Sequence[Sequence[int]]) -> Tensor:
    """Sentences between two <bos> and two <eos>, padded with more <eos>, (b, t).

    >>> framed([[5], [6, 7]]).tolist()
    [[1, 1, 5, 2, 2, 2], [1, 1, 6, 7, 2, 2]]
    """
    longest = max(map(len, sentences))
    rows = [[BEGIN, BEGIN, *words, *[END] * (longest - len(words) + 2)] for words in sentences]
    return torch.tensor(rows, dtype=torch.long)


class NgramTable(nn.Module):
    """Trigram language models of each style over the pairs that occur, and the triples that occur twice.

    With n the count of a triple in the style, n' of different words before a pair, n'' of different words before a word, and
    D = 0.75,

    ``p(w | a, b) = max(n(abw) - D, 0) / n(ab.) + D k(ab.) / n(ab.) p(w | b)``
    ``p(w | b) = max(n'(bw) - D, 0) / n'(b.) + D k(b.) / n'(b.) p(w)``
    ``p(w) = max(n''(w) - D, 0) / n''(.) + D k / n''(.) / words``

    k the number of different words that follow. A context unseen in a style is replaced by the shorter one. Each distribution
    sums to 1 over the words.

    Args:
        words: size of the vocabulary, at most 2^20.
        pairs: number of pairs.
        triples: number of triples.
        styles: number of styles.

    Source: interpolated Kneser-Ney, Chen and Goodman 1999, An empirical study of smoothing techniques for language
        modeling, 2.7; there with triples seen once too.
    """

    pairs: Tensor
    triples: Tensor
    log_words: Tensor
    log_pairs: Tensor
    log_triples: Tensor
    after_word: Tensor
    after_pair: Tensor

    def __init__(self, words: int, pairs: int, triples: int, styles: int = 2) -> None:
        super().__init__()
        if not 4 < words <= 2**20:
            raise UserError("words", got=words, expected="5 to 1,048,576", fix="give the tokenizer a smaller vocab_size")
        self.words, self.styles = words, styles
        self.register_buffer("pairs", torch.arange(pairs))  # b * words + w, sorted
        self.register_buffer("triples", torch.arange(triples))  # (a * words + b) * words + w, sorted
        self.register_buffer("log_words", torch.zeros(styles, words))  # log p(w)
        self.register_buffer("log_pairs", torch.zeros(styles, pairs))  # log p(w | b)
        self.register_buffer("log_triples", torch.zeros(styles, triples))  # log p(w | a, b)
        self.register_buffer("after_word", torch.zeros(styles, words))  # log D k(b.) / n'(b.)
        self.register_buffer("after_pair", torch.zeros(styles, pairs))  # log D k(ab.) / n(ab.)

    @classmethod
    def count(cls, sentences: Sequence[Sequence[int]], labels: Sequence[int], words: int, styles: int = 2) -> "NgramTable":
        """Build the table from sentences and their styles.

        Raises:
            UserError: too large a vocabulary, or no triple occurs twice.
        """
        sizes = np.array([len(sentence) for sentence in sentences]) + 4
        flat = np.concatenate([[BEGIN, BEGIN, *sentence, END, END] for sentence in sentences]).astype(np.int64)
        of = np.repeat(np.asarray(labels), sizes)[2:]
        keys = (flat[:-2] * words + flat[1:-1]) * words + flat[2:]
        inside = flat[2:] != BEGIN  # not across sentences
        triples, place = np.unique(keys[inside], return_inverse=True)
        counts = np.stack([np.bincount(place[of[inside] == s], minlength=len(triples)) for s in range(styles)])
        tails, place = np.unique(triples % words**2, return_inverse=True)
        before = np.stack([np.bincount(place, counts[s] > 0, len(tails)) for s in range(styles)])  # n'
        kept = counts.sum(0) >= 2
        triples, counts = triples[kept], counts[:, kept]
        if not len(triples):
            got, expected = f"{len(sentences)} sentences", "a sequence of three words that occurs twice"
            raise UserError("texts", got=got, expected=expected, fix="give more texts")
        pairs = np.union1d(tails, triples // words)  # includes <bos> <bos>, which no triple ends with
        follows = np.zeros((styles, len(pairs)))
        follows[:, np.searchsorted(pairs, tails)] = before
        table = cls(words, len(pairs), len(triples), styles)
        table.pairs.copy_(torch.from_numpy(pairs))
        table.triples.copy_(torch.from_numpy(triples))
        longer, shorter = np.searchsorted(pairs, triples // words), np.searchsorted(pairs, triples % words**2)
        for s in range(styles):
            distinct = np.bincount(pairs % words, follows[s] > 0, words)
            p_words, _ = _discounted(distinct, np.zeros(words, dtype=np.int64), np.full(words, 1 / words), 1)
            p_pairs, after_word = _discounted(follows[s], pairs // words, p_words[pairs % words], words)
            p_triples, after_pair = _discounted(counts[s], longer, p_pairs[shorter], len(pairs))
            found = {"words": p_words, "pairs": p_pairs, "triples": p_triples}
            for name, p in found.items():
                getattr(table, f"log_{name}")[s] = torch.from_numpy(np.log(p))
            table.after_word[s] = torch.from_numpy(np.log(after_word))
            table.after_pair[s] = torch.from_numpy(np.log(after_pair))
        return table

    def find(self, *words: Tensor) -> Tensor:
        """Index of each pair or triple in its table, -1 if absent: two or three tensors of ids (...) -> (...)."""
        table = self.pairs if len(words) == 2 else self.triples
        key = words[0]
        for word in words[1:]:
            key = key * self.words + word
        place = torch.searchsorted(table, key).clamp(max=len(table) - 1)
        return place.where(table[place] == key, -1)

    def log_prob(self, a: Tensor, b: Tensor, word: Tensor, style: Tensor) -> Tensor:
        """log p(word | a, b) in ``style``, in nats: ids (...) -> (...)."""
        pair, context, triple = self.find(b, word), self.find(a, b), self.find(a, b, word)
        shorter = self.after_word[style, b] + self.log_words[style, word]
        shorter = self.log_pairs[style, pair].where(pair >= 0, shorter)
        longer = shorter + self.after_pair[style, context].where(context >= 0, 0.0)
        return self.log_triples[style, triple].where(triple >= 0, longer)


def check_styles(labels: Sequence[int]) -> None:
    """Check that there are texts of the styles 0 and 1, and of no other.

    Raises:
        UserError: a label that is neither, or a style without a text.
    """
    for label in (*labels, 0, 1):
        if label not in (0, 1) or label not in labels:
            got = f"{label} among the labels" if label not in (0, 1) else f"no text of label {label}"
            raise UserError("labels", got=got, expected="0 and 1", fix="give texts of exactly two styles")


def style_counts(sentences: Sequence[Sequence[int]], labels: Sequence[int], words: int) -> np.ndarray:
    """Word counts in each of two styles: sentences of ids, a label 0 or 1 for each -> (2, words).

    Raises:
        UserError: a label that is neither, or a style without a sentence.

    >>> style_counts([[4, 5], [4]], [0, 1], words=6).tolist()
    [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]
    """
    check_styles(labels)
    of = ([s for s, own in zip(sentences, labels) if own == label] for label in (0, 1))
    return np.stack([np.bincount(np.concatenate(some).astype(np.int64), minlength=words) for some in of])


def words_between(
    sentences: Sequence[Sequence[int]], labels: Sequence[int], counts: np.ndarray, usable: np.ndarray, choices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Usable words seen twice between two others in a style: keys (g,) and words (g, choices), filled with -1."""
    words = len(usable)
    flat = np.concatenate([[BEGIN, *sentence, END] for sentence in sentences]).astype(np.int64)
    style = np.repeat(np.asarray(labels), [len(sentence) + 2 for sentence in sentences])[1:-1]
    left, word, right = flat[:-2], flat[1:-1], flat[2:]
    keys, seen = np.unique((((style * words + left) * words + right) * words + word)[usable[word]], return_counts=True)
    keys, seen = keys[seen >= 2], seen[seen >= 2]
    gap, word = keys // words, keys % words
    rank = seen / np.sqrt(counts[gap // words**2, word] + 10)  # prefers typical to common words
    order = np.lexsort((-rank, gap))
    gap, word = gap[order], word[order]
    gaps, first, place = np.unique(gap, return_index=True, return_inverse=True)
    nth = np.arange(len(gap)) - first[place]
    between = np.full((len(gaps), choices), -1, dtype=np.int32)
    between[place[nth < choices], nth[nth < choices]] = word[nth < choices]
    return gaps, between


def word_vectors(sentences: Sequence[Sequence[int]], counts: np.ndarray, dim: int) -> np.ndarray:
    """Word vectors from the two words before and after, (words, dim), of length 1, or 0 for rare words.

    Positive pointwise mutual information, factorised: Levy and Goldberg 2014, Neural word embedding as implicit matrix
    factorization; here with separate contexts for each of the four positions, so that interchangeable words are similar.
    """
    words = len(counts)
    flat = np.concatenate([[BEGIN, BEGIN, *sentence, END, END] for sentence in sentences]).astype(np.int64)
    centre = np.flatnonzero((flat > END) & (counts[flat] >= 3))
    context = np.concatenate([n * words + flat[centre + step] for n, step in enumerate((-2, -1, 1, 2))])
    seen = csr_matrix((np.ones(len(context)), (np.tile(flat[centre], 4), context)), shape=(words, 4 * words))
    seen.sum_duplicates()
    each = np.asarray(seen.sum(0)).ravel() ** 0.75
    entries = seen.tocoo()
    expected = np.asarray(seen.sum(1)).ravel()[entries.row] * each[entries.col] / each.sum()
    information = np.maximum(np.log(entries.data / expected), 0)
    information = csr_matrix((information, (entries.row, entries.col)), shape=seen.shape)
    left, size, _ = randomized_svd(information, min(dim, words - 1), random_state=0)
    vectors = np.zeros((words, dim), dtype=np.float32)
    vectors[:, : len(size)] = left * np.sqrt(size)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=(length > 1e-6) & (counts >= 3)[:, None])


def joined_vectors(vectors: Tensor, others: Tensor, counts: Tensor) -> Tensor:
    """Vectors (words, dim) whose cosines are the means of those of two sets, as exactly as ``dim`` allows.

    Args:
        vectors: (words, dim), of length 1, or 0 for rare words, which stay 0.
        others: (words, d), centred here on the mean over the occurrences of all words.
        counts: occurrences of each word, (words,).

    >>> a, b = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 0]]), torch.tensor([[2.0, 1], [1, 2], [0, 0], [5, 5]])
    >>> (joined_vectors(a, b, torch.tensor([1.0, 1, 1, 1])).norm(dim=1) > 0).tolist()
    [True, True, True, False]
    """
    known = vectors.any(1)
    weights = (counts * known).to(others.dtype)
    others = F.normalize(others - weights @ others / weights.sum().clamp(min=1), dim=1)
    both = torch.cat([vectors, others], 1)[known]
    left, size, _ = randomized_svd(both.numpy(), min(vectors.shape[1], *both.shape), random_state=0)
    joined = torch.zeros_like(vectors)
    joined[known, : len(size)] = F.normalize(torch.from_numpy(left * size).to(vectors.dtype), dim=1)
    return joined


def _discounted(counts: np.ndarray, context: np.ndarray, shorter: np.ndarray, contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """p of counted n-grams given p in the ``shorter`` context, and the weight of the latter, 1 for an unseen context."""
    total = np.bincount(context, counts, contexts)
    weight = np.divide(DISCOUNT * np.bincount(context, counts > 0, contexts), total, out=np.ones(contexts), where=total > 0)
    return np.maximum(counts - DISCOUNT, 0) / np.maximum(total, 1)[context] + weight[context] * shorter, weight
