"""Numbers with their uncertainty: figures of merit, intervals, comparisons. Nothing here knows of runs."""
