"""Train a diffusion model, or sample from one: `python main.py --help`."""

from ddpm_jax import cli

if __name__ == "__main__":
    cli.main()
