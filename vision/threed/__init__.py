"""Text to 3D by score distillation: scenes, their rendering, and the priors that judge the renderings."""
