"""Many runs: jobs, sweeps and searches under Hydra, and runs that are taken up again."""
