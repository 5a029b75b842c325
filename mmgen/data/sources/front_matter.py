"""Checks of a data card's front matter: the fields of a Hugging Face dataset card, and ours under ``mmgen``."""

import re
from typing import Any

from mmgen.data.sources import places
from mmgen.data.sources.columns import check_column
from mmgen.data.sources.files import escapes
from mmgen.data.sources.places import kind_of
from mmgen.data.sources.readers import READERS
from mmgen.errors import UserError, nearest

# licence ids of Hugging Face dataset cards that apply to data
LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "c-uda",
    "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "ecl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by", "ofl-1.1", "openrail", "other", "pddl", "unknown", "unlicense",
    "wtfpl", "zlib",
}  # fmt: skip
SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "n>10B"]
REQUIRED = ("pretty_name", "license", "task_categories", "size_categories", "mmgen")
FIELDS = {
    "annotations_creators", "configs", "dataset_info", "language", "language_creators", "language_details", "license",
    "license_details", "license_link", "license_name", "mmgen", "modalities", "multilinguality", "paperswithcode_id",
    "pretty_name", "size_categories", "source_datasets", "tags", "task_categories", "task_ids", "thumbnail", "viewer",
}  # fmt: skip
MMGEN_FIELDS = ("sources", "columns", "splits")


def check_front_matter(card: str, front: dict[str, Any], prose: str) -> list[UserError]:
    """List all mistakes of a card that can be found without the data.

    Args:
        card: name of the card in messages.
        front: the front matter.
        prose: the text below it.

    Returns:
        The mistakes; empty when there are none.
    """
    problems = []

    def wrong(what: str, got: Any, expected: str, fix: str) -> None:
        problems.append(UserError(f"{card}: {what}", got=got, expected=expected, fix=fix))

    for name in REQUIRED:
        if not front.get(name):
            wrong(name, "nothing", "a value", f"add {name} to the front matter")
    for name in front:
        if name not in FIELDS:
            wrong("field", name, "a field of a Hugging Face dataset card", nearest(str(name), FIELDS))
    licences = front.get("license") or []
    for licence in licences if isinstance(licences, list) else [licences]:
        if str(licence) not in LICENSES:
            wrong("license", licence, "a licence id of a Hugging Face dataset card", nearest(str(licence), LICENSES))
        if licence == "other" and not front.get("license_name"):
            wrong("license_name", "nothing", "the name of a licence that is `other`", "add license_name")
    for name in ("language", "task_categories", "size_categories", "tags"):
        values = front.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            wrong(name, values, "a list of words", f"write {name}: [...], with quotes around no and yes")
        elif name == "size_categories" and set(values) - set(SIZES):
            wrong(name, values, f"some of {', '.join(SIZES)}", "choose the one that contains the number of rows")
    if not prose.strip():
        wrong("prose", "nothing", "where the data come from and what they must not be used for", "write it below ---")
    ours = front.get("mmgen") or {}
    if not isinstance(ours, dict):
        wrong("mmgen", ours, "a mapping", f"give it {', '.join(MMGEN_FIELDS)}")
        return problems
    for name in ours:
        if name not in MMGEN_FIELDS:
            wrong("mmgen", name, "a known field", nearest(str(name), MMGEN_FIELDS))
    parts = {}
    for name, kind in (("sources", list), ("columns", dict), ("splits", dict)):
        parts[name] = ours.get(name)
        if front.get("mmgen") and (not isinstance(parts[name], kind) or not parts[name]):
            wrong(f"mmgen.{name}", parts[name], f"a {kind.__name__} with at least one entry", f"add {name}")
            parts[name] = kind()
    for name, spec in (parts["columns"] or {}).items():
        problems += check_column(f"{card}: columns.{name}", spec)
    counts = {"splits": parts["splits"] or {}}
    for i, source in enumerate(parts["sources"] or []):
        problems += _source_problems(f"{card}: sources[{i}]", source)
        if isinstance(source, dict) and "splits" in source:
            counts[f"sources[{i}].splits"] = source["splits"]
    for what, splits in counts.items():
        if not isinstance(splits, dict):
            wrong(what, splits, "split: number of rows", "write splits: {train: 800, test: 100}")
            continue
        for name, count in splits.items():
            if not re.fullmatch(r"\w+", str(name)):
                wrong(what, name, "a split's name of letters, digits and _", "rename it")
            if type(count) is not int or count < 1:
                wrong(f"{what}.{name}", count, "its number of rows", "count the rows and write it")
    return problems


def _source_problems(what: str, source: Any) -> list[UserError]:
    kind = kind_of(source) if isinstance(source, dict) else ""
    if not kind:
        return [UserError(what, got=source, expected=f"one of {', '.join(places.KINDS)}", fix="name exactly one place")]
    problems = []
    value, (of, extra) = source[kind], places.KINDS[kind]
    if not isinstance(value, of) or not value or (of is list and not all(isinstance(v, str) for v in value)):
        expected = "a text" if of is str else "a list of names" if of is list else "split: a list of words"
        problems.append(UserError(f"{what}.{kind}", got=value, expected=expected, fix="correct it"))
    elif kind in ("path", "sdist") and escapes(value):
        fix = "write it relative to the card's folder or to MMGEN_DATA, without .."
        expected = "a path that stays inside the card's folder or MMGEN_DATA"
        problems.append(UserError(f"{what}.{kind}", got=value, expected=expected, fix=fix))
    elif kind == "cards" and not all(re.fullmatch(r"\w+", name) for name in value):
        fix = "take a name from `mmgen data list`"
        problems.append(UserError(f"{what}.cards", got=value, expected="names of cards that come with mmgen", fix=fix))
    elif kind == "inline":
        for split, words in value.items():
            wrong = [w for w in words if not isinstance(w, str)] if isinstance(words, list) else [words]
            if wrong or not words:
                got, fix = wrong[0] if wrong else "none", "write [word, ...], with quotes around no and yes"
                problems.append(UserError(f"{what}.inline.{split}", got=got, expected="a list of words", fix=fix))
    known = [kind, *extra, "reader", "splits", "rename"]
    for key in source:
        if key not in known:
            problems.append(UserError(what, got=key, expected="a known key", fix=nearest(str(key), known)))
    reader = source.get("reader")
    if reader == "inferred" and kind not in ("path", "hub"):
        fix = "name the folder, the table or the data set, or choose another reader"
        problems.append(UserError(f"{what}.reader", got="inferred", expected="a source of kind path or hub", fix=fix))
    if str(reader) not in READERS:
        problems.append(UserError(f"{what}.reader", got=reader, expected="a known reader", fix=nearest(str(reader), READERS)))
    return problems
