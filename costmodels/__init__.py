"""What it costs: cost tables, the one interface that the search asks, and its table-based backends."""
