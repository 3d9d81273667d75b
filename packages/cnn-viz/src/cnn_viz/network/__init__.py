"""Network inspection: hooks, graph, receptive fields. This package draws nothing."""
