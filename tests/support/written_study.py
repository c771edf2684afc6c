"""A study of a few seconds per model over CPython's own documentation, with every kind of method."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import yaml

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items())]
SMALL_RECIPE = [
    "demo",
    "model.n_embd=16",
    "model.n_layer=1",
    "model.n_head=2",
    "max_duration=10ba",
    "global_train_batch_size=4",
    "scheduler.t_warmup=1ba",
]
METHODS: dict[str, Any] = {
    "base": {},
    "crisp": {"level": 2, "base_share": [0.0, 0.5], "transfer": True},
    "multitask": {"level": 1},
    "classifier": {"share": 0.2},
    "nearest": {"share": 0.2, "num_seeds": 1, "specialists": ["statements"]},
    "dsir": {"share": 0.2, "num_seeds": 1, "specialists": ["statements"]},
    "doge": {"proxy": [*SMALL_RECIPE, "max_duration=2ba"], "num_seeds": 1, "specialists": ["statements"]},
    "only-specialist": {"num_seeds": 1, "specialists": ["statements"]},
    "continued": {"kind": "crisp", "generic_share": 0.5, "num_seeds": 1, "specialists": ["statements"]},
    "third": {"kind": "crisp", "dataset": "third", "num_seeds": 1, "specialists": ["statements"]},
}


def write_texts(folder: Path) -> Path:
    """A corpus, the documents of one task in three files, and a set of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"train": TOPICS[:8], "val": TOPICS[8:11], "test": TOPICS[11:15]}
    files = {f"statements.{split}.jsonl": [text[:600] for text in texts] for split, texts in own.items()}
    files |= {"corpus.jsonl": TOPICS[15:70], "corpus.test.jsonl": [text[:600] for text in TOPICS[70:]]}
    for name, texts in files.items():
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    questions = [
        {"question": f"What does {first} of {number} give, and why?", "choices": [first, second, "none"], "answer": 0}
        for number, (first, second) in enumerate(zip(TOPICS[0].split()[:24], TOPICS[1].split()[:24], strict=True))
    ]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


def small_study(**changes: Any) -> dict[str, Any]:
    """The keys of its file."""
    corpus = {"inputs": ["{text}/corpus.jsonl"], "window_tokens": 32, "vocab_size": 512, "encoder": "lsi"}
    corpus |= {"arity": 4, "depth": 2, "min_split": 8}
    study = {
        "name": "small-test",
        "recipe": SMALL_RECIPE,
        "datasets": {"all": corpus, "third": {**corpus, "sample": 0.4, "like": "all"}},
        "generalist_test": ["{text}/corpus.test.jsonl"],
        "specialists": {
            "statements": {
                "train": ["{text}/statements.train.jsonl"],
                "validation": ["{text}/statements.val.jsonl"],
                "test": ["{text}/statements.test.jsonl"],
            },
            "exam": {"questions": "{text}/exam.jsonl"},
        },
        "seeds": [1, 2],
        "methods": METHODS,
        "finetune": {"methods": ["base", "crisp"], "fractions": [0.2, 0.5]},
        "curves": [{"along": "clusters", "methods": ["base", "crisp"]}],
        "tags": {"text": "documentation"},
    }
    return {key: value for key, value in (study | changes).items() if value is not None}


def write_study(path: Path, **changes: Any) -> Path:
    """The file."""
    path.write_text(yaml.safe_dump(small_study(**changes), sort_keys=False))
    return path
