"""Texts to unit vectors.

In: an encoder (sentence-transformers), or none: an LSI or a student of an encoder is fitted on the corpus (fitted.py).
Out: float16 vectors, one per window.
Begin with: embed.py (`Encoder`), pieces.py (word pieces, made apart from the forward pass), static.py, lsi.py,
    student.py (student_fit.py fits it);
    encoder_digest.py says what decides a vector, probe.py compares vectors with those that a dataset keeps.
Heavy libraries: sentence_transformers (embed.py), sklearn (lsi.py), torch (embed.py).
"""
