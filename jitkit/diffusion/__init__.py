"""Flow matching path and losses, denoiser, classifier-free guidance, ODE solvers, sampler."""
