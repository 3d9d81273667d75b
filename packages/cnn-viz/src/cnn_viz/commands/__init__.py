"""Commands of cnn-viz."""
