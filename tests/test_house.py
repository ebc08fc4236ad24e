"""Rules of the house: which way imports run, no dead setting, documentation that tells the truth."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docs import generate
from experiments import pages
from experiments.grids import EXPERIMENTS
from wmpo.cli import COMMANDS
from wmpo.errors import UserError
from wmpo.recipes import ABOUT, RECIPES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "wmpo"

ROWS: list[tuple[str, ...]] = [  # each may import the rows after it, as in ARCHITECTURE.md
    ("cli",),
    ("web", "serving"),
    ("opening", "recordings"),
    ("algorithm", "recipes"),
    ("success", "first_frames", "labelling", "own_demonstrations", "rounds"),
    ("report",),
    ("evaluate", "grpo"),
    ("rollout", "imagination", "contracts", "run"),
    ("envs", "policies", "rewards", "world_models"),
    ("training", "families", "importing"),
    ("losses", "nn"),
    ("protocols",),
    ("data",),
    ("config",),
    ("types", "io"),
    ("errors", "batches"),
]
HEIGHT = {name: len(ROWS) - row for row, names in enumerate(ROWS) for name in names}
LONGEST = 400  # lines of a source file


def modules() -> Iterator[Path]:
    return iter(sorted(SOURCE.rglob("*.py")))


def part(name: str) -> str:
    """wmpo.data.store -> data"""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> Iterator[str]:
    """The wmpo modules that a file imports, those inside functions included, those for types alone left out."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wmpo":
            # "from wmpo.report import measure" names the module among the imported names
            yield from ([f"wmpo.{name.name}" for name in node.names] if node.module == "wmpo" else [node.module])
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "wmpo")


def test_imports_run_one_way() -> None:
    wrong = []
    for path in modules():
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in HEIGHT, f"{own} has no row: give it one here and in ARCHITECTURE.md"
        file = str(path.relative_to(SOURCE))
        for name in imports(path):
            if part(name) != own and HEIGHT[part(name)] >= HEIGHT[own]:
                wrong.append(f"{file} imports {name}")
    assert not wrong


def test_architecture_tells_the_same_order() -> None:
    blocks = (ROOT / "ARCHITECTURE.md").read_text().split("```")
    order = next(block for block in blocks if block.strip().startswith("cli\n"))
    assert [tuple(line.split(", ")) for line in order.strip().splitlines()] == ROWS


def test_every_setting_is_used() -> None:
    used = set()
    for path in modules():
        if path.name not in ("config.py", "settings.py") and "recipes" not in path.parts:
            used |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert sorted({part for name in generate.settings() for part in name.split(".")} - used) == []


def test_every_setting_is_explained() -> None:
    assert [name for name, (_, _, text) in generate.settings().items() if not text and name != "name"] == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def tracked() -> list[Path]:
    """Files of the repository; all text files where this is no checkout."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / line for line in listed.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        return [path for kind in ("*.py", "*.md", "*.toml", "*.sh") for path in ROOT.rglob(kind)]


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")
    found = []
    for path in tracked():
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".sh", ".json", ".jsonl", ".txt", ""}:
            text = path.read_text(errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("command", "made"),
    [("docs.generate", generate.pages), ("experiments.pages", pages.pages)],
    ids=["docs", "results"],
)
def test_generated_pages_are_up_to_date(command: str, made: Callable[[], dict[Path, str]]) -> None:
    stale = [page.name for page, text in made().items() if page.read_text(encoding="utf-8") != text]
    assert stale == [], f"run: python -m {command}"


def test_a_page_without_its_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in (
        f"a {generate.BEGIN} b",
        f"a {generate.END} b",
        f"{generate.END} {generate.BEGIN}",
        generate.BEGIN * 2,
    ):
        page.write_text(text)
        with pytest.raises(UserError, match="restore them by hand"):
            generate.with_generated(page, "new")
    page.write_text(f"a {generate.BEGIN} old {generate.END} b")
    assert generate.with_generated(page, "new") == f"a {generate.BEGIN}\nnew\n{generate.END} b"


def test_published_tables_are_not_replaced_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for result in pages.RESULTS.glob("*.jsonl"):
        (tmp_path / result.name).symlink_to(result)
    (tmp_path / "students.jsonl").unlink()
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    with pytest.raises(UserError, match=r"students\.jsonl holds no results"):
        pages.pages()


def documents() -> list[Path]:
    pages = [page for folder in ("docs", "experiments/docs") for page in sorted((ROOT / folder).glob("*.md"))]
    return [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + pages


@pytest.mark.parametrize("page", documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", documents(), ids=lambda path: path.name)
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|sh|md|toml))`", page.read_text()):
        places = (ROOT / name, SOURCE / name, page.parent / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", documents(), ids=lambda path: path.name)
def test_commands_exist(page: Path) -> None:
    text = re.sub(r"^lerobot-(?:.*\\\n)*.*", "", page.read_text(), flags=re.MULTILINE)  # another's options
    for command, argument in re.findall(r"(?:`|\./|^)wmpo(?:\.sh)? ([a-z-]+)(?: ([\w./-]+))?", text, re.MULTILINE):
        assert command in COMMANDS or f"{command} {argument}" in COMMANDS, f"wmpo {command} {argument}"
        if command == "run" and argument and f"{command} {argument}" not in COMMANDS:
            assert argument in (*RECIPES, "RECIPE"), argument
    own = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))  # settings of the example on the page
    for option in re.findall(r" --([a-z_-]+\.[a-z_.-]+)", text):
        option = option.replace("-", "_")
        if option.rpartition(".")[2] in own:
            continue
        assert any(name == option or name.startswith(f"{option}.") for name in generate.settings()), option
    for name in re.findall(r"python -m experiments ([\w-]+)", text):
        assert name in (*EXPERIMENTS, "NAME", "summary"), name
    for script in re.findall(r"\./([\w-]+\.sh)", text):
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_recipes_are_described_and_named_after_themselves() -> None:
    assert ABOUT.keys() == RECIPES.keys()
    assert [recipe.name for recipe in RECIPES.values()] == list(RECIPES)


def test_constraints_name_every_requirement_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    required = re.findall(r'"([\w-]+)[><=]', (ROOT / "pyproject.toml").read_text())
    assert {name.lower() for name in required} - pinned <= {"setuptools"}
    assert not pinned & {"torchvision", "timm", "wmpo"}
