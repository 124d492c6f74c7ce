"""What a run on a cache shows of itself every so many steps: held-out loss and videos."""
