"""`crisp-stream study`: methods, specialists and seeds at equal training tokens, from one YAML file to tables."""
