"""Looking inside a network: hooks, graph, receptive field. No drawing."""
