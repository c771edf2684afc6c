"""The offline side: documents in, cluster-partitioned MDS shards out. One stage per file."""

if __name__ == "writers":
    raise ImportError("Import this package as crisp_stream.writers; a top-level `writers` is not what gets installed.")
