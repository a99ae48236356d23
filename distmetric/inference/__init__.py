"""What a trained embedder is used for: embeddings, metrics, searches, exports, reports."""
