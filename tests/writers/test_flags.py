"""The command line of write, as its options declare it."""

from __future__ import annotations

import argparse

import pytest

from crisp_stream.errors import InputError
from crisp_stream.writers.flags import add_flags, values_of
from crisp_stream.writers.options import WriteOptions, flags


def parsed(*arguments: str) -> WriteOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser, flags())
    return WriteOptions(inputs=("in",), out="out", **values_of(parser.parse_args(arguments), flags()))


def test_without_flags_every_option_has_its_default() -> None:
    assert parsed() == WriteOptions(inputs=("in",), out="out")


def test_units_lists_and_other_names_reach_their_options() -> None:
    options = parsed(
        *("--shard-mb", "1.5", "--run-mb", "2", "--memory", "1.5G", "--min-split", "7", "--keep-work"),
        *("--filter", "a > 1", "--filter", "b == x", "--decontaminate", "one", "two", "--reads", "all"),
        *("--exclude-ids", "ids", "more", "--text-template", r"{a}\n{b}", "--txt-documents", "block"),
    )
    assert (options.shard_bytes, options.run_bytes, options.memory_bytes) == (3 << 19, 2 << 20, 3 << 29)
    assert (options.min_examples_to_split, options.keep_work, options.reads) == (7, True, "all")
    assert options.exclude_ids == ("ids", "more")
    assert (options.documents.text_template, options.documents.txt_documents) == (r"{a}\n{b}", "block")
    assert (options.filters, options.decontaminate) == (("a > 1", "b == x"), ("one", "two"))


@pytest.mark.parametrize("flag", ["--packing", "--dedup", "--layout", "--txt-documents", "--engine"])
def test_another_choice_ends_the_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(flag, "other")
    assert "invalid choice: 'other'" in capsys.readouterr().err


def test_a_memory_that_is_no_size_is_refused() -> None:
    with pytest.raises(InputError, match="--memory: must be a size such as 4G or 800M, got 'much'"):
        parsed("--memory", "much")
