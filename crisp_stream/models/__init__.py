"""The language model and its files.

In: sizes of a GPT, Composer checkpoints, a tokenizer.
Out: a model for Composer, a Hugging Face folder with model card and training record, the cost and
    the memory of a training.
Begin with: gpt.py, checkpoint.py, then export.py. composer_gpt.py is what the Trainer of Composer sees.
Heavy libraries: composer (composer_gpt.py, gpt.py), torch (checkpoint.py, export.py, gpt.py), transformers
    (checkpoint.py, export.py, gpt.py, progress_bars.py, tokenizer_parts.py).
"""
