"""What a run shows at its end: a table in the terminal and a page to keep."""

from wmpo.report.media import Clip, Media, Pair, ScoreCurve
from wmpo.report.page import write_report
from wmpo.report.tables import terminal_table

__all__ = ["Clip", "Media", "Pair", "ScoreCurve", "terminal_table", "write_report"]
