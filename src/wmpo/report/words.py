"""What a report calls things."""

from __future__ import annotations

from wmpo.report.results import BASE, CONTROL, FINAL, IMITATED, Agreement, Recorded, RunResult
from wmpo.report.statistics import Interval, fisher_exact, wilson_interval

INTERACTIONS = {
    "demonstrations": "Scripted demonstrations",
    "rollouts": "Rollouts of the policy itself",
    "practice_resets": "First pictures to practise from",
    "evaluation": "Evaluation (nothing learns from it)",
}


PRACTICE = "practice"


def policy_name(name: str) -> str:
    """Of a policy, or of the practice that made it."""
    if name == BASE:
        return "Before: imitation only"
    if name == IMITATED:
        return "Own successes imitated, no practice yet"
    if name == CONTROL:
        return "Control: rewards shuffled"
    if policy_kind(name) == FINAL:
        return "After practice in imagination" if turn(name) == 1 else f"After round {turn(name)} of practice"
    return name.replace("_", " ").capitalize()


def short_name(name: str) -> str:
    """For legends."""
    if policy_kind(name) == FINAL:
        return "after practice" if turn(name) == 1 else f"after round {turn(name)}"
    return {BASE: "before", IMITATED: "own successes imitated", CONTROL: "control"}.get(name, policy_name(name))


def policy_kind(name: str) -> str:
    """CSS class: base, wmpo, control or other."""
    if name in (BASE, CONTROL):
        return name
    return FINAL if name.split("-")[0] in (FINAL, PRACTICE) and (name.count("-") == 0 or turn(name) > 0) else "other"


def turn(name: str) -> int:
    """The round of "wmpo-2" or "practice-2"; "wmpo" alone is round 1; 0 where the name holds no number."""
    _, dash, number = name.partition("-")
    return 1 if not dash else int(number) if number.isdigit() else 0


def nice(name: str) -> str:
    """ "practice_resets" -> "Practice resets"."""
    return name.replace("_", " ").replace("/", ": ").capitalize()


def number(value: float, digits: int = 1) -> str:
    """A number, or a dash where it wasn't measured."""
    return "–" if value != value else f"{value:.{digits}f}"


def span(interval: Interval, scale: float = 100.0) -> str:
    """14.5 to 27.7: the bounds in percent or points."""
    return f"{scale * interval.low:.1f} to {scale * interval.high:.1f}".replace("-", "−")


def percent(interval: Interval) -> str:
    """A rate: 31.2 (25.9 to 37.1)."""
    return f"{100 * interval.value:.1f} ({span(interval)})"


def points(interval: Interval) -> str:
    """+21.1 (14.5 to 27.7)."""
    return f"{signed(interval.value)} ({span(interval)})"


def signed(rate: float) -> str:
    text = f"{round(100 * rate, 1) + 0.0:+.1f}"  # adding 0 makes -0 a 0
    return text.replace("-", "−")


def headline(result: RunResult) -> str:
    """The result in a few sentences."""
    text = _headline(result)
    if result.recipe.get("name") == "smoke":
        text += " The recipe smoke shows that every stage works; it is too small to learn the task."
    return text


def _headline(result: RunResult) -> str:
    if result.recorded:
        return " ".join([recorded_headline(result.recorded, result.agreement), *warnings(result.recorded), NEXT])
    summary = result.summary()
    if BASE not in result.policies or not any(policy_kind(name) == FINAL for name in result.policies):
        return "This run has not been evaluated to its end yet."
    final = result.final
    before, after = summary.rates[BASE], summary.rates[final]
    count = len(result.policies[final].initial_states)
    if not before.value and not after.value:
        return (
            f"Neither before practice nor after it did the policy succeed in any of {count} real situations: nothing "
            "can be said about a gain, and practice needs a policy that succeeds now and then."
        )
    text = (
        f"After practising only in imagination, the policy succeeds in {100 * after.value:.1f} % of {count} real "
        f"situations that it had never met; before, it was {100 * before.value:.1f} %."
    )
    if final not in summary.gains:
        return text
    gain = summary.gains[final].difference
    sure = f"95 % interval {span(gain)}"
    if gain.low > 0:
        return f"{text} That is a gain of {100 * gain.value:.1f} points ({sure})."
    if gain.high < 0:
        return f"{text} That is a loss of {-100 * gain.value:.1f} points ({sure})."
    return f"{text} The difference of {signed(gain.value)} points may be chance ({sure})."


NEXT = (
    "What to do next: try the policy for real, record it in a folder of its own, label it, and give the same command "
    "again with that folder in one more --rollouts at its end: a round is added."
)


def recorded_headline(recorded: Recorded, found: Agreement | None) -> str:
    """What practice came to where nothing was tried for real."""
    verdicts = found and (
        f" The dreams of {found.episodes} held-out episodes ({found.successes} successes) were judged as it really was "
        f"in {100 * found.accuracy:.0f} %, F1 {number(found.f1, 2)}."
    )
    before, *_, after = (wilson_interval(sum(one.success), len(one.success)) for one in recorded.imagined.values())
    return (
        f"Nothing here was tried for real. In the dream, from the first pictures of "
        f"{len(recorded.replays_beyond)} held-out episodes, the policy succeeds in {percent(after)} % after practice, "
        f"{percent(before)} % before (95 % intervals): how often it really does, only trying it tells.{verdicts or ''}"
    )


def warnings(recorded: Recorded) -> list[str]:
    """What speaks against believing the dream."""
    found = []
    base, *_, last = (one.beyond for one in recorded.imagined.values())
    replays = recorded.replays_beyond
    if fisher_exact([[one.count(0), one.count(1)] for one in (replays, last)]) < 0.05:
        found.append(
            f"The practised policy leaves the data: {sum(last)} of its {len(last)} dreams lie beyond what was "
            f"recorded; {sum(base)} did before practice, and {sum(replays)} replays of real episodes do. There "
            "the dream guesses: a grpo.target_kl of 0.5, say, keeps it nearer; more rollouts take the data further."
        )
    if [*recorded.learned] == ["expert"]:
        found.append("There are demonstrations alone: failure was never seen, and imagined success is worth little.")
    return found
