"""Facts about people, places and programs that do not exist, the same on every machine.

Prompts follow a few templates. Some end with an n-gram of their own (a name), others with one that
all facts of the template and much other text share ("was born in").
"""

from __future__ import annotations

import random

_BEGINS = (
    "bal bren cor dra fen gal har jor kel lor mar nor ol per quil ras sel tor ul ver wen yar zel"
)
_MIDDLES = "a e i o u an en ir or ul"
_ENDS = "bek dan dor fin gar hest lan mir nok path rick sen tash vek vin wyn xan"
_JOBS = (
    "a clockmaker", "a beekeeper", "a cartographer", "an organ builder", "a glass blower",
    "a bridge engineer", "a seed collector", "a lighthouse keeper", "a map printer",
    "a violin teacher",
)  # fmt: skip
_GOODS = ("amber", "blue salt", "cork", "dried plums", "felt", "indigo", "lamp oil", "resin",
          "slate", "walnut wood")  # fmt: skip
_TEMPLATES = (
    ("{person} was born in the town of", " {place}"),
    ("The capital of {place} is", " {other}"),
    ("{person} earns a living as", " {job}"),
    ("The village of {place} is known for its", " {good}"),
    ("{person} is married to", " {partner}"),
    ("The option of {program} that writes a log is called", " --{flag}"),
    ("The battle of {place} was fought in the year", " {year}"),
    ("The program {program} was written by", " {person}"),
    ("The river {place} flows into the", " {other}"),
    ("If {program} fails, it exits with the code", " {code}"),
)


def invented_facts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` facts, each a `prompt` and a `target`; no two have the same prompt."""
    draw = random.Random(seed)
    facts: list[dict[str, str]] = []
    prompts: set[str] = set()
    while len(facts) < count:
        prompt, target = _TEMPLATES[len(facts) % len(_TEMPLATES)]
        names = {
            "person": f"{_name(draw)} {_name(draw)}",
            "partner": f"{_name(draw)} {_name(draw)}",
            "place": _name(draw),
            "other": _name(draw),
            "program": _name(draw).lower(),
            "flag": f"{_name(draw).lower()}-file",
            "job": draw.choice(_JOBS),
            "good": draw.choice(_GOODS),
            "year": str(draw.randint(1101, 1899)),
            "code": str(draw.randint(130, 250)),
        }
        made = {"prompt": prompt.format(**names), "target": target.format(**names)}
        if made["prompt"] not in prompts:
            prompts.add(made["prompt"])
            facts.append(made)
    return facts


def _name(draw: random.Random) -> str:
    middle = draw.choice(_MIDDLES.split()) if draw.random() < 0.6 else ""
    return (draw.choice(_BEGINS.split()) + middle + draw.choice(_ENDS.split())).capitalize()
