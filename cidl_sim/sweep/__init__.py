"""Many policies on many devices: grids and samples, streamed to Parquet, on one machine or a cluster."""
