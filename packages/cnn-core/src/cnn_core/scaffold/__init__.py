"""Write new plugins for `cnnzoo new`. Imports the registry, and no torch."""
