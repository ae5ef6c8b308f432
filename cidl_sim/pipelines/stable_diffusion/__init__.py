"""Text to image: Stable Diffusion, SnapFusion and MobileDiffusion."""
