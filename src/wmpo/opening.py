"""Opening the folder of a run: one process at a time, one recipe for its whole life."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from wmpo.config import EnvConfig, Recipe
from wmpo.data.cache import cache_folder, decoded_bytes
from wmpo.data.layout import INFO
from wmpo.data.store import EpisodeStore
from wmpo.envs import RECORDED, make_env
from wmpo.envs.ray_env import RayEnv
from wmpo.envs.unreachable import Unreachable
from wmpo.errors import UserError
from wmpo.families import PLUGS, allow, code_in, completed, recipe_from_plain
from wmpo.grpo import trained_parameters
from wmpo.io.files import file_lock, read_json, write_json
from wmpo.io.plain import differences, free, to_plain
from wmpo.own_demonstrations import suited
from wmpo.policies import build_policy
from wmpo.protocols import Env, NamesTasks
from wmpo.recipes.checks import check_machine, check_recipe
from wmpo.run import DONE, Run, check_horizon
from wmpo.training import actors, ranks
from wmpo.training.log import RunLog
from wmpo.training.parallel import use_one_thread
from wmpo.types import EnvSpec

RECIPE = "recipe.json"
LARGE = 10**9  # bytes of decoded frames that are told of before they are written
OWN_FILES = (RECIPE, "result.json", "report.html", DONE, "stages.json", "metrics.jsonl")
OWN_FOLDERS = re.compile(
    "episodes|evaluation|inputs|policies|base|wmpo-[0-9]+|imitation|control|tensorboard|wandb|model|policy|"
    "(world_model|reward_model|practice|self_imitation|dreams)[a-z0-9_-]*"
)


@contextmanager
def open_run(
    recipe: Recipe, folder: Path, quiet: bool = False, env: Env | None = None, ray: str = "", ray_actors: int = 0
) -> Iterator[Run]:
    """A new run in `folder`, or the one that is there, if it is of the same recipe; its environment is that of the
    recipe unless `env` is given.

    `ray`, the address of a Ray cluster, lets so many actors there simulate and dream, see `wmpo.training.actors`.

    Classes of yours that `recipe` names, as module:Class, are imported; those that files in `folder` name are not.
    Of several ranks the first one has the environment and the lock.
    """
    ranks.start()
    recipe = completed(trusted(recipe))
    check_recipe(recipe)
    device = prepare_process(recipe, recipe.device)
    gpus = int(device.type == "cuda")
    with (
        actors.hired(ray, ray_actors, max(1, recipe.env.workers), gpus, partial(prepare_actor, recipe, device.type)),
        ExitStack() as held,
    ):
        real: Env | None = None

        def prepare() -> tuple[EnvSpec, EpisodeStore, EpisodeStore]:
            nonlocal real
            real = held.enter_context(closing(real_env(recipe.env) if env is None else env))
            held.enter_context(locked(folder))
            check_horizon(recipe.policy.chunk, real.spec)
            check_tasks(recipe, real)
            if recipe.grpo.freeze:  # which only the policy knows, and that is made after the demonstrations
                trained_parameters(build_policy(recipe.policy, real.spec), recipe.grpo.freeze)
            if recipe.demonstrations.data and not (folder / RECIPE).exists():
                suited(Path(recipe.demonstrations.data), real.spec)
            keep_recipe(recipe, folder)  # once all is well: a folder holds one recipe for good
            store = EpisodeStore.open_or_create(folder / "episodes", real.spec)
            return real.spec, store, EpisodeStore.open_or_create(folder / "evaluation", real.spec)

        spec, store, evaluation = ranks.first(prepare)
        log = held.enter_context(RunLog(folder, quiet, recipe.curves, to_plain(recipe)))
        yield Run(recipe, folder, log, device, Unreachable(spec) if real is None else real, store, evaluation)


def real_env(config: EnvConfig) -> Env:
    """That of a recipe: in actors, where there are some; a robot stays where it is plugged in."""
    return RayEnv(config) if actors.count() and config.family != "robot" else make_env(config)


def prepare_actor(recipe: Recipe, device: str) -> None:
    """Make a process of a cluster compute what this one would, for a run of this recipe."""
    prepare_process(trusted(recipe), device)


def prepare_process(recipe: Recipe, device: str) -> torch.device:
    """The device of this process, which is now ready to compute with it."""
    check_machine(recipe)
    use_one_thread()
    return pick_device(device)


@contextmanager
def open_stage(recipe: Recipe, folder: Path, data: Path, env: Env | None = None, quiet: bool = False) -> Iterator[Run]:
    """One stage on its own: it works in `folder`, on the episode store in `data`.

    Without `env` the store must exist, and the real environment is out of reach.
    """
    ranks.start()
    recipe = completed(trusted(recipe))
    check_recipe(recipe)
    device = prepare_process(recipe, recipe.device)
    if env is not None:
        check_tasks(recipe, env)
        if owner := owner_of(data):
            raise UserError(f"{data} can't be filled: {owner} belongs to a run or a stage; choose another --data.")
    store = EpisodeStore.open_or_create(data, env.spec) if env else EpisodeStore.open(data)
    with ExitStack() as held:
        ranks.first(lambda: held.enter_context(locked(folder)))
        log = held.enter_context(RunLog(folder, quiet, recipe.curves, to_plain(recipe)))
        tell_size(log, store)
        yield Run(recipe, folder, log, device, env or Unreachable(store.spec), store, store)


def owner_of(data: Path) -> Path | None:
    """The folder of the run or stage that a store belongs to, whose results follow from it as it is."""
    places = (data / "stages.json", *(place / RECIPE for place in (data.absolute(), *data.absolute().parents)))
    return next((path.parent for path in places if path.exists()), None)


def tell_size(log: RunLog, store: EpisodeStore) -> None:
    """How much disk the decoded frames of a store will take, where it is much."""
    if (size := decoded_bytes(store)) > LARGE:
        log.info(
            f"decoded frames of {store.root}: {size / 1e9:.1f} GB in {cache_folder(store.root)}; smaller pictures or "
            "fewer a second, by `wmpo data import`, divide that"
        )


def trusted(recipe: Recipe) -> Recipe:
    """The recipe, whose code may run from now on: a person has named it, not a file, which `load_recipe` would have
    refused."""
    for kind in PLUGS:
        for name in code_in(to_plain(getattr(recipe, kind))):
            allow(name)
    return recipe


def check_tasks(recipe: Recipe, env: Env) -> None:
    """Raise UserError where `collect.task` names a task that the environment doesn't have."""
    known = tuple(env.tasks) if isinstance(env, NamesTasks) else ()
    for task in filter(None, recipe.collect.task.split("+")):
        if task not in known:
            names = ", ".join(known) or "it names none"
            raise UserError(f"collect.task names {task!r}, which is none of the environment's tasks: {names}.")


def load_recipe(folder: Path, without: Iterable[str] = ()) -> Recipe:
    """The recipe of the run in `folder`. `without`: settings, by dotted names, or parts, that the caller doesn't take
    from the file, and which therefore may name what they like there; they get their defaults."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give that of a run, such as runs/place-seed0.")
    if not (folder / RECIPE).exists():
        raise UserError(f"{folder} holds no run, since it has no {RECIPE}: give the folder that `wmpo run` made.")
    data = read_json(folder / RECIPE)
    for name in without:
        part, _, own = name.rpartition(".")
        holder = data.get(part) if part and isinstance(data, dict) else data
        if isinstance(holder, dict):
            holder.pop(own, None)
    return recipe_from_plain(data, str(folder / RECIPE))


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write recipe.json, or make sure that it says the same; a run on recorded episodes may get further rounds."""
    if not (folder / RECIPE).exists():
        write_json(folder / RECIPE, to_plain(recipe))
        return
    others = free(recipe)  # a run may go on with other values of these
    kept = load_recipe(folder, without=others)
    grows = recipe.env.family == RECORDED and kept.rounds < recipe.rounds
    for name, (was, now) in differences(to_plain(kept), to_plain(recipe)).items():
        if name not in others and not (grows and name == "rounds"):
            raise UserError(
                f"{folder} holds a run with {was}, not {now}: give the same settings to continue it, or another folder "
                "with --out."
            )
    if grows:
        (folder / DONE).unlink(missing_ok=True)
        write_json(folder / RECIPE, to_plain(recipe))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run. The lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INFO).exists():
        raise UserError(f"{folder} is an episode store: choose another folder to work in.")
    for path in (*folder.glob("*"), *folder.glob("policies/*")):
        if path.is_file() and OWN_FOLDERS.fullmatch(path.name):
            raise UserError(f"{path} is a file where a folder is due: move it away, or use another folder.")
        if path.is_dir() and path.name in OWN_FILES:
            raise UserError(f"{path} is a folder where a file is due: move it away, or use another folder.")
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(f"Another process is at work in {folder}: wait for it, or use another folder.") from None
        yield


def pick_device(name: str) -> torch.device:
    """auto: a GPU where there is one; ranks have one each. It is made repeatable, and fast, for the whole process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.world() > 1 and name.startswith("cuda"):
        gpus = torch.cuda.device_count()
        if name != "cuda" or ranks.local_rank() >= gpus:
            raise UserError(
                f"This machine has {gpus} GPUs, of which each process takes one: start no more processes than that, "
                "with --device cuda, or use --device cpu."
            )
        name = f"cuda:{ranks.local_rank()}"
        torch.cuda.set_device(name)
    try:
        device = torch.device(name)
        if device.type == "cpu" and device.index:
            raise RuntimeError  # there is one, whatever its number
        torch.zeros(1, device=device).item()  # meta has devices, but no numbers
    except (RuntimeError, AssertionError):
        raise UserError(f"There is no device {name!r} here: use auto or cpu, and see `wmpo doctor`.") from None
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # else gradients of convolutions differ from run to run
        torch.set_float32_matmul_precision("high")  # TF32, in which convolutions are computed anyway
    return device
