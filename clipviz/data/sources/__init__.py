"""What a specification of data may name: folders, lists, benchmarks, files of embeddings."""
