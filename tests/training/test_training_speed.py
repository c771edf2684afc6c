"""What makes a training step fast and can be seen without a GPU: its graph, its attention, what it keeps in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.models.gpt import build_gpt, compile_blocks, composer_model, gpt_config, save_activations_per_block
from tests.support.ranks import group_of_one

DEPTH = 10  # more than the 8 graphs that torch makes of one function before it gives up
BATCH = torch.arange(32).view(2, 16)


def small_gpt(*, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    model = ModelRecipe(n_embd=32, n_layer=DEPTH, n_head=2)
    gpt = build_gpt(gpt_config(model, vocab_size=64, window_tokens=16, eot_id=0), seed=0)
    return (gpt.double() if dtype is torch.float64 else gpt).train()


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Keywords of every call of torch's scaled dot product."""
    calls: list[dict[str, Any]] = []
    own = torch.nn.functional.scaled_dot_product_attention

    def attention(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(named)
        return own(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return calls


@pytest.mark.parametrize("mode", [GPT2LMHeadModel.train, GPT2LMHeadModel.eval])
def test_attention_is_causal_without_a_mask(
    mode: Callable[[GPT2LMHeadModel], Any], attention_calls: list[dict[str, Any]]
) -> None:
    gpt = small_gpt()
    mode(gpt)
    gpt(input_ids=BATCH, labels=BATCH)
    assert len(attention_calls) == DEPTH
    assert all(call["attn_mask"] is None and call["is_causal"] for call in attention_calls)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_are_one_graph_and_train_alike(checkpointing: bool) -> None:
    plain, compiled = small_gpt(dtype=torch.float64), small_gpt(dtype=torch.float64)
    if checkpointing:
        save_activations_per_block(compiled)
    graphs = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled, backend=graphs, fullgraph=True)
    for _ in range(2):
        for gpt in (plain, compiled):
            gpt(input_ids=BATCH, labels=BATCH).loss.backward()
    assert graphs.frame_count == 2  # the block, and the loss
    attention = [node for node in _nodes(graphs.graphs) if "scaled_dot" in str(node.target)]
    assert [(node.kwargs["attn_mask"], node.kwargs["is_causal"]) for node in attention] == [(None, True)]
    for (name, one), (other_name, other) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one.grad, other.grad)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def _nodes(graphs: list[torch.fx.GraphModule]) -> list[torch.fx.Node]:
    """Of the graphs and of those inside them: torch from 2.15 on keeps what is computed again in a graph of its own."""
    inner = [module for graph in graphs for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for graph in inner for node in graph.graph.nodes]


def test_a_block_that_fills_two_of_ddps_buckets_is_still_one_graph(tmp_path: Path) -> None:
    with group_of_one(tmp_path):
        model = ModelRecipe(n_embd=1024, n_layer=1, n_head=16)
        gpt = build_gpt(gpt_config(model, vocab_size=64, window_tokens=16, eot_id=0), seed=0).train()
        graphs = CompileCounterWithBackend("eager")
        with torch._dynamo.config.patch(optimize_ddp=True):  # torch's default
            compile_blocks(gpt, backend=graphs, fullgraph=True)
            DistributedDataParallel(gpt)(input_ids=BATCH, labels=BATCH)
        assert graphs.frame_count == 2  # the block, and the loss


def test_texts_of_any_length_are_evaluated_without_compiling() -> None:
    gpt = small_gpt()
    graphs = CompileCounterWithBackend("aot_eager")
    compile_blocks(gpt, backend=graphs, fullgraph=True)
    gpt.eval()
    for length in range(3, 16):
        gpt(input_ids=BATCH[:, :length])
    assert graphs.frame_count == 0


def test_a_training_step_keeps_the_loss_alone() -> None:
    wrapped = composer_model(small_gpt(), tokenizer=None)  # pyright: ignore[reportArgumentType]
    batch = {"input_ids": BATCH, "labels": BATCH, "window": torch.arange(2)}
    outputs = wrapped(batch)
    assert list(outputs) == ["loss"]
    assert wrapped.loss(outputs, batch) is outputs["loss"]
    assert wrapped.eval()(batch)["logits"].shape == (2, 16, 64)


def test_nothing_is_sent_beside_gradients() -> None:
    wrapped = composer_model(small_gpt(), tokenizer=None)  # pyright: ignore[reportArgumentType]
    assert sum(buffer.numel() for buffer in wrapped.model.buffers()) == 0


def test_the_activation_is_gpt_2s_and_keeps_one_tensor_for_the_backward_pass() -> None:
    ours: Any = ACT2FN[small_gpt().config.activation_function]
    theirs: Any = ACT2FN[GPT2Config().activation_function]
    assert type(ours) is not type(theirs)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    kept: list[int] = []
    for activation in (ours, theirs):
        storages: set[int] = set()

        def keep(tensor: torch.Tensor, into: set[int] = storages) -> torch.Tensor:
            into.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = activation(x)
        kept.append(len(storages))
        del result
    assert kept == [1, 4]
