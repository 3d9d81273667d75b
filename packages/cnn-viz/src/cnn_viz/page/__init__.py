"""The HTML report, and the page served by `cnnzoo explore`."""
