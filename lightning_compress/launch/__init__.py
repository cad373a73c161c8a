"""Where jobs run: in this process, in local processes, on SLURM, on Ray."""
