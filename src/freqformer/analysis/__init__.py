"""Views of what the bands hold and what a run did: numbers, figures and videos."""
