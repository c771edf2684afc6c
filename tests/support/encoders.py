"""Small encoders in folders, and what a dataset keeps of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.writers.embedding.encoder_files import resolve_encoder
from crisp_stream.writers.embedding.probe import ENCODER_FILE, EncoderFile
from crisp_stream.writers.embedding.text_encoder import TextEncoder

_WIDTH = 32


def with_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def keep_encoder(root: Path, encoder: TextEncoder) -> None:
    """Put the parts and the probe of an encoder where those of a dataset stand."""
    (root / ENCODER_FILE).parent.mkdir(parents=True, exist_ok=True)
    (root / ENCODER_FILE).write_bytes(EncoderFile.of(encoder).to_json())


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """A transformer of one layer, mean pooling and a dense head of 24 numbers, with random weights.

    Its tokenizer and settings are those of the default encoder."""
    import safetensors.torch
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(resolve_encoder(None)[0], folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.py*"))
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=_WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, initializer_range=0.3
    )
    model: Any = BertModel(config)
    model.save_pretrained(folder)
    with_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=_WIDTH)
    with_json(folder / "sentence_bert_config.json", max_seq_length=128)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    settings = {"in_features": _WIDTH, "out_features": 24, "bias": True, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    weights = {"linear.weight": torch.randn(24, _WIDTH), "linear.bias": torch.randn(24)}
    safetensors.torch.save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def make_static(folder: Path, *, dim: int = 12) -> None:
    """A table of random vectors for the default's tokens, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(resolve_encoder(None)[0]) / "tokenizer.json"))
    tokenizer.no_truncation()
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), dim)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save(str(folder), create_model_card=False)


def pool_by_the_first(folder: Path) -> None:
    """Take the vector of the first word piece instead of the mean."""
    with_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


def normalise_before_the_head(folder: Path) -> None:
    """Scale vectors to norm 1 before the dense head, too."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "n", "path": "n", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
