"""Runs of several processes, on TPU VMs, GKE and Slurm."""
