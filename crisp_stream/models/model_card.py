"""The model card of an exported folder: front matter for the hub, and in words what training.json holds.

What a checkpoint cannot know stays out and is for the owner to add: licence, language, intended use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from crisp_stream import digits
from crisp_stream.errors import import_extra
from crisp_stream.models.training_record import components_of, datasets_of, phase_name, phases_as_written, plain

_PACKING = {
    "joined": "documents joined by end-of-text tokens, then cut",
    "document": "each window within one document, padded",
}


def model_card(record: dict[str, Any]) -> str:
    """README.md of an exported folder, by the content of its training.json."""
    hub = import_extra("huggingface_hub", extra="train", purpose="writing a model card")
    name = plain(record.get("run_name") or "GPT")
    data = hub.ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "crisp-stream", "importance-sampling", "data-mixture"],
        model_name=" ".join(str(record.get("run_name") or "GPT").split()),
        eval_results=_eval_results(hub, record.get("held_out")),
    )
    parts = [
        f"# {name}",
        _summary(record),
        _use(record),
        "## Training data",
        *_datasets(record),
        "## Mixture",
        _mixture(record),
        "## Training",
        _training(record),
        *_parents(record.get("parent")),
        "## Versions",
        _table(("package", "version"), (record.get("versions") or {}).items()),
        "All of this is also in `training.json`, for programs.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _summary(record: dict[str, Any]) -> str:
    model, progress, weights = record["model"], record["progress"], record["weights"]
    return (
        f"A GPT-2 language model with {weights['parameters']:,} parameters (embedding counted once): "
        f"{model['n_layer']} layers of width {model['n_embd']:,} with {model['n_head']} heads, context "
        f"{model['n_positions']:,} tokens, vocabulary {model['vocab_size']:,}. Trained by crisp-stream for "
        f"{progress['batches']:,} batches, {progress['tokens']:,} tokens, on windows of a text corpus drawn cluster by "
        f"cluster as the mixture below says. It is a base model: it continues text. Weights in {weights['dtype']}."
    )


def _use(record: dict[str, Any]) -> str:
    context = (
        "Training windows held documents joined by end-of-text tokens, so a text is best begun with one: "
        "`tokenizer.bos_token + text`."
        if record["dataset"].get("packing") == "joined"
        else "Nothing stood before a document in training, so a text is given as it is."
    )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n```\n\n"
        f"{context}"
    )


def _datasets(record: dict[str, Any]) -> list[str]:
    """The dataset, or each source under its name."""
    sources = record.get("sources") or {}
    if not sources:
        return [_dataset(record["dataset"])]
    return [part for name, source in sources.items() for part in (f"### Source {plain(name)}", _dataset(source))]


def _dataset(dataset: dict[str, Any]) -> str:
    tree, tokenizer, encoder = (dataset.get(key) or {} for key in ("tree", "tokenizer", "encoder"))
    packing = dataset.get("packing")
    return _facts(
        {
            "fingerprint": _code(dataset.get("fingerprint")),
            "address": _code(dataset.get("root")),
            "generation": dataset.get("generation"),
            "windows": dataset.get("num_windows"),
            "tokens per window": dataset.get("window_tokens"),
            "packing": packing and f"{packing}: {_PACKING.get(packing, '')}",
            "clusters": tree
            and f"{tree['leaves_with_windows']:,} leaves with windows, arity {tree['arity']}, depth {tree['depth']}",
            "tree": _code(tree.get("fingerprint")),
            "tokenizer": _code(tokenizer.get("fingerprint")),
            "encoder of the clusters": encoder and f"{plain(encoder['name'])}, {encoder['dim']} dimensions",
            "encoder weights": _code(encoder.get("weights_sha256")),
        }
    )


def _mixture(record: dict[str, Any]) -> str:
    mixture = record["mixture"]
    facts = {
        "fingerprint": _code(mixture.get("fingerprint")),
        "draw": mixture.get("draw"),
        "seed": _code(record.get("seed")),
        "order version": record.get("order_version"),
        "position": record["progress"].get("position"),
    }
    written = phases_as_written(mixture.get("phases") or [])
    has_components = any("components" in steps[0] for steps in written)
    rows = [
        (
            number,
            *((plain(part.get("source") or "-"), _shares(steps, part)) if has_components else ()),
            plain(part.get("histogram") or "?") + _selected(part.get("windows")),
            _code(part.get("fingerprint")) or "?",
            *(_number(part.get(key)) for key in ("level", "clusters")),
            _number(steps[0].get("first_sample")),
            _number(_samples(steps)),
        )
        for number, steps in enumerate(written, 1)
        for part in components_of(steps[0])
    ]
    share = ("source", "share") if has_components else ()
    head = ("phase", *share, "histogram", "fingerprint", "level", "clusters", "first sample", "samples served")
    return _facts(facts) + ("\n\n" + _table(head, rows) if rows else "")


def _shares(steps: Sequence[dict[str, Any]], part: dict[str, Any]) -> str:
    """Share of a component in its phase; of a schedule in the first step and in the last."""
    alike = [
        each
        for each in components_of(steps[-1])
        if all(each.get(key) == part.get(key) for key in ("source", "fingerprint", "windows"))
    ]
    shares = [part.get("share", 1.0), *(each.get("share", 1.0) for each in alike if len(steps) > 1)]
    return " to ".join(f"{share:.3g}" for share in shares)


def _samples(steps: Sequence[dict[str, Any]]) -> int | None:
    samples = [phase.get("samples") for phase in steps]
    return None if None in samples else sum(filter(None, samples))


def _selected(windows: dict[str, Any] | None) -> str:
    """Windows of the dataset that a selection has, to stand behind its name."""
    return "" if windows is None else f" ({windows['selected']:,} of {windows['of']:,} windows)"


def _training(record: dict[str, Any]) -> str:
    training, loss, held_out = record.get("training") or {}, record.get("loss") or {}, record.get("held_out") or {}
    optimizer, scheduler = training.get("optimizer") or {}, training.get("scheduler") or {}
    facts = {
        "batches": record["progress"]["batches"],
        "of these by the checkpoint it began from": record["progress"].get("began_at_batch") or None,
        "windows": record["progress"]["samples"],
        "tokens": record["progress"]["tokens"],
        "planned length": training.get("max_duration"),
        "windows per batch": training.get("global_train_batch_size"),
        "optimizer": optimizer
        and ", ".join([optimizer["name"], *(f"{key} {_value(optimizer[key])}" for key in optimizer if key != "name")]),
        "schedule": scheduler
        and f"warm-up {scheduler.get('t_warmup')}, cosine to {scheduler.get('alpha_f')} of the peak",
        "gradient clipping": training.get("gradient_clipping"),
        "precision": training.get("precision"),
    }
    if loss.get("final") is not None:
        facts["last loss (training)"] = (
            f"{digits.loss(loss['final'])} nats per token, mean of the last {loss['batches']:,} batches, in "
            f"{training.get('precision') or 'the precision of the training'}"
        )
    if held_out.get("perplexity") is not None:
        documents = f" of {held_out['documents']:,} documents" if "documents" in held_out else ""
        facts["held-out perplexity"] = (
            f"{digits.perplexity(held_out['perplexity'])}{documents}, at batch {held_out['batch']:,}, {digits.JUDGED}"
        )
        facts["held-out texts"] = _code(held_out.get("fingerprint"))
    return _facts(facts)


def _parents(parent: dict[str, Any] | None) -> list[str]:
    """List the checkpoints it was trained from, the newest first."""
    if parent is None:
        return []
    lines = []
    while parent is not None:
        phases = parent["mixture"].get("phases") or []
        served = phases_as_written([phase for phase in phases if phase.get("samples")])
        names = ", then ".join(plain(phase_name(steps)) for steps in served)
        datasets = ", ".join(str(_code(each.get("fingerprint"))) for each in datasets_of(parent)) or "None"
        lines.append(
            f"- {_code(parent.get('checkpoint'))} of run {plain(parent.get('run_name') or '?')}: "
            f"{parent['progress']['batches']:,} batches, {parent['progress']['tokens']:,} tokens of dataset "
            f"{datasets}, mixture {_code(parent['mixture'].get('fingerprint'))}" + (f" ({names})" if names else "")
        )
        parent = parent.get("parent")
    return ["## Trained from", "\n".join(lines)]


def _eval_results(hub: Any, held_out: dict[str, Any] | None) -> list[Any] | None:
    if not held_out or held_out.get("perplexity") is None:
        return None
    return [
        hub.EvalResult(
            task_type="text-generation",
            dataset_type="held-out-text",
            dataset_name="held-out text",
            metric_type="perplexity",
            metric_name="perplexity, mean over texts, in float32",
            metric_value=round(held_out["perplexity"], 6),
        )
    ]


def _facts(facts: dict[str, Any]) -> str:
    return _table(("", ""), ((key, _value(value)) for key, value in facts.items() if value not in (None, "", {})))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(str, value))
    return _number(value)


def _number(value: object) -> str:
    return "?" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _code(value: object) -> str | None:
    return None if value is None else f"`{' '.join(str(value).replace('`', '').replace('|', '').split())}`"
