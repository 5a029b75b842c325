"""Style transfer by steering: a frozen language model copies a sentence, steered by PPLM."""

from collections.abc import Sequence

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen.conditioning.attributes import BagOfWords
from mmgen.conditioning.gradient import PPLM
from mmgen.data.text import tokens_of

AT_ONCE = 20  # sentences steered together


class SteeredCopy:
    """A frozen language model that reads a sentence twice and writes it again, steered by `PPLM` toward words of a style.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model = SteeredCopy(*load_language_model("tiny", "fp32"), ["bad", "good"], [["awful"], ["lovely"]])
    >>> len(model.restyle(["the tea", ""], "good"))
    2
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str],
        words: Sequence[Sequence[str]],
    ) -> None:
        self.model, self.tokenizer, self.class_names = model, tokenizer, list(class_names)
        self.methods = [PPLM(BagOfWords(model, tokenizer, some), step_size=0.05) for some in words]

    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """Rewrite texts in the style ``target``; blank ones are unchanged."""
        method = self.methods[self.class_names.index(target)]
        line = tokens_of(self.tokenizer, "\n", add_special_tokens=False).input_ids[-1]
        restyled, written = list(texts), [i for i, text in enumerate(texts) if text.strip()]
        order = sorted(written, key=lambda i: len(texts[i]))
        for start in tqdm(range(0, len(order), AT_ONCE), desc=f"steered to be {target}", dynamic_ncols=True):
            some = order[start : start + AT_ONCE]
            lines = [" ".join(texts[i].split()) for i in some]
            prompts = [f"1. {text}\n2. {text}\n3." for text in lines]
            given = tokens_of(self.tokenizer, prompts, return_tensors="pt", padding=True, padding_side="left")
            given = given.to(self.model.device)
            length = max(len(tokens_of(self.tokenizer, texts[i]).input_ids) for i in some) + 5
            made = self.model.generate(  # type: ignore[operator]
                **given, custom_generate=method, max_new_tokens=length, do_sample=False,
                eos_token_id=line, pad_token_id=line,
            )  # fmt: skip
            for i, ids in zip(some, made[:, given.input_ids.shape[1] :]):
                restyled[i] = str(self.tokenizer.decode(ids, skip_special_tokens=True)).partition("\n")[0].strip()
        return restyled
