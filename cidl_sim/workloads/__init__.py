"""From modules to workloads: measuring, partitions, named workloads."""
