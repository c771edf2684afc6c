"""The GPT: sizes, seeds, and what it takes from the dataset."""

from __future__ import annotations

import pytest
import torch

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.errors import FormatError, RecipeError
from crisp_stream.models.gpt import GPT_SIZES, build_gpt, gpt_config, load_tokenizer, parameter_groups
from tests.support.parameters import count_parameters
from tests.support.synthetic import write_tokenizer

SMALL = ModelRecipe(n_embd=32, n_layer=2, n_head=2)


@pytest.mark.parametrize(
    ("name", "parameters"), [("350M", 336_914_432), ("1.3B", 1_277_808_640), ("6.7B", 6_582_575_104)]
)
def test_the_sizes_of_table_4_have_their_number_of_parameters(name: str, parameters: int) -> None:
    size = GPT_SIZES[name]
    width, depth, vocabulary, context = size.n_embd, size.n_layer, 32_768, 1024
    block = 12 * width**2 + 13 * width
    assert parameters == depth * block + (vocabulary + context) * width + 2 * width
    assert count_parameters(size, vocab_size=vocabulary) == parameters
    # The names count GPT-2's vocabulary, as Brown et al. did. With another one the embedding, counted once, differs.
    of_gpt_2 = count_parameters(size, vocab_size=50_257)
    assert of_gpt_2 - parameters == (50_257 - vocabulary) * width
    assert of_gpt_2 == pytest.approx({"350M": 350e6, "1.3B": 1.3e9, "6.7B": 6.7e9}[name], rel=0.02)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = gpt_config(SMALL, vocab_size=64, window_tokens=16, eot_id=0)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_gpt(config, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = build_gpt(config, seed=3).state_dict(), build_gpt(config, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_context_limit_is_the_window_or_longer() -> None:
    assert gpt_config(SMALL, vocab_size=64, window_tokens=16, eot_id=5).n_positions == 16
    longer = ModelRecipe(n_embd=32, n_layer=2, n_head=2, n_positions=24)
    assert gpt_config(longer, vocab_size=64, window_tokens=16, eot_id=5).n_positions == 24
    with pytest.raises(RecipeError, match=r"`model.n_positions` is 24, but the dataset's windows have 32 tokens"):
        gpt_config(longer, vocab_size=64, window_tokens=32, eot_id=5)


def test_dropout_is_off_unless_asked_for() -> None:
    config = gpt_config(SMALL, vocab_size=64, window_tokens=16, eot_id=0)
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0, 0, 0)
    dropping = ModelRecipe(n_embd=32, n_layer=2, n_head=2, dropout=0.1)
    assert gpt_config(dropping, vocab_size=64, window_tokens=16, eot_id=0).resid_pdrop == 0.1


def test_only_matrices_decay_and_every_parameter_is_in_one_group() -> None:
    gpt = build_gpt(gpt_config(SMALL, vocab_size=64, window_tokens=16, eot_id=0), seed=0)
    matrices, vectors = parameter_groups(gpt, weight_decay=0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.ndim for parameter in matrices["params"]} == {2}
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(gpt.parameters()))


def test_an_end_of_text_token_outside_the_vocabulary_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder, eot_token="<|endoftext|>", n_positions=16)
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (256, 16)
    with pytest.raises(FormatError, match="has no token '<end>'"):
        load_tokenizer(folder, eot_token="<end>", n_positions=16)
