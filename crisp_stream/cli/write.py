"""The offline commands: write, append and tree."""

from __future__ import annotations

import argparse
import re
from typing import Any

from crisp_stream.cli.verbs import add_inputs, add_selection, add_verb, print_line
from crisp_stream.errors import InputError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_write_commands(verbs: Any) -> None:
    """Declare the commands."""
    _add_write(verbs)
    _add_append(verbs)
    _add_tree(verbs)


def memory_bytes(text: str | None) -> int | None:
    """4G, 800M and the like as bytes. Raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise InputError(f"--memory: must be a size such as 4G or 800M, got {text!r}.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _add_documents(verb: argparse.ArgumentParser) -> None:
    """Options of which documents are taken."""
    documents = verb.add_argument_group("documents")
    documents.add_argument(
        "--sample", type=float, metavar="SHARE", help="keep this share of the documents, 0 to 1, at random"
    )
    documents.add_argument("--id-column", metavar="NAME", help="key, column or dotted path of the documents' own ids")
    add_selection(documents)
    documents.add_argument(
        "--skip-corrupt", action="store_true", help="leave out, name and count files that cannot be read to their end"
    )
    documents.add_argument("--dedup", choices=["exact", "near"], help="exact: equal texts once; near: similar ones too")
    documents.add_argument(
        "--near-threshold", type=float, default=0.8, metavar="J", help="similarity of near-duplicates, 0.5 to 0.99"
    )
    documents.add_argument(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation files; documents that share an n-gram with them are left out and listed",
    )
    documents.add_argument("--ngram", type=int, default=13, metavar="N", help="words of such an n-gram")


def _add_models(verb: argparse.ArgumentParser) -> None:
    """Options of windows, encoder and tree."""
    windows = verb.add_argument_group("windows")
    windows.add_argument("--window-tokens", type=int, default=1024, metavar="N", help="tokens per window")
    windows.add_argument(
        "--packing",
        choices=["joined", "document"],
        default="joined",
        help="joined: documents joined by end-of-text, then cut; document: no window crosses one, tails are padded",
    )
    windows.add_argument(
        "--part-characters",
        type=int,
        default=2 << 20,
        metavar="N",
        help="text of a part, the unit of work and restarting; windows are cut inside parts, so it changes the bytes",
    )
    windows.add_argument("--tokenizer", metavar="PATH", help="folder, tokenizer.json or hub name; trained when absent")
    windows.add_argument("--vocab-size", type=int, default=32_000, metavar="N", help="ids of a trained tokenizer")
    tree = verb.add_argument_group("clustering")
    tree.add_argument(
        "--encoder",
        metavar="NAME",
        help="folder or hub name, all-MiniLM-L6-v2 when absent; lsi: TF-IDF and SVD, fitted on the corpus",
    )
    tree.add_argument(
        "--max-length", type=int, metavar="N", help="word pieces read at once; the encoder's own when absent"
    )
    tree.add_argument(
        "--reads",
        choices=["first", "all"],
        default="first",
        help="first: the first max-length word pieces of a window; all: the mean over all of it, 4 times the work",
    )
    tree.add_argument("--arity", type=int, default=64, metavar="N", help="children per node, 2 to 64")
    tree.add_argument(
        "--depth", type=int, default=4, metavar="N", help="levels at most; nodes with few windows stay leaves"
    )
    tree.add_argument(
        "--min-split", type=int, metavar="N", help="windows below which a node stays a leaf; 16 x arity when absent"
    )
    tree.add_argument(
        "--fit-windows", type=int, default=1_000_000, metavar="N", help="windows the tree is fitted on at most, about"
    )
    tree.add_argument("--seed", type=int, default=0, metavar="N", help="of the tree and of the order inside a leaf")


def _add_work(verb: argparse.ArgumentParser) -> None:
    """Options of where the work is done; none of them changes the bytes."""
    work = verb.add_argument_group("work (no effect on the bytes written)")
    work.add_argument("--engine", choices=["local", "ray"], default="local", help="processes here, or a Ray cluster")
    work.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster, such as auto; started when absent"
    )
    work.add_argument("--processes", type=int, metavar="N", help="one per core when absent")
    work.add_argument("--memory", metavar="SIZE", help="of all processes together, such as 8G; not limited when absent")
    work.add_argument(
        "--run-mb",
        type=float,
        default=64.0,
        metavar="MB",
        help="tokens of a sorted run; 512 where there are trillions, for fewer requests",
    )
    work.add_argument(
        "--work", metavar="DIR", help="folder or prefix for intermediate files, up to 3x the dataset; found again"
    )
    work.add_argument("--keep-work", action="store_true", help="keep the intermediate files for another write")


def _add_write(verbs: Any) -> None:
    verb = add_verb(
        verbs, "write", _write, "Write documents as a cluster-partitioned dataset. Restarts where it stopped."
    )
    add_inputs(verb, "inputs", "documents")
    verb.add_argument("--out", required=True, metavar="ROOT", help="dataset root to create")
    verb.add_argument("--like", metavar="ROOT", help="use this dataset's tokenizer, tree, encoder and window length")
    verb.add_argument("--tree", metavar="DIR", help="use those of a folder that `tree fit` made")
    verb.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    _add_documents(verb)
    _add_models(verb)
    shards = verb.add_argument_group("shards")
    shards.add_argument("--shard-mb", type=float, default=64.0, metavar="MB", help="largest shard")
    shards.add_argument(
        "--shard-level",
        type=int,
        default=1,
        metavar="L",
        help="no shard holds windows of two nodes of this level; 2 lets to_streams make a stream per level-2 node",
    )
    verb.add_argument(
        "--embeddings",
        metavar="DIR",
        help="keep the embeddings of all windows in this folder, as `embed` makes them, without embedding twice",
    )
    _add_work(verb)


def _documents_options(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "inputs": asked.inputs,
        "text_column": asked.text_column,
        "id_column": asked.id_column,
        "filters": tuple(asked.filter),
        "layout": asked.layout,
        "limit": asked.limit,
        "sample": asked.sample,
        "skip_corrupt": asked.skip_corrupt,
        "dedup": asked.dedup,
        "near_threshold": asked.near_threshold,
        "decontaminate": tuple(asked.decontaminate),
        "ngram": asked.ngram,
        "engine": asked.engine,
        "address": asked.address,
        "processes": asked.processes,
        "memory_bytes": memory_bytes(asked.memory),
        "run_bytes": int(asked.run_mb * (1 << 20)),
        "work": asked.work,
        "keep_work": asked.keep_work,
    }


def _models_options(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "window_tokens": asked.window_tokens,
        "packing": asked.packing,
        "part_characters": asked.part_characters,
        "tokenizer": asked.tokenizer,
        "vocab_size": asked.vocab_size,
        "encoder": asked.encoder,
        "max_length": asked.max_length,
        "reads": asked.reads,
        "arity": asked.arity,
        "depth": asked.depth,
        "min_examples_to_split": asked.min_split,
        "fit_windows": asked.fit_windows,
        "seed": asked.seed,
    }


def _write(asked: argparse.Namespace) -> None:
    from crisp_stream.writers.options import WriteOptions
    from crisp_stream.writers.write import plan, write

    options = WriteOptions(
        out=asked.out,
        like=asked.like,
        tree=asked.tree,
        shard_bytes=int(asked.shard_mb * (1 << 20)),
        shard_level=asked.shard_level,
        embeddings=asked.embeddings,
        **_documents_options(asked),
        **_models_options(asked),
    )
    if asked.plan:
        print(plan(options))
    else:
        write(options, log=print_line)


def _add_append(verbs: Any) -> None:
    verb = add_verb(
        verbs, "append", _append, "Add documents to a dataset, with its tokenizer and tree. Restarts where it stopped."
    )
    verb.add_argument("root", metavar="ROOT", help="dataset to grow")
    add_inputs(verb, "inputs", "documents")
    verb.add_argument(
        "--encoder", metavar="NAME", help="where the dataset's encoder is, if not under its recorded name"
    )
    verb.add_argument("--shard-mb", type=float, default=64.0, metavar="MB", help="largest shard")
    verb.add_argument("--prune", action="store_true", help="delete the files that only earlier generations use")
    _add_documents(verb)
    _add_work(verb)


def _append(asked: argparse.Namespace) -> None:
    from crisp_stream.writers.append import append
    from crisp_stream.writers.options import WriteOptions

    options = WriteOptions(
        out=asked.root,
        encoder=asked.encoder,
        shard_bytes=int(asked.shard_mb * (1 << 20)),
        **_documents_options(asked),
    )
    append(options, prune=asked.prune, log=print_line)


def _add_tree(verbs: Any) -> None:
    verb = add_verb(verbs, "tree", _tree_help, "Fit a clustering tree without writing a dataset, or judge one.")
    actions = verb.add_subparsers(title="actions", metavar="ACTION", required=True)
    fit = add_verb(actions, "fit", _tree_fit, "Fit a tree on documents. Restarts where it stopped.")
    add_inputs(fit, "inputs", "documents")
    fit.add_argument(
        "--out", required=True, metavar="DIR", help="folder to create: tree, tokenizer, embeddings, report"
    )
    _add_documents(fit)
    _add_models(fit)
    _add_work(fit)
    inspect = add_verb(
        actions,
        "inspect",
        _tree_inspect,
        "Balance, quantisation error, leaf sizes and empty leaves of a tree, by level.",
    )
    inspect.add_argument("tree", metavar="DIR|ROOT", help="folder of `tree fit`, or dataset root")
    inspect.add_argument("--against", metavar="DIR|ROOT", help="another tree, such as of another seed: their agreement")
    inspect.add_argument(
        "--embeddings", metavar="FILE", help=".npy [windows, dim] to judge it on; those of `tree fit` when absent"
    )
    inspect.add_argument("--plot", metavar="FILE", help=".png or .svg to draw")
    inspect.add_argument("--json", metavar="FILE", help="the same figures as JSON")


def _tree_help(asked: argparse.Namespace) -> None:
    raise InputError("tree: an action is needed, fit or inspect. See crisp-stream tree --help")


def _tree_fit(asked: argparse.Namespace) -> None:
    from crisp_stream.writers.options import WriteOptions
    from crisp_stream.writers.tree_command import fit

    options = WriteOptions(out=asked.out, **_documents_options(asked), **_models_options(asked))
    fit(options, log=print_line)


def _tree_inspect(asked: argparse.Namespace) -> None:
    from crisp_stream.writers.tree_command import inspect

    print(inspect(asked.tree, against=asked.against, embeddings=asked.embeddings, plot=asked.plot, out=asked.json))
