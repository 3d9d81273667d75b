"""The commands of cnn-viz."""
