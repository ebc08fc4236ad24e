"""This repository's paper: what was compared (`grids`), how it is run and stored, and the pages made of it.

`python -m experiments NAME` runs an experiment, `python -m experiments.pages` writes what is made of stored results.
"""
