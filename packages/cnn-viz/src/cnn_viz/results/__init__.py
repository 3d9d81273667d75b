"""Results of a run: inputs of views, metrics, embeddings. No drawing."""
