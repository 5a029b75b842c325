"""Loading with transformers: errors in one line, and no code from repositories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mmgen.errors import UserError, first_line

if TYPE_CHECKING:  # transformers is slow to import, and most models do not need it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def pretrained(what: str, name: str, *, expected: str, fix: str) -> Iterator[None]:
    """Turn the errors of transformers' ``from_pretrained`` into one line about ``name``.

    Calls of ``from_pretrained`` and ``from_config`` inside must pass ``trust_remote_code=False``: by default, transformers
    asks on standard input whether to run a repository's code.

    Args:
        what: kind of object to load, such as "language model".
        name: a folder or a Hub name.
        expected: description of an accepted input.
        fix: advice for a name that is not found.

    Raises:
        UserError: the object cannot be found, is damaged, or needs code of its own.
    """
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        again = "copy or download it again"
        raise UserError(f"weights of {name}", got=str(error), expected="a whole safetensors file", fix=again) from error
    except (OSError, ValueError) as error:  # transformers reports a bad name, a missing file and no network as these
        if "trust_remote_code" in str(error):
            got, wanted = "one that needs code of its own (auto_map)", f"{expected} that is part of transformers"
            other = "choose a model of another architecture: mmgen runs no code of a repository"
            raise UserError(f"{what} {name}", got=got, expected=wanted, fix=other) from error
        got = "no such folder" if "Repo id must" in str(error) else first_line(error)  # a path that cannot be a Hub name
        raise UserError(f"{what} {name}", got=got, expected=expected, fix=fix) from error
    except Exception as error:  # damaged or foreign files: KeyError, TypeError, a plain Exception of the Rust code, ...
        got, again = f"{type(error).__name__}: {first_line(error)}", "copy or download it again"
        raise UserError(f"files of {name}", got=got, expected=f"those of {expected}", fix=again) from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Check that the model has an embedding for every token that the tokenizer can produce.

    Special tokens that no text is converted to, such as the picture token of Gemma 3, may lie beyond the embeddings.

    Args:
        model: a model with input embeddings.
        tokenizer: its tokenizer.
        what: name of the model in the message.

    Raises:
        UserError: an embedding is missing.
    """
    rows: Any = model.get_input_embeddings().num_embeddings
    used = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk", "cls", "sep")}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    last = max({*tokenizer.get_vocab().values()} - special, default=0)
    if last >= rows:
        got, expected = f"a tokenizer of {last + 1} tokens", f"at most {rows}, as many as the model has embeddings"
        fix = "give it the tokenizer it was trained with, or resize its embeddings (resize_token_embeddings)"
        raise UserError(what, got=got, expected=expected, fix=fix)
