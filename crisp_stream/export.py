"""A Composer checkpoint becomes a Hugging Face folder: config, safetensors weights, tokenizer.

Composer's own exporter wants the tokenizer's hub name and writes `.bin` pickles; this one needs the checkpoint alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from crisp_stream.checkpoint import load_gpt
from crisp_stream.errors import InputError


def export(checkpoint: str, out: str | Path) -> Path:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
        checkpoint: a Composer `.pt` file of `crisp-stream train`, local or an object URL.
        out: folder to create. It appears complete or not at all.

    Returns:
        The folder.

    Raises:
        InputError: `out` exists already, or there is no such checkpoint.
        FormatError: not a checkpoint of a GPT-2 model.
    """
    target = Path(out)
    if target.exists():
        raise InputError(f"{target} exists already and is not overwritten. Name another folder, or remove it.")
    loaded = load_gpt(str(checkpoint))
    loaded.gpt.config.use_cache = True  # off during training, wanted for generation
    if loaded.gpt.generation_config is not None:
        loaded.gpt.generation_config.use_cache = True
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        loaded.gpt.save_pretrained(temporary, safe_serialization=True)
        loaded.tokenizer.save_pretrained(temporary)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
