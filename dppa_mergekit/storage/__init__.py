"""Files that outlive a run: cache, journal, output files and run record."""
