"""Few-shot prompts: a shared prompt answers as a prompt read anew does, however it is batched and however often used."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.conditioning.prefix import PrefixLanguageModel
from mmgen.data.text import tokens_of
from mmgen.errors import UserError
from mmgen.storage import fingerprint

READER = PrefixLanguageModel("tiny", "fp32")
FORMAT = Format("{image}Q: {question} A: {answer}\n", induction="Answer.\n")
ANSWERS = ["red", "no", "7", "a b"]
EXACT = {"rtol": 1e-4, "atol": 1e-4}


def example(seed: int, question: str = "", answer: str = "", n: int = 2) -> Example:
    generator = torch.Generator().manual_seed(seed)
    return Example(question or "what" * (1 + seed % 3), answer, torch.randn(n, READER.width, generator=generator))


def episode(shots: int = 2, **settings) -> Episode:
    return Episode([example(i, answer=["yes", "no"][i % 2]) for i in range(shots)], **settings)


def log_prob(parts: list, text: str, reader: PrefixLanguageModel = READER) -> Tensor:
    """That of a text's tokens after a prompt read anew, by the language model's own likelihood; "<eos>" is its end."""
    ids = torch.tensor([tokens_of(reader.tokenizer, text, split_special_tokens=False).input_ids])
    return reader.log_prob(reader.prompt([parts]), ids, torch.ones_like(ids, dtype=torch.bool))[0]


def anew(query: Example, shots: Episode, format: Format = FORMAT) -> list:
    return [part for written in format.shots(shots) for part in written] + format.query(query)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_are_those_of_a_prompt_read_anew(batch_size):
    queries, shots = [example(i) for i in range(5)], episode()
    shared = read(READER, FORMAT, shots)
    expected = torch.tensor([[log_prob(anew(q, shots), " " + a).sum() for a in ANSWERS] for q in queries])
    made = score(READER, shared, queries, ANSWERS, normalise=False, batch_size=batch_size)
    torch.testing.assert_close(made, expected, **EXACT)
    tokens = torch.tensor([len(READER.tokens(" " + a)) for a in ANSWERS])
    torch.testing.assert_close(score(READER, shared, queries, ANSWERS, batch_size=batch_size), expected / tokens, **EXACT)


@given(st.integers(0, 3), st.integers(0, 1), st.lists(st.text("abc ?", max_size=9).map("q".__add__), min_size=1, max_size=4))
@hypothesis_settings(max_examples=8)
def test_any_number_of_shots_and_lengths(shots, repeats, questions):
    shown = episode(shots, repeats=repeats, induction=bool(repeats))
    queries = [Example(question, image=torch.full((i, READER.width), 0.1)) for i, question in enumerate(questions)]
    made = score(READER, read(READER, FORMAT, shown), queries, ["b", "ca"], normalise=False)
    expected = [[log_prob(anew(q, shown), text).sum() for text in (" b", " ca")] for q in queries]
    torch.testing.assert_close(made, torch.tensor(expected), **EXACT)


def test_generated_answers_are_those_of_a_prompt_read_anew():
    queries, shots = [example(i) for i in range(6)], episode()
    # the picture comes last, so that a random model answers each differently; what ends an answer is never said
    format = Format("{question}{image}{answer}, he said")
    expected = [
        READER.generate(READER.prompt([anew(q, shots, format)]), max_new_tokens=9, do_sample=False)[0] for q in queries
    ]
    shared = read(READER, format, shots)
    assert len(set(expected)) > 1
    for batch_size in (6, 4, 1):
        assert answer(READER, shared, queries, 9, batch_size) == expected


def test_an_answer_ends_at_the_stop_text_of_its_own_row(monkeypatch):
    """A language model that only counts: after token i comes token i + 1, and after a space an x."""
    reader = PrefixLanguageModel("tiny", "fp32")
    table, forward = reader.embedding_table, reader.model.forward
    following = torch.arange(1, len(table) + 1) % len(table)
    following[reader.tokens("a r")] = reader.tokens(" x ")

    def counting(inputs_embeds=None, input_ids=None, **options):
        out = forward(inputs_embeds=inputs_embeds, input_ids=input_ids, **options)
        last = input_ids[:, -1] if inputs_embeds is None else torch.cdist(inputs_embeds[:, -1], table).argmin(-1)
        out.logits[:, -1] = 100.0 * torch.nn.functional.one_hot(following[last], len(table))
        return out

    monkeypatch.setattr(reader.model, "forward", counting)
    shared = read(reader, Format("{question}{answer}j"), Episode([Example("x", "y")]))
    assert answer(reader, shared, [Example("zbc"), Example("0"), Example("k")], 7) == ["defghi", "1234567", "lmnopqr"]
    spaced = read(reader, Format("{question} {answer} "))  # the stop text is also what stands before an answer
    assert answer(reader, spaced, [Example("za"), Example("q")], 4) == ["xyz", "r"]


def test_the_end_of_text_ends_an_answer(monkeypatch):
    reader = PrefixLanguageModel("tiny", "fp32")
    shared = read(reader, Format("{question}{answer}"))
    ids = [*reader.tokens("hi").tolist(), reader.tokenizer.eos_token_id, *reader.tokens("no").tolist()]
    monkeypatch.setattr(reader.model, "generate", lambda **options: torch.tensor([ids]))
    assert answer(reader, shared, [Example("a")]) == ["hi"]


def test_a_shared_prompt_is_not_changed_by_its_use():
    shared = read(READER, FORMAT, episode())
    before = [(layer.keys.clone(), layer.values.clone()) for layer in shared.cache.layers]
    first = score(READER, shared, [example(1)], ANSWERS)
    answer(READER, shared, [example(i) for i in range(3)], 4)
    score(READER, shared, [example(i) for i in range(5)], ANSWERS)
    for (keys, values), layer in zip(before, shared.cache.layers):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)
    assert shared.cache.get_seq_length() == shared.length
    assert torch.equal(score(READER, shared, [example(1)], ANSWERS), first)


def test_the_language_model_is_never_changed():
    before = fingerprint(READER.model)
    shared = read(READER, FORMAT, episode())
    made = score(READER, shared, [example(1)], ANSWERS)
    answer(READER, shared, [example(1)], 3)
    assert fingerprint(READER.model) == before
    assert not made.requires_grad and all(p.grad is None for p in READER.model.parameters())


def test_one_token_answers_need_one_forward_pass(monkeypatch):
    shared = read(READER, Format("{question}{answer}"), Episode([Example("1", "2")]))
    calls, forward = [], READER.model.forward
    monkeypatch.setattr(READER.model, "forward", lambda **options: calls.append(options) or forward(**options))
    score(READER, shared, [Example("a"), Example("bc")], ["y", "n"])
    assert len(calls) == 1 and calls[0]["inputs_embeds"].shape[:2] == (2, 2)  # nothing of what is shared
    score(READER, shared, [Example("a"), Example("bc")], ["y", "no", "nay"])
    assert len(calls) == 3


def test_many_answers_are_scored_in_pieces(monkeypatch):
    shared, answers = read(READER, FORMAT, episode(1)), [f"{i:02d}" for i in range(9)]
    whole = score(READER, shared, [example(1), example(2)], answers)
    monkeypatch.setattr("mmgen.conditioning.few_shot.ROWS", 4)
    torch.testing.assert_close(score(READER, shared, [example(1), example(2)], answers), whole, **EXACT)


def test_an_ended_answer_includes_what_ends_it():
    shots, query = episode(1), example(3)
    for format, end in ((FORMAT, "\n"), (Format("{image}{question} {answer}"), "<eos>")):
        made = score(READER, read(READER, format, shots), [query], ["a", "ab"], normalise=False, ended=True)
        expected = [log_prob(anew(query, shots, format), text + end).sum() for text in (" a", " ab")]
        torch.testing.assert_close(made[0], torch.tensor(expected), **EXACT)


def test_no_answer_is_likelier_than_one_it_begins_with():
    shared, queries = read(READER, FORMAT, episode(1)), [example(i) for i in range(8)]
    a, ab = score(READER, shared, queries, ["a", "ab"], normalise=False).T
    assert (a >= ab).all()


def test_a_prior_is_subtracted():
    shared, queries, empty = read(READER, FORMAT, episode()), [example(0), example(1)], example(7, "N/A")
    prior = score(READER, shared, [empty], ANSWERS)[0]
    made = score(READER, shared, [*queries, empty], ANSWERS, prior=prior)
    torch.testing.assert_close(made[:2], score(READER, shared, queries, ANSWERS) - prior, **EXACT)
    torch.testing.assert_close(made[2], torch.zeros(len(ANSWERS)), **EXACT)  # no answer is preferred without content
    with pytest.raises(UserError, match=r"prior: got shape \(3,\), expected \(4,\)"):
        score(READER, shared, queries, ANSWERS, prior=torch.zeros(3))


def test_repeats_show_the_whole_support_again():
    support = [Example("1", "2"), Example("3", "4")]
    format = Format("{question}={answer};", induction="sum:")
    text = lambda **settings: "".join("".join(parts) for parts in format.shots(Episode(support, **settings)))  # noqa: E731
    assert text() == "sum:1=2;3=4;"
    assert text(repeats=2) == "sum:" + "1=2;3=4;" * 3
    assert text(induction=False) == "1=2;3=4;"
    assert text(induction="Add. ") == "Add. 1=2;3=4;"
    assert read(READER, format, Episode(support, repeats=1)).lengths == (4, 4, 4, 4, 4)


def test_a_shot_is_its_query_and_its_answer():
    shown = example(1, "what?", "red")
    assert FORMAT.shots(Episode([shown], induction=False)) == [[], [*FORMAT.query(shown), " red\n"]]
    image, text = FORMAT.query(shown)
    assert image is shown.image and text == "Q: what? A:"
    assert Format("Hear {audio}: {question} {answer}").query(shown) == ["Hear ", shown.image, ": what?"]
    assert FORMAT.blind().query(Example("what?")) == ["Q: what? A:"]
    assert Format("{question}\n{answer}\n").query(Example("a")) == ["a\n"]  # a line's end is the query's


def test_without_shots_and_without_induction():
    query = example(2)
    made = score(READER, read(READER, Format(FORMAT.shot)), [query], ["red"], normalise=False)
    torch.testing.assert_close(made[0, 0], log_prob(FORMAT.query(query), " red").sum(), **EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_other_language_models(kind):
    """Learned positions; a sliding window, whose layers hold less than the shared prompt."""
    reader = PrefixLanguageModel("tiny", "fp32")
    small = {"vocab_size": len(reader.tokenizer), "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(**small, n_embd=32, n_layer=2, n_head=2, n_positions=256)
        reader.model = GPT2LMHeadModel(config).eval()
    else:
        config = Gemma3TextConfig(**small, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                  num_key_value_heads=1, head_dim=16, sliding_window=8,
                                  layer_types=["sliding_attention", "full_attention"])  # fmt: skip
        reader.model = Gemma3ForCausalLM(config).eval()
    shots, queries = episode(2), [example(i, "how?") for i in range(3)]
    shared = read(reader, FORMAT, shots)
    with torch.no_grad():
        expected = torch.tensor([[log_prob(anew(q, shots), " " + a, reader).sum() for a in ANSWERS] for q in queries])
    for _ in range(2):
        torch.testing.assert_close(score(reader, shared, queries, ANSWERS, normalise=False), expected, **EXACT)
    texts = reader.generate(reader.prompt([anew(q, shots) for q in queries]), max_new_tokens=5, do_sample=False)
    assert answer(reader, shared, queries, 5) == [text.partition("\n")[0].strip() for text in texts]


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ("{question}", r"format: got '{question}', expected {answer} once, after the other placeholders"),
        ("{answer} {answer}", r"got '{answer} {answer}', expected {answer} once"),
        ("{answer} {question}", r"got '{answer} {question}', expected {answer} once, after"),
        ("{imgae}{answer}", r"got {imgae} in '{imgae}{answer}', expected a known placeholder; did you mean 'image'\?"),
        ("{}{answer}", r"got {} in '{}{answer}', expected a known placeholder"),
        ("{image}{audio}{answer}", r"got '{image}{audio}{answer}', expected .* {image} or {audio} at most once"),
        ("{question}{question}{answer}", r"got '{question}{question}{answer}', expected {question} at most once"),
        (" {answer}\n", r"got ' {answer}\\n', expected something before {answer}"),
        ("no placeholder", r"got 'no placeholder', expected {answer} once"),
    ],
)
def test_a_wrong_format(shot, message):
    with pytest.raises(UserError, match=message):
        Format(shot)


def test_what_an_example_lacks_or_has_too_much_of():
    wrong = [
        (FORMAT, Example("what?", "red"), r"images of 'what\?': got 0, expected 1, as many as placeholders in '{image}Q"),
        (FORMAT.blind(), example(1, "what?", "red"), r"images of 'what\?': got 1, expected 0, .*; add {image} to the format"),
        (FORMAT, example(1, answer=" "), "answer of the shot 'whatwhat': got ' ', expected one"),
        (FORMAT, Example(" ", "red", torch.zeros(1, READER.width)), "question: got ' ', expected what .* has place for"),
        (Format("A:{answer}"), Example("who?", "red"), r"question: got 'who\?', expected what 'A:{answer}' has place for"),
        (FORMAT, Example("a", "b", torch.zeros(2, 5)), r"prefix: got shape \(2, 5\), expected \(n, 32\)"),
    ]
    for format, shown, message in wrong:
        with pytest.raises(UserError, match=message):
            read(READER, format, Episode([shown]))
    with pytest.raises(UserError, match="images of 'b': got 0, expected 1"):
        score(READER, read(READER, FORMAT, episode()), [example(1), Example("b")], ["yes"])
    with pytest.raises(UserError, match="repeats: got -1"):
        Episode(repeats=-1)


def test_a_prompt_longer_than_the_context_says_how_many_shots_fit():
    format = Format("{question}{answer};")  # 10 tokens a shot, of 256
    shots = [Example("a" * 8, "b")] * 30
    with pytest.raises(UserError, match=r"prompt: got 300 tokens with 30 shots, expected at most 256, .*; 25 shots fit"):
        read(READER, format, Episode(shots))
    shared = read(READER, format, Episode(shots[:25]))
    score(READER, shared, [Example("q" * 5)], ["a"])  # 256 of 256
    with pytest.raises(UserError, match=r"got 258 tokens with 25 shots, expected at most 256, .*; 24 shots fit"):
        score(READER, shared, [Example("q"), Example("q" * 5)], ["a", "abc"])
    with pytest.raises(UserError, match=r"got 300 tokens with 25 shots.*; 20 shots fit"):
        answer(READER, shared, [Example("q" * 10)], max_tokens=40)
    with pytest.raises(UserError, match=r"got 301 tokens with 0 shots, expected at most 256, .*; shorten the question"):
        score(READER, read(READER, format), [Example("q" * 300)], ["a"])


def test_wrong_answers_and_queries():
    shared = read(READER, FORMAT, episode())
    for answers, message in (
        ([], "answers: got none, expected a list of texts"),
        (["yes", "no", " yes"], "answers: got ' yes' twice, expected different texts"),
        (["yes", " "], "answers: got ' ', expected different texts"),
    ):
        with pytest.raises(UserError, match=message):
            score(READER, shared, [example(1)], answers)
    with pytest.raises(UserError, match="queries: got none"):
        score(READER, shared, [], ["yes"])
    with pytest.raises(UserError, match="batch_size: got 0"):
        score(READER, shared, [example(1)], ["yes"], batch_size=0)
    with pytest.raises(UserError, match="max_tokens: got 0"):
        answer(READER, shared, [example(1)], max_tokens=0)
