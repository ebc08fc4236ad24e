"""The sections of a report, each a function from numbers to HTML; empty text where nothing was measured."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from html import escape

from wmpo.report.charts import Bar, Line, cost_bars, line_plot, percent, rate_bars, with_legend
from wmpo.report.media import Media, Pair
from wmpo.report.results import RunResult, times_of
from wmpo.report.statistics import wilson_interval
from wmpo.report.tables import Table, imagined_table, success_table
from wmpo.report.video import encode_mp4, side_by_side
from wmpo.report.words import INTERACTIONS, nice, number, policy_kind, policy_name, short_name, signed
from wmpo.training.log import clock


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return Table(head, rows).html()


def tiles(result: RunResult) -> str:
    """The handful of numbers that matter most."""
    summary = result.summary()
    items = []
    gain = summary.gains.get(result.final) if any(policy_kind(name) == "wmpo" for name in result.policies) else None
    if gain is not None:
        items.append((signed(gain.difference.value), "points of real success gained by practising in imagination"))
    if "rollouts" in result.interactions:
        items.append((str(result.interactions["rollouts"].episodes), "real episodes of the policy, to learn from"))
    if result.stages:
        items.append((clock(sum(stage.seconds for stage in result.stages.values())), "from nothing to this page"))
        peak = max(stage.peak_memory_mb for stage in result.stages.values())
        items.append((f"{peak / 1024:.1f} GB", f"of memory at most, on {result.machine.cores} processor cores"))
    inner = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in items)
    return f'<div class="tiles">{inner}</div>' if items else ""


def success(result: RunResult) -> str:
    if not result.policies:
        return ""
    summary = result.summary()
    bars = [
        Bar(policy_name(name), rate.value, rate.low, rate.high, policy_kind(name))
        for name, rate in summary.rates.items()
    ]
    return section(
        "Real success",
        paragraph(
            "Every policy starts from the same real situations, none of which was used for learning. "
            "Whiskers are 95 % intervals. The gain compares with the policy before, situation by situation: how many "
            "are newly solved (won), how many are solved no more (lost). Steps are the median length of successes."
        ),
        rate_bars(bars),
        success_table(result).html(),
        paragraph(
            "The control practises just as long, but with successes and failures in random order. "
            "If it does no better than the policy that has only imitated its own successes, what practice gained "
            "came from what was imagined, not from more training.",
            "soft",
        )
        if any(policy_kind(name) == "control" for name in result.policies)
        else "",
    )


def recorded(result: RunResult) -> str:
    """Of a run on recorded episodes alone."""
    if result.recorded is None:
        return ""
    names = {"expert": "demonstrations"}
    rows = [
        [names.get(source, source.replace("round-", "rollouts, round ")), *(
            f"{counts[source][0]} ({counts[source][1]})" if source in counts else "–"
            for counts in (result.recorded.learned, result.recorded.held_out)
        )]
        for source in result.recorded.learned
    ]  # fmt: skip
    beyond = result.recorded.replays_beyond
    return section(
        "In the dream: imagined success, not real",
        paragraph(
            f"From the first pictures of {len(beyond)} episodes that nothing learned from, the same for all policies. "
            "The KL divergence, in nats per chunk, tells how far practice has taken the policy. A dream is beyond the "
            "data where another of the same actions differs from it more, or what is seen and done is further from all "
            f"that was recorded, than in 95 % of the replays of real episodes; of those {sum(beyond)} of {len(beyond)} "
            "are beyond either limit."
        ),
        imagined_table(result).html(),
        "<h3>The episodes</h3>",
        table(("recorded", "to learn from (labelled successes)", "held out"), rows),
    )


def pace(result: RunResult) -> str:
    """Success against the number of steps: whether the policy has become more able, or only faster."""
    timed = {name: policy for name, policy in result.policies.items() if policy.horizon}
    if not timed:
        return ""
    times = times_of(timed.values())
    rows = [
        [policy_name(name), *(percent(sum(p.within(factor * p.horizon)) / len(p.success)) for factor in times)]
        for name, p in timed.items()
    ]
    lines = [Line(short_name(name), policy.curve(), policy_kind(name)) for name, policy in timed.items()]
    horizon = next(iter(timed.values())).horizon
    return section(
        "Success against time",
        paragraph(
            f"Success counts within {horizon} actions, the horizon. Here episodes may go on for longer: a gain that "
            "shrinks with more time was haste, one that stays is skill."
        ),
        table(("policy", *(f"within {factor * horizon:g} actions" for factor in times)), rows),
        with_legend(line_plot(lines, x_label="actions", y_label="success"), lines),
    )


def events(result: RunResult) -> str:
    """What happened in the episodes, as far as the environment counts it."""
    counted = {name: policy for name, policy in result.policies.items() if policy.events}
    if not counted:
        return ""
    kinds = list(dict.fromkeys(kind for policy in counted.values() for kind in policy.events))
    rows = []
    for name, policy in counted.items():
        means = (policy.events.get(kind, [0]) for kind in kinds)
        again = policy.recoveries()
        share = f"{percent(sum(again) / len(again))} of {len(again)}" if again else "–"
        rows.append([policy_name(name), *(number(sum(each) / len(each), 2) for each in means), share])
    return section(
        "What practice changed",
        paragraph(
            "Events per episode, as the environment counts them; and of the episodes whose first attempt failed or was "
            "disturbed, how many succeed within the horizon."
        ),
        table(("policy", *map(nice, kinds), "recovered"), rows),
    )


def learning(result: RunResult) -> str:
    lines, ends = [], {}
    for name, curves in result.curves.items():
        kind = policy_kind(name)
        if "success" in curves and kind != "other":
            label = short_name(name).replace("after", "during")
            lines.append(Line(f"{label}, imagined", curves["success"], kind, dashed=True))
            ends[short_name(name)] = curves["success"][-1][0]
        if real := curves.get("real_success"):
            lines.append(Line(f"{short_name(name)}, real", real, kind))
    if not lines:
        return ""
    for name, policy in result.policies.items():
        if (kind := policy_kind(name)) != "other":
            rate, at = policy.rate, ends.get(short_name(name), 0)
            whisker = [(rate.low, rate.high)]
            lines.append(Line(f"{short_name(name)}, real", [(at, rate.value)], kind, whiskers=whisker))
    kept = ""
    informative = [
        value
        for name, curves in result.curves.items()
        if policy_kind(name) == "wmpo"
        for _, value in curves.get("groups_kept", [])
    ]
    if informative:
        mean = sum(informative) / len(informative)
        kept = paragraph(f"On average {mean:.1f} groups of an iteration held both successes and failures.", "soft")
    dots = (
        " Dots: success in reality, where it takes its most likely action. If the line rises and the dots don't, the "
        "policy has learned to fool its imagination."
    )
    return section(
        "Learning in imagination",
        paragraph(
            "Dashed: share of imagined episodes that the reward model counts as successes; the policy tries things out "
            f"there.{'' if result.recorded else dots}"
        ),
        with_legend(line_plot(lines, x_label="iteration of practice", y_label="success"), lines),
        kept,
    )


def video(pair: Pair, fps: int) -> str:
    frames = side_by_side(pair.left.frames, pair.right.frames, success_at=(pair.left.success_at, pair.right.success_at))
    data = base64.b64encode(encode_mp4(frames, fps)).decode()
    heads = f'<div class="heads"><span>{escape(pair.left_label)}</span><span>{escape(pair.right_label)}</span></div>'
    caption = f"<figcaption>{escape(pair.caption)}</figcaption>" if pair.caption else ""
    source = f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{data}"></video>'
    return f"<figure>{heads}{source}{caption}</figure>"


def videos(pairs: Sequence[Pair], fps: int) -> str:
    return f'<div class="videos">{"".join(video(pair, fps) for pair in pairs)}</div>' if pairs else ""


def dreams(media: Media) -> str:
    if not media.dreams:
        return ""
    return section(
        "The same actions, real and imagined",
        paragraph(
            "Left what the cameras saw, right what the world model imagines from the first picture and the actions "
            "alone. These episodes were kept out of training. The bar turns green with success: as it happened "
            "(left), as the reward model judges the imagined video (right)."
        ),
        videos(media.dreams, media.fps),
    )


def behaviour(media: Media) -> str:
    if not media.policies:
        return ""
    return section(
        "Before and after, from the same situation",
        paragraph("Real episodes of both policies; the bar turns green once the task is done."),
        videos(media.policies, media.fps),
    )


def reward_model(result: RunResult, media: Media) -> str:
    quality = result.reward
    text, level = "", None
    if quality is not None:
        level = (quality.threshold, "threshold")
        text = paragraph(
            f"It watches a few frames at a time and says how likely they show success. On {quality.episodes} real "
            f"episodes kept out of training ({quality.successes} successes) it is right in "
            f"{percent(quality.accuracy)}: "
            f"{percent(quality.precision)} of the successes it announces are real (precision), and it finds "
            f"{percent(quality.recall)} of the real ones (recall); F1 {number(quality.f1, 2)}, AUROC "
            f"{number(quality.auroc, 2)}, calibration error {number(quality.calibration_error, 2)}."
        )
    charts = []
    for curve in media.scores:
        end = len(curve.scores) - 1
        lines = [Line("score", [(t, s) for t, s in enumerate(curve.scores) if math.isfinite(s)], "wmpo")]
        if not lines[0].points:
            continue
        if curve.success_at is not None:
            lines.append(Line("really accomplished", [(curve.success_at, 0.0), (curve.success_at, 1.0)], "other"))
        plot = line_plot(lines, x_label="frame", y_label="score", height=230, width=380, level=level, x_end=end)
        charts.append(f"<figure>{with_legend(plot, lines)}<figcaption>{escape(curve.caption)}</figcaption></figure>")
    grid = f'<div class="videos">{"".join(charts)}</div>' if charts else ""
    return section("The reward model", text, grid)


def fidelity(result: RunResult) -> str:
    if not result.fidelity:
        return ""
    rows = []
    for at in result.fidelity:
        rows.append(
            [
                at.camera,
                f"{at.frames}",
                f"{number(at.psnr)} ({number(at.still_psnr)})",
                f"{number(at.ssim, 3)} ({number(at.still_ssim, 3)})",
                f"{number(at.frechet, 2)} ({number(at.still_frechet, 2)})",
                number(at.sharpness, 2),
            ]
        )
    return section(
        "How faithful the imagined video is",
        paragraph(
            f"Imagined against real pictures of the same actions, over {result.fidelity[0].episodes} real episodes "
            "kept out of training. In brackets: showing the first picture all along, which any useful model must beat."
        ),
        table(
            (
                "camera",
                "frames imagined",
                "PSNR, dB (higher is better)",
                "SSIM (higher)",
                "Fréchet distance (lower)",
                "sharpness (1: as real)",
            ),
            rows,
        ),
        state_fidelity(result),
    )


def state_fidelity(result: RunResult) -> str:
    if not result.state_fidelity:
        return ""
    dimensions = range(len(result.state_fidelity[0].error))
    rows = []
    for at in result.state_fidelity:
        each = zip(at.error, at.still_error, strict=True)
        rows.append(
            [
                f"{at.frames}",
                f"{number(at.rms, 2)} ({number(at.still_rms, 2)})",
                *(f"{number(error, 3)} ({number(still, 3)})" for error, still in each),
            ]
        )
    return paragraph(
        "The imagined state of the robot against the real one: the error of all dimensions together, in standard "
        "deviations of the real state, then the mean absolute error of each in its own unit. In brackets: assuming "
        "that the state stays as it was at first."
    ) + table(("frames imagined", "error (lower is better)", *(f"state {i}" for i in dimensions)), rows)


def agreement(result: RunResult) -> str:
    parts = []
    if (found := result.agreement) is not None:
        low, high = wilson_interval(round(found.accuracy * found.episodes), found.episodes)[1:]
        parts.append(
            paragraph(
                f"The actions of {found.episodes} real episodes ({found.successes} successes) were imagined again from "
                f"their first picture. The verdict on the imagined video was that of reality in "
                f"{percent(found.accuracy)} of them (95 % interval {100 * low:.0f} to {100 * high:.0f} %), with "
                f"F1 {number(found.f1, 2)}, precision {number(found.precision, 2)}, recall {number(found.recall, 2)}."
            )
        )
    if result.gaps:
        rows = [
            [
                policy_name(name),
                f"{100 * gap.imagined:.1f} % of {gap.imagined_episodes}",
                f"{100 * gap.real:.1f} % of {gap.real_episodes}",
                f"{signed(gap.excess)} points",
            ]
            for name, gap in result.gaps.items()
        ]
        parts.append(table(("policy", "success when imagined", "real success", "imagined − real"), rows))
    return section("Does imagined success mean real success?", *parts)


def cost(result: RunResult) -> str:
    parts = []
    if result.interactions:
        rows = [
            [INTERACTIONS.get(name, nice(name)), f"{use.episodes:,}", f"{use.steps:,}"]
            for name, use in result.interactions.items()
        ]
        parts += ["<h3>The real environment</h3>", table(("purpose", "episodes", "actions"), rows)]
    if result.stages:
        stages = result.stages.items()
        parts.append("<h3>Time per stage</h3>")
        parts.append(cost_bars([(nice(name), stage.seconds, clock(stage.seconds)) for name, stage in stages]))
        parts.append("<h3>Peak memory per stage</h3>")
        peaks = [(nice(name), s.peak_memory_mb, f"{s.peak_memory_mb / 1024:.2f} GB") for name, s in stages]
        parts.append(cost_bars(peaks))
        if any(stage.peak_gpu_memory_mb for _, stage in stages):
            parts.append("<h3>Peak GPU memory per stage</h3>")
            gpu = [(nice(n), s.peak_gpu_memory_mb, f"{s.peak_gpu_memory_mb / 1024:.2f} GB") for n, s in stages]
            parts.append(cost_bars(gpu))
    return section("What it took", *parts)


def settings(result: RunResult) -> str:
    machine = result.machine
    processor = f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB"
    rows = [["processor", processor], ["graphics", machine.gpu or "none"], ["system", machine.system]]
    rows += [["code", result.commit], *([name, text] for name, text in result.versions.items())]
    recipe = escape(json.dumps(result.recipe, indent=1, ensure_ascii=False))
    return section(
        "Machine and settings",
        f"<details><summary>Machine and versions</summary>{table(('what', 'which'), rows)}</details>",
        f"<details><summary>All settings</summary><pre>{recipe}</pre></details>",
    )
