"""Publish a dataset on the Hugging Face hub. Reading from there is part of `storage/`, and needs nothing of this.

In: an opened dataset, the address hf://datasets/OWNER/NAME, a token that may write.
Out: a repository that holds the newest generation, with a dataset card, compared file by file with the dataset.
Begin with: publish.py; card.py writes README.md; repository.py is the only file that knows `huggingface_hub`.
Heavy libraries: none.
"""
