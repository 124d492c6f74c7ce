"""Colours of figures and pages, once: a band has the same one everywhere.

Those of the bands are of the palette of Okabe and Ito (2008), which people with any colour vision
tell apart.
"""

LOW = "#0072B2"
MID = "#009E73"
HIGH = "#D55E00"
DENSE = "#767676"
BANDS = (LOW, MID, HIGH, DENSE)
"""By the number of the band."""
INK = "#2B2F36"
"""Of text."""
GRID = "#E3E6EA"
"""Of lines behind a chart, and of borders."""
FAINT = "#B9C3CE"
"""Of what is in the background, like single steps behind their mean."""
