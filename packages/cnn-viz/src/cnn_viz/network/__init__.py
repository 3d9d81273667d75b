"""Network inspection: hooks, graph, receptive fields. No drawing."""
