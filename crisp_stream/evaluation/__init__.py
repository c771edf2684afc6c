"""Judge models: a checkpoint and texts or questions to results.

In: checkpoints or Hugging Face folders; held-out texts; sets of multiple-choice questions.
Out: results of every example (results/ makes tables of them), contamination of sets by a dataset, halves of a set.
Begin with: judge.py, then perplexity.py and multiple_choice.py. harness.py is the bridge to lm-eval; contamination.py
    and seen.py say which examples were trained on or chosen by.
Heavy libraries: composer (judge.py, perplexity.py), lm_eval (harness.py, multiple_choice.py), torch
    (multiple_choice.py, packed_rows.py, perplexity.py).
"""
