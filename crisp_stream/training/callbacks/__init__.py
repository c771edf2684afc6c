"""What happens during a run, one callback per file.

In: events of Composer's Trainer.
Out: metrics, progress, held-out measurements, checkpoints in object storage, the record of a run in its checkpoints.
Begin with: train.py in the folder above lists the callbacks in their order, with the reason for each place.
    composer_fixes.py holds what Composer gets wrong.
Heavy libraries: composer (any file), torch (any file), transformers (as_judged.py).
"""
