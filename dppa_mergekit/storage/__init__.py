"""Files that outlive a run: cache, journal, output files, run record."""
