"""Plain functions from workload and device to plan, one file per family."""
