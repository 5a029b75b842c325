"""`mmgen steer`: texts that depend on their own seed alone, ranking, and one line for every mistake."""

import json
import math
from dataclasses import fields
from inspect import signature

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TopKLogitsWarper

from mmgen.cli import main
from mmgen.conditioning.attributes import BagOfWords, Discriminator, State, Together
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.ranking import OwnNoise, text_log_prob
from mmgen.conditioning.reweighting import Fudge
from mmgen.data.batch import Batch
from mmgen.data.vector import VectorProcessor
from mmgen.errors import UserError
from mmgen.inference.steer import GIVEN, METHODS, SAMPLING, best, steer, words_raised, write
from mmgen.inference.targets import attribute, bag, experts
from mmgen.metrics.diversity import distinct
from mmgen.models.base import load
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier

MODEL, TOKENIZER = load_language_model("tiny", "fp32")
LETTERS = BagOfWords(MODEL, TOKENIZER, ["z", "q"])


def encode(*texts: str) -> torch.Tensor:
    return torch.tensor([TOKENIZER(text).input_ids for text in texts])


@torch.no_grad()
def test_log_probs_of_texts_by_hand():
    """Of a bag the mean over positions, of a head that of the whole text, whatever is padded on either side."""
    ids, start = encode("hello all")[0], 3
    log_p = MODEL(ids[None], output_hidden_states=True)
    hidden, log_p = log_p.hidden_states[-1][0], log_p.logits[0].log_softmax(-1)
    padded = torch.cat([torch.tensor([7, 7]), ids, torch.tensor([9])])[None]
    mask = torch.tensor([[False] * 2 + [True] * len(ids) + [False]])
    places = range(start, len(ids))
    fluent = sum(log_p[i - 1, ids[i]] for i in places) / len(places)
    likely = sum(LETTERS.log_prob(State(ids[None, :i], log_p[None, i - 1])) for i in places) / len(places)
    found = text_log_prob(MODEL, padded, mask, start + 2, LETTERS)
    torch.testing.assert_close(found, (likely, fluent[None]), atol=1e-4, rtol=1e-4)
    head = Discriminator(torch.nn.Linear(32, 2), 1)
    expected = head.head(hidden.mean(0)).log_softmax(-1)[1]
    torch.testing.assert_close(text_log_prob(MODEL, padded, mask, start + 2, head)[0][0], expected, atol=1e-4, rtol=1e-4)
    assert text_log_prob(MODEL, padded, mask, start + 2)[0].item() == 0


@torch.no_grad()
def test_each_of_several_attributes_is_told_by_its_own_rule():
    """A bag by the mean over positions, a head by the whole text, whatever is padded on the right."""
    ids = torch.cat([encode("hello all"), torch.tensor([[9, 9]])], 1)
    mask = torch.ones_like(ids).bool()
    mask[:, -2:] = False
    head = Discriminator(torch.nn.Linear(32, 2), 1)
    bag_of, of_head = (text_log_prob(MODEL, ids, mask, 3, part)[0] for part in (LETTERS, head))
    both = text_log_prob(MODEL, ids, mask, 3, Together([(LETTERS, 2.0), (head, 0.5)]))[0]
    torch.testing.assert_close(both, 2 * bag_of + 0.5 * of_head)


def test_characters_of_several_tokens_stay_whole():
    text = " caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{EM DASH} it\N{RIGHT SINGLE QUOTATION MARK}s"
    tokens = TOKENIZER(text).input_ids  # a token is a byte
    words = words_raised(TOKENIZER, tokens, [1.0] * len(tokens))
    assert "".join(word for word, _ in words) == text and sum(raised for _, raised in words) == len(tokens)


def test_own_noise_samples_from_the_distribution():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().expand(4000, 3)
    drawn = OwnNoise(range(4000))(None, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)  # 4 standard errors
    kept = TopKLogitsWarper(1)(None, scores[:50])
    assert (OwnNoise(range(50))(None, kept).argmax(-1) == 0).all()


def test_a_text_does_not_depend_on_the_others():
    """Eight together are eight alone with the same generators."""
    pplm = PPLM(LETTERS, step_size=0.3, window=3)
    together = steer(MODEL, TOKENIZER, ["hello there", "a"], pplm, n=4, length=8)
    alone = steer(MODEL, TOKENIZER, ["hello there"], pplm, n=4, length=8)
    assert len(together) == 16 and together[:8] == alone
    assert len({row["text"] for row in together}) == 16
    fewer = steer(MODEL, TOKENIZER, ["hello there"], pplm, n=2, length=8)
    assert fewer == alone[:4]


def test_no_step_leaves_every_text_as_it_is():
    rows = steer(MODEL, TOKENIZER, ["hello"], PPLM(LETTERS, step_size=0.0), n=3, length=8)
    for unsteered, steered in zip(rows[::2], rows[1::2]):
        assert {**unsteered, "arm": "steered"} == steered


def test_steering_and_ranking_raise_the_attribute():
    def mean(arm: str, **settings) -> float:
        rows = steer(MODEL, TOKENIZER, ["hello", "so"], PPLM(LETTERS, step_size=0.3), n=4, length=8, **settings)
        found = [row["attribute"] for row in rows if row["arm"] == arm]
        return sum(found) / len(found)

    assert mean("unsteered") < mean("steered")
    assert mean("unsteered") < mean("unsteered", candidates=4)
    assert mean("steered") < mean("steered", candidates=4)


def test_a_candidate_that_repeats_itself_is_not_kept():
    texts = [{"text": "moon moon moon", "attribute": 3.0}, {"text": "the moon rose", "attribute": 1.0}]
    assert best(texts, 0.9) == texts[1]
    assert best(texts[:1], 0.9) == best(texts) == texts[0]  # unless none has


def test_distinct_by_hand():
    assert distinct(["a b c", "a b d"], 2) == 3 / 4
    assert distinct(["a"], 3) == 0
    for texts, n in (([], 1), ("abc", 1), (["a"], 0)):
        with pytest.raises(ValueError, match="texts and n: got"):
            distinct(texts, n)


def test_command(capsys, tmp_path):
    (tmp_path / "my.txt").write_text("moon\n\nstar\n", encoding="utf-8")
    arguments = ["--prompt", "hello", "--prompt", "so", "--bag", str(tmp_path / "my.txt"), "--bag", "space", "--n", "2"]
    options = ["--length", "4", "--json", str(tmp_path / "f.json"), "step_size=0.1", "top_k=5", "decay=true", "window=2"]
    assert main(["steer", "tiny", *arguments, *options]) == 0
    rows = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in rows] == ["unsteered", "steered"] * 4
    assert all(math.isfinite(row["attribute"]) and row["perplexity"] > 1 for row in rows)
    shown = capsys.readouterr().out
    assert shown.count("unsteered (log p(attribute) ") == 4 and shown.count("perplexity") == 8
    assert f"bag {tmp_path / 'my.txt'}: 2 words, 0 of one token\nbag space: 72 words, 0 of one token" in shown  # bytes


def test_the_help_tells_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["steer", "--help"])
    told = " ".join(capsys.readouterr().out.split())  # however the lines are broken
    settings = [(f.name, f.default) for kind in METHODS.values() for f in fields(kind) if f.name not in GIVEN]
    of_sampling = {**signature(write).parameters, **signature(steer).parameters}
    for name, default in settings + [(name, of_sampling[name].default) for name in SAMPLING]:
        assert f"{name}={str(default).lower()}" in told


def test_command_by_a_look_ahead(capsys):
    arguments = ["--prompt", "hello", "--bag", "space", "--length", "4", "strength=2.0", "top=30", "top_k=0"]
    assert main(["steer", "tiny", "--method", "fudge", *arguments]) == 0
    assert capsys.readouterr().out.count("steered (log p(attribute) ") == 2


def test_bags_by_name_and_by_file(tmp_path):
    assert "planet" in bag("space", MODEL, TOKENIZER).tokens
    (tmp_path / "weighed.txt").write_text("moon\t2.5\nstar\n\n", encoding="utf-8")
    state = State(encode("hello"), torch.randn(1, len(TOKENIZER)).log_softmax(-1))
    by_file, by_hand = bag(str(tmp_path / "weighed.txt"), MODEL, TOKENIZER), {"moon": 2.5, "star": 1.0}
    assert by_file.log_prob(state) == BagOfWords(MODEL, TOKENIZER, by_hand).log_prob(state)
    (tmp_path / "wrong.txt").write_text("star\n\nmoon\tmuch\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"wrong.txt: line 3: weight of 'moon': got much, expected a number above 0"):
        bag(str(tmp_path / "wrong.txt"), MODEL, TOKENIZER)
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"bag .*latin: got .*, expected a text with a word a line"):
        bag(str(tmp_path / "latin"), MODEL, TOKENIZER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bag", "space"], "--prompt: got none"),
        (["--prompt", "a"], "--bag, --attribute or --toward: got none"),
        (["--prompt", "", "--bag", "space"], "prompt: got '', expected at least one token"),
        (["--prompt", "a", "--bag", "spcae"], "bag: got spcae, expected a known name; did you mean 'space'?"),
        (
            ["--prompt", "a", "--bag", "space", "stepsize=1"],
            "option: got stepsize, expected a known name; did you mean 'step_size'?",
        ),
        (
            ["--prompt", "a", "--bag", "space", "--method", "pplmm"],
            "method: got pplmm, expected a known name; did you mean 'pplm'?",
        ),
        (
            ["--prompt", "a", "--bag", "space", "--method", "fudge", "step_size=1"],
            "option: got step_size, expected a known name",
        ),
        (["--prompt", "a", "--bag", "space", "window=2.5"], "option window: got 2.5, expected int"),
        (["--prompt", "a", "--bag", "space", "step_size=-1"], "step_size: got -1"),
        (["--prompt", "a", "--bag", "space", "temperature=0"], "temperature: got 0, expected a finite number above 0"),
        (["--prompt", "a", "--bag", "space", "temperature=.inf"], "temperature: got inf, expected a finite number above 0"),
        (["--prompt", "a", "--bag", "space", "gamma=-1"], "gamma: got -1, expected a number >= 0"),
        (["--prompt", "a", "--bag", "./no.txt"], "bag ./no.txt: got no such file, expected a topic, or a file with a word"),
        (["--prompt", "a", "--bag", "space", "top_p=2.0"], "top_p: got 2.0, expected above 0 and at most 1"),
        (["--prompt", "a", "--bag", "space", "--n", "0"], "n: got 0"),
        (["--prompt", "hi", "--bag", "space", "--length", "256"], "the context of this language model; lower --length to 25"),
        (["--prompt", "hi " * 300, "--bag", "space", "--length", "1"], "this language model; shorten the prompt"),
        (["--prompt", "a", "--bag", "space", "--dtype", "int8"], "dtype: got int8"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert main(["steer", "tiny", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    for name, width, modality in (("good", 32, "hidden"), ("wide", 48, "hidden"), ("other", 32, "x")):
        model = Classifier(modality, "vector", [width], 2, {"hidden": [], "dim": 8}, ["negative", "positive"])
        model.processors["hidden"] = VectorProcessor([0.5] * width, [2.0] * width)
        model.save_pretrained(folder / name)
    return folder


@torch.no_grad()
def test_an_attribute_is_the_class_of_standardised_hidden_states(head):
    made, model = attribute("positive", str(head / "good"), MODEL), load(head / "good")
    hidden = torch.randn(3, 32)
    expected = model.predict(Batch({"hidden": (hidden - 0.5) / 2})).logits.log_softmax(-1)[:, 1]
    torch.testing.assert_close(made.log_prob(State(None, None, hidden)), expected)


def test_command_with_an_attribute_and_a_bag(head, capsys):
    arguments = ["--prompt", "hello", "--attribute", "positive", "--head", str(head / "good"), "--length", "4"]
    assert main(["steer", "tiny", *arguments]) == 0
    assert main(["steer", "tiny", *arguments, "--bag", "space"]) == 0
    assert capsys.readouterr().out.count("steered (log p(attribute) ") == 4


@torch.no_grad()
def test_what_steering_raised_is_the_steered_over_the_own_probability():
    """A text of one token, whose two distributions are found anew."""
    bag_of, prompt = PPLM(LETTERS, step_size=0.3), "hello"
    unsteered, steered = steer(MODEL, TOKENIZER, [prompt], bag_of, length=1, top_k=1, traced=True)
    assert unsteered["words"] == [(unsteered["text"], 0.0)]
    scores = []
    keep = [lambda ids, given: scores.append(given.clone()) or given]
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "logits_processor": keep}
    ids = MODEL.generate(encode(prompt), custom_generate=bag_of, **options)[0, -1]
    own = MODEL(encode(prompt)).logits[0, -1].log_softmax(-1)
    ((word, raised),) = steered["words"]
    assert word == steered["text"] and raised == pytest.approx((scores[0].log_softmax(-1)[0] - own)[ids].item(), abs=1e-4)


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_a_cut_to_the_likeliest_tokens_raises_nothing(strength):
    method = Fudge(LETTERS, strength=strength, top=2)
    _, steered = steer(MODEL, TOKENIZER, ["hello"], method, length=6, top_k=0, traced=True)
    raised = [more for _, more in steered["words"]]
    assert (raised == pytest.approx([0.0] * len(raised), abs=1e-4)) == (strength == 0)


def test_words_are_their_tokens_together():
    tokens = TOKENIZER(" the moon rose").input_ids  # a token is a byte
    words = words_raised(TOKENIZER, tokens, [1.0] * len(tokens))
    assert words == [(" the", 4.0), (" moon", 5.0), (" rose", 5.0)]


def test_page(tmp_path):
    """Beside one another, what was raised in colour, and nothing that a browser would run."""
    file, arguments = tmp_path / "page.html", ["--prompt", "<b>hello", "--bag", "space", "--length", "6", "step_size=0.5"]
    assert main(["steer", "tiny", *arguments, "--n", "2", "--html", str(file)]) == 0
    page = file.read_text(encoding="utf-8")
    assert page.count('<section class="texts">') == 2 and page.count("<article>") == 4
    assert "<mark style" in page and "&lt;b&gt;hello" in page and "<b>hello" not in page and "<script" not in page
    assert main(["steer", "tiny", *arguments, "--html", str(tmp_path / "none" / "page.html")]) == 2


@pytest.fixture(scope="module")
def expert_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    ClassLanguageModel(["negative", "positive"], "tiny", "fp32", rank=4).save_pretrained(folder / "stages/experts/model")
    model = Classifier("hidden", "vector", [32], 2, {"hidden": [], "dim": 8}, ["negative", "positive"])
    model.processors["hidden"] = VectorProcessor([0.5] * 32, [2.0] * 32)
    model.save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize("method", ["dexperts", "gedi"])
def test_command_by_experts(method, expert_runs, capsys):
    arguments = ["steer", "tiny", "--prompt", "hello", "--head", str(expert_runs), "--length", "4", "--method", method]
    assert main([*arguments, "--attribute", "positive", "strength=3.0"]) == 0
    assert capsys.readouterr().out.count("steered (log p(attribute) ") == 2
    both = ["--attribute", "positive", "--bag", "space"]
    for more, got in ((["--bag", "space"], "--bag space"), (both, "--bag space, --attribute positive")):
        assert main([*arguments, *more]) == 2
        assert f"--method {method}: got {got}, expected one --attribute and nothing else" in capsys.readouterr().err


def test_experts_that_cannot_be(expert_runs):
    with pytest.raises(UserError, match="attribute: got positiv, expected a known name; did you mean 'positive'"):
        experts("positiv", str(expert_runs), MODEL)
    with pytest.raises(UserError, match="got the model classifier, expected a language model of each class"):
        experts("positive", str(expert_runs / "model"), MODEL)
    wide = LlamaForCausalLM(LlamaConfig(vocab_size=259, hidden_size=48, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match="of 32 numbers and 259 tokens, expected experts of this language model, of 48"):
        experts("positive", str(expert_runs), wide)


@pytest.mark.parametrize(
    ("name", "run", "message"),
    [
        ("positiv", "good", "attribute: got positiv, expected a known name; did you mean 'positive'?"),
        ("positive", "wide", "got hidden states of 48 numbers, expected 32, as this language model has"),
        ("positive", "other", "got the model classifier, expected a classifier of hidden states"),
        ("positive", "none", "got no such folder"),
    ],
)
def test_an_attribute_that_cannot_be(head, name, run, message):
    with pytest.raises(UserError) as error:
        attribute(name, str(head / run), MODEL)
    assert message in str(error.value)


def test_an_empty_bag(capsys, tmp_path):
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    assert main(["steer", "tiny", "--prompt", "a", "--bag", str(tmp_path / "none.txt")]) == 2
    assert "bag: got no words" in capsys.readouterr().err
