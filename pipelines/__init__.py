"""Diffusers pipelines that also run on their own, straight from the Hub."""
