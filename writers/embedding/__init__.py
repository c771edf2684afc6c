"""Texts to unit vectors.

In: an encoder (sentence-transformers), or none: LSI is fitted on the corpus.
Out: float16 vectors, one per window.
Begin with: embed.py (`Encoder`), pieces.py (word pieces, made apart from the forward pass), static.py, lsi.py;
    encoder_digest.py says what decides a vector, probe.py compares vectors with those that a dataset keeps.
Heavy libraries: sentence_transformers (embed.py), sklearn (lsi.py), torch (embed.py).
"""
