"""A recipe to a trained model, through Composer.

In: a `Recipe`; a dataset, a mixture, perhaps a checkpoint to start from.
Out: checkpoints, logs, and a report of what was served, how it went and what it cost.
Begin with: prepare.py (everything before the model), announce.py (what is said of it), train.py (`build_trainer`),
    start.py (where a run starts), then callbacks/. launch.py starts one process per GPU; finetune.py validates the
    share of fine-tuning.
Heavy libraries: composer (any file), torch (announce.py, launch.py, train.py), transformers (prepare.py, start.py).
"""
