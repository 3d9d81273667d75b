"""Download, verify and unpack. Imports errors, files and text."""
