"""What judging costs beside the forward passes that it needs, as Markdown tables.

    python benchmarks/evaluation/bench_eval.py [CKPT --text FILE --mcq FILE] [--limit 300] [--repeats 5] [--width 128]

Without a checkpoint: a random GPT of 4 blocks over 4,096 ids with a context of 128, and text of the language reference
that CPython ships, its questions made of neighbouring sentences.

Sides, taking turns in one run: `bare` makes the forward passes of `eval` again, with the same tensors, and looks at
nothing; `eval` is what the command does with a loaded model, from texts or questions to results, tokenising
included; on questions also lm-eval's own model. Figures are CPU and wall seconds, medians over the
repeats; the ratio is the median of the ratios of each turn.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.evaluation.judge import TextSet
from crisp_stream.evaluation.models import JudgedModel, open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.perplexity import judge_texts
from crisp_stream.evaluation.question_sets import QuestionSet, open_question_set
from crisp_stream.format.tokenizer import EOT_TOKEN
from crisp_stream.models.export import export
from crisp_stream.models.gpt import build_gpt, gpt_config, load_tokenizer
from crisp_stream.writers.windows import train_tokenizer

CONTEXT = 128
Side = Callable[[], object]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of judging beside its forward passes.")
    parser.add_argument("checkpoint", nargs="?", help="an exported folder or a checkpoint; a random model if none")
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--mcq", nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=300, help="documents and questions of each set")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="of the random model")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.checkpoint is None:
            asked.checkpoint = _random_model(folder / "random", asked.width)
            asked.text, asked.mcq = _own_sets(folder)
        _measure(asked, folder)


def _measure(asked: argparse.Namespace, folder: Path) -> None:
    model = open_model(asked.checkpoint)
    gpt = model.loaded.gpt
    print(
        f"{model.record.num_parameters:,} parameters, {gpt.config.vocab_size:,} ids, context {gpt.config.n_positions}"
    )
    print(f"{torch.get_num_threads()} threads; batches of {asked.batch_size} contexts\n")
    print("| set | side | CPU s | wall s | CPU : bare | wall : bare |\n|---|---|---|---|---|---|")
    for file in asked.text:
        texts = TextSet(inputs=(file,), limit=asked.limit)
        _table(texts.name, _text_sides(model, list(texts.read()), asked.batch_size), asked.repeats)
    for file in asked.mcq:
        questions = open_question_set(file).sample(asked.limit)
        sides = _question_sides(model, questions, asked.batch_size)
        sides |= _hflm(_exported(asked.checkpoint, folder / questions.name), questions)
        _table(questions.name, sides, asked.repeats)


def _exported(checkpoint: str, folder: Path) -> str:
    return checkpoint if Path(checkpoint).is_dir() else export(checkpoint, folder)


def _random_model(folder: Path, width: int) -> str:
    """A folder as `export` writes it; the tokenizer is trained on the text that is judged."""
    train_tokenizer(_paragraphs(), folder, vocab_size=4096, window_tokens=CONTEXT)
    tokenizer = load_tokenizer(folder, eot_token=EOT_TOKEN, n_positions=CONTEXT)
    recipe = ModelRecipe(n_embd=width, n_layer=4, n_head=4)
    eot_id: Any = tokenizer.eos_token_id
    config = gpt_config(recipe, vocab_size=len(tokenizer), window_tokens=CONTEXT, eot_id=eot_id)
    build_gpt(config, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _own_sets(folder: Path) -> tuple[list[str], list[str]]:
    """A file of texts, and one of questions: which sentence follows the first of a paragraph."""
    texts, questions = folder / "texts.jsonl", folder / "questions.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in _paragraphs()))
    sentences = [parts for text in _paragraphs() if len(parts := text.split(". ")) > 1]
    rows = [
        {"question": own[0], "choices": [other[1][:150] for other in sentences[at : at + 4]], "answer": 0}
        for at, own in enumerate(sentences[:-3])
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows if all(row["choices"])))
    return [str(texts)], [str(questions)]


def _paragraphs() -> list[str]:
    return [part for article in topics.values() for part in article.split("\n\n") if len(part) > 200]


def _text_sides(model: JudgedModel, texts: list[str], batch_size: int) -> dict[str, Side]:
    def judged() -> object:
        return judge_texts(model, texts, set_name="texts", batch_size=batch_size)

    return {"bare": _replay(model, judged), "eval": judged}


def _question_sides(model: JudgedModel, questions: QuestionSet, batch_size: int) -> dict[str, Side]:
    def judged() -> object:
        return judge_questions(model, questions, batch_size=batch_size)

    return {"bare": _replay(model, judged), "eval": judged}


def _replay(model: JudgedModel, side: Side) -> Side:
    """The forward passes that a side makes, with the same tensors and nothing else."""
    gpt, calls = model.loaded.gpt, []
    hook = gpt.register_forward_pre_hook(lambda module, args, given: calls.append(given), with_kwargs=True)
    side()
    hook.remove()

    def run() -> None:
        with torch.no_grad():
            for given in calls:
                gpt(**given)

    return run


def _hflm(folder: str, questions: QuestionSet) -> dict[str, Side]:
    """Nothing where an answer is longer than the context, which HFLM refuses."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    model: Any = HFLM
    lm = model(pretrained=folder, dtype="float32", batch_size=32, device="cpu")
    pairs = [(question.context, f" {choice}") for question in questions.questions for choice in question.choices]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    if max(len(lm.tok_encode(choice)) for _, choice in pairs) > lm.max_length:
        return {}
    return {"lm-eval's HFLM": lambda: lm.loglikelihood(requests, disable_tqdm=True)}


def _table(name: str, sides: dict[str, Side], repeats: int) -> None:
    for side in sides.values():
        side()
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            turns[side].append((time.process_time() - cpu, time.perf_counter() - wall))
    for side, measured in turns.items():
        seconds = [statistics.median(turn[which] for turn in measured) for which in (0, 1)]
        ratios = [
            statistics.median(turn[which] / bare[which] for turn, bare in zip(measured, turns["bare"], strict=True))
            for which in (0, 1)
        ]
        figures = " | ".join(f"{figure:.2f}" for figure in (*seconds, *ratios))
        print(f"| {name} | {side} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
