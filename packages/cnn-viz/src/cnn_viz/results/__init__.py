"""The results of a run: inputs of views, metrics, embeddings. This package draws nothing."""
