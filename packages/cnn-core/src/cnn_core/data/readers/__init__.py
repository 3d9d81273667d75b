"""One module for each dataset or file format. Imports data/fetching/."""
