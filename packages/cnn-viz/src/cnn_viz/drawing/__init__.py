"""Drawing: render views to files, and lay out images in a grid."""
