"""Robots: one episode at a time, at a fixed rate, within limits, under a watchdog (docs/robot.md). Imports no torch."""
