"""Engines that run a job's tasks on many machines."""
