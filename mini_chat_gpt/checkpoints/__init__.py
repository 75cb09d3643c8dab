"""Models in folders and files: writing, reading, finding, adapters, other projects' formats."""
