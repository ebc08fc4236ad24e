"""Local web pages: to drive a dream by hand, and to look at stored episodes (docs/play.md)."""
