"""Text to video: sampler, leap, the run as a job."""
