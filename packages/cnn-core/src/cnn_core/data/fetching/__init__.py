"""Download, verify and unpack the files of datasets."""
