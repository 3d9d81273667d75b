"""What `cnnzoo new` writes. Imports registry/, no torch."""
