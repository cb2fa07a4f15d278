"""What several scenarios judge in the same way."""

from actors.admin.lab.report import NOISE_MS, InnocentFigures, Report


def judge_innocent(report: Report, figures: InnocentFigures) -> None:
    """The innocent client lost nothing, and the defence did not slow it down."""
    report.innocent = figures
    report.must("the innocent client lost nothing", figures.lost == 0 and figures.sent > 0)
    sentence = f"its median latency stayed within 2x of before (noise floor {NOISE_MS:.0f} ms)"
    report.must(sentence, figures.undisturbed, timed=True)
