"""Text: processors around a transformers tokenizer, and training of small byte-level and word tokenizers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmgen.data.pretrained import pretrained
from mmgen.errors import UserError, check_at_least

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
BYTES = 256
UNKNOWN = "<unk>"
# a word, a clitic (is|n't, it|'s, can|not) or a punctuation mark, split as in the Penn Treebank
WORD = r"[^\W\d_]+(?=n't\b)|n't\b|can(?=not\b)|'(?:s|m|d|re|ve|ll)\b|\w+(?:[-&]\w+|(?<=\d)[.,:/](?=\d)\w+)*|\.{2,}|``|''|\S"


@dataclass(frozen=True)
class TextProcessor:
    """Token ids (t,) of a text, and back.

    Args:
        tokenizer: a tokenizer of transformers; its files are saved with the model.
        eos: end every text with the tokenizer's EOS token.
        max_length: largest number of tokens, EOS included; longer texts are truncated. None for no limit.
        special: instead of ``eos``, add the tokenizer's special tokens, such as [CLS] and [SEP]; they count in ``max_length``.
        room: largest number of tokens that the model can read, EOS included; longer texts are an error. None for no limit.

    Raises:
        UserError: ``eos`` with a tokenizer without EOS, or with ``special``; or a value is not a text, is empty, or has more
            than ``room`` tokens.

    >>> processor = train_tokenizer(["a cat", "a dog"], vocab_size=260)
    >>> processor.decode(processor("a cat"))
    'a cat'
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    eos: bool = True
    max_length: int | None = None
    special: bool = False
    room: int | None = None
    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if self.eos and self.special:
            raise UserError("special", got="True with eos=True", expected="one of them", fix="set eos=False")
        if self.eos and self.tokenizer.eos_token_id is None:
            raise UserError("tokenizer", got="no EOS token", expected="one that ends texts", fix="set eos=False")
        if self.max_length is not None:
            frame = self.tokenizer.num_special_tokens_to_add() if self.special else 1
            check_at_least("max_length", self.max_length, frame + 1)

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> "TextProcessor":
        """Make a processor with the tokenizer of a folder or of a Hub name.

        Raises:
            UserError: there is no tokenizer.
        """
        fix = "check the name, or train one with train_tokenizer"
        with pretrained("tokenizer", str(name), expected="a folder or a Hub name of a tokenizer", fix=fix):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return cls(tokenizer, **settings)

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int = 259, max_length: int | None = 32) -> "TextProcessor":
        """Make a processor with a tokenizer trained on the non-blank ``texts``, by default of bytes; see `train_tokenizer`."""
        return train_tokenizer((text for text in texts if text.strip()), vocab_size, max_length=max_length)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    def __call__(self, value: str) -> Tensor:
        """Tokenise a text to ids (t,), int64; names of special tokens in it are read as plain text."""
        if not isinstance(value, str):
            raise UserError("text", got=value, expected="a string", fix="check the column's name")
        if not value.strip():
            raise UserError("text", got=repr(value), expected="at least one word", fix="write some, or leave it out")
        if self.special:
            cut = self.max_length is not None
            return torch.tensor(tokens_of(self.tokenizer, value, truncation=cut, max_length=self.max_length)["input_ids"])
        ids = tokens_of(self.tokenizer, value, add_special_tokens=False)["input_ids"]
        ids = ids if self.max_length is None else ids[: self.max_length - self.eos]
        ids = [*ids, self.tokenizer.eos_token_id] if self.eos else ids
        if self.room is not None and len(ids) > self.room:
            expected, fix = f"at most {self.room}, the model's context without the prompt", "shorten it"
            raise UserError(f"text {value[:40]!r}", got=f"{len(ids)} tokens", expected=expected, fix=fix)
        return torch.tensor(ids)

    def decode(self, tensor: Tensor) -> str:
        """Convert ids (t,) to text, up to the first EOS and without special tokens."""
        ids = tensor.tolist()
        if self.tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_token_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load_files(cls, folder: Path, settings: dict[str, Any]) -> "TextProcessor":
        """Load the processor from the files of `save_files` and its saved settings."""
        return cls.from_pretrained(folder, **settings)


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], split_special_tokens: bool = True, **options: Any
) -> BatchEncoding:
    """Tokenise user texts, in which the name of a special token, such as ``<pad>``, is plain text.

    An unpaired surrogate, which no tokenizer accepts, becomes "?". Special tokens that the tokenizer adds around a text, such
    as a beginning-of-text token, are added as usual.

    Args:
        tokenizer: a tokenizer of transformers.
        texts: one text or several.
        split_special_tokens: False for a template written by a developer, in which the name means the token.
        options: other arguments of the tokenizer's call.

    >>> tokenizer = train_tokenizer(["a cat"], vocab_size=260).tokenizer
    >>> tokens_of(tokenizer, "<eos>").tokens(), tokens_of(tokenizer, "<eos>", split_special_tokens=False).tokens()
    (['<', 'e', 'o', 's', '>'], ['<eos>'])
    """
    written = [text.encode("utf-8", "replace").decode() for text in ([texts] if isinstance(texts, str) else texts)]
    return tokenizer(written[0] if isinstance(texts, str) else written, split_special_tokens=split_special_tokens, **options)


def train_tokenizer(texts: Iterable[str], vocab_size: int, eos: bool = True, max_length: int | None = None) -> TextProcessor:
    """Train a byte-level BPE tokenizer, which can encode any text, with special tokens <pad> (0), <bos> (1), <eos> (2).

    Args:
        texts: the training texts.
        vocab_size: largest number of tokens: special tokens, 256 bytes, and merges.
        eos, max_length: as in `TextProcessor`.

    Raises:
        UserError: there are no texts, or ``vocab_size`` is below 259.
    """
    check_at_least("vocab_size", vocab_size, len(SPECIAL_TOKENS) + BYTES)
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise UserError("texts", got="none", expected="at least one", fix="check that the split is not empty")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for part in ([first], texts) for text in part), trainer)
    pad, bos, eos_token = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos_token)
    return TextProcessor(fast, eos, max_length)


def train_word_tokenizer(texts: Iterable[str], vocab_size: int = 32768, least: int = 2) -> TextProcessor:
    """Train a tokenizer of lower-cased words, with special tokens <pad> (0), <bos> (1), <eos> (2) and <unk> (3).

    It returns the character offsets of each word, so that an edit can leave the rest of a text unchanged.

    Args:
        texts: the training texts.
        vocab_size: largest number of tokens, the most frequent words, special tokens included.
        least: number of occurrences below which a word becomes <unk>.

    Raises:
        UserError: no word occurs ``least`` times.

    >>> processor = train_word_tokenizer(["It isn't good, it isn't bad."])
    >>> processor.tokenizer.convert_ids_to_tokens(processor("ISN'T it good?"))
    ['is', "n't", 'it', '<unk>', '<unk>']
    """
    special = [*SPECIAL_TOKENS, UNKNOWN]
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    straight = normalizers.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC(), straight])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=least, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() == len(special):
        fix = "give more texts, or a smaller `least`"
        raise UserError("texts", got="none", expected=f"words that occur {least} times", fix=fix)
    pad, bos, eos = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=UNKNOWN)
    return TextProcessor(fast, eos=False)
