"""Getting the data: download, sample, report."""
