"""Perplexities and answers computed another way: transformers, one example at a time, nothing of crisp_stream.

    python -m tests.support.independent MODEL --text FILE --mcq FILE --limit N --long drop

MODEL is an exported folder of a model trained on joined documents; FILE is JSONL, also .zst. Prints a JSON object;
tests compare it with what `crisp-stream eval` saves, and so can anyone.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TABLE_7 = "Question: {question}\nAnswer:"
TABLE_7_TOPIC = "The following are multiple choice questions (with answers) about {topic}.\n" + TABLE_7


def read_lines(path: str, limit: int | None) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    content = Path(path).read_bytes()
    if path.endswith(".zst"):
        content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    return [json.loads(line) for line in content.decode().split("\n") if line.strip()][:limit]


class Independent:
    """A model and its tokenizer, as transformers load them."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.context: int = self.model.config.n_positions

    def text(self, text: str) -> dict[str, float]:
        """Loss in nats, tokens and bytes of one text, in non-overlapping windows after end-of-text."""
        tokens = [self.tokenizer.eos_token_id, *self.tokenizer.encode(text, split_special_tokens=True)]
        loss = 0.0
        for start in range(0, len(tokens) - 1, self.context):
            window = torch.tensor([tokens[start : start + self.context + 1]])
            with torch.no_grad():
                # The model's own loss: the mean over the window but its first token.
                inputs = window[:, :-1]
                logits = self.model(inputs).logits[0].double()
            loss += torch.nn.functional.nll_loss(logits.log_softmax(-1), window[0, 1:], reduction="sum").item()
        long = len(tokens) - 1 > self.context
        return {"long": long, "loss": loss, "tokens": len(tokens) - 1, "bytes": len(text.encode())}

    def question(self, row: dict[str, Any]) -> dict[str, Any]:
        """Log probability of each choice, and which are chosen."""
        template = TABLE_7_TOPIC if row.get("topic") else TABLE_7
        prompt = self.tokenizer.encode(template.format(**row))
        scores = []
        for choice in row["choices"]:
            whole = self.tokenizer.encode(f"{template.format(**row)} {choice}")
            scored = len(whole) - len(prompt)
            if scored <= self.context:  # what does not fit is cut from the left
                windows = [(whole[-self.context - 1 :], scored)]
            else:  # an answer longer than the context: in windows, each after the last token before it
                rest = whole[-scored - 1 :]
                starts = range(0, scored, self.context)
                windows = [(rest[start : start + self.context + 1], self.context) for start in starts]
            scores.append(sum(self.last_tokens(window, most) for window, most in windows))
        by_length = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        lengths = [len(self.tokenizer.encode(f"{template.format(**row)} {choice}")) for choice in row["choices"]]
        return {
            "long": max(lengths) > self.context + 1,
            "log_probs": scores,
            "right": scores.index(max(scores)) == row["answer"],
            "right_normalised": by_length.index(max(by_length)) == row["answer"],
        }

    def last_tokens(self, window: list[int], most: int) -> float:
        """Log probability of at most so many tokens at the end of a window."""
        kept, scored = torch.tensor([window]), min(most, len(window) - 1)
        with torch.no_grad():
            logs = self.model(kept[:, :-1]).logits[0].double().log_softmax(-1)
        return sum(logs[-scored:].gather(1, kept[0, -scored:, None]).flatten().tolist())


def perplexities(examples: list[dict[str, float]]) -> dict[str, float]:
    """The paper's perplexity, that of all tokens, and bits per byte."""
    tokens = sum(example["tokens"] for example in examples)
    loss = sum(example["loss"] for example in examples)
    return {
        "perplexity": math.exp(sum(example["loss"] / example["tokens"] for example in examples) / len(examples)),
        "token_level": math.exp(loss / tokens),
        "bits_per_byte": loss / math.log(2) / sum(example["bytes"] for example in examples),
    }


def kept(examples: list[dict[str, Any]], long: str) -> list[dict[str, Any]]:
    """The examples, without those that are longer than the context where `long` is drop."""
    return [example for example in examples if long == "cut" or not example["long"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text")
    parser.add_argument("--mcq")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--long", choices=["cut", "drop"], default="cut")
    asked = parser.parse_args()
    judge = Independent(asked.model)
    found: dict[str, Any] = {}
    if asked.text:
        texts = kept([judge.text(row["text"]) for row in read_lines(asked.text, asked.limit)], asked.long)
        found |= {**perplexities(texts), "losses": [text["loss"] for text in texts]}
    if asked.mcq:
        answers = kept([judge.question(row) for row in read_lines(asked.mcq, asked.limit)], asked.long)
        found["acc"] = sum(answer["right"] for answer in answers) / len(answers)
        found["acc_norm"] = sum(answer["right_normalised"] for answer in answers) / len(answers)
        found["log_probs"] = [answer["log_probs"] for answer in answers]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
