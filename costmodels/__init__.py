"""What it costs: cost tables, the `CostModel` interface, and backends based on tables."""
