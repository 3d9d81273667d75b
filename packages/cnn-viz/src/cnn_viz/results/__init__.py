"""Numbers computed from a run: inputs of views, metrics, embeddings. No drawing."""
