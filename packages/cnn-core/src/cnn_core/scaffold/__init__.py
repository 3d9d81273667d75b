"""Write new plugins for `cnnzoo new`. Imports the registry, but not torch."""
