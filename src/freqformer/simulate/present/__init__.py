"""How a simulation is shown: in words, tables, charts, a report and documents."""
