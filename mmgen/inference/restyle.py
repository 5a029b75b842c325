"""Lines of text in another style (``mmgen restyle``)."""

from collections.abc import Iterable, Iterator

from mmgen import processes
from mmgen.errors import UserError
from mmgen.models.base import Model


def restyle(model: Model, lines: Iterable[bytes], target: str, at_once: int = 256) -> Iterator[str]:
    """Yield each line in the style ``target``, in order, with its own line ending; blank lines are kept.

    Args:
        model: one with a ``restyle``, such as `mmgen.models.edit.Edit`.
        lines: in UTF-8.
        target: one of the model's styles.
        at_once: number of lines that the model reads together.

    Raises:
        UserError: a model that does not restyle, an unknown style, or bytes that are not UTF-8, after the lines before them.
    """
    if not model.defines("restyle"):
        fix = "give a run of the recipe style_transfer"
        raise UserError("RUN", got=model.name, expected="a model that changes styles", fix=fix)
    model.to(processes.device())
    model.restyle([], target)  # refuses an unknown style before anything is read
    waiting: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            waiting.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield from _restyled(model, waiting, target)
            fix = "convert it, for example by `iconv -f latin1 -t utf-8`"
            raise UserError(f"line {number}", got=str(error), expected="UTF-8", fix=fix) from error
        if len(waiting) == at_once:
            yield from _restyled(model, waiting, target)
            waiting = []
    yield from _restyled(model, waiting, target)


def _restyled(model: Model, lines: list[str], target: str) -> Iterator[str]:
    bodies = [line.rstrip("\r\n") for line in lines]
    for line, body, text in zip(lines, bodies, model.restyle(bodies, target)):
        yield text + line[len(body) :]
