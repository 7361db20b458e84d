"""What a method is fed with: batches of views or of embeddings."""
