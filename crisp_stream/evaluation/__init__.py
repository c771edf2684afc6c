"""Judging models: perplexity, multiple choice, and where one model is better than another."""
