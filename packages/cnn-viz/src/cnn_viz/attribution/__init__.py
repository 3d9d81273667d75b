"""Which parts of an image speak for a class: CAMs, saliency, and how faithful they are."""
