"""Download, verify and unpack. Imports the ground and registry/."""
