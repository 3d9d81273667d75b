"""What core itself offers: datasets, metrics, commands, as a plugin's. Imports specs alone."""
