"""What attention costs: counts from plans, time from rooflines, scenarios and whole generations."""
