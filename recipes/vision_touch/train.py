"""Vision and touch in one code by self-supervision, and its robustness to occlusion and pushes.

mmgen train vision_touch                               # peg insertion, simulated the first time; pip install 'mmgen[robotics]'
accelerate launch recipes/vision_touch/train.py --config recipes/vision_touch/gpu.yaml
"""

import sys
from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.utils import flow_to_image
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import read_card
from mmgen.data.rows import spread
from mmgen.data.touch import CAMERA, Transitions
from mmgen.models.vision_touch import NEGATIVES, TOUCH, VISION, VisionTouch, end_point_error
from mmgen.training.recipe import Recipe
from mmgen.training.result import Figures, Result
from mmgen.training.run import Run
from mmgen.training.stages.vision_touch import CODES, STAGES, VisionTouchConfig

AT_ONCE = 128  # moments that are read together in evaluation
SHOWN = 12  # moments in the report
PUSHED = ("push", "moving_hole")  # disturbances of the world, each a split of the card, ``test_NAME``


@torch.no_grad()
def scores(model: VisionTouch, data: Transitions, what: str, without: Sequence[str] = ()) -> Figures:
    """The figures of one model on all moments, with some senses missing.

    ``contact_accuracy``, that of ``_persistence`` (contact stays as it is) and of ``_chance`` (the more frequent answer);
    ``pairing_accuracy`` and ``pairing_accuracy_hard``, the mean of the accuracies on pairs and on far, or near, touch, and
    ``pairing_accuracy_force`` where the force alone is swapped; ``flow_epe_ratio``, the mean end-point error at the picture's
    own resolution over that of no flow; ``pose_error_ratio``, the mean error of the standardised displacement over that of no
    motion.
    """
    sums: Counter[str] = Counter()

    def add(name: str, values: torch.Tensor) -> None:
        sums[name] += values.double().sum().item()

    still = -torch.tensor(model.processors["displacement"].mean) / torch.tensor(model.processors["displacement"].std)
    groups = [[s for s in group if s in model.senses] for group in (VISION, TOUCH)]
    for start in tqdm(range(0, len(data), AT_ONCE), desc=what, dynamic_ncols=True):
        batch = collate([data[i] for i in range(start, min(start + AT_ONCE, len(data)))]).to(processes.device())
        senses = batch.without(*without)
        found = model.predict(senses)
        add("contact", (found.contact.probs > 0.5) == (batch["contact"] > 0.5))
        add("touching", batch["contact"])
        add("stays", batch["contact"] == batch["touching"])
        for name, guess in (("pose", found.displacement.mean), ("still", still.to(model.step.device))):
            add(name, (guess - batch["displacement"]).square().sum(1).sqrt())
        if found.flow is not None and "image" in senses:
            flow = torch.nn.functional.interpolate(found.flow.finest, batch["flow"].shape[2:], mode="bilinear")
            add("flow", end_point_error(flow, batch["flow"]))
            add("no_flow", end_point_error(torch.zeros_like(flow), batch["flow"]))
        if found.pairing is None or not all(any(s in senses for s in group) for group in groups if group):
            continue
        paired = found.pairing.probs > 0.5
        add("pairs", torch.ones(batch.size))
        add("paired", paired)
        for other in NEGATIVES:
            swapped = {s: batch[f"{other}_{s}"] for s in TOUCH if s in senses}
            q = model.encode(Batch({**senses.values, **swapped}, present=senses.present))
            add(other, unpaired := model.decode(q.mean, "pairing").probs <= 0.5)
            if other == "near":  # where the force alone is of another moment
                force = batch["force_alone"] > 0.5
                add("force", force)
                add("by_force", unpaired[force])
                add("paired_force", paired[force])
    n = len(data)
    figures = {"contact_accuracy": sums["contact"] / n, "pose_error_ratio": sums["pose"] / sums["still"]}
    if sums["no_flow"]:
        figures["flow_epe_ratio"] = sums["flow"] / sums["no_flow"]
    if sums["pairs"]:
        figures["pairing_accuracy"] = (sums["paired"] + sums["far"]) / (2 * n)
        figures["pairing_accuracy_hard"] = (sums["paired"] + sums["near"]) / (2 * n)
    if sums["force"]:
        figures["pairing_accuracy_force"] = (sums["paired_force"] + sums["by_force"]) / (2 * sums["force"])
    figures["contact_accuracy_persistence"] = sums["stays"] / n  # contact stays as it is
    figures["contact_accuracy_chance"] = max(sums["touching"], n - sums["touching"]) / n
    return figures


def evaluate(run: Run, config: VisionTouchConfig, split: str) -> Result:
    """`scores` of the models of all senses, of vision and of touch, and of the first under each disturbance.

    ``occlusion`` and ``noise`` change the split's senses; ``no_NAME`` takes a sense, or all of vision or touch, away without
    training anew; ``push`` and ``moving_hole`` are splits of the card, tried with ``test`` only. ``occlusion_kept`` is the
    fraction of the contact accuracy above chance retained under occlusion, ``_persistence`` of that above persistence.
    """
    models = {name: run.load(name) for name in CODES}
    files, model = config.data.files(split), models["full"]
    data = Transitions(files, model.processors)
    figures = scores(model, data, split)
    found = {name: scores(models[name], data, f"{name} alone") for name in ("vision", "touch")}
    found |= {name: scores(model, Transitions(files, model.processors, name), name) for name in CAMERA}
    gone = {**{sense: (sense,) for sense in model.senses}, "vision": VISION, "touch": TOUCH}
    found |= {f"no_{name}": scores(model, data, f"without {name}", senses) for name, senses in gone.items()}
    if split == "test":  # recordings have no such episodes
        names = [name for name in PUSHED if f"test_{name}" in read_card(config.data.card).splits]
        pushed = {name: Transitions(config.data.files(f"test_{name}"), model.processors) for name in names}
        found |= {name: scores(model, one, name) for name, one in pushed.items()}
    result = Result("full")
    accuracy, covered = figures["contact_accuracy"], found["occlusion"]["contact_accuracy"]
    for end, baseline in (("", "chance"), ("_persistence", "persistence")):
        result.about[f"occlusion_kept{end}"] = kept(accuracy, covered, figures[f"contact_accuracy_{baseline}"])
    chance = figures["contact_accuracy_chance"]
    for name, of in {"full": figures, **found}.items():
        baselines = {baseline: of.pop(f"contact_accuracy_{baseline}") for baseline in ("persistence", "chance")}
        result[name] = of
        if name == "full" or baselines["chance"] != chance:  # of other episodes
            of_name = "" if name == "full" else f"_{name}"
            result.update({f"{baseline}{of_name}": {"contact_accuracy": value} for baseline, value in baselines.items()})
    result.labels = {**{system: system.replace("_", " ") for system in result}, "full": "all senses"}
    show(result, model, data)
    return result


def kept(accuracy: float, covered: float, low: float) -> float:
    """Retained fraction of the accuracy above a baseline ``low``; 0 if ``accuracy`` is not above it."""
    return (covered - low) / (accuracy - low) if accuracy > low else 0.0


@torch.no_grad()
def show(result: Result, model: VisionTouch, data: Transitions) -> None:
    """Show moments with their predictions: the picture, the true flow and the predicted one."""
    places = spread(len(data), SHOWN)
    batch = collate([data[i] for i in places]).to(model.step.device)
    found = model.predict(batch)
    flow = torch.nn.functional.interpolate(found.flow.finest, batch["flow"].shape[2:], mode="bilinear")
    flows = [flow_to_image(torch.cat([true, ours], 2).cpu()) for true, ours in zip(batch["flow"], flow)]
    for i, place in enumerate(places):
        sheet = Image.new("RGB", (3 * 96 + 8, 96), "#5c6773")
        halves = [Image.fromarray(half.permute(1, 2, 0).numpy()) for half in flows[i].chunk(2, 2)]
        for column, part in enumerate([model.processors["image"].decode(batch["image"][i]), *halves]):
            sheet.paste(part.resize((96, 96), Image.Resampling.NEAREST), (column * 100, 0))
        number, t = data.place(place)
        truth = "contact" if batch["contact"][i] else "no contact"
        text = f"p(contact next) {found.contact.probs[i]:.2f}, truth: {truth}; p(of one moment) {found.pairing.probs[i]:.2f}"
        group = "picture, true flow, predicted flow"
        result.show(sheet, {"predicted": text}, note=f"episode {number}, moment {t}", group=group)


RECIPE = Recipe(
    "vision_touch", VisionTouchConfig, STAGES, evaluate, main="full",
    above={"contact_accuracy": ("contact_accuracy_vision", "contact_accuracy_touch")},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "vision_touch", *sys.argv[1:]]))
